"""Ends a run at the user's word."""

import contextlib
import os
import signal
import time

from launcher.cluster.slurm import run_command
from launcher.contract.files import write_text
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan
from launcher.contract.process import is_running
from launcher.contract.submission import read_submission
from launcher.errors import ClusterError, UserError

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
    if submission.job_id is None and submission.pid is None:
        raise UserError(f"{paths.root.name} is being submitted, or that was cut off: its job is not known here")
    write_text(paths.cancelled, f"{time.time()}\n")
    if submission.job_id is not None:
        try:
            run_command(["scancel", submission.job_id], Plan.load(paths.plan).cluster.slurm_conf)
        except ClusterError as error:
            paths.cancelled.unlink()
            raise ClusterError(f"{error}; the job may still run") from error
    elif submission.pid is not None and is_running(submission.pid, submission.pid_start):
        with contextlib.suppress(ProcessLookupError):
            os.kill(submission.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while is_running(submission.pid, submission.pid_start) and time.monotonic() < deadline:
            time.sleep(0.1)
    paths.secrets.unlink(missing_ok=True)
