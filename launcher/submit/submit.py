"""Submits a prepared run, once, and records where it went."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from launcher.contract.files import make_folder, read_json, write_json, write_text
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan
from launcher.contract.process import process_start
from launcher.contract.submission import Submission
from launcher.contract.values import from_value, to_value
from launcher.errors import ClusterError, TuneyardError, UserError

from .cancel import cancel_run
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
    except ClusterError as error:
        raise refuse(error, _take_back(stages[: len(done)])) from error
    except BaseException:
        _take_back(stages[: len(done)])
        raise
    return done


def refuse(error: TuneyardError, submitted: Sequence[Submission]) -> TuneyardError:
    """``error`` with the end that a refusal has: what of the same command is in the queue all the same."""
    what, _, hint = str(error).partition("\n")
    what = what.removesuffix("; nothing was submitted")
    kind = ClusterError if isinstance(error, ClusterError) else UserError
    if not submitted:
        return kind(f"{what}; nothing was submitted" + (f"\n{hint}" if hint else ""))
    names = ", ".join(f"{item.run_id} ({_tell_place(item)})" for item in submitted)
    group = submitted[0].run_id.partition("/")[0]
    return kind(f"{what}; still submitted: {names}\nhint: tuneyard cancel {group}, then tuneyard retry {group}")


def _tell_place(submission: Submission) -> str:
    return f"job {submission.job_id}" if submission.job_id else f"process {submission.pid}"


def _take_back(stages: Sequence[Prepared]) -> list[Submission]:
    """End ``stages`` and forget that they were submitted, the last one first; returns those that may still run."""
    left = []
    for stage in reversed(stages):
        try:
            cancel_run(stage.paths)
        except ClusterError:
            left.append(from_value(Submission, read_json(stage.paths.submission)))
            continue
        stage.paths.submission.unlink()
        stage.paths.cancelled.unlink()
    return left[::-1]


def submit(plan: Plan, paths: RunPaths, repository: Path | None, after: str | None = None) -> Submission:
    """Snapshot the code, hand the run over, and write submission.json.

    ``repository`` is a file in the user's git repository, whose state is recorded; None keeps what is recorded.
    ``after`` is the Slurm job that it waits for.

    Raises:
        UserError: the run has been submitted already.
        ClusterError: the scheduler refused; nothing was submitted and the run can be submitted again.
    """
    submission = Submission(
        t=time.time(),
        run_id=plan.run_id,
        run_dir=str(paths.root),
        cluster=plan.cluster.name,
        scheduler=plan.cluster.scheduler,
    )
    _claim(paths, submission)
    # Ctrl-C between sbatch's yes and the record would leave a job that nobody knows of.
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        take_snapshot(paths, repository)
        # A run that goes on keeps the script that it began with.
        if plan.spec.script is not None and (repository is not None or not paths.script_sources.exists()):
            copy_sources(plan.spec.script, Path(plan.runs), paths.script_sources)
        make_folder(paths.root / "logs")
        _hand_secrets_over(plan, paths)
        values = to_value(submission)
        if plan.cluster.scheduler == "slurm":
            write_text(paths.job_script, job_script(plan, paths, after))
            values["job_id"] = submit_job(plan, paths, after)
        else:
            values["pid"] = _start_local(paths)
            values["pid_start"] = process_start(values["pid"])
        write_json(paths.submission, values)
    except BaseException:
        paths.submission.unlink(missing_ok=True)
        paths.secrets.unlink(missing_ok=True)
        raise
    finally:
        signal.signal(signal.SIGINT, interrupt)
    return from_value(Submission, values)


def _claim(paths: RunPaths, submission: Submission) -> None:
    """Take the run before anything is started: of two submits at once, one finds it taken."""
    draft = paths.submission.with_suffix(f".{os.getpid()}")
    write_json(draft, to_value(submission))
    try:
        os.link(draft, paths.submission)
    except FileExistsError:
        raise UserError(f"{submission.run_id} is being submitted by another command; nothing was submitted") from None
    finally:
        draft.unlink()


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


def _start_local(paths: RunPaths) -> int:
    """Start the supervisor in a session of its own, so that it survives this terminal; returns its pid."""
    with (paths.root / "logs" / "batch-local.log").open("ab") as log:
        process = subprocess.Popen(
            ["bash", str(paths.job_script)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if name not in ("WANDB_API_KEY", "HF_TOKEN")},
        )
    return process.pid
