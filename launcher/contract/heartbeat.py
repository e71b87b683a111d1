"""A heartbeat: one small file per rank that says how far it is, replaced at each step."""

import contextlib
import os
import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from .files import write_json
from .paths import RunPaths
from .values import read_value, to_value


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """Progress of one rank: what it does (``phase``) and the optimizer step that it finished last.

    ``round_trip_s`` are the seconds that its last question to rank 0's store took, None before the first one.
    """

    t: float
    rank: int
    node: str
    pid: int
    attempt: int
    step: int
    phase: str
    round_trip_s: float | None = None


SLOW_SECONDS, SLOW_RATIO = 0.05, 10.0
"""A node's network is slow when it takes this long, and this much longer than the others'."""


def beat(paths: RunPaths, *, rank: int, attempt: int, step: int, phase: str, round_trip_s: float | None = None) -> None:
    """Replace this rank's heartbeat."""
    value = Heartbeat(
        t=time.time(),
        rank=rank,
        node=socket.gethostname(),
        pid=os.getpid(),
        attempt=attempt,
        step=step,
        phase=phase,
        round_trip_s=round_trip_s,
    )
    with contextlib.suppress(OSError):  # a full disk is no reason for a rank to die
        write_json(paths.heartbeat(rank), to_value(value), is_lasting=False)


def read_heartbeats(paths: RunPaths) -> list[Heartbeat]:
    """The heartbeats that are there, by rank."""
    files = sorted(paths.heartbeats.glob("rank*.json"))
    beats = (read_value(Heartbeat, file) for file in files)
    return sorted((beat for beat in beats if beat is not None), key=lambda beat: beat.rank)


def find_straggler(beats: Sequence[Heartbeat]) -> str | None:
    """Words on the node whose network holds up the others, from the heartbeats of one attempt; None if there is none.

    Every step waits for the slowest node. The round trips all go to rank 0's node: where they are slow from all the
    others, it is that one; of two nodes nobody can say which.
    """
    trips: dict[str, list[float]] = {}
    head = next((item.node for item in beats if item.rank == 0), None)
    for item in beats:
        if item.round_trip_s is not None and item.node != head:
            trips.setdefault(item.node, []).append(item.round_trip_s)
    if head is None or not trips:
        return None
    seconds = {node: statistics.median(found) for node, found in trips.items()}
    slowest = max(seconds, key=lambda node: seconds[node])
    others = [value for node, value in seconds.items() if node != slowest]
    if seconds[slowest] < SLOW_SECONDS:
        return None
    took = f"a round trip takes {seconds[slowest]:.2g} s"
    if not others:
        return f"the network between {head} and {slowest} is slow: {took}"
    if min(others) >= SLOW_SECONDS and len(others) > 1:
        return f"the network of {head} is slow: {took}, from every other node"
    if seconds[slowest] >= SLOW_RATIO * statistics.median(others):
        return f"the network of {slowest} is slow: {took}, from the others {statistics.median(others):.2g} s"
    return None
