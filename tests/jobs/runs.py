"""Runs of the SFT job made by hand, with real processes over gloo; several runs in one launch, for imports are slow."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.contract.files import write_text
from launcher.contract.ledger import Row, merge_metrics, read_rows
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Batch, Plan, Topology
from launcher.contract.spec import Adapter, Data, Model, Parallel, Spec, Train
from launcher.render import read_base, render
from tests.plans import LOCAL

ROOT = Path(__file__).parent.parent.parent
FLOAT32 = Model(base="builtin:tiny", quantization="none", dtype="float32", adapter=Adapter(dropout=0.0))
DDP = Parallel()
QLORA = Model(base="builtin:tiny", quantization="nf4", dtype="bfloat16", adapter=Adapter(dropout=0.3))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_rows(num_rows: int) -> list[dict[str, str]]:
    """Alpaca rows of unequal lengths, so that the mean over tokens is not the mean over rows."""
    return [{"instruction": f"Spell {n}.", "output": " ".join(str(n * n)) + " done" * (n % 7)} for n in range(num_rows)]


def write_run(root: Path, world_size: int, *, model: Model, data: Data, train: Train, parallel: Parallel = DDP) -> Path:
    """A run directory with its plan and what is rendered from it; returns ``root``."""
    spec = Spec(name="test", stage="sft", model=model, data=data, train=train, parallel=parallel)
    topology = Topology(nodes=1, ranks_per_node=world_size, world_size=world_size, cpus_per_rank=1, time_minutes=5)
    batch = Batch(
        micro=train.micro_batch,
        accumulation=train.global_batch // (train.micro_batch * world_size),
        global_batch=train.global_batch,
    )
    paths = RunPaths(root)
    plan = Plan(
        tuneyard="0",
        run_id=root.name,
        runs=str(root.parent),
        spec=spec,
        cluster=replace(LOCAL, gpus_per_node=world_size),
        topology=topology,
        batch=batch,
        gpu_hours=0.0,
        ds_base=read_base(spec),
    )
    plan.save(paths.plan)
    for name, text in render(plan, paths).items():
        write_text(root / name, text)
    return root


def launch(world_size: int, attempts: list[tuple[Path, int, Path | None]], timeout: float = 150, **extra: str) -> None:
    """Start ``world_size`` ranks that run ``attempts`` (run, attempt number, resume from) one after the other.

    Each run has its own rendered environment, with ``extra`` over it.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = json.dumps(
        [[str(root), number, str(resume) if resume else None, extra] for root, number, resume in attempts]
    )
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world_size),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.jobs.rank_driver", arguments],
            env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        outputs = [rank.communicate(timeout=timeout)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(text[-3000:] for text in outputs)


def ledger(root: Path, attempt: int = 1) -> list[Row]:
    return read_rows(RunPaths(root).ledger(attempt))


def values(root: Path, name: str, attempt: int = 1) -> dict[int, float]:
    """Step -> the metric ``name``."""
    return {row["step"]: row[name] for row in merge_metrics(ledger(root, attempt)) if name in row}
