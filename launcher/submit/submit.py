"""Submits a prepared run, once, and records where it went."""

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from launcher.contract.files import make_folder, read_json, write_json, write_text
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan
from launcher.contract.process import process_start
from launcher.contract.values import from_value, to_value
from launcher.errors import UserError

from .prepare import Prepared
from .slurm import submit_job
from .snapshot import take_snapshot


@dataclass(frozen=True, kw_only=True)
class Submission:
    """Where a run went: a Slurm job, or a local supervisor process (``pid`` with its start time in clock ticks).

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


def submit(prepared: Prepared, repository: Path) -> Submission:
    """Snapshot the code, hand the run over, and write submission.json.

    ``repository`` is a file or folder in the user's git repository, whose state is recorded.

    Raises:
        UserError: the run has been submitted already.
        ClusterError: the scheduler refused; nothing was submitted and the run can be submitted again.
    """
    plan, paths = prepared.plan, prepared.paths
    submission = Submission(
        t=time.time(),
        run_id=plan.run_id,
        run_dir=str(paths.root),
        cluster=plan.cluster.name,
        scheduler=plan.cluster.scheduler,
    )
    _claim(paths, submission)
    try:
        take_snapshot(paths, repository)
        make_folder(paths.root / "logs")
        _hand_secrets_over(plan, paths)
        values = to_value(submission)
        if plan.cluster.scheduler == "slurm":
            values["job_id"] = submit_job(plan, paths)
        else:
            values["pid"] = _start_local(paths)
            values["pid_start"] = process_start(values["pid"])
    except BaseException:
        paths.submission.unlink(missing_ok=True)
        paths.secrets.unlink(missing_ok=True)
        raise
    write_json(paths.submission, values)
    return from_value(Submission, values)


def read_submission(paths: RunPaths) -> Submission | None:
    """The record of ``paths``, or None for a run that was only planned."""
    value = read_json(paths.submission)
    return None if value is None else from_value(Submission, value)


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
    if not plan.spec.model.base.startswith(("/", "builtin:")) and plan.cluster.internet:
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
