"""A submission: where a run went when it was handed over."""

from dataclasses import dataclass

from .paths import RunPaths
from .values import read_value


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A Slurm job, or a local supervisor process (``pid`` with its start time in clock ticks since boot).

    ``job_id`` and ``pid`` are both None between the claim and the hand-over.
    """

    t: float
    run_id: str
    run_dir: str
    cluster: str
    scheduler: str
    job_id: str | None = None
    pid: int | None = None
    pid_start: int | None = None


def read_submission(paths: RunPaths) -> Submission | None:
    """The record of ``paths``, or None for a run that was only planned."""
    return read_value(Submission, paths.submission)
