"""Joins what the scheduler says with the run's own files into one state, step and reason."""

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.contract.attempt import Attempt, Ending, read_attempts
from launcher.contract.files import DAMAGE
from launcher.contract.heartbeat import find_straggler, read_heartbeats
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan
from launcher.contract.process import is_running
from launcher.contract.submission import Submission, read_submission
from launcher.errors import TuneyardError

from .find import name_by_place
from .slurm import ENDINGS, STATES, JobView, ask_jobs, explain_wait


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


@dataclass(frozen=True)
class _HandOver:
    """Where a run went, as far as its files tell: ``plan`` is None where they are damaged, ``damage`` says how;
    ``unsettled`` says why nobody knows whether it was handed over."""

    paths: RunPaths
    plan: Plan | None
    submission: Submission | None = None
    damage: str = ""
    unsettled: str = ""

    @property
    def before(self) -> RunPaths | None:
        """The run that must be complete before this one starts."""
        return RunPaths(self.paths.root.parent / self.plan.after) if self.plan and self.plan.after else None


def read_status(paths: RunPaths) -> Status:
    """The state of one run; Slurm is asked at most twice, as by :func:`read_statuses`."""
    return read_statuses([paths])[0]


def read_statuses(runs: Sequence[RunPaths]) -> list[Status]:
    """The states of ``runs``, of each stage with those before it.

    Slurm is asked at most twice for all runs of one slurm.conf together. A run whose files are damaged is
    ``unknown``, and does not hide the others.
    """
    hand_overs: dict[RunPaths, _HandOver] = {}
    for paths in runs:
        _gather(paths, hand_overs)
    jobs = _ask(hand_overs.values())
    statuses: dict[RunPaths, Status] = {}
    for paths, this in hand_overs.items():
        before = hand_overs[this.before] if this.before else None
        parent = statuses[this.before].state if this.before else None
        try:
            statuses[paths] = _judge(this, jobs.get(paths), before, parent)
        except DAMAGE as error:
            statuses[paths] = _tell_damage(paths, str(error))
    return [statuses[paths] for paths in runs]


def _gather(paths: RunPaths, found: dict[RunPaths, _HandOver]) -> None:
    """Add the hand-over of ``paths`` to ``found``, those of the stages before it first."""
    if paths in found:
        return
    try:
        unsettled = _settle(paths) if paths.intent.exists() else ""
        this = _HandOver(paths, Plan.load(paths.plan), read_submission(paths), unsettled=unsettled)
    except DAMAGE as error:
        this = _HandOver(paths, None, damage=str(error))
    if this.before is not None:
        _gather(this.before, found)
    found[paths] = this


def _settle(paths: RunPaths) -> str:
    """Finish or undo a hand-over that was cut off; returns why nobody can, else nothing."""
    from launcher.submit.intent import settle  # with all that submits, for the rare run that needs it

    try:
        settle(paths)
    except TuneyardError as error:
        return str(error)
    return ""


def _ask(hand_overs: Iterable[_HandOver]) -> dict[RunPaths, JobView]:
    """What Slurm says of the jobs of all runs that are not complete."""
    wanted: dict[str | None, dict[RunPaths, str]] = {}
    for this in hand_overs:
        if this.plan and this.submission and this.submission.job_id and not this.paths.completion.exists():
            wanted.setdefault(this.plan.cluster.slurm_conf, {})[this.paths] = this.submission.job_id
    views: dict[RunPaths, JobView] = {}
    for slurm_conf, jobs in wanted.items():
        answer = ask_jobs(list(jobs.values()), slurm_conf)
        views |= {paths: answer[job] for paths, job in jobs.items() if job in answer}
    return views


def _judge(this: _HandOver, job: JobView | None, before: _HandOver | None, parent: str | None) -> Status:
    """The state of one run; ``parent`` is that of the stage ``before`` it. Its records are read after Slurm was
    asked: a job that has left the queue has written them."""
    paths, plan, submission = this.paths, this.plan, this.submission
    if plan is None:
        return _tell_damage(paths, this.damage)
    attempts = read_attempts(paths)
    last = attempts[-1] if attempts else None
    is_cancelled = paths.cancelled.exists()
    state, reason = decide(
        is_complete=paths.completion.exists(),
        is_cancelled=is_cancelled,
        submission=submission,
        last=last,
        job=job,
        find_fault=lambda: find_fault(paths.root),
    )
    if state in ("pending", "running") and submission and (before_this := _tell_before(attempts, submission)):
        # Beside what Slurm says of a job that waits once more (BeginTime, Resources).
        reason = before_this + (f"; waits in the queue ({reason})" if state == "pending" and reason else "")
    if this.unsettled and not paths.completion.exists():
        state, reason = "unknown", this.unsettled
    has_started = state == "completed" or (last and submission and last.belongs_to(submission))
    if before is not None and parent is not None and not has_started:
        earlier = before.submission
        state, reason = decide_waiting(
            state,
            reason,
            plan,
            parent,
            submission=submission,
            is_cancelled=is_cancelled,
            is_parent_newer=bool(submission and earlier and earlier.t > submission.t),
        )
    # An older attempt may have been further, or have had more ranks.
    beats = [beat for beat in read_heartbeats(paths) if last is not None and beat.attempt == last.number]
    if state == "running" and (straggler := find_straggler(beats)):
        reason = f"{straggler}; {reason}" if reason else straggler
    # Its ranks beat with step 0 until they have read the checkpoint that they start from.
    begun = last.first_step if last is not None else 0
    return Status(
        run_id=plan.run_id,
        run_dir=str(paths.root),
        stage=plan.spec.stage,
        state=state,
        step=max([begun, *(beat.step for beat in beats)]),
        max_steps=plan.spec.train.max_steps,
        attempt=last.number if last else 0,
        reason=reason,
        cluster=plan.cluster.name,
        job_id=submission.job_id if submission else None,
    )


