"""Publishes checkpoints: complete by manifest with one rename, the last few and the best kept."""

import shutil
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from launcher.contract.attempt import is_stale
from launcher.contract.checkpoints import list_checkpoints, rank_checkpoints
from launcher.contract.files import VISIBLE_SECONDS, read_json
from launcher.contract.ledger import LedgerWriter
from launcher.contract.lineage import find_used
from launcher.contract.manifest import MANIFEST, find_problems, publish
from launcher.contract.paths import RunPaths
from launcher.contract.strategies import has_fixed_world

from .context import RankContext
from .errors import JobError, StaleAttemptError
from .progress import Progress

WRITING = ".writing"
"""Beside the published checkpoints of the attempt: what is being written, or was when the attempt died."""


def writing_folder(paths: RunPaths, attempt: int) -> Path:
    """Where the Trainer of this attempt writes."""
    return paths.checkpoint(attempt, 0).parent / WRITING


def clear_unfinished(context: RankContext) -> None:
    """Remove what earlier attempts were writing when they ended, before this one needs the room; from rank 0."""
    paths = context.paths
    written = [(int(folder.parent.name[1:]), folder) for folder in paths.checkpoints.glob(f"a*/{WRITING}")]
    written += [(int(folder.name.rpartition(".a")[2]), folder) for folder in paths.root.glob(".final.a*")]
    for attempt, folder in written:
        if attempt < context.attempt:
            shutil.rmtree(folder, ignore_errors=True)


def check_newest(context: RankContext) -> None:
    """Whether this attempt may still publish.

    Raises:
        StaleAttemptError: a later one has begun; this one runs on a node that was cut off and has come back.
    """
    if is_stale(context.paths, context.attempt):
        raise StaleAttemptError(f"attempt {context.attempt} is over: a newer one has begun; nothing is published")


def save(trainer: Any, progress: Progress, write: Callable[[], Path]) -> None:
    """Call ``write`` on every rank (it returns the folder that it wrote), then publish from rank 0, beside training.

    Collective: what is published has all ranks' parts. Whoever needs it published waits for ``progress.background``.
    """
    from accelerate.utils import gather_object

    context, step = progress.context, trainer.state.global_step
    progress.beat("save", now=True)
    started = time.perf_counter()
    progress.background.wait()
    folder = write()
    # A rank that is done first would see the temporary names of another's files.
    trainer.accelerator.wait_for_everyone()
    # Each rank names the files that it sees, its own among them.
    names = set(gather_object(sorted(list_names(folder))))
    if context.is_main:
        metrics, stalled = progress.metrics_at(step), round(time.perf_counter() - started, 3)
        progress.background.start(
            lambda: publish_step(context, progress.ledger, folder, names, step, metrics, started, stall_seconds=stalled)
        )


def publish_step(
    context: RankContext,
    ledger: LedgerWriter | None,
    folder: Path,
    names: set[str],
    step: int,
    metrics: dict[str, float],
    started: float,
    **facts: float,
) -> None:
    """Publish ``folder``, with the files ``names`` of all ranks in it, as the checkpoint of ``step``; prune the others.

    ``started`` is the perf_counter when the ranks began to write; ``facts`` go into the event.

    Raises:
        StaleAttemptError: a later attempt has begun.
    """
    _await_files(folder, names)
    target = context.paths.checkpoint(context.attempt, step)
    publish(
        folder,
        target,
        lambda: check_newest(context),
        step=step,
        attempt=context.attempt,
        world_size=context.world_size,
        strategy=context.plan.spec.parallel.strategy,
        data_position=step * context.plan.batch.global_batch,
        metrics=metrics,
    )
    train = context.plan.spec.train
    removed = prune(context.paths, train.keep_last, train.keep_best, target)
    if ledger is not None:
        seconds = round(time.perf_counter() - started, 3)
        path = target.relative_to(context.paths.root).as_posix()
        gone = [folder.relative_to(context.paths.root).as_posix() for folder in removed]
        # A script's own metrics may be called seconds.
        told = {"step": step, "path": path, "seconds": seconds, "removed": gone, **facts}
        ledger.event("checkpoint", **{**metrics, **told})


def prune(paths: RunPaths, keep_last: int, keep_best: str | None, verified: Path | None = None) -> list[Path]:
    """Remove all published checkpoints but the newest ``keep_last``, the best, and those that later stages of the
    pipeline are made from; returns what was removed.

    One that is damaged is not counted among those to keep, nor is one that the run has not gone through. ``verified``
    is known to be whole. Where none is whole, all stay.
    """
    published, history = paths.published(), list_checkpoints(paths)
    if len(history) == len(published) <= keep_last:
        return []

    def take(folders: Iterable[Path], count: int) -> list[Path]:
        return list(islice((path for path in folders if path == verified or not find_problems(path)), count))

    kept = set(take(reversed(history), keep_last))
    if not kept:
        return []
    if keep_best is not None:
        kept.update(take(rank_checkpoints(history, keep_best), 1))
    kept |= find_used(paths)
    removed = [path for path in published if path not in kept]
    for path in removed:
        # The manifest goes first: a removal that is cut off leaves no folder that calls itself complete.
        (path / MANIFEST).unlink(missing_ok=True)
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
    if has_fixed_world(context.plan.spec) and written.get("world_size", world_size) != world_size:
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
