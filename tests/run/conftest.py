"""A tiny experiment that starts in seconds, and cluster profiles that inject faults."""

from pathlib import Path

import pytest

from tests.conftest import ROOT, Tuneyard

ROWS = ROOT / "examples" / "data" / "triage.jsonl"

SPEC = f"""\
name: tiny
stage: sft
model: {{base: builtin:tiny, quantization: none, dtype: float32}}
data: {{train: {ROWS}, format: messages, max_length: 192, eval: 8}}
train: {{max_steps: 4, micro_batch: 2, global_batch: 8, save_every_steps: 2, eval_every_steps: 2}}
resources: {{nodes: 2, gpus_per_node: 2, time: 10m}}
"""


@pytest.fixture
def spec(tuneyard: Tuneyard) -> Path:
    file = tuneyard.folder / "tiny.yaml"
    file.write_text(SPEC.replace("eval: 8", "eval: 0.02"))
    return file


def write_profile(folder: Path, *, scheduler: str, fault: str | None = None, more: str = "") -> Path:
    """A profile like the shipped one, whose job may carry a fault."""
    lines = {
        "slurm": [
            "scheduler: slurm",
            "accelerator: cpu",
            "gpus_per_node: 2",
            "cpus_per_node: 2",
            "partition: main",
            "poll_seconds: 1",
            'slurm_conf: "${env:TUNEYARD_DEVCLUSTER_DIR:-/var/lib/tuneyard-devcluster}/slurm.conf"',
        ],
        "local": ["scheduler: local", "accelerator: cpu", "internet: true", "poll_seconds: 1"],
    }[scheduler]
    if fault:
        lines += [
            "setup:",
            f"  - export PYTHONPATH={ROOT / 'tests' / 'faults'}:$PYTHONPATH",
            f"  - export TUNEYARD_FAULT='{fault}'",
        ]
    file = folder / "profile.yaml"
    file.write_text("\n".join([*lines, more]) + "\n")
    return file
