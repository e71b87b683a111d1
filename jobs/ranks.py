"""Starts the ranks of one attempt, by one srun or as local processes, and says how each of them ended."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import IO, Protocol

from jobs.allocation import Allocation
from jobs.errors import JobError
from jobs.scheduler import UNREACHABLE
from launcher.contract.attempt import Attempt
from launcher.contract.environment import read_environment
from launcher.contract.files import write_text
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan

STRAGGLER_SECONDS = 60
"""How long the others may go on after one rank has ended with 0."""
STEP_SECONDS, STEP_PAUSE_SECONDS = 45, 2
"""How long, and how often, Slurm is asked for a step that it refuses."""
STOP_SECONDS = 10
"""How long the end of the ranks is waited for; a process in an unkillable state does not hold up the rest."""


@dataclass(frozen=True)
class RankExit:
    """A rank's end as its starter saw it: ``code`` is the exit code, negative for a signal."""

    t: float
    rank: int
    code: int


@dataclass(frozen=True)
class Trouble:
    """What Slurm could not do, in its words, and the node that it names; ``is_passing``: it may well do it later."""

    words: str
    node: str | None
    is_passing: bool


class Ranks(Protocol):
    """The ranks of one attempt."""

    def poll(self) -> int | None:
        """None while they run, else 0 or the code of the failure."""

    def exits(self) -> list[RankExit]:
        """The ends seen so far, in their order."""

    def trouble(self) -> Trouble | None:
        """What kept the scheduler from starting or reaching them, if that is it."""

    def send(self, number: signal.Signals) -> None:
        """Send a signal to each rank, as the scheduler would."""

    def stop(self) -> None:
        """End them by SIGKILL: to them SIGTERM is a wish to save and leave (:mod:`jobs.stop`)."""


def start_ranks(
    paths: RunPaths, plan: Plan, attempt: Attempt, allocation: Allocation, secrets: dict[str, str]
) -> Ranks:
    """Start one process per rank: ``python -m jobs.rank RUN_DIR`` in the rendered environment, with ``secrets``.

    Raises:
        JobError: there is no rendered environment; without it the ranks would run as something else.
    """
    if not paths.rank_env.exists():
        raise JobError(f"{paths.rank_env} is missing: plan the run again, or resume it")
    env = {
        **os.environ,
        **read_environment(paths.rank_env),
        **{name: value for name, value in secrets.items() if name == "HF_TOKEN"},
        "TUNEYARD_ATTEMPT": str(attempt.number),
        "TUNEYARD_RESUME_FROM": attempt.resumed_from or "",
        "MASTER_ADDR": attempt.nodes[0] if plan.cluster.scheduler == "slurm" else "127.0.0.1",
        "MASTER_PORT": str(allocation.port),
    }
    command = [*plan.cluster.container, plan.cluster.python or sys.executable, "-m", "jobs.rank", str(paths.root)]
    if plan.cluster.scheduler == "slurm":
        arguments = _srun(paths, plan, attempt, command)
        if attempt.nodes != allocation.nodes:
            # Slurm deals ranks to the nodes in its own order; this file, a line per rank, has the last word.
            hosts = paths.logs(attempt.number) / "hosts"
            write_text(hosts, "".join(f"{node}\n" * plan.topology.ranks_per_node for node in attempt.nodes))
            arguments.insert(1, "--distribution=arbitrary")
            env["SLURM_HOSTFILE"] = str(hosts)
        return SrunRanks(arguments, env)
    return LocalRanks(paths, plan, attempt, command, env)


def _straggler_seconds(plan: Plan) -> int | None:
    """None is no limit: one rank of a script may well evaluate or save for an hour after the others have left."""
    return None if plan.spec.stage == "script" else STRAGGLER_SECONDS


def _srun(paths: RunPaths, plan: Plan, attempt: Attempt, command: list[str]) -> list[str]:
    topology = plan.topology
    # A literal % in the run's path would be read as a pattern of srun's.
    log = str(paths.rank_log(attempt.number, "\0", "\1")).replace("%", "%%").replace("\0", "%n").replace("\1", "%t")
    arguments = [
        "srun",
        f"--nodes={topology.nodes}",
        f"--ntasks={topology.world_size}",
        f"--ntasks-per-node={topology.ranks_per_node}",
        "--kill-on-bad-exit=1",
        f"--wait={_straggler_seconds(plan) or 0}",  # 0 is no limit
        # sbatch's --export list is inherited through SLURM_EXPORT_ENV and would drop the rendered environment.
        "--export=ALL",
        f"--output={log}",
        "--unbuffered",
    ]
    if plan.cluster.gres_devices:
        # Not --gpus-per-task: it hides the peers' GPUs from a rank, which breaks NCCL's peer-to-peer transport.
        arguments.append(f"--gpus-per-node={topology.ranks_per_node}")
    if topology.cpus_per_rank is not None:
        arguments.append(f"--cpus-per-task={topology.cpus_per_rank}")  # not inherited from sbatch since Slurm 22.05
    return [*arguments, *plan.cluster.srun_args, *command]


