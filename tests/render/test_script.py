"""What is rendered for a script: the plan as variables, and a DeepSpeed config that leaves dtypes to the script."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher.contract.environment import read_environment
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan
from launcher.contract.spec import Model, Parallel, Script, Train
from launcher.render import render
from launcher.spec.deepspeed import find_conflicts, read_base
from tests.plans import DEVCLUSTER, H100, plan_on

PATHS = RunPaths(Path("/runs/mine"))


def _plan(cluster: Any = DEVCLUSTER, strategy: Any = "ddp", **changes: Any) -> Plan:
    sections = {"model": None, "data": None, "train": Train(global_batch=8)} | changes
    parallel = Parallel(strategy=strategy)
    plan = plan_on(cluster, stage="script", script=Script(path="/src/train.py"), parallel=parallel, **sections)
    return replace(plan, ds_base=read_base(plan.spec))


def _environment(plan: Plan, tmp_path: Path) -> dict[str, str]:
    (tmp_path / "rank.env").write_text(render(plan, PATHS)["rendered/rank.env"])
    return read_environment(tmp_path / "rank.env")


def test_the_plan_is_handed_over_as_variables(tmp_path: Path) -> None:
    env = _environment(_plan(), tmp_path)
    ours = {name.removeprefix("TUNEYARD_"): value for name, value in env.items() if name.startswith("TUNEYARD_")}
    batch = {"MICRO_BATCH": "2", "ACCUMULATION": "1", "GLOBAL_BATCH": "8", "MAX_STEPS": ""}
    assert ours == {"RUN_DIR": "/runs/mine", **batch}
    assert env["LOCAL_WORLD_SIZE"] == "2"
    assert "TORCHDYNAMO_DISABLE" not in env  # a script may compile
    assert _environment(_plan(train=Train(global_batch=8, max_steps=5)), tmp_path)["TUNEYARD_MAX_STEPS"] == "5"


def test_a_stage_of_ours_gets_none_of_them(tmp_path: Path) -> None:
    assert not [name for name in _environment(plan_on(DEVCLUSTER), tmp_path) if name.startswith("TUNEYARD_")]


@pytest.mark.parametrize("strategy", ["fsdp", "zero2", "zero3"])
@pytest.mark.parametrize("cluster", [DEVCLUSTER, H100], ids=["cpu", "cuda"])
def test_the_strategy_is_that_of_our_stages(cluster: Any, strategy: str, tmp_path: Path) -> None:
    def strategy_words(plan: Plan) -> dict[str, str]:
        env = _environment(replace(plan, ds_base=read_base(plan.spec)), tmp_path)
        return {name: value for name, value in env.items() if name.startswith(("ACCELERATE_", "FSDP_"))}

    assert strategy_words(_plan(cluster, strategy)) == strategy_words(
        plan_on(cluster, parallel=Parallel(strategy=strategy))  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("model", [None, Model(base="builtin:tiny", dtype="float16")])
def test_dtypes_are_the_scripts_and_the_batch_is_the_plans(model: Model | None) -> None:
    config = json.loads(render(_plan(H100, "zero3", model=model), PATHS)["rendered/ds.json"])
    assert (config["bf16"], config["fp16"]) == ({"enabled": "auto"}, {"enabled": "auto"})
    assert "torch_autocast" not in config
    assert "communication_data_type" not in config
    assert config["train_micro_batch_size_per_gpu"] == 2
    assert config["train_batch_size"] == 8


def test_a_ds_config_may_say_the_dtype_of_a_script_but_not_its_batch() -> None:
    own = {"bf16": {"enabled": True}, "train_micro_batch_size_per_gpu": 7}
    complaints = [message for message, _ in find_conflicts(_plan(H100, "zero3").spec, own)]
    assert complaints == ["train_micro_batch_size_per_gpu is 7, but train.micro_batch decides it"]
    ours = plan_on(H100, parallel=Parallel(strategy="zero3")).spec
    assert len(list(find_conflicts(ours, own))) == 2
