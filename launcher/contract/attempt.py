"""An attempt: one start of a run's ranks, and how it ended."""

from dataclasses import dataclass, field
from typing import Literal

from .files import write_json
from .paths import RunPaths
from .values import read_value, to_value

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
    """One start: number from 1, Slurm's job id and restart count, node names in rank order, where it started from."""

    number: int
    started: float
    nodes: list[str]
    slurm_job_id: str | None = None
    slurm_restart_count: int = 0
    resumed_from: str | None = None
    ended: Ending | None = None

    def save(self, paths: RunPaths) -> None:
        write_json(paths.attempt(self.number), to_value(self))


def read_attempts(paths: RunPaths) -> list[Attempt]:
    """All attempts of a run, by number."""
    # Beside a02.json lie the records of what it continued: a01.submission.json, a01.completion.json.
    files = [path for path in paths.attempts.glob("a*.json") if path.stem.removeprefix("a").isdigit()]
    # By number: as text a100 would stand before a99.
    attempts = (read_value(Attempt, path) for path in files)
    return sorted((attempt for attempt in attempts if attempt is not None), key=lambda attempt: attempt.number)
