"""Owns a run from inside its allocation: starts the ranks of one attempt, and turns what became of them into the
record, the reason and the exit code.

    python -m jobs.supervisor RUN_DIR

On Slurm submitit calls :func:`run` in the batch step; locally the command above is started detached. Either way the
same code runs; only who starts the ranks differs (``jobs.ranks``).
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

from jobs.allocation import find_allocation, scheduler_restart_count
from jobs.diagnose import explain
from jobs.errors import JobError
from jobs.exporter import Exporter
from jobs.lineage import await_parent, record_lineage
from jobs.ranks import Ranks, start_ranks
from jobs.script import complete
from launcher.contract.attempt import EXIT_FAILED, EXIT_OK, Attempt, Ending, read_attempts
from launcher.contract.checkpoints import choose_checkpoint
from launcher.contract.environment import read_environment
from launcher.contract.files import DAMAGE, make_folder
from launcher.contract.paths import RunPaths
from launcher.contract.pipeline import list_stages
from launcher.contract.plan import Plan

POLL_SECONDS = 0.2
OWN_SIGNAL_SECONDS = 2.0


class _Signals:
    """Whether SIGTERM or SIGINT came: scancel, preemption, the time limit, or ``tuneyard cancel``.

    A flag and no exception: it is looked at where the ranks can be ended in good order.
    """

    def __init__(self) -> None:
        self.has_come = False

    def take(self, number: int, frame: FrameType | None) -> None:
        self.has_come = True


def run(run_dir: str) -> None:
    """What submitit calls in the batch step. Leaves by ``sys.exit`` with the run's exit code, which submitit does
    not catch, so the job's state in Slurm is the truth."""
    sys.exit(supervise(RunPaths(Path(run_dir))))


def supervise(paths: RunPaths) -> int:
    """Run one attempt to its end; returns the exit code (0 completed, 1 failed)."""
    if paths.completion.exists():
        print(f"{paths.root.name} is complete already; nothing to do", flush=True)
        return EXIT_OK
    plan = Plan.load(paths.plan)
    number = max((attempt.number for attempt in read_attempts(paths)), default=0) + 1
    with _handled_signals() as signals:
        try:
            if not await_parent(paths, plan, lambda: signals.has_come):
                return EXIT_FAILED
        except JobError as error:
            # No attempt: nothing of this stage has started, and it is the one before it that failed.
            print(f"{paths.root.name}: {error}", flush=True)
            paths.secrets.unlink(missing_ok=True)
            return EXIT_FAILED
        make_folder(paths.logs(number))
        with _log_to(paths.supervisor_log(number)):
            return _attempt(paths, plan, number, signals)


def _attempt(paths: RunPaths, plan: Plan, number: int, signals: _Signals) -> int:
    attempt = Attempt(
        number=number,
        started=time.time(),
        nodes=[],
        slurm_job_id=os.environ.get("SLURM_JOB_ID") if plan.cluster.scheduler == "slurm" else None,
        slurm_restart_count=scheduler_restart_count(),
    )
    attempt.save(paths)
    exporter = Exporter(plan, paths)
    try:
        allocation = find_allocation(plan, number)
        record_lineage(paths, plan)
        choice = choose_checkpoint(paths)
        for line in choice.passed_over:
            print(f"passed over {line}", flush=True)
        attempt = replace(
            attempt,
            nodes=allocation.nodes,
            resumed_from=choice.checkpoint.relative_to(paths.root).as_posix() if choice.checkpoint else None,
            passed_over=choice.passed_over,
        )
        attempt.save(paths)
        secrets = read_environment(paths.secrets) if paths.secrets.exists() else {}
        exporter.start(secrets)
        ranks = start_ranks(paths, plan, attempt, allocation, secrets)
        try:
            ending = _watch(paths, plan, attempt, ranks, signals)
        finally:
            ranks.stop()
    except JobError as error:
        ending = Ending(t=time.time(), state="failed", exit_code=EXIT_FAILED, reason=str(error))
    except Exception as error:  # a damaged file, a full disk: the attempt has ended, and its record must say so
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}; tuneyard logs {plan.run_id} has the traceback"
        ending = Ending(t=time.time(), state="failed", exit_code=EXIT_FAILED, reason=reason)
    # Tokens first: once the record is there the run may be handed over anew, with tokens for that.
    if ending.state != "interrupted":  # Slurm may requeue an interrupted run, which then needs its tokens again
        paths.secrets.unlink(missing_ok=True)
    if ending.state in ("failed", "cancelled"):
        for later in _later_stages(paths, plan):  # they will not start, and `tuneyard retry` writes theirs anew
            later.secrets.unlink(missing_ok=True)
    replace(attempt, ended=ending).save(paths)
    print(f"attempt {number} {ending.state}: {ending.reason}", flush=True)
    for line in ending.log:
        print(f"  | {line}", flush=True)
    exporter.finish()
    return ending.exit_code


