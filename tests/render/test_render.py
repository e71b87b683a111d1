"""What is rendered, whole, held by golden files (UPDATE_GOLDEN=1 writes them anew)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher.contract.cluster import Cluster
from launcher.contract.environment import format_environment, read_environment
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan
from launcher.contract.spec import Model, Parallel
from launcher.contract.strategies import LEGAL_OFFLOAD
from launcher.render import render
from launcher.render.environment import rank_environment, strategy_environment
from launcher.spec.deepspeed import read_base
from launcher.submit.script import local_script
from launcher.submit.slurm import job_script
from tests.plans import DEVCLUSTER, H100, LOCAL, compare_golden, plan_on

GOLDEN = Path(__file__).parent / "golden"
PATHS = RunPaths(Path("/runs/it's a run"))


def _tree(plan: Plan) -> dict[str, str]:
    script = job_script(plan, PATHS) if plan.cluster.scheduler == "slurm" else local_script(plan, PATHS)
    return {**render(replace(plan, ds_base=read_base(plan.spec)), PATHS), "rendered/job.sh": script}


def _cells(strategies: tuple[str, ...] = ("ddp", "fsdp", "zero2", "zero3")) -> dict[str, Parallel]:
    """Every legal pair of strategy and offload by name."""
    pairs = [(strategy, offload) for strategy in strategies for offload in LEGAL_OFFLOAD[strategy]]
    return {
        strategy if offload == "none" else f"{strategy}-offload-{offload}": Parallel(strategy=strategy, offload=offload)
        for strategy, offload in pairs
    }


def _plans() -> dict[str, Plan]:
    plans = {"local": plan_on(LOCAL, nodes=1)}
    for name, parallel in _cells().items():
        suffix = "" if name == "ddp" else f"-{name}"
        plans[f"devcluster{suffix}"] = plan_on(DEVCLUSTER, parallel=parallel)
        plans[f"h100{suffix}"] = plan_on(H100, nodes=4, ranks_per_node=8, parallel=parallel)
    full = Model(base="builtin:tiny", quantization="none", adapter=None)
    unquantized = Model(base="builtin:tiny", quantization="none")
    offloaded = plans["h100-zero3-offload-all"]
    plans["h100-zero3-offload-all-full"] = replace(offloaded, spec=_with_model(offloaded, full))
    plans["h100-zero3-unquantized"] = replace(plans["h100-zero3"], spec=_with_model(plans["h100-zero3"], unquantized))
    return plans


def _with_model(plan: Plan, model: Model) -> Any:
    return replace(plan.spec, model=model)


PLANS = _plans()


@pytest.mark.parametrize("name", PLANS)
def test_rendered_files_are_the_golden_ones(name: str) -> None:
    compare_golden(GOLDEN / name, _tree(PLANS[name]))


@pytest.mark.parametrize("name", PLANS)
def test_accelerate_yaml_equals_the_rank_environment(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate's own loader and launcher make of the file what the ranks are given, and nothing that beats it."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    for variable in ("ACCELERATE_USE_CPU", "OMP_NUM_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    plan = PLANS[name]
    file = tmp_path / "accelerate.yaml"
    file.write_text(render(replace(plan, ds_base=read_base(plan.spec)), PATHS)["rendered/accelerate.yaml"])
    by_hand = ["--machine_rank", "0", "--main_process_ip", "n0", "--main_process_port", "29500", "script.py"]
    arguments, defaults, has_precision = _validate_launch_command(
        launch_command_parser().parse_args(["--config_file", str(file), *by_hand])
    )
    if plan.spec.parallel.strategy in ("zero2", "zero3"):
        # What launch_command makes of the file before it calls the launcher (accelerate 1.15, commands/launch.py).
        fields = [*defaults.deepspeed_config, *(["mixed_precision"] if has_precision else [])]
        arguments.deepspeed_fields_from_accelerate_config = ",".join(fields)
        command, launched = prepare_deepspeed_cmd_env(arguments)
        assert command is None  # torch's launcher on each node, no ssh
        assert launched["ACCELERATE_CONFIG_DS_FIELDS"] == "deepspeed_config_file,deepspeed_multinode_launcher"
    else:
        launched = prepare_multi_gpu_env(arguments)
    ours = strategy_environment(plan, PATHS)
    device = ours.pop("ACCELERATE_TORCH_DEVICE", None)
    is_cpu_ddp = ours.pop("ACCELERATE_USE_CPU", None) == "true"
    assert {variable: launched.get(variable) for variable in ours} == ours
    assert arguments.use_cpu == is_cpu_ddp
    # accelerate ignores FSDP and DeepSpeed where it is told to use the CPU, so it is told the device alone.
    is_sharded = plan.spec.parallel.strategy != "ddp"
    assert (device == "cpu") == (plan.cluster.accelerator == "cpu" and is_sharded)
    assert arguments.use_fsdp == (plan.spec.parallel.strategy == "fsdp")
    assert arguments.use_deepspeed == (plan.spec.parallel.strategy in ("zero2", "zero3"))
    assert (arguments.num_processes, arguments.num_machines) == (plan.topology.world_size, plan.topology.nodes)


@pytest.mark.parametrize("name", [name for name in PLANS if "fsdp" in name])
def test_accelerate_takes_the_fsdp_variables(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.utils import FullyShardedDataParallelPlugin

    for variable, value in strategy_environment(PLANS[name], PATHS).items():
        monkeypatch.setenv(variable, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward, plugin.cpu_ram_efficient_loading) == (2, True, False)
    assert type(plugin.cpu_offload).__name__ == ("CPUOffloadPolicy" if "offload" in name else "OffloadPolicy")
    assert plugin.state_dict_type.name == "SHARDED_STATE_DICT"
    assert not plugin.activation_checkpointing


def test_a_newline_cannot_enter_the_environment_file() -> None:
    with pytest.raises(ValueError, match="newline"):
        format_environment({"A": "1\nLD_PRELOAD=x"})


def test_the_environment_file_gives_back_what_it_was_given(tmp_path: Path) -> None:
    env = {"A": "x=y z", "B": "carriage\rreturn", "C": "line\u2028separator", "D": ""}
    (tmp_path / "env").write_text(format_environment(env), encoding="utf-8", newline="")
    assert read_environment(tmp_path / "env").items() >= {"A": "x=y z", "C": "line\u2028separator", "D": ""}.items()


def test_nodes_without_internet_never_ask_the_hub() -> None:
    online = Cluster(name="x", scheduler="slurm", accelerator="cuda", python="python", internet=True)
    assert rank_environment(plan_on(H100), PATHS)["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in rank_environment(plan_on(online), PATHS)
