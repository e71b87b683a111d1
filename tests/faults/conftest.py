"""Runs that are hurt on purpose: a tiny model on the development cluster, watched from outside."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from launcher.contract.attempt import Attempt, read_attempts
from launcher.contract.heartbeat import Heartbeat, read_heartbeats
from launcher.contract.ledger import Row, events, merge_metrics, read_run
from launcher.contract.paths import RunPaths
from launcher.observe import read_status
from tests.conftest import DEVCLUSTER, ROOT, Tuneyard
from tests.run.conftest import SPEC

FAULTS = ROOT / "tests" / "faults"
WEIGHTS = "adapter_model.safetensors"
STEPS = 16
OPTIONS = [
    f"train.max_steps={STEPS}", "train.save_every_steps=4", "train.eval_every_steps=null", "train.micro_batch=4",
    "resources.gpus_per_node=1", "tracking.wandb=disabled", "recovery.hang_seconds=30", "data.eval=null",
]  # fmt: skip
SCRIPT_SPEC = """\
name: own
stage: script
script: {path: train.py}
resources: {nodes: 2, gpus_per_node: 1, time: 10m}
tracking: {wandb: disabled}
"""


@dataclass
class Hurt:
    """One run, from its submission on."""

    paths: RunPaths
    env: dict[str, str]

    @property
    def job(self) -> str:
        return str(json.loads(self.paths.submission.read_text())["job_id"])

    def slurm(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def status(self) -> dict[str, object]:
        """What ``tuneyard status`` says, without a process for it: it is asked often."""
        return asdict(read_status(self.paths))

    def attempts(self) -> list[Attempt]:
        return read_attempts(self.paths)

    def beats(self, attempt: int) -> list[Heartbeat]:
        return [beat for beat in read_heartbeats(self.paths) if beat.attempt == attempt]

    def rows(self) -> list[Row]:
        return read_run(self.paths)

    def field(self, name: str) -> str:
        """What ``scontrol show job`` says of it."""
        text = self.slurm("scontrol", "-o", "show", "job", self.job)
        return text.split(f" {name}=")[1].split()[0]

    def wait_for(self, is_so: Callable[[], object], seconds: float = 90) -> float:
        """Seconds until ``is_so``; fails after ``seconds``."""
        start = time.monotonic()
        while not is_so():
            assert time.monotonic() - start < seconds, self.tell()
            time.sleep(0.2)
        return time.monotonic() - start

    def wait_for_step(self, step: int, attempt: int = 1) -> None:
        """Until the ledger has ``step`` of ``attempt``, or a later one."""
        self.wait_for(
            lambda: any(
                row["attempt"] == attempt and row.get("step", -1) >= step for row in self.rows() if "loss" in row
            )
        )

    def wait_for_end(self, seconds: float = 240) -> dict[str, object]:
        states = ("completed", "failed", "cancelled")
        deadline = time.monotonic() + seconds
        while (status := self.status())["state"] not in states:
            assert time.monotonic() < deadline, self.tell()
            time.sleep(1.0)
        return status

    def tell(self) -> str:
        """What there is to see where a test fails."""
        logs = [*sorted(self.paths.root.glob("logs/*.log")), *sorted(self.paths.root.glob("logs/a*/*.log"))]
        tails = [f"--- {log.relative_to(self.paths.root)}\n{log.read_text()[-1500:]}" for log in logs]
        return "\n".join([json.dumps(self.status(), indent=1), *tails])

    def figures(self, first: int = 1) -> dict[str, float | str]:
        """What attempt ``first`` cost, measured at the one after it."""
        attempts = {attempt.number: attempt for attempt in self.attempts()}
        before, after = attempts[first], attempts[first + 1]
        rows = self.rows()
        steps = [row for row in rows if row["kind"] == "metric" and "loss" in row]
        done = max((row["step"] for row in steps if row["attempt"] == first), default=0)
        started = next(row["t"] for row in events(rows, "started") if row["attempt"] == after.number)
        first_step = next(row["t"] for row in steps if row["attempt"] == after.number)
        figures: dict[str, float | str] = {
            "steps_lost": max(0, done - after.first_step),
            "load_s": started - after.started,
            "first_step_s": first_step - started,
        }
        if before.ended is not None:
            figures["restart_s"] = after.started - before.ended.t
            fault = self.paths.logs(first) / "fault"
            if fault.exists():
                figures["detect_s"] = before.ended.t - float(fault.read_text())
        return figures

    def check_whole(self, weights: bytes) -> None:
        """Every step is there once, and the result is that of a run that nothing happened to."""
        assert [row["step"] for row in merge_metrics(self.rows()) if "loss" in row] == list(range(1, STEPS + 1))
        assert (self.paths.final / WEIGHTS).read_bytes() == weights

    def check_nobody_left(self) -> None:
        """No process of any attempt is left on any node; the last ones may be on their way out."""
        self.wait_for(lambda: self.find_processes() == [], 20)

    def find_processes(self) -> list[str]:
        """Supervisors and ranks of the run (the nodes share this machine's process table)."""
        return [command for command in self._commands().values() if "-m jobs." in command]

    def find_pids(self, sign: str) -> list[int]:
        """Processes of the run with ``sign`` in their command, the oldest first."""
        return sorted(pid for pid, command in self._commands().items() if sign in command)

    def _commands(self) -> dict[int, str]:
        root = str(self.paths.root)
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if root in command:
                found[int(folder.name)] = command
        return found


Submit = Callable[..., Hurt]


@pytest.fixture
def submit(tuneyard: Tuneyard, devcluster: dict[str, str]) -> Submit:
    """``submit(*overrides, fault=, pace=, sbatch=, script=)`` hands a run over; the profile injects the fault.

    ``script`` is the text of a script of one's own, in the place of the tiny model.
    """

    def hand_over(*overrides: str, fault: str = "", pace: float = 0.0, sbatch: str = "", script: str = "") -> Hurt:
        spec = tuneyard.folder / "tiny.yaml"
        spec.write_text(SCRIPT_SPEC if script else SPEC)
        if script:
            (tuneyard.folder / "train.py").write_text(script)
        profile = tuneyard.folder / "profile.yaml"
        profile.write_text(
            "scheduler: slurm\naccelerator: cpu\ngpus_per_node: 2\ncpus_per_node: 2\npartition: main\npoll_seconds: 1\n"
            f"slurm_conf: {devcluster['SLURM_CONF']}\nsbatch: {{{sbatch}}}\nsetup:\n"
            f"  - export PYTHONPATH={FAULTS}:$PYTHONPATH\n  - export TUNEYARD_FAULT='{fault}'\n"
            f"  - export TUNEYARD_PACE='{pace or ''}'\n"
        )
        done = tuneyard(
            "submit", str(spec), *([] if script else OPTIONS), *overrides, "--cluster", str(profile), "--json"
        )
        assert done.returncode == 0, done.stderr
        paths = RunPaths(Path(json.loads(done.stdout.splitlines()[-1])["run_dir"]))
        return Hurt(paths, devcluster)

    return hand_over


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The adapter of a run that nothing happens to: two ranks on this machine, DDP, which is exact."""
    tuneyard = Tuneyard(tmp_path_factory.mktemp("unhurt"))
    (tuneyard.folder / "tiny.yaml").write_text(SPEC)
    one_node = ["resources.nodes=1", "resources.gpus_per_node=2"]
    done = tuneyard("submit", "tiny.yaml", *OPTIONS, *one_node, "--cluster", "local", "--wait", "--json")
    assert done.returncode == 0, done.stderr
    paths = RunPaths(Path(json.loads(done.stdout.splitlines()[-1])["run_dir"]))
    return (paths.final / WEIGHTS).read_bytes()


@pytest.fixture
def mended(devcluster: dict[str, str]) -> Iterator[None]:
    """The cluster's daemons are started again, whatever a test did to them."""
    yield
    done = subprocess.run([*DEVCLUSTER, "up", "--nodes", "4"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def find_daemon(name: str) -> int:
    """The pid of one of the development cluster's daemons."""
    status = json.loads(subprocess.run([*DEVCLUSTER, "status", "--json"], capture_output=True, text=True).stdout)
    return next(item["pid"] for item in status["daemons"] if item["name"] == name)


def processes_on(run: Hurt, node: str) -> list[int]:
    """The run's processes on ``node``: batch script, ranks, and Slurm's own beside them."""
    namespace = Path(f"/run/netns/tuneyard-{node}").stat().st_ino
    signs = (str(run.paths.root).encode(), f"[{run.job}.".encode(), f"/job{run.job.zfill(5)}/".encode())
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes()
            if (folder / "ns/net").stat().st_ino == namespace and any(sign in command for sign in signs):
                found.append(int(folder.name))
    return found


def kill_node(run: Hurt, node: str) -> float:
    """As if its plug were pulled; returns when."""
    victims = [find_daemon(node), *processes_on(run, node)]
    assert len(victims) >= 3
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return time.time()


def preempt(run: Hurt) -> str:
    """Ask for the job's nodes with a higher priority; returns that job's id, which takes them for two seconds."""
    nodes = run.field("NodeList")
    command = ("sbatch", "--parsable", "-p", "high", "-w", nodes, "-N2", "--ntasks-per-node=1", "-c4", "-o/dev/null")
    return run.slurm(*command, "--wrap=sleep 2").strip()


@contextlib.contextmanager
def slow_link(node: str, *, seconds: float, loss: float) -> Iterator[None]:
    """Frames to ``node`` come ``seconds`` later, and a share ``loss`` of them not at all."""
    command = [sys.executable, str(FAULTS / "slow_link.py"), node, str(seconds), str(loss)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield
        finally:
            process.terminate()
