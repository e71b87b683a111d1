"""Runs a training script of the user's own in every rank, as ``python FILE ARGS`` would, from the copy in ``code/``.

Each rank is ``python -m jobs.rank RUN_DIR`` in the environment of ``RUN_DIR/rendered/rank.env`` with its numbers set.
"""

import atexit
import contextlib
import os
import runpy
import sys
import threading
import time
from pathlib import Path

from jobs.checkpoint import clear_unfinished
from jobs.context import RankContext
from jobs.errors import JobError
from jobs.run import Run, bind
from jobs.stop import Stopped, hold
from jobs.storage import name_faults
from launcher.contract.files import make_folder, write_json
from launcher.contract.heartbeat import read_heartbeats
from launcher.contract.ledger import LedgerWriter
from launcher.contract.manifest import list_files
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan


def main(context: RankContext) -> None:
    """Run the script; on rank 0 the ledger says how it went, whatever happens.

    Raises:
        JobError: it left by sys.exit with another code than 0.
        BaseException: what the script itself raised.
    """
    ledger = LedgerWriter(context.paths.ledger(context.attempt), context.attempt) if context.is_main else None
    run = Run(context, ledger)
    bind(run)
    try:
        with name_faults(context):
            _start(context, ledger)
    except Stopped:
        if ledger is not None:
            ledger.event("stop_requested", step=run.step)
        raise
    except BaseException as error:
        if ledger is not None:
            with contextlib.suppress(OSError):  # it may be the cause
                ledger.event("failed", reason=str(error) or type(error).__name__, type=type(error).__name__)
        raise
    context.beat(run.step, "done")
    if ledger is not None:
        ledger.event("finished", step=run.step)
        ledger.close()


def complete(plan: Plan, paths: RunPaths, attempt: int) -> None:
    """Write the completion record of a script whose ranks have all ended with 0, where it wrote none itself."""
    if paths.completion.exists():
        return
    make_folder(paths.final)
    write_json(
        paths.completion,
        {
            "v": 1,
            "t": time.time(),
            "run_id": plan.run_id,
            "attempt": attempt,
            "step": max((beat.step for beat in read_heartbeats(paths) if beat.attempt == attempt), default=0),
            "metrics": {},
            "files": list_files(paths.final),
        },
    )


def _start(context: RankContext, ledger: LedgerWriter | None) -> None:
    plan, folder = context.plan, context.paths.script_sources
    script = plan.spec.script
    if script is None:
        raise JobError("script: the plan names no script")
    path = folder / Path(script.path).relative_to(script.sources or Path(script.path).parent)
    if ledger is not None:
        clear_unfinished(context)
        resumed = context.resume_from.relative_to(context.paths.root).as_posix() if context.resume_from else None
        ledger.event("started", run_id=plan.run_id, world_size=context.world_size, resumed_from=resumed)
    if plan.cluster.accelerator == "cpu" and plan.spec.parallel.strategy != "ddp":
        from jobs import cpu

        cpu.enable(plan.spec.parallel.strategy, plan.topology.ranks_per_node)
    os.environ["TUNEYARD_RESUME_FROM"] = str(context.resume_from or "")
    # It kept the user's folder from shadowing the job; the script and its children find modules as they would by hand.
    os.environ.pop("PYTHONSAFEPATH", None)
    os.chdir(folder)
    sys.path.insert(0, str(path.parent))
    sys.argv = [str(path), *script.args]
    context.beat(0, "train")
    hold()
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as end:
        if end.code not in (None, 0):
            raise JobError(f"{path.name} left by sys.exit({end.code!r})") from None
    _leave_as_python()


def _leave_as_python() -> None:
    """What the interpreter does after a script: it waits for threads, then calls what is registered with atexit.

    A rank leaves by os._exit, and W&B's client, writers and pools of the script finish here. The threads of a pool end
    only when they are told to, which the first call does too.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
