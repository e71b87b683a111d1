"""Ends a run at the user's word."""

import os
import signal
import time

from launcher.contract.files import write_text
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan
from launcher.contract.process import is_running
from launcher.errors import UserError

from .slurm import cancel_job
from .submit import read_submission

STOP_SECONDS = 30


def cancel_run(paths: RunPaths) -> None:
    """Mark the run as cancelled, then end its job or its local supervisor, which ends the ranks.

    The mark comes first, so that whatever sees the run end knows why.

    Raises:
        UserError: the run was never submitted.
        ClusterError: scancel failed; the job may still run.
    """
    submission = read_submission(paths)
    if submission is None:
        raise UserError(f"{paths.root.name} was planned but never submitted")
    write_text(paths.cancelled, f"{time.time()}\n")
    if submission.job_id is not None:
        cancel_job(submission.job_id, Plan.load(paths.plan))
    elif submission.pid is not None and is_running(submission.pid, submission.pid_start):
        os.kill(submission.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while is_running(submission.pid, submission.pid_start) and time.monotonic() < deadline:
            time.sleep(0.1)
    paths.secrets.unlink(missing_ok=True)
