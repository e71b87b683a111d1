"""What the supervisor asks of Slurm: how its job stands, which nodes are well, to be put back into the queue.

No answer is no verdict: slurmctld may be away for an hour while the ranks train.
"""

import itertools
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from jobs.errors import JobError
from launcher.contract.attempt import Cause

ANSWER_SECONDS = 10
RETRY_SECONDS = (2, 5, 10, 20, 30)
"""Between two tries to requeue; the last one for as long as it takes: the job would be lost."""
WARNING_SECONDS = 240
"""So near its end a job that is told to stop is told because of its time limit: SIGNAL_SECONDS of the job script, and
Slurm may send it 60 s early."""
UNREACHABLE = re.compile(
    "contact slurm controller|timed out|onnection refused|onnection failure|No route to host|not responding|"
    "Transport endpoint|standby|busy|temporarily"
)


@dataclass(frozen=True)
class JobState:
    """What Slurm says of the job; ``preempted_at`` is when it was chosen to make way for another, with some grace."""

    state: str
    reason: str
    restarts: int
    seconds_left: float | None
    preempted_at: float | None

    def is_running(self, restarts: int) -> bool:
        """Whether the job runs, as the start after so many ``restarts``, and is to run on for now. While it ends, for
        whatever reason, it is COMPLETING; one that was requeued may run elsewhere by now."""
        return self.state == "RUNNING" and self.restarts == restarts


def ask_state(job_id: str | None) -> JobState | None:
    """How the job stands; None where Slurm does not say."""
    if job_id is None:
        return None
    text = _run(["scontrol", "--oneliner", "show", "job", job_id])
    return None if text is None else parse_state(text, time.time())


def parse_state(text: str, now: float) -> JobState | None:
    """One line of ``scontrol -o show job``; times are local, and None or Unknown where there is none."""
    fields = dict(re.findall(r"(?:^|\s)(JobState|Reason|Restarts|EndTime|PreemptTime)=(\S+)", text))
    if "JobState" not in fields:
        return None
    end = _read_time(fields.get("EndTime"))
    return JobState(
        state=fields["JobState"],
        reason=fields.get("Reason", ""),
        restarts=int(fields.get("Restarts", "0")),
        seconds_left=None if end is None else end - now,
        preempted_at=_read_time(fields.get("PreemptTime")),
    )


def name_cause(state: JobState | None, started: float, restarts: int) -> Cause | None:
    """Why a job whose attempt began at ``started``, after as many ``restarts``, is told to stop; None: cancelled."""
    if state is None:
        return "stopped"
    # Slurm 22.05 counts up at once, also when it requeues a job to make way for another or because a node is down.
    if state.restarts > restarts:
        return "requeued"
    if state.preempted_at is not None and state.preempted_at >= started - 1:
        return "preempted"
    if state.is_running(restarts):
        is_near = state.seconds_left is not None and state.seconds_left <= WARNING_SECONDS
        return "time_limit" if is_near else "stopped"
    if state.state == "TIMEOUT" or state.reason == "TimeLimit":
        return "time_limit"
    if state.state == "NODE_FAIL" or state.reason == "NodeDown":
        return "node"
    return None


def list_sick(nodes: Sequence[str]) -> list[str]:
    """Those of ``nodes`` that Slurm takes for down, failing or silent, as far as it says."""
    text = _run(["sinfo", "--noheader", "--Node", f"--nodes={','.join(nodes)}", "--format=%N %T"])
    return parse_sick(text or "")


def parse_sick(text: str) -> list[str]:
    """``NODE STATE`` lines; a star stands behind the state of a node that does not answer."""
    rows = [line.split() for line in text.splitlines() if len(line.split()) == 2]
    return sorted({node for node, state in rows if state.endswith("*") or state.startswith(("down", "fail"))})


def requeue(job_id: str, restarts: int, excluded: Sequence[str], is_stopped: Callable[[], bool]) -> None:
    """Put the job back into the queue, without the nodes ``excluded``; tried until slurmctld answers or ``is_stopped``.

    Never blindly: a job that was requeued in the meantime, and runs, has more than ``restarts`` behind it.

    Raises:
        JobError: Slurm refuses.
    """
    for tries in itertools.count():
        before = _run(["scontrol", "--oneliner", "show", "job", job_id])
        state = None if before is None else parse_state(before, time.time())
        words = "no answer"
        if state is not None:
            # At its time limit a job may be requeued for as long as it is COMPLETING.
            if state.restarts != restarts or not (state.is_running(restarts) or state.reason == "TimeLimit"):
                return  # somebody else has done it, or cancelled the job
            done = _try(["scontrol", "requeue", job_id])
            if done is not None and done.returncode == 0:
                break
            words = "no answer" if done is None else done.stderr.strip()
            if done is not None and not UNREACHABLE.search(words):
                raise JobError(
                    f"the job cannot be requeued: scontrol says {words!r}; tuneyard resume goes on from here"
                )
        pause = RETRY_SECONDS[min(tries, len(RETRY_SECONDS) - 1)]
        print(f"requeue: slurmctld is away ({words}); tried again in {pause} s", flush=True)
        deadline = time.monotonic() + pause
        while time.monotonic() < deadline:
            if is_stopped():  # scancel, Slurm's own end of the job, a newer attempt: theirs is the word on what follows
                return
            time.sleep(0.2)
    if excluded:
        # Of a running job Slurm refuses it; a requeued one waits cred_expire + 1 s before it may start (121 s).
        known = re.search(r"\sExcNodeList=(\S+)", before or "")
        names = [*([known[1]] if known and known[1] != "(null)" else []), *excluded]
        for _ in range(5):
            done = _try(["scontrol", "update", f"jobid={job_id}", f"excnodelist={','.join(names)}"])
            if done is not None and done.returncode == 0:
                return
            time.sleep(0.5)
        print(
            f"the job may get {', '.join(excluded)} again: scontrol says {done.stderr if done else 'nothing'}",
            flush=True,
        )


def _run(command: list[str]) -> str | None:
    done = _try(command)
    return None if done is None or done.returncode != 0 else done.stdout


def _try(command: list[str]) -> "subprocess.CompletedProcess[str] | None":
    # Slurm's SIGTERM for a job that it requeues goes to all of the batch step; blocked, it does not end scontrol.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=ANSWER_SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _read_time(text: str | None) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp() if text else None
    except ValueError:
        return None
