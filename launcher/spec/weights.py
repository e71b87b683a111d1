"""Reads the shapes of a model's weights from the headers of its safetensors files: no weight is loaded."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

from launcher.contract.adapter import read_adapter_config
from launcher.contract.spec import Spec

from .parents import get_parent

MAX_HEADER = 100_000_000
"""Bytes; what the format allows."""

Shapes = dict[str, tuple[int, ...]]


def read_shapes(spec: Spec, earlier: Mapping[str, Spec]) -> Shapes | None:
    """The weights of the base that ``spec`` trains, through the stages of ``earlier`` and the adapters that it comes
    from; None where they are not on this machine (a hub id), or are no safetensors."""
    while parent := get_parent(spec, earlier):
        spec = parent
    if spec.model is None:
        return None
    folder = Path(spec.model.base)
    try:
        config = read_adapter_config(folder)
        if config is not None:
            base = Path(config.get("base_model_name_or_path") or "")
            folder = folder / base if (folder / base).is_dir() else base
        files = sorted(folder.glob("*.safetensors"))
        shapes: Shapes = {}
        for file in files:
            shapes |= _read_header(file)
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None  # the checks of the model say what is wrong with it
    return shapes or None


def _read_header(file: Path) -> Shapes:
    """Of one file: eight bytes of length, little endian, then JSON (the format of safetensors 0.4)."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > MAX_HEADER:
            raise ValueError(f"{file}: a header of {length} bytes")
        header = json.loads(stream.read(length))
    return {name: tuple(map(int, entry["shape"])) for name, entry in header.items() if name != "__metadata__"}
