"""Each strategy on two real Slurm nodes: in effect, and continued from a checkpoint as if nothing had happened."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.tiny import write_tiny
from launcher.contract.attempt import read_attempts
from launcher.contract.ledger import Row, events, read_rows
from launcher.contract.manifest import find_problems
from launcher.contract.paths import RunPaths
from tests.conftest import Tuneyard
from tests.jobs.reload import reload

from .conftest import ROWS, write_profile

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("devcluster")]

SPEC = """\
name: four
model: {base: builtin:tiny, adapter: {kind: lora, dropout: 0.3}}
data: {max_length: 192, eval: 0.02}
train: {max_steps: 20, micro_batch: 2, global_batch: 8, save_every_steps: 10, eval_every_steps: 10}
resources: {nodes: 2, gpus_per_node: 2, time: 10m}
tracking: {wandb: disabled}
"""
PAIRS = ROWS.with_name("triage_pairs.jsonl")
DATA = {
    "sft": {"train": str(ROWS), "format": "messages"},
    "reward": {"train": str(PAIRS), "format": "preference"},
    "dpo": {"train": str(PAIRS), "format": "preference"},
    "ppo": {"train": str(PAIRS), "format": "prompt"},
}
# Six steps per rollout: the checkpoint of step 10 stands in the middle of the second one.
PPO = ["ppo.reward=builtin:length", "ppo.max_new_tokens=16", "ppo.rollout_batch=16", "ppo.epochs=3"]
SHARDS_WEIGHTS = ("fsdp", "zero3")


def _steps(rows: list[Row]) -> dict[int, tuple[float, float, int]]:
    return {row["step"]: (row["loss"], row["grad_norm"], row["tokens"]) for row in rows if "loss" in row}


def _cells(stage: str, *quantizations: str) -> list[Any]:
    return [pytest.param(stage, name, marks=pytest.mark.cells) for name in quantizations]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2", "zero3"])
@pytest.mark.parametrize(
    ("stage", "quantization"),
    [("sft", "nf4"), *_cells("reward", "nf4"), *_cells("dpo", "nf4"), *_cells("ppo", "nf4", "none")],
)
def test_a_run_goes_on_from_its_checkpoint_bit_by_bit(
    tuneyard: Tuneyard, stage: str, quantization: str, strategy: str
) -> None:
    """Base in NF4 or bfloat16, dropout. A rank dies when all 20 steps are done and only those up to 10 are saved."""
    spec = tuneyard.folder / "four.yaml"
    spec.write_text(SPEC)
    fault = write_profile(tuneyard.folder, scheduler="slurm", fault="3 evaluate 20 kill")
    data = [f"data.{key}={value}" for key, value in DATA[stage].items()]
    data += [f"model.quantization={quantization}", *(PPO if stage == "ppo" else [])]
    data += [f"parallel.strategy={strategy}", "recovery.max_attempts=1"]
    asked = [str(spec), f"stage={stage}", *data, "--cluster", str(fault)]
    done = tuneyard("submit", *asked, "--wait", "--json")
    assert done.returncode == 1, done.stderr
    assert "rank 3 on" in done.stderr
    paths = RunPaths(Path(json.loads(done.stdout.splitlines()[-1])["run_dir"]))

    healthy = write_profile(tuneyard.folder, scheduler="slurm")
    resumed = tuneyard("resume", "last", "--cluster", str(healthy), "--wait")
    assert resumed.returncode == 0, resumed.stderr
    first, second = (read_rows(paths.ledger(attempt)) for attempt in (1, 2))
    assert read_attempts(paths)[1].resumed_from == "checkpoints/a01/step-000010"
    straight, continued = _steps(first), _steps(second)
    assert list(straight) == list(range(1, 21))
    assert continued == {step: straight[step] for step in range(11, 21)}

    for rows in (first, second):
        (check,) = events(rows, "strategy_check")
        assert (check["asked"], check["got"], check["world_size"]) == (strategy, strategy, 4)
        assert check["quantized_layers"] == (14 if quantization == "nf4" else 0)
        # Under ZeRO-3 the small weights stay whole.
        share = check["params_local_max"] / check["params_total"]
        assert 0.25 <= share < 0.31 if strategy in SHARDS_WEIGHTS else share == 1
        # FSDP2 deals rows, so the one row of a head of scores or values, 64 elements, is rank 0's.
        dealt = 3 * 64 if strategy == "fsdp" and stage in ("reward", "ppo") else 0
        assert check["optimizer_local"] * (1 if strategy == "ddp" else 4) == check["trainable_params"] + dealt
        (memory,) = events(rows, "memory")
        assert memory["live_bytes"]["cpu"]["min"] >= check["bytes_local"]
    assert find_problems(paths.checkpoint(2, 20)) == []
    assert tuneyard.status()["state"] == "completed"

    base = tuneyard.folder / "tiny"
    base.mkdir()
    write_tiny(base)
    (plain,) = reload(base, paths.final, quantization=quantization)
    assert plain["same"] == plain["live"]
    assert plain["without"] != plain["live"]
