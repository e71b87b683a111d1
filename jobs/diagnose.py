"""Finds the first rank that failed, its reason and its last lines."""

import signal
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from jobs.ranks import RankExit
from launcher.contract.attempt import Attempt
from launcher.contract.files import read_json
from launcher.contract.paths import RunPaths

NUM_LINES = 20

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


@dataclass(frozen=True)
class FirstFailure:
    """The first failing rank, if one is known."""

    reason: str
    rank: int | None
    node: str | None
    log: list[str]


@dataclass(frozen=True)
class _Suspect:
    is_victim: bool
    t: float
    rank: int
    reason: str


def explain(paths: RunPaths, attempt: Attempt, exits: list[RankExit]) -> FirstFailure:
    """Name the cause: of all ranks that wrote down an exception or ended badly, the earliest that does not merely
    report a lost peer and was not ended because of another."""
    suspects = _exceptions(paths, attempt)
    raised = {suspect.rank for suspect in suspects}
    suspects += [_from_exit(end) for end in exits if end.code != 0 and end.rank not in raised]
    if not suspects:
        return FirstFailure(_silent(exits), None, None, [])
    first = min(suspects, key=lambda suspect: (suspect.is_victim, suspect.t))
    num_nodes = max(1, len(attempt.nodes))
    logs = sorted(paths.logs(attempt.number).glob(f"node*.rank{first.rank}.log"))
    node = None
    if logs and num_nodes:
        index = int(logs[0].name.split(".")[0].removeprefix("node"))
        node = attempt.nodes[index] if index < len(attempt.nodes) else None
    place = f"rank {first.rank}" + (f" on {node}" if node else "")
    return FirstFailure(f"{place}: {first.reason}", first.rank, node, _tail(logs[0]) if logs else [])


def _exceptions(paths: RunPaths, attempt: Attempt) -> list[_Suspect]:
    found = []
    for path in paths.logs(attempt.number).glob("rank*.error.json"):
        error = read_json(path)
        reason = error["message"] if error["type"] == "JobError" else f"{error['type']}: {error['message']}"
        is_victim = any(sign in reason for sign in LOST_PEER)
        found.append(_Suspect(is_victim, error["t"], error["rank"], reason))
    return found


def _from_exit(end: RankExit) -> _Suspect:
    if end.code >= 0:
        return _Suspect(False, end.t, end.rank, f"ended with exit code {end.code} and without a word")
    name = signal.Signals(-end.code).name
    # SIGTERM is what srun and the supervisor send to the others once one has failed.
    return _Suspect(end.code == -signal.SIGTERM, end.t, end.rank, f"was killed by {name}")


def _silent(exits: list[RankExit]) -> str:
    if exits and all(end.code == 0 for end in exits):
        early = f", first rank {exits[0].rank}"
        return f"the ranks ended with exit code 0 but without a completion record{early}: one of them left too early"
    return "the ranks ended without a completion record and without naming a cause; see supervisor.log"


def _tail(path: Path) -> list[str]:
    with path.open(encoding="utf-8", errors="replace") as stream:
        return [line.rstrip("\n") for line in deque(stream, NUM_LINES)]
