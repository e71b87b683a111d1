"""Decides what follows an attempt that has ended: a pure function of the run's history."""

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.contract.attempt import EXIT_FAILED, EXIT_NO_PROGRESS, EXIT_OK, Attempt, Then

MAX_INTERRUPTIONS = 20
"""How often a run may be preempted, requeued or lose a node in a row without a newer checkpoint. Its program is not to
blame; but a run that is preempted before each checkpoint would take its nodes from others for ever."""
MAX_TIME_LIMITS = 3
"""How often in a row a run may reach its time limit without a newer checkpoint."""
LEMON_HITS, LEMON_ATTEMPTS = 3, 4
"""A node is bad when this many of the last so many failures began there, while it held different ranks."""

_BUDGETS = {
    "crash": ("failed", "failed"),
    "hang": ("failed", "failed"),
    "time_limit": ("time limit", "reached the time limit"),
    "preempted": ("interrupted", "were interrupted"),
    "requeued": ("interrupted", "were interrupted"),
    "stopped": ("interrupted", "were interrupted"),
    "node": ("interrupted", "were interrupted"),
    None: ("interrupted", "were interrupted"),  # no record of its end: the supervisor's own node failed
}
"""Cause -> the budget that it is counted in, and its words."""


@dataclass(frozen=True)
class Decision:
    """What follows, the exit code that the supervisor leaves with, and the reason that the user is told.

    ``excluded`` are nodes that the job must not get again; ``is_moved`` starts each rank on another node of the
    allocation, which tells a bad node from a program that fails on one rank.
    """

    then: Then
    exit_code: int
    reason: str
    excluded: tuple[str, ...] = ()
    is_moved: bool = False


def decide(history: Sequence[Attempt], *, max_attempts: int, can_requeue: bool, are_nodes_well: bool) -> Decision:
    """What follows the last attempt of ``history``, which has ended; all of them are of one submission.

    ``max_attempts`` is how many may fail in a row without a newer checkpoint (``recovery.max_attempts``); 1
    makes every failure final. ``can_requeue``: it is a job of Slurm's that is ours; ``are_nodes_well``: as far as one
    knows, new ranks can start where the last ones were.
    """
    ending = history[-1].ended
    assert ending is not None
    if ending.state == "completed":
        return Decision("stop", EXIT_OK, ending.reason)
    if ending.state == "cancelled" or ending.cause == "error":
        return Decision("stop", EXIT_FAILED, ending.reason)
    budget, words = _BUDGETS[ending.cause]
    spent = sum(_budget(attempt) == budget for attempt in _unproductive(history))
    if budget == "failed":
        lemon = find_lemon(history) if can_requeue else None
        if lemon is not None:
            hits = f"{LEMON_HITS} of the last {LEMON_ATTEMPTS} failures began on {lemon}, whichever ranks it had"
            return Decision("requeue", EXIT_FAILED, f"{ending.reason}; {hits}: it is left out from now on", (lemon,))
        if max_attempts == 1:
            return Decision("stop", EXIT_FAILED, ending.reason)
        if spent >= max_attempts:
            return _give_up(ending.reason, spent, words, "")
        if are_nodes_well or not can_requeue:
            return Decision("restart", EXIT_FAILED, ending.reason, is_moved=_repeats(history))
        return Decision("requeue", EXIT_FAILED, ending.reason)
    if not can_requeue:
        return Decision("stop", EXIT_FAILED, ending.reason)
    if budget == "time limit" and spent >= MAX_TIME_LIMITS:
        remedy = "; raise resources.time, or save more often (train.save_every_steps)"
        return _give_up(ending.reason, spent, words, remedy)
    if spent >= MAX_INTERRUPTIONS:
        return _give_up(ending.reason, spent, words, "; save more often (train.save_every_steps)")
    return Decision("requeue", EXIT_FAILED, ending.reason)


def find_lemon(history: Sequence[Attempt]) -> str | None:
    """The node that is to blame for the last failures, if it is the node and not what ran there."""
    failures = [attempt for attempt in _since_exclusion(history) if _budget(attempt) == "failed"][-LEMON_ATTEMPTS:]
    for node in sorted({attempt.ended.node for attempt in failures if attempt.ended and attempt.ended.node}):
        hit = [attempt for attempt in failures if attempt.ended and attempt.ended.node == node]
        # A program that fails on one rank fails wherever that rank is.
        if len(hit) >= LEMON_HITS and len({attempt.nodes.index(node) for attempt in hit if node in attempt.nodes}) > 1:
            return node
    return None


def _give_up(reason: str, count: int, words: str, remedy: str) -> Decision:
    told = f"{reason}; stopped: {count} attempts in a row {words} without a newer checkpoint{remedy}"
    return Decision("stop", EXIT_NO_PROGRESS, told)


def _budget(attempt: Attempt) -> str:
    return _BUDGETS[attempt.ended.cause if attempt.ended else None][0] if _is_counted(attempt) else ""


def _is_counted(attempt: Attempt) -> bool:
    return attempt.ended is None or (attempt.ended.state != "completed" and attempt.ended.cause != "error")


def _unproductive(history: Sequence[Attempt]) -> list[Attempt]:
    """The attempts since the last one that published a checkpoint beyond all before it, or that found a bad node."""
    found: list[Attempt] = []
    reached = 0
    for index, attempt in enumerate(history):
        reached = max(reached, attempt.first_step)
        after = _step_after(history, index)
        found = [] if after > reached else [*found, attempt]
        reached = max(reached, after)
        if attempt.ended is not None and attempt.ended.excluded:
            found = []
    return found


def _step_after(history: Sequence[Attempt], index: int) -> int:
    """The newest checkpoint's step when the attempt ended; the next one tells it of one that left no record."""
    ending = history[index].ended
    if ending is not None:
        return ending.checkpoint_step
    return history[index + 1].first_step if index + 1 < len(history) else 0


def _since_exclusion(history: Sequence[Attempt]) -> list[Attempt]:
    marks = [index for index, attempt in enumerate(history) if attempt.ended and attempt.ended.excluded]
    return list(history[marks[-1] + 1 :] if marks else history)


def _repeats(history: Sequence[Attempt]) -> bool:
    """Whether the last two failures began on one node of several, which held the same ranks."""
    failures = [attempt for attempt in _since_exclusion(history) if _budget(attempt) == "failed"][-2:]
    endings = [attempt.ended for attempt in failures if attempt.ended is not None]
    if len(endings) < 2 or len(failures[0].nodes) < 2 or failures[0].nodes != failures[1].nodes:
        return False
    return endings[0].node is not None and endings[0].node == endings[1].node
