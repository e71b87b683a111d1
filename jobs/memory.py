"""Measures what this rank holds: the peak so far, and the bytes of live tensors."""

import gc
import resource
import sys
import warnings

GIB = 2**30


def measure_peak_gib() -> float:
    """Peak of this process so far: CUDA's allocator, or the resident set on a machine without CUDA."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    # Linux reports KiB (getrusage(2)), macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / GIB


def count_live_bytes() -> dict[str, int]:
    """Bytes of all tensor storages that live now, by kind of device; tensors that share a storage count once.

    The CPU's allocator keeps no statistics (torch 2.13), so the tensors themselves are asked. What only C++ holds,
    such as activations saved for a backward pass, is not seen: call it between steps.
    """
    import torch

    storages: dict[tuple[str, int], int] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # isinstance looks into lazy modules, which warn
        for item in gc.get_objects():
            # By type, not isinstance, which asks proxies for their class.
            if not issubclass(type(item), torch.Tensor) or item.layout != torch.strided:
                continue
            local = getattr(item, "_local_tensor", item)  # of a DTensor, the part of this rank
            storage = local.untyped_storage()
            storages[local.device.type, storage.data_ptr()] = storage.nbytes()
    totals: dict[str, int] = {}
    for (device, pointer), size in storages.items():
        if pointer:
            totals[device] = totals.get(device, 0) + size
    return totals
