"""An attempt: one start of a run's ranks, and how it ended."""

import contextlib
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .files import write_json
from .paths import RunPaths, read_step
from .submission import Submission
from .values import read_value, to_value

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USER = 2
EXIT_CLUSTER = 3
EXIT_NO_PROGRESS = 4
EXIT_INTERRUPTED = 130

Cause = Literal["error", "crash", "hang", "node", "preempted", "time_limit", "requeued", "stopped"]
"""Why an attempt did not complete.

error: what only the user can mend. crash: a rank died or raised. hang: no rank got on. node: Slurm lost a node. The
others ended it from outside: preempted, time_limit, requeued by an administrator, or stopped by a signal.
"""
Then = Literal["stop", "restart", "requeue"]
"""What follows: nothing, new ranks in the same allocation, or the job's way back into the queue."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How an attempt ended; ``rank`` and ``node`` name the first that failed, ``log`` its last lines.

    ``checkpoint_step`` is the newest checkpoint's when it ended, 0 where there is none; ``excluded`` are nodes that
    have proved bad by then.
    """

    t: float
    state: Literal["completed", "failed", "cancelled", "interrupted"]
    exit_code: int
    reason: str
    cause: Cause | None = None
    hint: str | None = None
    then: Then = "stop"
    rank: int | None = None
    node: str | None = None
    log: list[str] = field(default_factory=list)
    checkpoint_step: int = 0
    excluded: list[str] = field(default_factory=list)


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

    @property
    def first_step(self) -> int:
        """The step of the checkpoint that it starts from, 0 where there is none."""
        return read_step(Path(self.resumed_from)) if self.resumed_from else 0

    def claim(self, paths: RunPaths) -> bool:
        """Write the record, unless another supervisor has taken this number; returns whether it is ours.

        From then on every attempt before it is void: its ranks and its supervisor stop.
        """
        draft = paths.attempts / f".claim.{socket.gethostname()}.{os.getpid()}"
        write_json(draft, to_value(self))
        try:
            # link and not O_EXCL: nobody may see half of it.
            os.link(draft, paths.attempt(self.number))
        except FileExistsError:
            return False
        finally:
            draft.unlink()
        return True

    def save(self, paths: RunPaths) -> None:
        write_json(paths.attempt(self.number), to_value(self))

    def belongs_to(self, submission: Submission) -> bool:
        """Whether it is of this hand-over and not of one before it."""
        if submission.scheduler == "slurm" and submission.job_id is not None:
            return self.slurm_job_id == submission.job_id
        return self.started >= submission.t


def is_stale(paths: RunPaths, number: int) -> bool:
    """Whether an attempt newer than ``number`` has begun. Silence of the file system is none."""
    with contextlib.suppress(OSError):
        return paths.attempt(number + 1).exists()
    return False


def read_attempts(paths: RunPaths) -> list[Attempt]:
    """All attempts of a run, by number."""
    # Beside a02.json lie the records of what it continued: a01.submission.json, a01.completion.json.
    files = [path for path in paths.attempts.glob("a*.json") if path.stem.removeprefix("a").isdigit()]
    # By number: as text a100 would stand before a99.
    attempts = (read_value(Attempt, path) for path in files)
    return sorted((attempt for attempt in attempts if attempt is not None), key=lambda attempt: attempt.number)
