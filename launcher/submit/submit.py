"""Submits a prepared run, once, and records where it went."""

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from launcher.contract.files import DAMAGE, make_folder, write_json, write_text
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan
from launcher.contract.process import process_start
from launcher.contract.submission import Submission, read_submission
from launcher.contract.values import to_value
from launcher.errors import ClusterError, TuneyardError, UserError

from .cancel import cancel_run
from .intent import Intent, UnsettledError, claim, is_recorded, make_intent, read_intent, undo
from .prepare import Prepared
from .slurm import job_script, submit_job
from .snapshot import take_snapshot
from .sources import copy_sources


def submit_stages(stages: Sequence[Prepared], repository: Path | None) -> list[Submission]:
    """Submit one run, or all stages of a pipeline, each to start when the one before it is complete.

    Raises:
        UserError: as :func:`submit`.
        ClusterError: one was refused, and those before it are taken back; the message says what could not be.
    """
    done: list[Submission] = []
    try:
        for stage in stages:
            done.append(submit(stage.plan, stage.paths, repository, done[-1].job_id if done else None))
    except BaseException as error:
        left = _take_back(stages[: len(done)], done)
        if isinstance(error, KeyboardInterrupt) and left:
            raise refuse(ClusterError("interrupted"), left) from error
        if isinstance(error, ClusterError) or (left and isinstance(error, (UserError, OSError))):
            raise refuse(error, left) from error
        raise
    return done


def refuse(error: Exception, submitted: Sequence[Submission]) -> TuneyardError:
    """``error`` with the end that a refusal has: what of the same command is in the queue all the same."""
    what, _, hint = str(error).partition("\n")
    what = what.removesuffix("; nothing was submitted")
    kind = ClusterError if isinstance(error, ClusterError) else UserError
    if isinstance(error, UnsettledError) and not submitted:
        return error
    if not submitted:
        return kind(f"{what}; nothing was submitted" + (f"\n{hint}" if hint else ""))
    names = ", ".join(f"{item.run_id} ({_tell_place(item)})" for item in submitted)
    group = submitted[0].run_id.partition("/")[0]
    return kind(f"{what}; still submitted: {names}\nhint: tuneyard cancel {group}, then tuneyard retry {group}")


def _tell_place(submission: Submission) -> str:
    if submission.job_id or submission.pid:
        return f"job {submission.job_id}" if submission.job_id else f"process {submission.pid}"
    return "and cancelled"


def _take_back(stages: Sequence[Prepared], submitted: Sequence[Submission]) -> list[Submission]:
    """End ``stages`` and forget that they were ``submitted``, the last one first; returns those that may still run."""
    left = []
    for stage, submission in reversed(list(zip(stages, submitted, strict=True))):
        try:
            cancel_run(stage.paths)
            stage.paths.submission.unlink()
            stage.paths.cancelled.unlink()
        except (TuneyardError, *DAMAGE):  # whatever is in the way of one, the others are ended
            left.append(submission)
    return left[::-1]


def submit(plan: Plan, paths: RunPaths, repository: Path | None, after: str | None = None) -> Submission:
    """Snapshot the code, hand the run over for the first time, and write submission.json.

    ``repository`` is a file in the user's git repository, whose state is recorded; None keeps what is recorded.
    ``after`` is the Slurm job that it waits for.

    Raises:
        UserError: the run has been submitted already, or is being submitted.
        ClusterError: the scheduler refused, nothing was submitted and the run can be submitted again; or, as
            UnsettledError, nobody knows whether it did.
    """
    intent = make_intent(plan)
    claim(paths, intent)
    if (found := read_submission(paths)) is not None:
        paths.intent.unlink()
        raise UserError(
            f"{plan.run_id} was submitted by another command ({_tell_place(found)}); nothing was submitted\n"
            f"hint: tuneyard status {plan.group} follows it; submit again for another run"
        )
    with undone_unless_handed_over(paths, intent):
        return hand_over(plan, paths, intent, repository, after)


@contextmanager
def undone_unless_handed_over(paths: RunPaths, intent: Intent) -> Iterator[None]:
    """After an exception, undo the hand-over where nothing can have come of it, else leave it to :func:`settle`.

    Raises:
        UnsettledError: something may have come of it.
    """
    try:
        yield
    except BaseException as error:
        now = read_intent(paths)
        if now is None or isinstance(error, UnsettledError) or is_recorded(paths, now):
            raise
        if now.script is None:
            undo(paths, now)
            raise
        raise UnsettledError(
            f"{intent.run_id} may have been submitted: sbatch was called, and then came: {_tell(error)}\n"
            f"hint: tuneyard status {intent.run_id} finds its job, or sees that there is none"
        ) from error


def hand_over(
    plan: Plan, paths: RunPaths, intent: Intent, repository: Path | None, after: str | None = None
) -> Submission:
    """Start what ``intent`` has claimed, and write down where it went. Raises as :func:`submit`."""
    submission = intent.submission(paths)
    # Before anything is started: a job knows by it which hand-over it is of.
    write_json(paths.submission, to_value(submission))
    take_snapshot(paths, repository)
    # A run that goes on keeps the script that it began with.
    if plan.spec.script is not None and (repository is not None or not paths.script_sources.exists()):
        copy_sources(plan.spec.script, Path(plan.runs), paths.script_sources)
    make_folder(paths.root / "logs")
    _hand_secrets_over(plan, paths)
    # Ctrl-C between sbatch's yes and the record would leave the user without the answer.
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        if plan.cluster.scheduler == "slurm":
            write_text(paths.job_script, job_script(plan, paths, after))
            submission = replace(submission, job_id=submit_job(plan, paths, intent, after))
            write_json(paths.submission, to_value(submission))
        else:
            submission = _start_local(paths, submission)
        paths.intent.unlink()
    finally:
        signal.signal(signal.SIGINT, interrupt)
    return submission


def _hand_secrets_over(plan: Plan, paths: RunPaths) -> None:
    """Write the tokens that this run needs to a 0600 file beside the run; the supervisor reads and removes it."""
    needed = []
    if plan.spec.tracking.wandb == "online":
        needed.append("WANDB_API_KEY")
    model = plan.spec.model
    may_ask_hub = plan.spec.stage == "script" or (model and not model.base.startswith(("/", "builtin:")))
    if may_ask_hub and plan.cluster.internet:
        needed.append("HF_TOKEN")
    found = {name: os.environ[name] for name in needed if os.environ.get(name)}
    if found:
        write_text(paths.secrets, "".join(f"{name}={value}\n" for name, value in found.items()))


def _start_local(paths: RunPaths, submission: Submission) -> Submission:
    """Start the supervisor in a session of its own, so that it survives this terminal.

    It waits for a word on its stdin until its pid is on the disk: where the launcher dies before, it ends.
    """
    with (paths.root / "logs" / "batch-local.log").open("ab") as log:
        process = subprocess.Popen(
            ["bash", "-c", 'read -r word && exec bash "$0" </dev/null', str(paths.job_script)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if name not in ("WANDB_API_KEY", "HF_TOKEN")},
        )
    assert process.stdin is not None
    with process.stdin as stdin:
        submission = replace(submission, pid=process.pid, pid_start=process_start(process.pid))
        write_json(paths.submission, to_value(submission))
        stdin.write(b"go\n")
    return submission


def _tell(error: BaseException) -> str:
    return str(error) or type(error).__name__
