"""Ends a run at the user's word."""

import contextlib
import os
import signal
import time
from dataclasses import replace

from launcher.cluster.slurm import run_command
from launcher.contract.files import write_json, write_text
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan
from launcher.contract.process import is_running
from launcher.contract.submission import Submission, read_submission
from launcher.contract.values import to_value
from launcher.errors import ClusterError, UserError

STOP_SECONDS = 30
"""How long the end of a run is waited for, and a submission that may still be under way."""


def cancel_run(paths: RunPaths) -> None:
    """Mark the run as cancelled, then end its job or its local supervisor, which ends the ranks.

    The mark comes first, so that whatever sees the run end knows why. Where the launcher was killed between claiming
    the run and recording its job, the job is looked for by its name; a claim that nothing came of has the mark alone.

    Raises:
        UserError: the run was never submitted.
        ClusterError: Slurm did not do it, or did not say whether there is a job; it may still run.
    """
    submission = _await_hand_over(paths)
    if submission is None:
        raise UserError(f"{Plan.load(paths.plan).run_id} was planned but never submitted")
    plan = Plan.load(paths.plan) if submission.scheduler == "slurm" else None
    write_text(paths.cancelled, f"{time.time()}\n")
    if plan is not None:
        try:
            if submission.job_id is None and (job_id := _find_job(plan)) is not None:
                submission = replace(submission, job_id=job_id)
                write_json(paths.submission, to_value(submission))
            if submission.job_id is not None:
                run_command(["scancel", submission.job_id], plan.cluster.slurm_conf)
        except ClusterError as error:
            paths.cancelled.unlink()
            raise ClusterError(f"{plan.run_id}: {error}; the job may still run") from error
    elif submission.pid is not None and is_running(submission.pid, submission.pid_start):
        with contextlib.suppress(ProcessLookupError):
            os.kill(submission.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while is_running(submission.pid, submission.pid_start) and time.monotonic() < deadline:
            time.sleep(0.1)
    paths.secrets.unlink(missing_ok=True)


def _await_hand_over(paths: RunPaths) -> Submission | None:
    """The submission; one that has neither job nor process is given the time to get there, from its claim on."""
    deadline = time.monotonic() + STOP_SECONDS
    while (submission := read_submission(paths)) is not None:
        is_claim = submission.job_id is None and submission.pid is None
        if not is_claim or time.time() - submission.t > STOP_SECONDS or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    return submission


def _find_job(plan: Plan) -> str | None:
    """The id of the job of this run's name, or None where Slurm has none.

    Raises:
        ClusterError: Slurm gave no answer.
    """
    found = run_command(
        ["squeue", "--me", "--noheader", f"--name={plan.job_name}", "--format=%i"], plan.cluster.slurm_conf
    ).split()
    return found[0] if found else None
