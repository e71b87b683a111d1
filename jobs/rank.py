"""Starts one rank: its numbers, the checks that the world is the plan's, then its stage.

python -m jobs.rank RUN_DIR        (by srun, or by the supervisor on a local machine)
"""

import contextlib
import ctypes
import importlib
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

from jobs.context import RankContext
from jobs.device import claim_device
from jobs.errors import JobError
from jobs.stop import EXIT_STOPPED, Stopped, listen
from launcher.contract.files import write_json
from launcher.contract.lineage import fill_in
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan

STAGES = {"sft": "jobs.sft", "reward": "jobs.reward", "dpo": "jobs.dpo", "ppo": "jobs.ppo", "script": "jobs.script"}
"""Stage -> the module whose ``main(context)`` runs it."""


def main(run_dir: str) -> int:
    """Run this rank's stage; returns the exit code."""
    paths = RunPaths(Path(run_dir))
    rank, attempt = int(os.environ.get("RANK") or os.environ["SLURM_PROCID"]), int(os.environ["TUNEYARD_ATTEMPT"])
    listen(paths, attempt, rank)
    _die_with_parent()
    try:
        context = _context(paths, attempt)
        context.beat(0, "import")
        claim_device(context)
        importlib.import_module(STAGES[context.plan.spec.stage]).main(context)
    except Stopped:
        return EXIT_STOPPED
    except BaseException as error:
        _record(paths, attempt, rank, error)
        return 1
    return 0


def _context(paths: RunPaths, attempt: int) -> RankContext:
    """This rank's numbers, set for torch too.

    Raises:
        JobError: the number of ranks or nodes is not the plan's (srun forgotten, another allocation, other flags).
    """
    plan = fill_in(Plan.load(paths.plan), paths)
    if plan.cluster.scheduler == "slurm":
        # Read in the task itself: in the batch shell these would be rank 0's on every node.
        numbers = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_NTASKS"}
        os.environ.update({name: os.environ[source] for name, source in numbers.items()})
        # SLURM_JOB_NUM_NODES is the job's; the step's own count tells whether srun spread the ranks.
        num_nodes = int(os.environ["SLURM_STEP_NUM_NODES"])
        if num_nodes != plan.topology.nodes:
            raise JobError(f"the plan has {plan.topology.nodes} nodes, this step has {num_nodes}")
    world_size = int(os.environ["WORLD_SIZE"])
    if world_size != plan.topology.world_size:
        raise JobError(
            f"the plan has {plan.topology.world_size} ranks, {world_size} were started: "
            "the step's flags differ from the plan's"
        )
    resume_from = os.environ.get("TUNEYARD_RESUME_FROM")
    return RankContext(
        paths=paths,
        plan=plan,
        attempt=attempt,
        rank=int(os.environ["RANK"]),
        local_rank=int(os.environ["LOCAL_RANK"]),
        world_size=world_size,
        node=socket.gethostname(),
        resume_from=paths.root / resume_from if resume_from else None,
    )


def _die_with_parent() -> None:
    """A local rank ends with its supervisor, even one that was killed; on Slurm the step does that."""
    parent = os.environ.get("TUNEYARD_PARENT")
    if parent is None:
        return
    pr_set_pdeathsig = 1  # prctl(2)
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != int(parent):  # it died before the call above
        os._exit(1)


def _record(paths: RunPaths, attempt: int, rank: int, error: BaseException) -> None:
    """Write down why this rank fails: for people to its log, for the supervisor to its error file."""
    if isinstance(error, JobError):
        print(f"error: {error}", file=sys.stderr, flush=True)
    else:
        traceback.print_exception(error)
    value = {
        "t": time.time(),
        "rank": rank,
        "node": socket.gethostname(),
        "type": type(error).__name__,
        "message": str(error),
        "traceback": traceback.format_exception(error),
    }
    with contextlib.suppress(OSError):  # the disk may be what failed; the log line above may have got through
        write_json(paths.rank_error(attempt, rank), value)


if __name__ == "__main__":
    code = main(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    # Interpreter teardown with live process groups and data-loader threads can hang, and everything that must
    # survive is on disk by now.
    os._exit(code)
