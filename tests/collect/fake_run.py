"""Makes run directories with the files that the collecting side reads."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from launcher.contract.cluster import Cluster
from launcher.contract.files import write_json
from launcher.contract.ledger import LedgerWriter
from launcher.contract.manifest import publish
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Batch, Plan, Topology
from launcher.contract.spec import Adapter, Data, Model, Spec, Tracking

EVAL_EVERY = 5


def make_run(
    runs: Path, *, mode: Literal["online", "offline", "disabled"] = "offline", adapter: bool = False
) -> RunPaths:
    paths = RunPaths(runs / "sft-tiny.0001")
    plan = Plan(
        tuneyard="0.1.0",
        run_id=paths.root.name,
        runs=str(runs),
        spec=Spec(
            name="sft-tiny",
            stage="sft",
            model=Model(base="builtin:tiny", adapter=Adapter() if adapter else None),
            data=Data(train="rows.json"),
            tracking=Tracking(wandb=mode, tags=["a tag"]),
        ),
        cluster=Cluster(name="local", scheduler="local", env={"SOME_SECRET": "in the environment"}),
        topology=Topology(nodes=1, ranks_per_node=2, world_size=2, cpus_per_rank=None, time_minutes=60),
        batch=Batch(micro=2, accumulation=4, global_batch=16),
        gpu_hours=2.0,
    )
    plan.save(paths.plan)
    write_json(paths.git, {"commit": "abc"})
    return paths


def write_steps(paths: RunPaths, *, attempt: int, steps: Iterable[int], loss: float, **more: Any) -> None:
    """A training row per step, and every fifth step an evaluation row of its own."""
    writer = LedgerWriter(paths.ledger(attempt), attempt)
    for step in steps:
        writer.metric(step, loss=round(loss + step / 100, 4), tokens=step * 64, tokens_per_s=100.0 + step, **more)
        if step % EVAL_EVERY == 0:
            writer.metric(step, eval_loss=round(loss + 1 + step / 100, 4))
    writer.close()


def write_completion(paths: RunPaths) -> None:
    """A checkpoint, the final adapter and the completion record."""
    draft = paths.checkpoints / "draft"
    draft.mkdir(parents=True)
    (draft / "weights.bin").write_bytes(b"weights")
    publish(draft, paths.checkpoint(1, 20), step=20, world_size=2)
    paths.final.mkdir()
    (paths.final / "adapter_model.safetensors").write_bytes(b"adapter")
    write_json(paths.completion, {"v": 1})
