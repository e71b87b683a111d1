"""Chooses among the published checkpoints of a run: the newest that is whole, or the best."""

from collections.abc import Iterable
from pathlib import Path

from .files import read_json
from .manifest import MANIFEST, find_problems
from .paths import RunPaths


def newest_checkpoint(paths: RunPaths) -> Path | None:
    """The newest checkpoint whose files are as its manifest says."""
    return _first_whole(reversed(paths.published()))


def best_checkpoint(paths: RunPaths, metric: str) -> Path | None:
    """The best checkpoint by ``metric`` whose files are as its manifest says; of equal ones the newest."""
    return _first_whole(rank_checkpoints(paths.published(), metric))


def rank_checkpoints(published: list[Path], metric: str) -> list[Path]:
    """Those whose manifest has ``metric``, the best first: the lowest loss or error, the highest of anything else."""
    values = {path: (read_json(path / MANIFEST) or {}).get("metrics", {}).get(metric) for path in reversed(published)}
    sign = 1 if metric.endswith(("loss", "perplexity", "error")) else -1
    return sorted((path for path in values if values[path] is not None), key=lambda path: sign * values[path])


def _first_whole(folders: Iterable[Path]) -> Path | None:
    return next((folder for folder in folders if not find_problems(folder)), None)
