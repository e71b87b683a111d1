"""A hand-over that has begun: written down before anything is started, and settled by whoever finds it left behind.

``intent.json`` exists from the claim of a run until its record says where it went. sbatch is called with a script whose
name nobody else has, and the name stands in the intent before: Slurm tells the command of a job, so whoever finds an
intent whose launcher is gone can ask whether there is a job of it. While nobody can answer, nothing is submitted.
"""

import contextlib
import fcntl
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from launcher.cluster.slurm import run_command
from launcher.contract.attempt import read_attempts
from launcher.contract.files import DAMAGE, write_json, write_text
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan
from launcher.contract.process import is_running, process_start
from launcher.contract.submission import Submission, read_submission
from launcher.contract.values import read_value, to_value
from launcher.errors import ClusterError, UserError

IN_FLIGHT_SECONDS = 30.0
"""After sbatch has gone without an answer: how long slurmctld may still be at work on what it was sent."""
ELSEWHERE_SECONDS = 300.0
"""How long a launcher on another machine may be at it. sbatch itself gives up within about two minutes."""


class UnsettledError(ClusterError):
    """Nobody knows yet whether the run was handed over."""


class SilenceError(UnsettledError):
    """Nobody knows, because Slurm does not answer."""


@dataclass(frozen=True, kw_only=True)
class Intent:
    """Who hands a run over, and what to undo if nothing comes of it.

    ``script`` is the file that sbatch was called with at ``called`` (seconds since the epoch), None while no call is
    without its answer. ``resumed`` is the number of the last attempt of a run that goes on, ``moved`` the records
    that were moved to the attempts' folder for it.
    """

    t: float
    run_id: str
    cluster: str
    scheduler: str
    slurm_conf: str | None
    host: str
    pid: int
    pid_start: int | None
    resumed: int | None = None
    moved: list[str] = field(default_factory=list)
    script: str | None = None
    called: float | None = None

    def submission(self, paths: RunPaths) -> Submission:
        """The record of this hand-over, as far as it has come: without job or process."""
        return Submission(
            t=self.t, run_id=self.run_id, run_dir=str(paths.root), cluster=self.cluster, scheduler=self.scheduler
        )


def make_intent(plan: Plan, resumed: int | None = None, moved: list[str] | None = None) -> Intent:
    """The intent of this very process to hand ``plan`` over, from now on."""
    return Intent(
        t=time.time(),
        run_id=plan.run_id,
        cluster=plan.cluster.name,
        scheduler=plan.cluster.scheduler,
        slurm_conf=plan.cluster.slurm_conf,
        host=platform.node(),
        pid=os.getpid(),
        pid_start=process_start(os.getpid()),
        resumed=resumed,
        moved=moved or [],
    )


def read_intent(paths: RunPaths) -> Intent | None:
    """The intent that stands in ``paths``, or None.

    Raises:
        UserError: the file is damaged, so nobody can say whether there is a job.
    """
    try:
        return read_value(Intent, paths.intent)
    except DAMAGE as error:
        raise UserError(
            f"{error}\n"
            f"hint: see in the queue whether there is a job named {paths.root.name}, end it, then remove that file"
        ) from error


def claim(paths: RunPaths, intent: Intent) -> None:
    """Take the run: of several commands at once, one gets it. What a command left behind is settled first.

    Raises:
        UserError: another command hands it over at this moment.
        ClusterError: one was cut off, and nobody can tell what came of it.
    """
    settle(paths)
    handle, draft = tempfile.mkstemp(prefix=".intent.", dir=paths.root)
    os.close(handle)
    try:
        write_json(Path(draft), to_value(intent))
        with _alone(paths):
            os.link(draft, paths.intent)
    except FileExistsError:
        raise UserError(f"{intent.run_id} is being submitted by another command; nothing was submitted") from None
    finally:
        os.unlink(draft)


def note_call(paths: RunPaths, intent: Intent, script: str | None) -> Intent:
    """Write down that sbatch is about to be called with ``script``, or (None) that it has given its answer."""
    intent = replace(intent, script=script, called=time.time() if script else None)
    write_json(paths.intent, to_value(intent))
    return intent


def settle(paths: RunPaths) -> Submission | None:
    """Finish or undo a hand-over that was cut off; returns the run's record, None where it has never been submitted.

    Raises:
        UserError: a command is at it, or the intent is damaged.
        UnsettledError: it was cut off, and nobody can tell what came of it yet.
    """
    intent = read_intent(paths)
    if intent is None:
        return read_submission(paths)
    job_id = _find_outcome(paths, intent)
    with _alone(paths):
        if read_intent(paths) == intent:  # else another command has settled it meanwhile
            if job_id is not None:
                write_json(paths.submission, to_value(replace(intent.submission(paths), job_id=job_id)))
                paths.intent.unlink()
            elif is_recorded(paths, intent):
                paths.intent.unlink()
            else:
                undo(paths, intent)
    return read_submission(paths)


