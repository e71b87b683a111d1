"""A heartbeat: one small file per rank that says how far it is, replaced at each step."""

import contextlib
import os
import socket
import time
from dataclasses import dataclass

from .files import write_json
from .paths import RunPaths
from .values import read_value, to_value


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """Progress of one rank: what it does (``phase``) and the optimizer step that it finished last."""

    t: float
    rank: int
    node: str
    pid: int
    attempt: int
    step: int
    phase: str


def beat(paths: RunPaths, *, rank: int, attempt: int, step: int, phase: str) -> None:
    """Replace this rank's heartbeat."""
    value = Heartbeat(
        t=time.time(), rank=rank, node=socket.gethostname(), pid=os.getpid(), attempt=attempt, step=step, phase=phase
    )
    with contextlib.suppress(OSError):  # a full disk is no reason for a rank to die
        write_json(paths.heartbeat(rank), to_value(value))


def read_heartbeats(paths: RunPaths) -> list[Heartbeat]:
    """The heartbeats that are there, by rank."""
    files = sorted(paths.heartbeats.glob("rank*.json"))
    beats = (read_value(Heartbeat, file) for file in files)
    return sorted((beat for beat in beats if beat is not None), key=lambda beat: beat.rank)
