"""Tells that the ranks hang, and which one the others wait for."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.diagnose import FirstFailure, blame
from jobs.ranks import Ranks
from jobs.stop import STACK_SIGNAL
from launcher.contract.attempt import Attempt
from launcher.contract.heartbeat import Heartbeat
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan

STACK_SECONDS = 3.0
"""A rank whose interpreter runs has written its stack by then."""
BEATING = ("train", "evaluate", "rollout", "score")
"""Phases that beat with every batch, or with every token."""
SLOW_SECONDS = 2 * 3600
"""Of the other phases (a model is read, rows are prepared, a checkpoint is written, a function of the user's gives
scores), which beat only as they begin."""
WAITING = ("/torch/", "/accelerate/", "/deepspeed/", "/transformers/", "/trl/")
"""Where the innermost frame of a rank lies that waits for its peers."""


@dataclass(frozen=True)
class Silence:
    """A rank that has not beaten for ``seconds``."""

    rank: int
    seconds: float
    step: int
    phase: str


class Beats:
    """When each rank beat last, by the watcher's own clock (those of the nodes may differ), which began at ``now``."""

    def __init__(self, attempt: int, plan: Plan, now: float) -> None:
        self._attempt = attempt
        self._limit = plan.spec.recovery.hang_seconds
        self._seen: dict[int, tuple[Heartbeat | None, float]] = dict.fromkeys(
            range(plan.topology.world_size), (None, now)
        )

    def take(self, beats: Sequence[Heartbeat], now: float) -> None:
        for beat in beats:
            if beat.attempt == self._attempt and beat.rank in self._seen and beat != self._seen[beat.rank][0]:
                self._seen[beat.rank] = (beat, now)

    def find_silent(self, now: float) -> list[Silence]:
        """All ranks once one of them has been silent for longer than its phase may be; the longest silence first."""
        if self._limit is None:
            return []
        found, is_over = [], False
        for rank, (beat, t) in self._seen.items():
            step, phase = (beat.step, beat.phase) if beat is not None else (0, "start")
            limit = self._limit if phase in BEATING else max(self._limit, SLOW_SECONDS)
            is_over = is_over or now - t > limit
            found.append(Silence(rank, now - t, step, phase))
        return sorted(found, key=lambda silence: -silence.seconds) if is_over else []


def explain_hang(
    paths: RunPaths, plan: Plan, attempt: Attempt, ranks: Ranks, silent: Sequence[Silence]
) -> FirstFailure:
    """The rank that the others wait for: it does not answer, or is somewhere else than all of them.

    Each is asked for its stack; takes STACK_SECONDS.
    """
    ranks.send(STACK_SIGNAL)
    time.sleep(STACK_SECONDS)
    stacks = {item.rank: _read_stack(paths.rank_stack(attempt.number, item.rank)) for item in silent}
    mute = [item for item in silent if stacks[item.rank] is None]
    busy = [item for item in silent if not _is_waiting(stacks[item.rank] or "")]
    first, what = silent[0], ""
    if 0 < len(mute) < len(silent):
        first, what = mute[0], ": it does not answer (stopped, or something holds its interpreter)"
    elif not mute and 0 < len(busy) < len(silent):
        first, what = busy[0], f": it is at {_innermost(stacks[busy[0].rank] or '')}, the others wait"
    reason = f"hung in {first.phase} after step {first.step}, {first.seconds:.0f} s without progress{what}"
    hint = f"a step that takes longer than {plan.spec.recovery.hang_seconds} s needs a higher recovery.hang_seconds"
    found = blame(paths, attempt, plan.topology.ranks_per_node, first.rank, reason)
    if not what and len(silent) > 1:  # nobody knows which
        return FirstFailure(f"all ranks {reason}", None, None, found.log, hint)
    return replace(found, hint=hint)


def _read_stack(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None


def _innermost(stack: str) -> str:
    lines = [line.strip() for line in stack.splitlines() if line.strip().startswith("File ")]
    return lines[-1] if lines else "an unknown place"


def _is_waiting(stack: str) -> bool:
    return any(part in _innermost(stack) for part in WAITING)
