"""Chooses among the published checkpoints of a run: the newest that is whole, or the best."""

import math
from collections.abc import Iterable
from pathlib import Path

from .manifest import find_problems, read_manifest
from .paths import RunPaths


def newest_checkpoint(paths: RunPaths) -> Path | None:
    """The newest checkpoint whose files are as its manifest says."""
    return _first_whole(reversed(paths.published()))


def best_checkpoint(paths: RunPaths, metric: str) -> Path | None:
    """The best checkpoint by ``metric`` whose files are as its manifest says; of equal ones the newest."""
    return _first_whole(rank_checkpoints(paths.published(), metric))


def rank_checkpoints(published: list[Path], metric: str) -> list[Path]:
    """Those whose manifest has a finite ``metric``, the best first: the lowest loss or error, the highest of anything
    else. One whose manifest cannot be read has none."""
    found = {path: (read_manifest(path) or {}).get("metrics", {}).get(metric) for path in reversed(published)}
    # NaN is in no order: it would stand wherever it stood.
    values = {path: value for path, value in found.items() if value is not None and math.isfinite(value)}
    sign = 1 if metric.endswith(("loss", "perplexity", "error")) else -1
    return sorted(values, key=lambda path: sign * values[path])


def _first_whole(folders: Iterable[Path]) -> Path | None:
    return next((folder for folder in folders if not find_problems(folder)), None)
