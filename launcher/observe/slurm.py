"""Asks Slurm about jobs; its text becomes values in pure functions, and one seam runs its commands."""

import contextlib
import subprocess
from dataclasses import dataclass

from launcher.errors import ClusterError

TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class JobView:
    """What Slurm says of one job: its state word (PENDING, RUNNING, COMPLETED, ...), and why it waits or ended."""

    state: str
    reason: str | None


# Slurm's state -> ours. A job in COMPLETING has left its processes, but its record may still be written.
STATES = {
    "PENDING": "pending",
    "CONFIGURING": "pending",
    "REQUEUED": "pending",
    "REQUEUE_HOLD": "pending",
    "REQUEUE_FED": "pending",
    "SPECIAL_EXIT": "pending",
    "RESV_DEL_HOLD": "pending",
    "RUNNING": "running",
    "COMPLETING": "running",
    "SUSPENDED": "running",
    "STOPPED": "running",
    "RESIZING": "running",
    "SIGNALING": "running",
    "STAGE_OUT": "running",
    "COMPLETED": "completed",
    "CANCELLED": "cancelled",
    "REVOKED": "cancelled",
    "FAILED": "failed",
    "TIMEOUT": "failed",
    "NODE_FAIL": "failed",
    "OUT_OF_MEMORY": "failed",
    "BOOT_FAIL": "failed",
    "DEADLINE": "failed",
    "PREEMPTED": "failed",
}

ENDINGS = {
    "TIMEOUT": "over its time limit; raise resources.time, or resume from the last checkpoint",
    "NODE_FAIL": "a node failed",
    "OUT_OF_MEMORY": "host memory ran out; raise resources.mem_gb",
    "PREEMPTED": "preempted by a job of higher priority",
    "BOOT_FAIL": "a node did not boot",
    "DEADLINE": "past its deadline",
}


def run_command(arguments: list[str], env: dict[str, str]) -> str:
    """stdout of a Slurm command.

    Raises:
        ClusterError: it is missing, silent for 30 s, or failed; silence means unknown, never gone.
    """
    try:
        done = subprocess.run(
            arguments, env=env, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise ClusterError(f"{arguments[0]} is not on the PATH: run this on a login node of the cluster") from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{arguments[0]} did not answer within {TIMEOUT_SECONDS} s") from None
    if done.returncode != 0:
        raise ClusterError(f"{arguments[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


def ask_jobs(job_ids: list[str], env: dict[str, str]) -> dict[str, JobView]:
    """What Slurm knows of these jobs: the queue first, accounting for those that have left it.

    A job that neither names is left out of the answer: its state is unknown.
    """
    views: dict[str, JobView] = {}
    # All states: a job stays in the queue's memory for some minutes after its end (MinJobAge).
    queue = ["squeue", "--noheader", "--states=all", "--format=%i|%T|%r"]
    accounting = ["sacct", "--noheader", "--parsable2", "--allocations", "--format=JobIDRaw,State,Reason"]
    for arguments, parse in ((queue, parse_squeue), (accounting, parse_sacct)):
        wanted = [job for job in job_ids if job not in views]
        if wanted:
            # squeue fails for a job that it has forgotten, a site may have no sacct: no answer is no verdict.
            with contextlib.suppress(ClusterError):
                views |= parse(run_command([*arguments, "--jobs=" + ",".join(wanted)], env))
    return {job: view for job, view in views.items() if job in job_ids}


def parse_squeue(text: str) -> dict[str, JobView]:
    """``%i|%T|%r`` lines -> job id -> view; squeue's reason "None" is none."""
    views = {}
    for line in text.splitlines():
        job, state, reason = line.strip().split("|", 2)
        views[job] = JobView(state, None if reason in ("", "None") else reason)
    return views


def parse_sacct(text: str) -> dict[str, JobView]:
    """``JobIDRaw|State|Reason`` lines; "CANCELLED by 1000" is CANCELLED. Of a requeued job the last line counts."""
    views = {}
    for line in text.splitlines():
        job, state, reason = line.strip().split("|", 2)
        views[job] = JobView(state.split()[0], None if reason in ("", "None") else reason)
    return views