def _later_stages(paths: RunPaths, plan: Plan) -> list[RunPaths]:
    """The stages after this one, by its name in the plan: the folder may have been given another. None where the
    pipeline's record is damaged: an attempt that has ended must still leave with its exit code."""
    try:
        stages = list_stages(paths.root.parent)
    except DAMAGE:
        return []
    names, name = [stage.root.name for stage in stages], plan.run_id.rpartition("/")[2]
    return stages[names.index(name) + 1 :] if name in names else []


def _watch(paths: RunPaths, plan: Plan, attempt: Attempt, ranks: Ranks, signals: _Signals) -> Ending:
    print(f"attempt {attempt.number}: {plan.topology.world_size} ranks on {' '.join(attempt.nodes)}", flush=True)
    while ranks.poll() is None and not signals.has_come:
        time.sleep(POLL_SECONDS)
    if not signals.has_come and any(end.code == -signal.SIGTERM for end in ranks.exits()):
        # Slurm ends the steps of a job and its batch script at once; ours may come a moment later.
        time.sleep(OWN_SIGNAL_SECONDS)
    if signals.has_come and not paths.completion.exists():
        ranks.stop()
        return _ending_by_signal(paths)
    while ranks.poll() is None:  # the record is there: let the ranks leave
        time.sleep(POLL_SECONDS)
    return _judge(paths, plan, attempt, ranks)


def _judge(paths: RunPaths, plan: Plan, attempt: Attempt, ranks: Ranks) -> Ending:
    """Completed means all ranks ended with 0 *and* the completion record is there; a rank that leaves early with 0
    is a failure. Of a script nothing but the exit codes says that it is done."""
    if ranks.poll() == 0 and plan.spec.stage == "script":
        complete(plan, paths, attempt.number)
    if ranks.poll() == 0 and paths.completion.exists():
        return Ending(t=time.time(), state="completed", exit_code=EXIT_OK, reason="all ranks finished")
    first = explain(paths, attempt, ranks.exits())
    return Ending(
        t=time.time(),
        state="failed",
        exit_code=EXIT_FAILED,
        reason=first.reason,
        rank=first.rank,
        node=first.node,
        log=first.log,
    )


def _ending_by_signal(paths: RunPaths) -> Ending:
    if paths.cancelled.exists():
        return Ending(t=time.time(), state="cancelled", exit_code=EXIT_FAILED, reason="cancelled by the user")
    return Ending(
        t=time.time(),
        state="interrupted",
        exit_code=EXIT_FAILED,
        reason="ended from outside (SIGTERM): cancelled in the scheduler, preempted, or over its time limit",
    )


@contextmanager
def _handled_signals() -> Iterator[_Signals]:
    """Take SIGTERM and SIGINT over the handlers that submitit set: those would requeue the job beside us."""
    signals = _Signals()
    saved = {name: signal.signal(name, signals.take) for name in (signal.SIGTERM, signal.SIGINT)}
    # A warning for the ranks; Slurm sends it to every step, and submitit's handler would requeue the job.
    saved[signal.SIGUSR2] = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        yield signals
    finally:
        for name, handler in saved.items():
            signal.signal(name, handler)


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Send this process's stdout and stderr, and its children's, to ``path``."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, descriptor in zip((1, 2), saved, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(log)


if __name__ == "__main__":
    run(sys.argv[1])
