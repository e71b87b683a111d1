"""Watches the ranks of one attempt until they have ended, or must be; says how it ended."""

import contextlib
import signal
import time
from collections.abc import Sequence

from jobs.diagnose import FirstFailure, explain
from jobs.hang import Beats, explain_hang
from jobs.ranks import RankExit, Ranks
from jobs.scheduler import JobState, ask_state, name_cause
from jobs.script import complete
from jobs.signals import Signals
from jobs.stop import EXIT_STALE, EXIT_STOPPED, STOP_SIGNALS
from launcher.contract.attempt import EXIT_FAILED, EXIT_OK, Attempt, Cause, Ending, is_stale
from launcher.contract.files import DAMAGE
from launcher.contract.heartbeat import find_straggler, read_heartbeats
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan

POLL_SECONDS = 0.2
LOOK_SECONDS = 1.0
"""Between two looks at the run's files."""
STALL_SECONDS = 10.0
"""What is longer between two turns of the loop is time in which it did not watch."""
PEER_SECONDS = 2.0
"""The peers of a dead rank get a moment to write down what they saw."""
LEAVE_SECONDS = 20.0
"""From the completion record to the last rank's end."""
LAST_SECONDS = 3.0
"""For a last save when Slurm ends the job without grace: KillWait is 30 s by default, and the record comes after it."""
WORDS: dict[Cause, str] = {
    "preempted": "preempted by a job of higher priority",
    "time_limit": "reached its time limit",
    "requeued": "requeued in Slurm: preempted, or at somebody's word",
    "stopped": "told to stop by a signal from outside",
    "node": "a node failed",
}


class Superseded(Exception):
    """A newer attempt has begun: nothing of this one counts any more, and it is over without a word."""


def watch(paths: RunPaths, plan: Plan, attempt: Attempt, ranks: Ranks, signals: Signals) -> Ending:
    """Return how the attempt ended; its ranks have left or are to be ended.

    Raises:
        Superseded: a newer attempt has begun.
    """
    world_size = plan.topology.world_size
    print(f"attempt {attempt.number}: {world_size} ranks on {' '.join(attempt.nodes)}", flush=True)
    completed_at = first_bad_at = None
    next_look = last = now = time.monotonic()
    beats = Beats(attempt.number, plan, now)
    straggler: str | None = None
    while ranks.poll() is None:
        time.sleep(POLL_SECONDS)
        # A file system that stalls, or a machine that sleeps, holds up this loop too: that time is nobody's silence.
        now, last = now + min(time.monotonic() - last, STALL_SECONDS), time.monotonic()
        if signals.has_come and not paths.completion.exists():
            state = ask_state(attempt.slurm_job_id)
            if not _may_save(paths, attempt, state):
                ending = _end_from_outside(paths, attempt, state)
                if ending.state == "interrupted":
                    _await_end(ranks)
                return ending
            # The end is near, and not here yet: a preemption's time of grace.
            signals.has_come = False
            ranks.send(signal.SIGUSR2)
        ends = ranks.exits()
        if any(end.code != 0 for end in ends):
            first_bad_at = first_bad_at or now
            if now - first_bad_at > PEER_SECONDS:
                return _judge(paths, plan, attempt, ranks, ends)
        if now < next_look:
            continue
        next_look = now + max(LOOK_SECONDS, world_size * LOOK_SECONDS / 100)  # a file of each rank is read
        if is_stale(paths, attempt.number):
            raise Superseded
        if plan.spec.stage == "script":
            continue  # it reports as it likes, and one of its ranks may work on after the others
        if paths.completion.exists():
            completed_at = completed_at or now
            if now - completed_at > LEAVE_SECONDS:
                left = sorted(set(range(world_size)) - {end.rank for end in ends})
                print(f"ended after {LEAVE_SECONDS:g} s without leaving: ranks {left}", flush=True)
                return _completed()
        with contextlib.suppress(*DAMAGE):
            found = read_heartbeats(paths)
            beats.take(found, now)
            if straggler is None and (
                straggler := find_straggler([beat for beat in found if beat.attempt == attempt.number])
            ):
                print(straggler, flush=True)
        if silent := beats.find_silent(now):
            return _failed(explain_hang(paths, plan, attempt, ranks, silent), "hang")
    return _judge(paths, plan, attempt, ranks, ranks.exits())


def _may_save(paths: RunPaths, attempt: Attempt, state: JobState | None) -> bool:
    """Whether the ranks are given the time to save: the job lives on for now, as far as one knows."""
    if attempt.slurm_job_id is None or paths.cancelled.exists():
        return False
    return state is None or state.is_running(attempt.slurm_restart_count)


def _await_end(ranks: Ranks) -> None:
    """The ranks have had their signal too: some may save and leave before Slurm's SIGKILL comes, after KillWait."""
    deadline = time.monotonic() + LAST_SECONDS
    while ranks.poll() is None and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def _end_from_outside(paths: RunPaths, attempt: Attempt, state: JobState | None) -> Ending:
    if paths.cancelled.exists():
        return _ending("cancelled", "cancelled by the user")
    if attempt.slurm_job_id is None:
        return _ending("interrupted", "ended from outside (SIGTERM)", cause="stopped")
    cause = name_cause(state, attempt.started, attempt.slurm_restart_count)
    if cause is None:
        return _ending("cancelled", "cancelled in Slurm")
    return _ending("interrupted", WORDS[cause], cause=cause)


def _judge(paths: RunPaths, plan: Plan, attempt: Attempt, ranks: Ranks, ends: Sequence[RankExit]) -> Ending:
    """Completed means all ranks ended with 0 *and* the completion record is there; a rank that leaves early with 0
    is a failure. Of a script nothing but the exit codes says that it is done."""
    if any(end.code == EXIT_STALE for end in ends):
        raise Superseded
    if ranks.poll() == 0 and plan.spec.stage == "script":
        complete(plan, paths, attempt.number)
    if ranks.poll() == 0 and paths.completion.exists():
        return _completed()
    state = ask_state(attempt.slurm_job_id)
    # Slurm ends the steps of a job and its batch script at once.
    is_over = paths.cancelled.exists() or (state is not None and not state.is_running(attempt.slurm_restart_count))
    was_told = bool(ends) and (ends[0].code == EXIT_STOPPED or -ends[0].code in STOP_SIGNALS)
    if is_over or was_told:
        return _end_from_outside(paths, attempt, state)
    per_node = plan.topology.ranks_per_node
    if (trouble := ranks.trouble()) is not None and not any(end.code != 0 for end in ends):
        cause: Cause = "node" if trouble.is_passing else "crash"
        return _ending("failed", f"Slurm could not run the ranks: {trouble.words}", cause=cause, node=trouble.node)
    return _failed(explain(paths, attempt, per_node, ends), "crash")


def _completed() -> Ending:
    return Ending(t=time.time(), state="completed", exit_code=EXIT_OK, reason="all ranks finished")


def _failed(failure: FirstFailure, cause: Cause) -> Ending:
    return Ending(
        t=time.time(),
        state="failed",
        exit_code=EXIT_FAILED,
        reason=failure.reason,
        cause="error" if failure.is_error else cause,
        hint=failure.hint,
        rank=failure.rank,
        node=failure.node,
        log=failure.log,
    )


def _ending(state: str, reason: str, *, cause: Cause | None = None, node: str | None = None) -> Ending:
    return Ending(t=time.time(), state=state, exit_code=EXIT_FAILED, reason=reason, cause=cause, node=node)  # type: ignore[arg-type]
