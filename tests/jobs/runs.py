"""Runs of the jobs made by hand, with real processes over gloo; several runs in one launch, for imports are slow."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.contract.files import write_text
from launcher.contract.ledger import Row, merge_metrics, read_rows
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Batch, Plan, Topology
from launcher.contract.spec import Adapter, Data, Model, Parallel, Spec, Stage, Train
from launcher.render import render
from launcher.spec.deepspeed import read_base
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


def make_pairs(num_rows: int) -> list[dict[str, str]]:
    """Pairs of unequal lengths, some of one prompt, whose better answer can be learned."""
    return [
        {
            "prompt": f"Spell {n % 40}.",
            "chosen": " yes" * (1 + n % 3) + str(n),
            "rejected": str(n) + " no" * (1 + n % 4),
        }
        for n in range(num_rows)
    ]


def write_run(
    root: Path,
    world_size: int,
    *,
    model: Model,
    data: Data,
    train: Train,
    parallel: Parallel = DDP,
    stage: Stage = "sft",
    **sections: Any,
) -> Path:
    """A run directory with its plan and what is rendered from it; returns ``root``. ``sections`` are the stages'."""
    spec = Spec(name="test", stage=stage, model=model, data=data, train=train, parallel=parallel, **sections)
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


@dataclass(frozen=True)
class Start:
    """One attempt of :func:`launch`.

    ``resume`` is a checkpoint of the run, ``changed`` a run directory whose plan and rendered files replace this
    one's first; ``env`` goes over the rendered environment. ``whole`` stores NF4 weights as if nothing sharded them;
    ``counts`` writes ``storages.json``, how many pieces of memory hold a matrix of the base, before the final save;
    ``flipped`` turns the sign of ppo's advantages; ``poison`` makes something NaN on one rank: ("loss", rank, step),
    "gradient", or "weight" at the save of that step. ``kill`` ends a rank by SIGKILL when it
    beats, (rank, "rollout", step), or has written a part of a checkpoint, (0, "write", step).
    """

    root: Path
    attempt: int = 1
    resume: str | None = None
    changed: Path | None = None
    env: dict[str, str] = field(default_factory=dict)
    fails: bool = False
    whole: bool = False
    counts: bool = False
    flipped: bool = False
    poison: tuple[str, int, int] | None = None
    kill: tuple[int, str, int] | None = None


def checkpoint(step: int, attempt: int = 1) -> str:
    return f"checkpoints/a{attempt:02d}/step-{step:06d}"


def launch(world_size: int, starts: list[Start], timeout: float = 150) -> None:
    """Start ``world_size`` ranks that run ``starts`` one after the other, each in its run's own environment, up to one
    in which a rank is killed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = json.dumps([asdict(start) for start in starts], default=str)
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world_size),
    }
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / f"rank{rank}.log" for rank in range(world_size)]
        ranks = []
        for rank, log in enumerate(logs):
            with log.open("wb") as stream:
                command = [sys.executable, "-m", "tests.jobs.rank_driver", arguments]
                numbers = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                ranks.append(
                    subprocess.Popen(command, env={**env, **numbers}, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT)
                )
        deadline = time.monotonic() + timeout
        try:
            # The others of a rank that failed would wait for it.
            while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
                assert time.monotonic() < deadline, "\n".join(log.read_text()[-3000:] for log in logs)
                time.sleep(0.1)
            first = [rank.poll() for rank in ranks]
            time.sleep(1 if any(rank.poll() is None for rank in ranks) else 0)
        finally:
            for process in ranks:
                process.kill()
                process.wait()
        if (kill := starts[-1].kill) and first[kill[0]] == -signal.SIGKILL:
            return
        codes = [process.returncode for process in ranks]
        assert not kill, "no rank was killed"
        assert codes == [0] * world_size, "\n".join(log.read_text()[-3000:] for log in logs)


def ledger(root: Path, attempt: int = 1) -> list[Row]:
    return read_rows(RunPaths(root).ledger(attempt))


def values(root: Path, name: str, attempt: int = 1) -> dict[int, float]:
    """Step -> the metric ``name``."""
    return {row["step"]: row[name] for row in merge_metrics(ledger(root, attempt)) if name in row}
