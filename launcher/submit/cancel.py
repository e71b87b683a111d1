"""Ends a run at the user's word."""

import contextlib
import os
import signal
import time

from launcher.cluster.slurm import run_command
from launcher.contract.files import write_json, write_text
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan
from launcher.contract.process import is_running
from launcher.contract.submission import Submission, read_submission
from launcher.contract.values import to_value
from launcher.errors import ClusterError, UserError

from .intent import SilenceError, UnsettledError, read_intent, settle

STOP_SECONDS = 30
"""How long the end of a run is waited for, and a submission that may still be under way."""


def cancel_run(paths: RunPaths) -> None:
    """Mark the run as cancelled, then end its job or its local supervisor, which ends the ranks.

    The mark comes first, so that whatever sees the run end knows why. A hand-over that is under way is waited for, and
    one that was cut off is settled; where nothing came of it, the run has the mark alone.

    Raises:
        UserError: the run was never submitted, or its intent is damaged.
        ClusterError: Slurm did not do it, or nobody can tell whether there is a job; it may still run.
    """
    read_intent(paths)
    claimed = read_submission(paths)
    submission = _await_hand_over(paths)
    if submission is None and claimed is not None:
        write_json(paths.submission, to_value(claimed))
        submission = claimed
    if submission is None:
        raise UserError(f"{Plan.load(paths.plan).run_id} was planned but never submitted")
    plan = Plan.load(paths.plan) if submission.scheduler == "slurm" else None
    write_text(paths.cancelled, f"{time.time()}\n")
    if plan is not None:
        try:
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
    """The submission; a hand-over that is under way is given the time to get there."""
    deadline = time.monotonic() + STOP_SECONDS
    while True:
        try:
            return settle(paths)
        except (UserError, UnsettledError) as error:
            if isinstance(error, SilenceError) or time.monotonic() > deadline:
                what, _, hint = str(error).partition("\n")
                raise ClusterError(f"{what}; it may still run\n{hint}") from error
        time.sleep(0.5)
