"""Plans made by hand, for tests of what comes after planning."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.contract.cluster import Cluster
from launcher.contract.plan import Batch, Plan, Topology
from launcher.contract.spec import Data, Model, Parallel, Resources, Spec, Train

DEVCLUSTER = Cluster(
    name="devcluster",
    scheduler="slurm",
    accelerator="cpu",
    gpus_per_node=2,
    partition="main",
    python="/opt/venv/bin/python",
    slurm_conf="/var/lib/tuneyard-devcluster/slurm.conf",
)
LOCAL = Cluster(
    name="local",
    scheduler="local",
    accelerator="cpu",
    gpus_per_node=2,
    cpus_per_node=2,
    python="/opt/venv/bin/python",
    internet=True,
)
H100 = Cluster(
    name="h100",
    scheduler="slurm",
    accelerator="cuda",
    gpu="h100-80gb",
    gpus_per_node=8,
    cpus_per_node=96,
    partition="gpu",
    account="project 1",
    python="/shared/my venv/bin/python",
    setup=["module load cuda/13.0"],
    env={"NCCL_DEBUG": "WARN"},
    network_interface="ib0",
    scratch="/local",
    sbatch={"exclusive": True},
    srun_args=["--cpu-bind=none"],
)


def plan_on(cluster: Cluster, *, nodes: int = 2, ranks_per_node: int = 2, **changes: Any) -> Plan:
    """A plan of an SFT run on ``cluster``; ``changes`` replace sections of its spec."""
    world_size = nodes * ranks_per_node
    spec = Spec(
        name="sft-demo",
        stage="sft",
        model=Model(base="builtin:tiny"),
        data=Data(train="/data/rows.jsonl"),
        train=Train(max_steps=20, global_batch=2 * world_size),
        parallel=Parallel(),
        resources=Resources(nodes=nodes, gpus_per_node=ranks_per_node),
    )
    cpus = cluster.cpus_per_node // (cluster.gpus_per_node or 1) if cluster.cpus_per_node else None
    return Plan(
        tuneyard="0.1.0",
        run_id="sft-demo-000000",
        runs="/runs",
        spec=replace(spec, **changes),
        cluster=cluster,
        topology=Topology(
            nodes=nodes, ranks_per_node=ranks_per_node, world_size=world_size, cpus_per_rank=cpus, time_minutes=60
        ),
        batch=Batch(micro=2, accumulation=1, global_batch=2 * world_size),
        gpu_hours=float(world_size),
    )


def compare_golden(folder: Path, files: dict[str, str]) -> None:
    """Assert that ``files`` equal the golden ones, whole; UPDATE_GOLDEN=1 writes them."""
    import os

    if os.environ.get("UPDATE_GOLDEN"):
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
    golden = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert golden == set(files)
    for name, text in files.items():
        assert text.splitlines() == (folder / name).read_text(encoding="utf-8").splitlines(), name
        assert text == (folder / name).read_text(encoding="utf-8"), name
