"""Lets FSDP2 and DeepSpeed run on CPU ranks over gloo, where accelerate would train as plain DDP.

Loaded only where the cluster profile says ``accelerator: cpu`` and the strategy is not DDP.
"""

import os
from importlib.metadata import version
from typing import Any

from .errors import JobError

TESTED = {"fsdp": {"accelerate": "1.15"}, "zero": {"accelerate": "1.15", "deepspeed": "0.19"}}
"""Major and minor version of what :func:`enable` reaches into."""


def enable(strategy: str, ranks_per_node: int) -> None:
    """Make accelerate take gloo for a GPU's backend. Call it before accelerate's state exists.

    accelerate 1.15 looks at FSDP and DeepSpeed only where its state is of a GPU's kind (state.py,
    ``AcceleratorState.__init__``); with ``ACCELERATE_USE_CPU`` it is ``MULTI_CPU`` and both are dropped without a
    word. That path stays as it is: it is DDP's, and :mod:`jobs.proof` stops whoever comes to it by mistake. The
    device is ``ACCELERATE_TORCH_DEVICE``, which the rendered environment sets.

    Raises:
        JobError: a package has a version that this was not tested with.
    """
    for package, tested in TESTED["fsdp" if strategy == "fsdp" else "zero"].items():
        found = version(package)
        if not found.startswith(f"{tested}."):
            raise JobError(
                f"parallel.strategy: {strategy} on CPU ranks was tested with {package} {tested}, and {found} is "
                f"installed; install {package}=={tested}.*, or use parallel.strategy=ddp"
            )
    # DeepSpeed picks its accelerator on import, a GPU where it sees one.
    os.environ["DS_ACCELERATOR"] = "cpu"
    # It counts the accelerators of this node for each bucket of gradients, and without this variable it does so by
    # starting numactl (cpu_accelerator.py, device_count).
    os.environ["LOCAL_SIZE"] = str(ranks_per_node)

    if strategy != "fsdp":
        import deepspeed.ops

        # An all-reduce for inference over shared memory, which it would compile as the ranks meet (comm/torch.py,
        # build_shm_op): 40 s and a compiler on every node, for nothing that trains, and a build that was killed leaves
        # a lock that every later start waits for.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    else:
        from torch.distributed.fsdp import CPUOffloadPolicy

        # accelerate takes the default for parallel.offload=all, and there is no device to pin host memory for.
        CPUOffloadPolicy.__init__.__defaults__ = (False,)

    from accelerate.state import DistributedType, PartialState

    original = PartialState._prepare_backend
    if getattr(original, "is_for_cpu", False):
        return

    def prepare_backend(self: Any, cpu: bool = False, *args: Any, **kwargs: Any) -> Any:
        return original(self, cpu, *args, **kwargs) if cpu else ("gloo", DistributedType.MULTI_GPU)

    prepare_backend.is_for_cpu = True  # type: ignore[attr-defined]
    PartialState._prepare_backend = prepare_backend
