"""Reads checkpoints as data: whatever stands in a file that claims to be weights or states, none of it is run."""

import pickle
from types import SimpleNamespace
from typing import IO, Any

# By module: what the states of the tested versions are made of, beside tensors and plain values.
DEEPSPEED = {
    "deepspeed.runtime.fp16.loss_scaler": ("LossScaler", "DynamicLossScaler"),
    "deepspeed.runtime.zero.config": ("ZeroStageEnum",),
    "deepspeed.utils.tensor_fragment": ("fragment_address",),
}
METADATA = {
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size",),
    "pathlib": ("Path", "PosixPath"),
}


def read_as_data(strategy: str) -> None:
    """From here on torch.load gives tensors and plain values in this process, whoever calls it and however.

    That is what it does by default, and transformers 5.23, peft 0.21 and accelerate 1.15 leave it so. DeepSpeed 0.19
    (torch_checkpoint_engine.py) and torch.distributed.checkpoint 2.13 (default_planner.py) ask it to run pickles; the
    latter unpickles its ``.metadata`` as well (filesystem.py).
    """
    import torch

    load = torch.load

    def load_data(*args: Any, **options: Any) -> Any:
        options.pop("pickle_module", None)
        return load(*args, **{**options, "weights_only": True})

    torch.load = load_data
    if strategy in ("zero2", "zero3"):
        import importlib

        found = [
            getattr(importlib.import_module(module), name) for module, names in DEEPSPEED.items() for name in names
        ]
        torch.serialization.add_safe_globals(found)
    if strategy == "fsdp":
        from torch.distributed.checkpoint import filesystem

        functions = SimpleNamespace(load=load_metadata, dump=pickle.dump, dumps=pickle.dumps)
        filesystem.pickle = functions  # type: ignore[attr-defined, assignment]


def load_metadata(file: IO[bytes]) -> Any:
    """What torch.distributed.checkpoint pickled to ``file``.

    Raises:
        pickle.UnpicklingError: something else is in it.
    """
    return _MetadataUnpickler(file).load()


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        import torch

        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and name not in METADATA.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint's metadata; nothing was run")
        return super().find_class(module, name)
