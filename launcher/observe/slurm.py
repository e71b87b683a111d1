"""Asks Slurm about jobs; its text becomes values in pure functions."""

import contextlib
import re
from dataclasses import dataclass

from launcher.cluster.slurm import run_command
from launcher.errors import ClusterError


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


HELD = re.compile("held", re.IGNORECASE)
"""Slurm's words for a job that it will not start: JobHeldUser, JobHeldAdmin, "launch failed requeued held" (with
underscores in places), "job requeued in held state"."""


def explain_wait(job: JobView, job_id: str) -> str | None:
    """Why ``job`` waits: of a hold what ends it, for Slurm itself calls it PENDING for ever."""
    if job.reason is None or not HELD.search(job.reason):
        return job.reason
    why = job.reason.replace("_", " ")
    if "launch failed" in why:
        why = f"{why}: a node could not start it, and its slurmd.log says why"
    by = "an administrator can release it" if "Admin" in why else f"scontrol release {job_id} lets it start"
    return f"held in Slurm ({why}); it does not start by itself: {by}, tuneyard cancel gives it up"


def ask_jobs(job_ids: list[str], slurm_conf: str | None) -> dict[str, JobView]:
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
                views |= parse(run_command([*arguments, "--jobs=" + ",".join(wanted)], slurm_conf))
    return {job: view for job, view in views.items() if job in job_ids}


def parse_squeue(text: str) -> dict[str, JobView]:
    """``%i|%T|%r`` lines -> job id -> view; squeue's reason "None" is none."""
    views = {}
    for line in text.splitlines():
        fields = line.strip().split("|", 2)
        if len(fields) < 3 or not fields[1]:
            continue  # some sites print a banner
        job, state, reason = fields
        views[job] = JobView(state, None if reason in ("", "None") else reason)
    return views


def parse_sacct(text: str) -> dict[str, JobView]:
    """``JobIDRaw|State|Reason`` lines; "CANCELLED by 1000" is CANCELLED. Of a requeued job the last line counts."""
    views = {}
    for line in text.splitlines():
        fields = line.strip().split("|", 2)
        if len(fields) < 3 or not fields[1]:
            continue
        job, state, reason = fields
        views[job] = JobView(state.split()[0], None if reason in ("", "None") else reason)
    return views
