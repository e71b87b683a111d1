"""Owns a run from inside its allocation: starts the ranks of one attempt after the other, and turns what became of them
into the records, the reason and the exit code.

    python -m jobs.supervisor RUN_DIR

On Slurm submitit calls :func:`run` in the batch step; locally the command above is started detached. Either way the
same code runs; only who starts the ranks differs (``jobs.ranks``). How an attempt ends is seen by ``jobs.watch``, what
follows is decided by ``jobs.decide``.
"""

import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from jobs.allocation import find_allocation, scheduler_restart_count
from jobs.decide import decide
from jobs.errors import JobError
from jobs.exporter import Exporter
from jobs.lineage import await_parent, record_lineage
from jobs.ranks import start_ranks
from jobs.scheduler import list_sick, requeue
from jobs.signals import Signals, handled_signals
from jobs.watch import Superseded, watch
from launcher.contract.attempt import EXIT_FAILED, EXIT_OK, Attempt, Ending, is_stale, read_attempts
from launcher.contract.checkpoints import choose_checkpoint
from launcher.contract.environment import read_environment
from launcher.contract.files import DAMAGE, make_folder
from launcher.contract.manifest import MANIFEST
from launcher.contract.paths import RunPaths, read_step
from launcher.contract.pipeline import list_stages
from launcher.contract.plan import Plan
from launcher.contract.submission import read_submission


def run(run_dir: str) -> None:
    """What submitit calls in the batch step. Leaves by ``sys.exit`` with the run's exit code, which submitit does
    not catch, so the job's state in Slurm is the truth."""
    sys.exit(supervise(RunPaths(Path(run_dir))))


def supervise(paths: RunPaths) -> int:
    """Run attempts until one completes or none shall follow; returns the exit code (0 completed, 1 failed, 4 stopped
    for lack of progress)."""
    with handled_signals() as signals:  # before all else: until then submitit's own are in place
        if paths.completion.exists():
            print(f"{paths.root.name} is complete already; nothing to do", flush=True)
            return EXIT_OK
        plan = Plan.load(paths.plan)
        try:
            if not await_parent(paths, plan, lambda: signals.has_come):
                return EXIT_FAILED
        except JobError as error:
            # No attempt: nothing of this stage has started, and it is the one before it that failed.
            print(f"{paths.root.name}: {error}", flush=True)
            paths.secrets.unlink(missing_ok=True)
            return EXIT_FAILED
        return _run_attempts(paths, plan, signals)


def _run_attempts(paths: RunPaths, plan: Plan, signals: Signals) -> int:
    exporter = Exporter(plan, paths)
    attempt, is_moved = _claim(paths, plan, None), False
    while attempt is not None:
        make_folder(paths.logs(attempt.number))
        with _log_to(paths.supervisor_log(attempt.number)):
            try:
                ending, is_moved = _attempt(paths, plan, attempt, signals, exporter, is_moved)
            except Superseded:
                print(f"attempt {attempt.number} is over: a newer one has begun", flush=True)
                return EXIT_FAILED
            if ending.then != "restart":
                exporter.finish()
                return ending.exit_code
        attempt = _claim(paths, plan, attempt)
    print("this supervisor is over: another one has taken the next attempt", flush=True)
    return EXIT_FAILED


def _claim(paths: RunPaths, plan: Plan, before: Attempt | None) -> Attempt | None:
    """The next attempt, whose number no other supervisor has. After one of its own, ``before``, a supervisor takes
    the number that follows and no other: where that is taken, the run is somebody else's by now (None)."""
    while True:
        last = before.number if before else max((attempt.number for attempt in read_attempts(paths)), default=0)
        attempt = Attempt(
            number=last + 1,
            started=time.time(),
            nodes=[],
            slurm_job_id=os.environ.get("SLURM_JOB_ID") if plan.cluster.scheduler == "slurm" else None,
            slurm_restart_count=scheduler_restart_count(),
        )
        if attempt.claim(paths):
            return attempt
        if before is not None:
            return None