class SrunRanks:
    """One srun; its messages name the tasks that ended badly."""

    # "srun: error: n1: task 2: Killed", "srun: error: n0: tasks 0-1: Exited with exit code 1"
    _MESSAGE = re.compile(r"^srun: error: \S+: tasks? (?P<tasks>[0-9,\-]+): (?P<what>.*)$")
    # "srun: error: Node failure on n1", "srun: error: Task launch for StepId=7.1 failed on node n1: ...",
    # "srun: error: Unable to create step for job 7: Unable to contact slurm controller (connect failure)"
    _TROUBLE = re.compile(
        r"^srun: error: (?P<words>(?:Node failure on|Task launch for \S+ failed on node) (?P<node>[^\s:]+).*|"
        r"Unable to (?:create step|confirm allocation) .*)$"
    )

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self._command, self._env = command, env
        self._exits: list[RankExit] = []
        self._try_until = time.monotonic() + STEP_SECONDS
        self._start()

    def _start(self) -> None:
        self._trouble: Trouble | None = None
        self._process = subprocess.Popen(
            self._command,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        assert self._process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stderr,), daemon=True)
        self._reader.start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            print(line, end="", flush=True)
            match = self._MESSAGE.match(line)
            if match:
                code = _exit_code(match["what"])
                self._exits += [RankExit(time.time(), rank, code) for rank in _expand_tasks(match["tasks"])]
            elif match := self._TROUBLE.match(line):
                is_passing = match["node"] is not None or UNREACHABLE.search(line) is not None
                self._trouble = self._trouble or Trouble(match["words"], match["node"], is_passing)

    def poll(self) -> int | None:
        code = self._process.poll()
        if code is None:
            return None
        self._reader.join(timeout=2)  # the last messages
        # No rank has started. Mostly srun waits for what the step before it still holds; asked for a placement of its
        # own (--distribution=arbitrary), Slurm 22.05 refuses at once.
        if self._trouble is not None and self._trouble.node is None and time.monotonic() < self._try_until:
            time.sleep(STEP_PAUSE_SECONDS)
            self._start()
            return None
        return code

    def exits(self) -> list[RankExit]:
        return list(self._exits)

    def trouble(self) -> Trouble | None:
        return self._trouble

    def send(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)  # srun passes SIGUSR1 and SIGUSR2 on

    def stop(self) -> None:
        self._try_until = 0.0
        # At SIGTERM srun kills its step at once ("forcing job termination").
        for name in (signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is None:
                self._process.send_signal(name)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(STOP_SECONDS)


def _exit_code(what: str) -> int:
    """srun's words for a task's end as an exit code, negative for a signal."""
    if match := re.search(r"exit code (\d+)", what):
        return int(match[1])
    names = {"Killed": signal.SIGKILL, "Terminated": signal.SIGTERM, "Segmentation fault": signal.SIGSEGV}
    names |= {"Aborted": signal.SIGABRT, "Bus error": signal.SIGBUS, "Out Of Memory": signal.SIGKILL}
    names |= {"User defined signal 1": signal.SIGUSR1, "User defined signal 2": signal.SIGUSR2}
    return next((-number for name, number in names.items() if what.startswith(name)), 1)


def _expand_tasks(text: str) -> list[int]:
    """ "0,2-3" -> [0, 2, 3]."""
    ranges = [part.split("-") for part in text.split(",") if part]
    return [rank for ends in ranges for rank in range(int(ends[0]), int(ends[-1]) + 1)]


class LocalRanks:
    """One process per rank on this machine, with srun's rules: one bad exit ends all."""

    def __init__(self, paths: RunPaths, plan: Plan, attempt: Attempt, command: list[str], env: dict[str, str]) -> None:
        self._exits: list[RankExit] = []
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._stop_at: float | None = None
        self._straggler_seconds = _straggler_seconds(plan)
        world_size = plan.topology.world_size
        for rank in range(world_size):
            numbers = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "TUNEYARD_PARENT": str(os.getpid()),
            }
            with paths.rank_log(attempt.number, 0, rank).open("ab") as log:
                self._processes[rank] = subprocess.Popen(
                    command,
                    env={**env, **numbers},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # so that a rank's own children end with it
                )

    def poll(self) -> int | None:
        ended = {end.rank for end in self._exits}
        for rank, process in self._processes.items():
            code = process.poll()
            if code is not None and rank not in ended:
                self._exits.append(RankExit(time.time(), rank, code))
        if len(self._exits) == len(self._processes):
            return next((end.code for end in self._exits if end.code != 0), 0)
        if self._exits and self._stop_at is None and self._straggler_seconds is not None:
            self._stop_at = time.monotonic() + self._straggler_seconds
        if self._stop_at is not None and time.monotonic() > self._stop_at:
            self.stop()
        return None

    def exits(self) -> list[RankExit]:
        return list(self._exits)

    def trouble(self) -> Trouble | None:
        return None

    def send(self, number: signal.Signals) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                process.send_signal(number)

    def stop(self) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline and any(p.poll() is None for p in self._processes.values()):
            time.sleep(0.05)
