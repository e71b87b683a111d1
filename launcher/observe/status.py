"""Joins what the scheduler says with the run's own files into one state, step and reason."""

from dataclasses import dataclass

from launcher.contract.attempt import Attempt, Ending, read_attempts
from launcher.contract.heartbeat import read_heartbeats
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan
from launcher.contract.process import is_running
from launcher.contract.submission import Submission, read_submission

from .slurm import ENDINGS, STATES, JobView, ask_jobs


@dataclass(frozen=True, kw_only=True)
class Status:
    """``state`` is pending, running, completed, failed, cancelled or unknown; ``step`` the last finished step."""

    run_id: str
    run_dir: str
    stage: str
    state: str
    step: int
    max_steps: int | None
    attempt: int
    reason: str | None
    cluster: str
    job_id: str | None

    @property
    def stage_name(self) -> str:
        """Its key in the pipeline; of a plain run its id."""
        return self.run_id.rpartition("/")[2]


def read_status(paths: RunPaths) -> Status:
    """The state of one run; asks Slurm at most twice."""
    plan = Plan.load(paths.plan)
    submission = read_submission(paths)
    attempts = read_attempts(paths)
    job = None
    if submission is not None and submission.job_id is not None and not paths.completion.exists():
        job = ask_jobs([submission.job_id], plan.cluster.slurm_conf).get(submission.job_id)
    last = attempts[-1] if attempts else None
    state, reason = decide(
        is_complete=paths.completion.exists(),
        is_cancelled=paths.cancelled.exists(),
        submission=submission,
        last=last,
        job=job,
    )
    if plan.after is not None and submission is not None and not (last and _belongs(last, submission)):
        parent = read_status(RunPaths(paths.root.parent / plan.after))
        state, reason = decide_waiting(state, reason, plan.after, parent.state)
    # An older attempt may have been further, or have had more ranks.
    beats = [beat.step for beat in read_heartbeats(paths) if last is not None and beat.attempt == last.number]
    return Status(
        run_id=plan.run_id,
        run_dir=str(paths.root),
        stage=plan.spec.stage,
        state=state,
        step=max(beats, default=0),
        max_steps=plan.spec.train.max_steps,
        attempt=attempts[-1].number if attempts else 0,
        reason=reason,
        cluster=plan.cluster.name,
        job_id=submission.job_id if submission else None,
    )


def read_or_tell(paths: RunPaths) -> Status:
    """As :func:`read_status`; a run whose files are damaged is ``unknown``, and does not hide the others."""
    try:
        return read_status(paths)
    except (OSError, TypeError, ValueError) as error:
        return Status(
            run_id=paths.root.name,
            run_dir=str(paths.root),
            stage="",
            state="unknown",
            step=0,
            max_steps=None,
            attempt=0,
            reason=f"its files cannot be read: {error}",
            cluster="",
            job_id=None,
        )


def decide(
    *, is_complete: bool, is_cancelled: bool, submission: Submission | None, last: Attempt | None, job: JobView | None
) -> tuple[str, str | None]:
    """State and reason.

    The completion record outranks all. Then comes how the last attempt of this very submission ended, by its own
    word; then the scheduler, on whether the job lives. Its silence is no verdict.
    """
    if is_complete:
        return "completed", None
    if submission is None:
        return "pending", "planned, not submitted"
    ending = last.ended if last is not None and _belongs(last, submission) else None
    if ending is not None and ending.state != "interrupted":
        # Completed without the record in sight: a network file system shows it a little later.
        return ending.state, None if ending.state == "completed" else ending.reason
    if submission.scheduler == "local":
        if submission.pid is None:
            return "unknown", "the launcher stopped between claiming the run and starting it"
        if is_running(submission.pid, submission.pid_start):
            return "running", None
        gone = "the supervisor is gone without a record: killed, or the machine restarted"
        return _ended(ending, is_cancelled, gone)
    if submission.job_id is None:
        return "unknown", "the launcher stopped between claiming the run and recording its job id"
    if job is None:
        return "unknown", f"Slurm has no answer about job {submission.job_id}"
    state = STATES.get(job.state, "unknown")
    if state in ("pending", "running"):
        return state, job.reason
    if state == "cancelled":
        return "cancelled", "cancelled by the user" if is_cancelled else "cancelled in Slurm"
    if state == "unknown":
        return "unknown", f"Slurm says {job.state}"
    if job.state in ENDINGS:
        return "failed", ENDINGS[job.state]
    return _ended(ending, is_cancelled, f"Slurm says {job.state}, and the job left no record; see logs/batch-*.log")


def decide_waiting(state: str, reason: str | None, stage: str, parent: str) -> tuple[str, str | None]:
    """State and reason of a stage that has not started yet; ``parent`` is the state of ``stage``, the one before it."""
    if parent in ("pending", "running", "unknown") and state in ("pending", "running"):
        return "pending", f"waits for the stage {stage}"
    if parent in ("failed", "cancelled") and state in ("pending", "running", "failed", "cancelled"):
        return "cancelled", f"never started: the stage {stage} is {parent}"
    return state, reason


def _belongs(attempt: Attempt, submission: Submission) -> bool:
    """Whether ``attempt`` is of this hand-over and not of one before it."""
    if submission.scheduler == "slurm":
        return attempt.slurm_job_id == submission.job_id
    return attempt.started >= submission.t


def _ended(ending: Ending | None, is_cancelled: bool, otherwise: str) -> tuple[str, str | None]:
    if is_cancelled:
        return "cancelled", "cancelled by the user"
    return "failed", ending.reason if ending is not None else otherwise
