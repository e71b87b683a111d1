"""Kills ranks at random moments of a save, over and over, and looks at what is left.

    python -m tests.faults.saver RUN_DIR KILLS SEED        prints a JSON object of counts

Each attempt begins as a supervisor's: a checkpoint is chosen, the attempt recorded, and two ranks started, which join
over gloo and do nothing but save by ``jobs.checkpoint.save``. SIGKILL hits both at once. They are forked from a process
that has imported torch: an import takes seconds, a save milliseconds.
"""

import json
import os
import random
import signal
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import torch

from jobs.checkpoint import WRITING, clear_unfinished, save, writing_folder
from jobs.context import RankContext
from jobs.order import RowOrder
from jobs.progress import Progress
from launcher.contract.attempt import Attempt
from launcher.contract.checkpoints import choose_checkpoint
from launcher.contract.ledger import LedgerWriter, events, read_rows
from launcher.contract.manifest import MANIFEST
from launcher.contract.paths import RunPaths, read_step
from launcher.contract.plan import Plan
from tests.plans import LOCAL, plan_on

RANKS = 2
ELEMENTS = 2**18
LONGEST = 0.25
"""Seconds from the first save to the kill, at most; a save takes some hundredths."""


def expect(rank: int, step: int) -> torch.Tensor:
    """What ``rank`` writes at ``step``."""
    return torch.full((ELEMENTS,), float(step * RANKS + rank))


def run_rank(paths: RunPaths, plan: Plan, attempt: int, rank: int, port: int) -> None:
    """Save steps without end."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in numbers.items()}, ACCELERATE_USE_CPU="true")
    origin = choose_checkpoint(paths).checkpoint
    context = RankContext(
        paths=paths, plan=plan, attempt=attempt, rank=rank, local_rank=rank, world_size=RANKS, node="here"
    )
    ledger = LedgerWriter(paths.ledger(attempt), attempt) if context.is_main else None
    if context.is_main:
        clear_unfinished(context)
        left = [folder for folder in paths.checkpoints.glob(f"a*/{WRITING}") if folder.parent.name != f"a{attempt:02d}"]
        assert left == [], left
    progress = Progress(context, ledger, RowOrder(1, 0, 1), lambda step: step, 10**6)
    loop: Any = SimpleNamespace(accelerator=accelerate.Accelerator(cpu=True), state=SimpleNamespace(global_step=0))
    step = read_step(origin) if origin is not None else 0
    loop.accelerator.wait_for_everyone()
    while True:
        step += 1
        loop.state.global_step = step

        def write(step: int = step) -> Path:
            folder = writing_folder(paths, attempt) / f"checkpoint-{step}"
            folder.mkdir(parents=True, exist_ok=True)
            torch.save({"weights": expect(rank, step)}, folder / f"rank{rank}.pt")
            return folder

        save(loop, progress, write)


def is_right(folder: Path) -> bool:
    """Whether all that the ranks wrote is there, looked at without the manifest."""
    step = read_step(folder)
    parts = [torch.load(folder / f"rank{rank}.pt", weights_only=True)["weights"] for rank in range(RANKS)]
    return all(torch.equal(part, expect(rank, step)) for rank, part in enumerate(parts))


def kill_once(paths: RunPaths, plan: Plan, attempt: int, delay: float) -> None:
    """One attempt, killed ``delay`` seconds after its first save began."""
    choice = choose_checkpoint(paths)
    origin = choice.checkpoint and choice.checkpoint.relative_to(paths.root).as_posix()
    Attempt(number=attempt, started=time.time(), nodes=["here"], resumed_from=origin).save(paths)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks: list[int] = []
    for rank in range(RANKS):
        pid = os.fork()
        if pid == 0:
            try:
                run_rank(paths, plan, attempt, rank, port)
            finally:
                os._exit(1)
        ranks.append(pid)
    deadline = time.monotonic() + 60
    while not any((writing_folder(paths, attempt)).glob("checkpoint-*")):
        assert time.monotonic() < deadline, "no rank has begun to save"
        time.sleep(0.001)
    time.sleep(delay)
    for pid in ranks:
        os.kill(pid, signal.SIGKILL)
    for pid in ranks:
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), "a rank had ended before it was killed"


def look(paths: RunPaths, attempt: int, found: Counter[str]) -> None:
    """Count what the kill has left, and what the next attempt would start from."""
    folder = paths.checkpoint(attempt, 0).parent
    # A row of the ledger is written when the checkpoint is published and the others are pruned.
    told = [paths.root / row["path"] for row in events(read_rows(paths.ledger(attempt)), "checkpoint")]
    published = [path for path in folder.glob("step-*") if (path / MANIFEST).exists()]
    found["published"] += len({*told, *published})
    unfinished = list((folder / WRITING).glob("checkpoint-*"))
    found["killed_while_writing"] += any(not (path / MANIFEST).exists() for path in unfinished)
    found["killed_before_rename"] += any((path / MANIFEST).exists() for path in unfinished)
    found["killed_while_pruning"] += bool(set(published) - set(told))
    # Steps only grow, from attempt to attempt.
    found["committed"] = max([found["committed"], *map(read_step, told)])
    choice = choose_checkpoint(paths).checkpoint
    found["committed_lost"] += (0 if choice is None else read_step(choice)) < found["committed"]
    found["incomplete_chosen"] += choice is not None and not is_right(choice)


def main(root: str, kills: str, seed: str) -> Counter[str]:
    torch.set_num_threads(1)
    paths, found, generator = RunPaths(Path(root)), Counter[str](), random.Random(int(seed))
    plan = plan_on(LOCAL, nodes=1, ranks_per_node=RANKS)
    plan.save(paths.plan)
    for attempt in range(1, int(kills) + 1):
        kill_once(paths, plan, attempt, generator.uniform(0, LONGEST))
        look(paths, attempt, found)
        found["kills"] += 1
    return found


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:4])))