def _attempt(
    paths: RunPaths, plan: Plan, attempt: Attempt, signals: Signals, exporter: Exporter, is_moved: bool
) -> tuple[Ending, bool]:
    """Run one attempt, decide what follows and write both down; returns the ending, and whether the ranks of the next
    attempt shall change places (``is_moved``: those of this one).

    Raises:
        Superseded: a newer attempt has begun; nothing was written.
    """
    try:
        allocation = find_allocation(plan, attempt.number)
        record_lineage(paths, plan)
        choice = choose_checkpoint(paths)
        for line in choice.passed_over:
            print(f"passed over {line}", flush=True)
        nodes = allocation.nodes
        attempt = replace(
            attempt,
            nodes=[*nodes[1:], nodes[0]] if is_moved else nodes,
            resumed_from=choice.checkpoint.relative_to(paths.root).as_posix() if choice.checkpoint else None,
            passed_over=choice.passed_over,
        )
        attempt.save(paths)
        secrets = read_environment(paths.secrets) if paths.secrets.exists() else {}
        exporter.start(secrets)
        ranks = start_ranks(paths, plan, attempt, allocation, secrets)
        try:
            ending = watch(paths, plan, attempt, ranks, signals)
        finally:
            ranks.stop()
    except JobError as error:
        ending = Ending(t=time.time(), state="failed", exit_code=EXIT_FAILED, reason=str(error), cause="error")
    except Superseded:
        raise
    except Exception as error:  # a damaged file, a full disk: the attempt has ended, and its record must say so
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}; tuneyard logs {plan.run_id} has the traceback"
        ending = Ending(t=time.time(), state="failed", exit_code=EXIT_FAILED, reason=reason, cause="error")
    if is_stale(paths, attempt.number):
        raise Superseded
    attempt, is_next_moved = _conclude(paths, plan, attempt, ending)
    assert attempt.ended is not None
    if attempt.ended.then == "requeue":
        attempt = _requeue(paths, attempt, signals)
    assert attempt.ended is not None
    return attempt.ended, is_next_moved


def _conclude(paths: RunPaths, plan: Plan, attempt: Attempt, ending: Ending) -> tuple[Attempt, bool]:
    """The attempt with its ending and what follows, as it is written down; and whether ranks shall change places."""
    attempt = replace(attempt, ended=replace(ending, checkpoint_step=_newest_step(paths)))
    submission = read_submission(paths)
    is_ours = submission is not None and submission.job_id in (None, attempt.slurm_job_id)
    before = [other for other in read_attempts(paths) if other.number < attempt.number]
    if submission is not None:
        before = [other for other in before if other.belongs_to(submission)]
    decision = decide(
        [*before, attempt],
        max_attempts=plan.spec.recovery.max_attempts,
        can_requeue=is_ours and attempt.slurm_job_id is not None,
        are_nodes_well=attempt.slurm_job_id is None or ending.state != "failed" or not list_sick(attempt.nodes),
    )
    ending = replace(
        attempt.ended or ending,
        then=decision.then,
        exit_code=decision.exit_code,
        reason=decision.reason,
        excluded=list(decision.excluded),
    )
    attempt = replace(attempt, ended=ending)
    _write_down(paths, plan, attempt, ending)
    return attempt, decision.is_moved


def _write_down(paths: RunPaths, plan: Plan, attempt: Attempt, ending: Ending) -> None:
    # Tokens first: once the record is there the run may be handed over anew, with tokens for that.
    if ending.then == "stop":
        paths.secrets.unlink(missing_ok=True)
    if ending.then == "stop" and ending.state in ("failed", "cancelled"):
        for later in _later_stages(paths, plan):  # they will not start, and `tuneyard retry` writes theirs anew
            later.secrets.unlink(missing_ok=True)
    attempt.save(paths)
    print(f"attempt {attempt.number} {ending.state}: {ending.reason}", flush=True)
    if ending.hint:
        print(f"hint: {ending.hint}", flush=True)
    for line in ending.log:
        print(f"  | {line}", flush=True)
    print({"stop": "the run ends", "restart": "starts again here", "requeue": "is requeued"}[ending.then], flush=True)


def _requeue(paths: RunPaths, attempt: Attempt, signals: Signals) -> Attempt:
    """Put the job back into the queue; returns the attempt, whose ending says so where Slurm refuses."""
    ending = attempt.ended
    assert ending is not None
    assert attempt.slurm_job_id is not None
    signals.has_come = False
    try:
        requeue(
            attempt.slurm_job_id,
            attempt.slurm_restart_count,
            ending.excluded,
            lambda: signals.has_come or is_stale(paths, attempt.number),
        )
    except JobError as error:
        print(str(error), flush=True)
        attempt = replace(attempt, ended=replace(ending, then="stop", reason=f"{ending.reason}; {error}"))
        attempt.save(paths)
    return attempt


def _newest_step(paths: RunPaths) -> int:
    """The step of the newest checkpoint, whole as far as its manifest is there: 0 where there is none."""
    return max((read_step(path) for path in paths.published() if (path / MANIFEST).is_file()), default=0)


def _later_stages(paths: RunPaths, plan: Plan) -> list[RunPaths]:
    """The stages after this one, by its name in the plan: the folder may have been given another. None where the
    pipeline's record is damaged: an attempt that has ended must still leave with its exit code."""
    try:
        stages = list_stages(paths.root.parent)
    except DAMAGE:
        return []
    names, name = [stage.root.name for stage in stages], plan.run_id.rpartition("/")[2]
    return stages[names.index(name) + 1 :] if name in names else []


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
