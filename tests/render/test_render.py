"""What is rendered, whole, held by golden files (UPDATE_GOLDEN=1 writes them anew)."""

from pathlib import Path

import pytest

from launcher.contract.cluster import Cluster
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan
from launcher.render import render
from launcher.render.environment import format_environment, rank_environment, strategy_environment
from launcher.submit.slurm import job_script, local_script
from tests.plans import DEVCLUSTER, H100, LOCAL, compare_golden, plan_on

GOLDEN = Path(__file__).parent / "golden"
PATHS = RunPaths(Path("/runs/it's a run"))


def _tree(plan: Plan) -> dict[str, str]:
    script = job_script(plan, PATHS) if plan.cluster.scheduler == "slurm" else local_script(plan, PATHS)
    return {**render(plan, PATHS), "rendered/job.sh": script}


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("devcluster", plan_on(DEVCLUSTER)),
        ("local", plan_on(LOCAL, nodes=1)),
        ("h100", plan_on(H100, nodes=4, ranks_per_node=8)),
    ],
)
def test_rendered_files_are_the_golden_ones(name: str, plan: Plan) -> None:
    compare_golden(GOLDEN / name, _tree(plan))


@pytest.mark.parametrize(
    "plan", [plan_on(DEVCLUSTER), plan_on(LOCAL, nodes=1), plan_on(H100, nodes=4, ranks_per_node=8)]
)
def test_accelerate_yaml_equals_the_rank_environment(plan: Plan, tmp_path: Path) -> None:
    """accelerate's own loader and launcher make of the file what the ranks are given."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    file = tmp_path / "accelerate.yaml"
    file.write_text(render(plan, PATHS)["rendered/accelerate.yaml"])
    by_hand = ["--machine_rank", "0", "--main_process_ip", "n0", "--main_process_port", "29500", "script.py"]
    arguments, _, _ = _validate_launch_command(
        launch_command_parser().parse_args(["--config_file", str(file), *by_hand])
    )
    launched = prepare_multi_gpu_env(arguments)
    names = {"ACCELERATE_MIXED_PRECISION"}
    assert {name: launched[name] for name in names} == {name: strategy_environment(plan)[name] for name in names}
    assert arguments.use_cpu == (strategy_environment(plan).get("ACCELERATE_USE_CPU") == "true")
    assert (arguments.num_processes, arguments.num_machines) == (plan.topology.world_size, plan.topology.nodes)


def test_a_newline_cannot_enter_the_environment_file() -> None:
    with pytest.raises(ValueError, match="newline"):
        format_environment({"A": "1\nLD_PRELOAD=x"})


def test_nodes_without_internet_never_ask_the_hub() -> None:
    online = Cluster(name="x", scheduler="slurm", accelerator="cuda", python="python", internet=True)
    assert rank_environment(plan_on(H100))["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in rank_environment(plan_on(online))