def undo(paths: RunPaths, intent: Intent) -> None:
    """Put everything back as it was before the hand-over, which has started nothing; the intent goes last."""
    paths.secrets.unlink(missing_ok=True)
    if intent.resumed is None:
        paths.submission.unlink(missing_ok=True)
    else:
        plan, submission = kept(paths, intent.resumed, "plan.json"), kept(paths, intent.resumed, "submission.json")
        if plan.exists():
            from .prepare import render_all

            render_all(Plan.load(plan))
        for name in intent.moved:
            source, target = kept(paths, intent.resumed, Path(name).name), paths.root / name
            if source.exists() and not target.exists():
                os.rename(source, target)
        if submission.exists():
            os.replace(submission, paths.submission)
        plan.unlink(missing_ok=True)
    paths.intent.unlink(missing_ok=True)


def kept(paths: RunPaths, number: int, name: str) -> Path:
    """Where a record of a run is kept that goes on after attempt ``number``."""
    return paths.attempts / f"a{number:02d}.{name}"


def keep(paths: RunPaths, intent: Intent) -> None:
    """Copy plan and submission of a run that goes on, and move what says how it ended, beside its attempts."""
    assert intent.resumed is not None
    for file in (paths.plan, paths.submission):
        write_text(kept(paths, intent.resumed, file.name), file.read_text(encoding="utf-8"))
    for name in intent.moved:
        os.rename(paths.root / name, kept(paths, intent.resumed, Path(name).name))


def _find_outcome(paths: RunPaths, intent: Intent) -> str | None:
    """The job that came of ``intent``, None where it is recorded already or there is none.

    Raises:
        UserError, UnsettledError: as :func:`settle`.
    """
    if is_recorded(paths, intent):
        return None
    is_here = intent.host == platform.node()
    now = time.time()
    if is_here and is_running(intent.pid, intent.pid_start) and intent.pid != os.getpid():
        raise UserError(f"{intent.run_id} is being submitted by another command (process {intent.pid})")
    if not is_here and now - max(intent.t, intent.called or 0.0) < ELSEWHERE_SECONDS:
        left = ELSEWHERE_SECONDS - (now - max(intent.t, intent.called or 0.0))
        raise UnsettledError(
            f"{intent.run_id} is being submitted by a command on {intent.host}, or that was cut off there\n"
            f"hint: run this on {intent.host}, or in {left:.0f} s"
        )
    if intent.script is None:
        return None  # nothing was started: sbatch was not called, a local supervisor waits for its record
    if job_id := find_job(paths, intent):
        return job_id
    left = IN_FLIGHT_SECONDS - (now - (intent.called or 0.0))
    if left > 0 or (is_here and _is_at_work(intent.script)):
        raise UnsettledError(
            f"{intent.run_id}: the command that submitted it was cut off, and Slurm has no job of it so far\n"
            f"hint: look again in {max(left, 5):.0f} s; until then nothing is submitted"
        )
    return None


def find_job(paths: RunPaths, intent: Intent) -> str | None:
    """The id of the job that runs the script of ``intent``, or None where Slurm has none.

    Raises:
        SilenceError: Slurm gave no answer.
    """
    # Neither is cut to a width: %o is the whole command, the path of the script.
    queue = ["squeue", "--me", "--noheader", "--states=all", "--format=%i|%o"]
    try:
        rows = [line.strip().split("|", 1) for line in run_command(queue, intent.slurm_conf).splitlines()]
    except ClusterError as error:
        raise SilenceError(
            f"{intent.run_id}: the command that submitted it was cut off, and Slurm does not say whether there is a "
            f"job of it: {error}\nhint: try again when Slurm answers; until then nothing is submitted"
        ) from error
    found = [row[0] for row in rows if len(row) == 2 and intent.script and intent.script in row[1]]
    if found:
        return found[0]
    # The queue forgets a job some minutes after its end; what it did, it wrote down.
    later = [attempt.slurm_job_id for attempt in read_attempts(paths) if attempt.number > (intent.resumed or 0)]
    return later[-1] if later else None


def is_recorded(paths: RunPaths, intent: Intent) -> bool:
    """Whether the record says where the run went by ``intent``."""
    submission = read_submission(paths)
    has_gone = submission is not None and (submission.job_id is not None or submission.pid is not None)
    return has_gone and submission is not None and submission.t == intent.t


def _is_at_work(script: str) -> bool:
    """Whether a process of this machine, an sbatch that outlived its launcher, has ``script`` as an argument."""
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and script.encode() in (folder / "cmdline").read_bytes():
                return True
    return False


@contextlib.contextmanager
def _alone(paths: RunPaths) -> Iterator[None]:
    """Only one command at a time claims or settles; the lock ends with its process."""
    with (paths.root / ".intent.lock").open("a") as lock:
        with contextlib.suppress(OSError):  # a file system without locks; the claim itself is one link
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