def _tell_damage(paths: RunPaths, damage: str) -> Status:
    return Status(
        run_id=name_by_place(paths.root),
        run_dir=str(paths.root),
        stage="",
        state="unknown",
        step=0,
        max_steps=None,
        attempt=0,
        reason=f"its files cannot be read: {damage}",
        cluster="",
        job_id=None,
    )


def find_fault(root: Path) -> str | None:
    """What keeps a run from leaving a record of its end below ``root``: its disk is full or read-only; None if neither
    is so. Waits where the disk stalls, so it is not to be asked of a run that lives."""
    try:
        # A file without a name, gone when it is closed: ext4 that has met an error says so to nothing less.
        os.close(os.open(root, os.O_TMPFILE | os.O_WRONLY))
    except OSError as error:
        if error.errno == errno.EROFS:
            return f"the disk is read-only: {root}"
    return f"the disk is full: {root}" if os.statvfs(root).f_bavail == 0 else None


def decide(
    *,
    is_complete: bool,
    is_cancelled: bool,
    submission: Submission | None,
    last: Attempt | None,
    job: JobView | None,
    find_fault: Callable[[], str | None] = lambda: None,
) -> tuple[str, str | None]:
    """State and reason; ``find_fault`` is asked where a run has ended and left no record.

    The completion record outranks all. Then comes how the last attempt of this very submission ended, by its own
    word; then the scheduler, on whether the job lives. Its silence is no verdict.
    """
    if is_complete:
        return "completed", None
    if submission is None:
        return "pending", "planned, not submitted"
    ending = last.ended if last is not None and last.belongs_to(submission) else None
    if ending is not None and ending.state != "interrupted" and ending.then == "stop":
        # Completed without the record in sight: a network file system shows it a little later.
        return ending.state, None if ending.state == "completed" else _tell(ending)
    if submission.job_id is None and submission.pid is None and is_cancelled:
        return "cancelled", "cancelled by the user"  # a claim that nothing came of; cancel has made sure
    if submission.scheduler == "local":
        if submission.pid is None:
            return "unknown", "the launcher stopped between claiming the run and starting it"
        if is_running(submission.pid, submission.pid_start):
            return "running", None
        gone = "the supervisor is gone without a record"
        return _ended(ending, is_cancelled, f"{gone}: {find_fault() or 'killed, or the machine restarted'}")
    if submission.job_id is None:
        return "unknown", "the launcher stopped between claiming the run and recording its job id"
    if job is None:
        return "unknown", f"Slurm has no answer about job {submission.job_id}"
    state = STATES.get(job.state, "unknown")
    if state in ("pending", "running"):
        return state, explain_wait(job, submission.job_id)
    if state == "cancelled":
        return "cancelled", "cancelled by the user" if is_cancelled else "cancelled in Slurm"
    if state == "unknown":
        return "unknown", f"Slurm says {job.state}"
    if job.state in ENDINGS:
        return "failed", ENDINGS[job.state]
    silent = f"Slurm says {job.state}, and the job left no record; {find_fault() or 'see logs/batch-*.log'}"
    return _ended(ending, is_cancelled, silent)


def decide_waiting(
    state: str,
    reason: str | None,
    plan: Plan,
    parent: str,
    *,
    submission: Submission | None,
    is_cancelled: bool,
    is_parent_newer: bool,
) -> tuple[str, str | None]:
    """State and reason of a stage that has not started; ``parent`` is the state of the stage before it, which was
    handed over again since this one was where ``is_parent_newer``."""
    retry = f"tuneyard retry {plan.group}"
    if submission is None:
        # A submission that was cut off between the two.
        return ("failed", f"was never submitted; {retry}") if parent == "completed" else (state, reason)
    if parent in ("pending", "running", "unknown") and state in ("pending", "running"):
        return "pending", f"waits for the stage {plan.after}"
    if parent in ("failed", "cancelled") and state in ("pending", "running", "failed", "cancelled"):
        return "cancelled", f"never started: the stage {plan.after} is {parent}"
    # It ended for its parent's sake, which goes on by now. A local supervisor waits until its attempt begins; Slurm
    # cancels a job whose dependency has failed, but so may anybody who is not waiting for a stage that is complete.
    is_gone = state == "failed" if submission.scheduler == "local" else state == "cancelled"
    if is_gone and not is_cancelled and (submission.scheduler == "local" or parent != "completed" or is_parent_newer):
        return "cancelled", f"never started, because the stage {plan.after} had not completed; {retry} starts it"
    return state, reason


def _tell(ending: Ending) -> str:
    return ending.reason + (f"\nhint: {ending.hint}" if ending.hint else "")


def _tell_before(attempts: Sequence[Attempt], submission: Submission) -> str | None:
    """How the last attempt of this hand-over ended that has ended: why the run is at a later one, or waits."""
    ended = [attempt for attempt in attempts if attempt.belongs_to(submission) and attempt.ended is not None]
    if not ended or ended[-1].ended is None:
        return None
    return f"attempt {ended[-1].number} {ended[-1].ended.state}: {ended[-1].ended.reason}"


def _ended(ending: Ending | None, is_cancelled: bool, otherwise: str) -> tuple[str, str | None]:
    if is_cancelled:
        return "cancelled", "cancelled by the user"
    return "failed", _tell(ending) if ending is not None else otherwise
