"""Finds the first rank that failed, its reason, its last lines and what is known to cause the like."""

import re
import signal
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.ranks import RankExit
from launcher.contract.attempt import Attempt
from launcher.contract.files import read_json
from launcher.contract.paths import RunPaths

NUM_LINES = 20
TELLING = ("JobError", "RollbackError")
"""Exceptions whose text says all; of these only a JobError is final (:mod:`jobs.errors`)."""

# What a rank reports whose peer went away first: never the cause.
LOST_PEER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "remote process exited",
    "Socket Timeout",
    "failed to connect to",
    "DistBackendError",
    "DistNetworkError",
    "Gloo connectFullMesh failed",
)


# What is found in the words and the last lines of the first failing rank -> what it is, what to do.
HINTS = (
    (
        r"CUDA out of memory|OutOfMemoryError|CUDA_ERROR_OUT_OF_MEMORY",
        "GPU memory ran out: lower train.micro_batch or data.max_length, or shard the model (parallel.strategy)",
    ),
    (
        r"oom.kill|Out Of Memory|Cannot allocate memory|MemoryError|can't allocate memory|Bus error",
        "host memory ran out: raise resources.mem_gb, or ask for fewer ranks per node",
    ),
    (
        r"Watchdog caught collective operation timeout|NCCL.{0,80}time(d )?out|collective operation timed out",
        "a collective timed out: a rank did not take part in it, or the network between two nodes failed",
    ),
    (
        r"No space left on device|Disk quota exceeded|ENOSPC|EDQUOT",
        "the disk is full: free some space, or keep fewer checkpoints (train.keep_last)",
    ),
    (
        r"Read-only file system|Stale file handle",
        "the shared file system failed or became read-only: tell its administrators",
    ),
    (
        r"401 Client Error|403 Client Error|Invalid user token|GatedRepoError|Invalid username or password",
        "the hub refused the token: ask for access to the model there, and set HF_TOKEN when submitting",
    ),
    (
        r"Address already in use|Gloo connectFullMesh|rendezvous|failed to connect to|client socket has timed out",
        "the ranks did not meet (rendezvous): look at network_interface in the cluster profile",
    ),
    (
        r"uncorrectable ECC|Xid|fallen off the bus|device-side assert|unspecified launch failure",
        "a GPU failed: if it is the same node again, tell its administrators",
    ),
    (
        r"was killed by SIGKILL",
        "nothing in the job sends SIGKILL to a rank that works: it is most often the kernel, for lack of host memory "
        "(dmesg on the node tells; raise resources.mem_gb)",
    ),
)


FINAL = ("JobError", "ModuleNotFoundError", "SyntaxError", "IndentationError")
"""Exceptions that no second attempt mends: the user has to."""


@dataclass(frozen=True)
class FirstFailure:
    """The first failing rank, if one is known; ``is_error``: it says itself what its user has to mend."""

    reason: str
    rank: int | None
    node: str | None
    log: list[str]
    hint: str | None = None
    is_error: bool = False


@dataclass(frozen=True)
class _Suspect:
    is_victim: bool
    t: float
    rank: int
    reason: str
    is_error: bool = False


def explain(paths: RunPaths, attempt: Attempt, ranks_per_node: int, exits: Sequence[RankExit]) -> FirstFailure:
    """Name the cause: of all ranks that wrote down an exception or ended badly, the earliest that does not merely
    report a lost peer and was not ended because of another."""
    suspects = _exceptions(paths, attempt)
    raised = {suspect.rank for suspect in suspects}
    suspects += [_from_exit(end) for end in exits if end.code != 0 and end.rank not in raised]
    if not suspects:
        return FirstFailure(_silent(exits), None, None, [])
    first = min(suspects, key=lambda suspect: (suspect.is_victim, suspect.t))
    return blame(paths, attempt, ranks_per_node, first.rank, first.reason, is_error=first.is_error)


def blame(
    paths: RunPaths, attempt: Attempt, ranks_per_node: int, rank: int, reason: str, *, is_error: bool = False
) -> FirstFailure:
    """``rank`` as the first that failed, with its node and its last lines."""
    index = rank // ranks_per_node
    node = attempt.nodes[index] if index < len(attempt.nodes) else None
    logs = sorted(paths.logs(attempt.number).glob(f"node*.rank{rank}.log"))
    lines = _tail(logs[0]) if logs else []
    place = f"rank {rank}" + (f" on {node}" if node else "")
    return FirstFailure(
        f"{place}: {reason}", rank, node, lines, None if is_error else find_hint([reason, *lines]), is_error
    )


def find_hint(lines: Sequence[str]) -> str | None:
    """What is known to cause such words; the first of HINTS that matches."""
    text = "\n".join(lines)
    return next((hint for pattern, hint in HINTS if re.search(pattern, text)), None)


def _exceptions(paths: RunPaths, attempt: Attempt) -> list[_Suspect]:
    found = []
    for path in paths.logs(attempt.number).glob("rank*.error.json"):
        error = read_json(path)
        is_error = error["type"] in FINAL
        reason = error["message"] if error["type"] in TELLING else f"{error['type']}: {error['message']}"
        is_victim = any(sign in reason for sign in LOST_PEER)
        found.append(_Suspect(is_victim, error["t"], error["rank"], reason, is_error))
    return found


def _from_exit(end: RankExit) -> _Suspect:
    if end.code >= 0:
        return _Suspect(False, end.t, end.rank, f"ended with exit code {end.code} and without a word")
    name = signal.Signals(-end.code).name
    # SIGTERM is what Slurm sends to the others once one has failed.
    return _Suspect(end.code == -signal.SIGTERM, end.t, end.rank, f"was killed by {name}")


def _silent(exits: Sequence[RankExit]) -> str:
    if exits and all(end.code == 0 for end in exits):
        early = f", first rank {exits[0].rank}"
        return f"the ranks ended with exit code 0 but without a completion record{early}: one of them left too early"
    return "the ranks ended without a completion record and without naming a cause; see supervisor.log"


def _tail(path: Path) -> list[str]:
    with path.open(encoding="utf-8", errors="replace") as stream:
        return [line.rstrip("\n") for line in deque(stream, NUM_LINES)]
