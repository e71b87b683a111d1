"""The rendered and the shipped files, launched by hand on a script that is not ours: what they ask for is in effect."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher.contract.files import write_text
from launcher.contract.paths import RunPaths
from launcher.contract.spec import Model, Parallel, Strategy
from launcher.render import render
from launcher.spec.deepspeed import read_base
from tests.conftest import ROOT
from tests.plans import LOCAL, plan_on
from tests.render.plain_trainer import MICRO_BATCH

pytestmark = pytest.mark.ranks

SCRIPT = str(Path(__file__).with_name("plain_trainer.py"))
# On CPU: the variable that the head of the file asks for.
CPU = {"ddp": {"ACCELERATE_USE_CPU": "true"}}
SHARDED_CPU = {"ACCELERATE_TORCH_DEVICE": "cpu"}
IN_EFFECT: dict[Strategy, tuple[str, str, int | None]] = {
    "ddp": ("MULTI_CPU", "DistributedDataParallel", None),
    "fsdp": ("FSDP", "FSDPLlamaForCausalLM", None),
    "zero2": ("DEEPSPEED", "DeepSpeedEngine", 2),
    "zero3": ("DEEPSPEED", "DeepSpeedEngine", 3),
}


def _launch(command: list[str], env: dict[str, str]) -> list[dict[str, Any]]:
    """The lines of JSON that rank 0 of the script prints."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "FSDP_"))}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**inherited, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **env},
        capture_output=True,
        text=True,
        timeout=240,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]


def _check(found: dict[str, Any], strategy: Strategy) -> None:
    assert (found["distributed_type"], found["wrapper"], found["stage"]) == IN_EFFECT[strategy]
    assert (found["world_size"], found["steps"]) == (2, 2)
    # What a rank holds of the weights; DeepSpeed leaves small ones whole.
    if strategy in ("fsdp", "zero3"):
        assert 0.5 <= found["share"] < 0.55
    else:
        assert found["share"] == 1


@pytest.mark.parametrize("strategy", IN_EFFECT)
def test_accelerate_launch_with_the_rendered_file(strategy: Strategy, tmp_path: Path) -> None:
    model = Model(base="builtin:tiny", quantization="none", dtype="float32", adapter=None)
    plan = plan_on(LOCAL, nodes=1, model=model, parallel=Parallel(strategy=strategy))
    assert plan.batch.micro == MICRO_BATCH
    for name, text in render(replace(plan, ds_base=read_base(plan.spec)), RunPaths(tmp_path)).items():
        write_text(tmp_path / name, text)
    file = RunPaths(tmp_path).accelerate
    env = CPU.get(strategy, SHARDED_CPU)
    [(name, value)] = env.items()
    assert f"# On CPU export {name}={value} too" in file.read_text()
    command = ["accelerate.commands.launch", "--config_file", str(file), "--main_process_port", "0", SCRIPT, strategy]
    [found] = _launch(command, env)
    _check(found, strategy)


def test_a_plain_trainer_takes_the_shipped_deepspeed_configs_as_they_are() -> None:
    strategies: list[Strategy] = ["zero2", "zero3"]
    arguments = [f"{strategy}={ROOT}/ds_configs/{strategy}.json" for strategy in strategies]
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", SCRIPT, *arguments]
    found = _launch(command, SHARDED_CPU)
    assert [row["strategy"] for row in found] == strategies
    for row, strategy in zip(found, strategies, strict=True):
        _check(row, strategy)
