"""Publishes checkpoints: complete by manifest with one rename, the last few and the best kept."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher.contract.checkpoints import rank_checkpoints
from launcher.contract.files import VISIBLE_SECONDS, read_json
from launcher.contract.ledger import LedgerWriter
from launcher.contract.lineage import find_used
from launcher.contract.manifest import MANIFEST, publish
from launcher.contract.paths import RunPaths
from launcher.contract.strategies import FIXED_WORLD

from .context import RankContext
from .errors import JobError
from .progress import Progress

WRITING = ".writing"
"""Beside the published checkpoints of the attempt: what is being written, or was when the attempt died."""


def writing_folder(paths: RunPaths, attempt: int) -> Path:
    """Where the Trainer of this attempt writes."""
    return paths.checkpoint(attempt, 0).parent / WRITING


def save(trainer: Any, progress: Progress, write: Callable[[], Path]) -> None:
    """Call ``write`` on every rank (it returns the folder that it wrote), then publish from rank 0.

    Collective: the manifest is made only when all ranks' parts are there, and no rank goes on before it is published.
    """
    from accelerate.utils import gather_object

    context, step = progress.context, trainer.state.global_step
    progress.beat("save", now=True)
    started = time.perf_counter()
    folder = write()
    # A rank that is done first would see the temporary names of another's files.
    trainer.accelerator.wait_for_everyone()
    # Each rank names the files that it sees, its own among them.
    names = gather_object(sorted(list_names(folder)))
    if context.is_main:
        publish_step(context, progress.ledger, folder, set(names), step, progress.metrics_at(step), started)
    trainer.accelerator.wait_for_everyone()


def publish_step(
    context: RankContext,
    ledger: LedgerWriter | None,
    folder: Path,
    names: set[str],
    step: int,
    metrics: dict[str, float],
    started: float,
) -> None:
    """Publish ``folder``, with the files ``names`` of all ranks in it, as the checkpoint of ``step``; prune the others.

    ``started`` is the perf_counter when the ranks began to write.
    """
    _await_files(folder, names)
    target = context.paths.checkpoint(context.attempt, step)
    publish(
        folder,
        target,
        step=step,
        attempt=context.attempt,
        world_size=context.world_size,
        strategy=context.plan.spec.parallel.strategy,
        data_position=step * context.plan.batch.global_batch,
        metrics=metrics,
    )
    train = context.plan.spec.train
    removed = prune(context.paths, train.keep_last, train.keep_best)
    if ledger is not None:
        seconds = round(time.perf_counter() - started, 3)
        path = target.relative_to(context.paths.root).as_posix()
        gone = [folder.relative_to(context.paths.root).as_posix() for folder in removed]
        # A script's own metrics may be called seconds.
        ledger.event("checkpoint", **{**metrics, "step": step, "path": path, "seconds": seconds, "removed": gone})


def prune(paths: RunPaths, keep_last: int, keep_best: str | None) -> list[Path]:
    """Remove all published checkpoints but the newest ``keep_last``, the best, and those that later stages of the
    pipeline are made from; returns what was removed."""
    published = [path for path in paths.published() if (path / MANIFEST).is_file()]
    kept = set(published[-keep_last:]) | find_used(paths)
    if keep_best is not None:
        kept.update(rank_checkpoints(published, keep_best)[:1])
    removed = [path for path in published if path not in kept]
    for path in removed:
        # The manifest goes first: a removal that is cut off leaves no folder that calls itself complete.
        (path / MANIFEST).unlink()
        shutil.rmtree(path, ignore_errors=True)
    return removed


def check_resumable(context: RankContext) -> None:
    """Whether this plan can go on from its checkpoint: state is kept in the shape of its strategy.

    Raises:
        JobError: another strategy wrote it, or DeepSpeed on another number of ranks.
    """
    if context.resume_from is None:
        return
    written = read_json(context.resume_from / MANIFEST) or {}
    strategy, world_size = context.plan.spec.parallel.strategy, context.plan.topology.world_size
    if written.get("strategy", strategy) != strategy:
        raise JobError(
            f"parallel.strategy: {strategy} cannot go on from a checkpoint of {written['strategy']}; "
            f"set parallel.strategy={written['strategy']}"
        )
    if strategy in FIXED_WORLD and written.get("world_size", world_size) != world_size:
        raise JobError(
            f"resources: {strategy} goes on with as many ranks as wrote the checkpoint, {written['world_size']}; "
            f"the plan has {world_size}"
        )


def list_names(folder: Path) -> set[str]:
    """The files below ``folder``, as relative paths; a stale NFS folder may still show temporary ones (.name)."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix() for path in paths}


def _await_files(folder: Path, names: set[str]) -> None:
    """Wait until this node sees every file that some rank sees.

    Raises:
        TimeoutError: it does not; nothing is published.
    """
    deadline = time.monotonic() + VISIBLE_SECONDS
    while missing := names - list_names(folder):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{folder}: files of other nodes do not show up here: {', '.join(sorted(missing))}")
        time.sleep(0.2)
