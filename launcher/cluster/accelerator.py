"""Finds out what this machine's ranks can run on, without importing torch."""

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

_DEVICE = re.compile(r"nvidia[0-9]+")
_LISTED = re.compile(r"^GPU [0-9]+:", re.MULTILINE)


def detect_accelerator(
    devices: Path = Path("/dev"), environ: Mapping[str, str] | None = None
) -> tuple[Literal["cuda", "cpu"], int]:
    """What there is and how many ranks it carries: GPUs that this process may use, else one rank on the CPU.

    Device files are counted because it takes no time; ``nvidia-smi`` is asked where there are none, as under WSL.
    CUDA_VISIBLE_DEVICES narrows the count: CUDA reads it from the left and stops at the first entry that names
    nothing (https://docs.nvidia.com/cuda/cuda-c-programming-guide/, environment variables).
    """
    environ = os.environ if environ is None else environ
    count = sum(1 for path in devices.glob("nvidia*") if _DEVICE.fullmatch(path.name)) or _count_listed()
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        count = min(count, _count_visible(visible, count))
    return ("cuda", count) if count else ("cpu", 1)


def _count_visible(visible: str, count: int) -> int:
    named = 0
    for entry in visible.split(","):
        entry = entry.strip()
        if not entry.startswith(("GPU-", "MIG-")) and not (entry.isdecimal() and int(entry) < count):
            break
        named += 1
    return named


def _count_listed() -> int:
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return len(_LISTED.findall(answer.stdout)) if answer.returncode == 0 else 0
