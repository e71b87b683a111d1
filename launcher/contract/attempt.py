"""An attempt: one start of a run's ranks, and how it ended."""

from dataclasses import dataclass, field
from typing import Literal

from .files import read_json, write_json
from .paths import RunPaths
from .values import from_value, to_value

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USER = 2
EXIT_CLUSTER = 3
EXIT_NO_PROGRESS = 4
EXIT_INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How an attempt ended; ``rank`` and ``node`` name the first that failed, ``log`` its last lines."""

    t: float
    state: Literal["completed", "failed", "cancelled", "interrupted"]
    exit_code: int
    reason: str
    rank: int | None = None
    node: str | None = None
    log: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start: number from 1, Slurm's job id and restart count, node names in rank order, where it started from.

    ``nodes`` and ``resumed_from`` are recorded together, before the ranks start: from then on
    :func:`launcher.contract.checkpoints.list_checkpoints` follows it. ``passed_over`` has the newer checkpoints that
    it could not start from, and why.
    """

    number: int
    started: float
    nodes: list[str]
    slurm_job_id: str | None = None
    slurm_restart_count: int = 0
    resumed_from: str | None = None
    passed_over: list[str] = field(default_factory=list)
    ended: Ending | None = None

    def save(self, paths: RunPaths) -> None:
        write_json(paths.attempt(self.number), to_value(self))


def read_attempts(paths: RunPaths) -> list[Attempt]:
    """All attempts of a run, by number."""
    # Beside a02.json lie the records of what it continued: a01.submission.json, a01.completion.json.
    files = [path for path in paths.attempts.glob("a*.json") if path.stem.removeprefix("a").isdigit()]
    # By number: as text a100 would stand before a99.
    return sorted((from_value(Attempt, read_json(path)) for path in files), key=lambda attempt: attempt.number)
