"""Chooses among the checkpoints of a run: the newest that is whole, or the best."""

import math
from dataclasses import dataclass
from pathlib import Path

from .attempt import read_attempts
from .manifest import find_problems, read_manifest
from .paths import RunPaths, read_attempt, read_step


@dataclass(frozen=True)
class Choice:
    """``checkpoint`` is what an attempt starts from, None for the beginning; ``passed_over`` says of each newer one
    what is wrong with it."""

    checkpoint: Path | None
    passed_over: list[str]


def list_checkpoints(paths: RunPaths) -> list[Path]:
    """The published checkpoints that lead to where the run stands, the oldest first; whether one is whole, its
    manifest says.

    Each attempt records where it started from. What an older one published beyond that point is no part of the run:
    it may have come when the newer had long begun, from a node that was cut off.
    """
    limits = _find_limits(paths)
    published = paths.published()
    if not limits:  # no attempt has started any ranks: nothing is known of their order
        return published
    return [path for path in published if read_step(path) <= limits.get(read_attempt(path), -1)]


def choose_checkpoint(paths: RunPaths) -> Choice:
    """The newest checkpoint whose files are as its manifest says.

    The supervisor chooses once per attempt, for all ranks: by themselves they might see different files.

    Raises:
        OSError: the storage does not answer; to begin anew for that would lose the run.
    """
    passed_over: list[str] = []
    for folder in reversed(list_checkpoints(paths)):
        problems = find_problems(folder)
        if not problems:
            return Choice(folder, passed_over)
        passed_over.append(f"{folder.relative_to(paths.root).as_posix()}: {'; '.join(problems)}")
    return Choice(None, passed_over)


def newest_checkpoint(paths: RunPaths) -> Path | None:
    """The newest checkpoint whose files are as its manifest says."""
    return choose_checkpoint(paths).checkpoint


def best_checkpoint(paths: RunPaths, metric: str) -> Path | None:
    """The best checkpoint by ``metric`` whose files are as its manifest says; of equal ones the newest."""
    ranked = rank_checkpoints(list_checkpoints(paths), metric)
    return next((folder for folder in ranked if not find_problems(folder)), None)


def rank_checkpoints(published: list[Path], metric: str) -> list[Path]:
    """Those whose manifest has a finite ``metric``, the best first: the lowest loss or error, the highest of anything
    else. One whose manifest cannot be read has none."""
    found = {path: (read_manifest(path) or {}).get("metrics", {}).get(metric) for path in reversed(published)}
    # NaN is in no order: it would stand wherever it stood.
    values = {path: value for path, value in found.items() if value is not None and math.isfinite(value)}
    sign = 1 if metric.endswith(("loss", "perplexity", "error")) else -1
    return sorted(values, key=lambda path: sign * values[path])


def _find_limits(paths: RunPaths) -> dict[int, float]:
    """Attempt -> the last of its steps that the run has gone through, from the newest attempt back to the first.

    An attempt without nodes has started no ranks: it has chosen nothing, and published nothing.
    """
    begun = {attempt.number: attempt.resumed_from for attempt in read_attempts(paths) if attempt.nodes}
    limits: dict[int, float] = {}
    number, step = max(begun, default=0), math.inf
    while number and number not in limits:
        limits[number] = step
        origin = begun.get(number)
        number, step = (0, 0) if origin is None else (read_attempt(Path(origin)), read_step(Path(origin)))
    return limits
