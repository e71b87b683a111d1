"""Runs on this machine, without a scheduler: the same supervisor, the same records."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.contract.attempt import read_attempts
from launcher.contract.heartbeat import read_heartbeats
from launcher.contract.paths import RunPaths
from launcher.contract.process import process_start
from tests.conftest import Tuneyard

from .conftest import write_profile

pytestmark = pytest.mark.ranks

LOCAL = ["resources.nodes=1", "train.micro_batch=4", "tracking.wandb=disabled", "recovery.max_attempts=1"]


def _paths(done: "subprocess.CompletedProcess[str]") -> RunPaths:
    return RunPaths(Path(json.loads(done.stdout.splitlines()[-1])["run_dir"]))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("1 import 0 raise", "ValueError: injected on purpose"),
        ("0 import 0 kill", "was killed by SIGKILL"),
        ("1 evaluate 2 kill", "was killed by SIGKILL"),
    ],
)
def test_a_bad_rank_fails_the_run_and_the_others_end(tuneyard: Tuneyard, spec: Path, fault: str, reason: str) -> None:
    profile = write_profile(tuneyard.folder, scheduler="local", fault=fault)
    done = tuneyard("submit", str(spec), *LOCAL, "--cluster", str(profile), "--wait", "--json")
    assert done.returncode == 1, done.stderr
    paths = _paths(done)
    ending = read_attempts(paths)[0].ended
    assert ending is not None
    assert ending.rank == int(fault[0])
    assert reason in ending.reason
    assert [beat.rank for beat in read_heartbeats(paths) if process_start(beat.pid)] == []
    log = tuneyard("logs", "last")
    assert f"rank{fault[0]}.log" in log.stderr  # the failing rank's log comes first


def test_a_rank_that_dies_once_is_started_again(tuneyard: Tuneyard, spec: Path) -> None:
    profile = write_profile(tuneyard.folder, scheduler="local", fault="1 evaluate 4 kill 1")
    done = tuneyard(
        "submit", str(spec), *LOCAL, "recovery.max_attempts=3", "--cluster", str(profile), "--wait", "--json"
    )
    assert done.returncode == 0, done.stderr
    first, second = read_attempts(_paths(done))
    assert first.ended is not None
    assert (first.ended.then, second.resumed_from) == ("restart", "checkpoints/a01/step-000002")
    assert "running: attempt 1 failed: rank 1" in done.stderr


def test_a_rank_that_leaves_early_with_exit_code_0_fails_the_run(tuneyard: Tuneyard, spec: Path) -> None:
    profile = write_profile(tuneyard.folder, scheduler="local", fault="0 import 0 leave")
    done = tuneyard("submit", str(spec), *LOCAL, "resources.gpus_per_node=1", "--cluster", str(profile), "--wait")
    assert done.returncode == 1
    assert "without a completion record" in done.stderr


def test_a_local_run_survives_its_terminal_and_can_be_cancelled(tuneyard: Tuneyard, spec: Path) -> None:
    """The terminal's end is SIGHUP to everything in its session, and the shell's death."""
    command = f"{sys.executable} -m launcher submit {spec} {' '.join(LOCAL)} train.max_steps=100000 --cluster local"
    shell = subprocess.Popen(
        ["bash", "-c", f"{command} >out.txt 2>err.txt; sleep 60"],
        cwd=tuneyard.folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent)},
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (tuneyard.folder / "out.txt").exists() or not (tuneyard.folder / "out.txt").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(shell.pid, signal.SIGHUP)
    shell.wait()
    while tuneyard.status()["step"] == 0 and time.monotonic() < deadline:
        time.sleep(0.5)
    status = tuneyard.status()
    assert status["state"] == "running"
    assert status["step"] > 0  # type: ignore[operator]
    pids = [beat.pid for beat in read_heartbeats(RunPaths(Path(str(status["run_dir"]))))]
    assert tuneyard("cancel", "last").returncode == 0
    assert tuneyard.status()["state"] == "cancelled"
    assert [pid for pid in pids if process_start(pid)] == []


def test_ctrl_c_detaches_and_the_run_goes_on(tuneyard: Tuneyard, spec: Path) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "launcher",
            "submit",
            str(spec),
            *LOCAL,
            "train.max_steps=100000",
            "--wait",
            "--cluster",
            "local",
        ],
        cwd=tuneyard.folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("running"):
            break
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert "the run goes on" in process.stderr.read()
    assert tuneyard.status()["state"] == "running"
    assert tuneyard("cancel", "last", "-y").returncode == 0


def test_two_submissions_of_one_file_are_two_runs(tuneyard: Tuneyard, spec: Path) -> None:
    profile = write_profile(tuneyard.folder, scheduler="local", fault="0 import 0 raise")
    first = tuneyard("submit", str(spec), *LOCAL, "--cluster", str(profile), "--wait", "--json")
    second = tuneyard("submit", str(spec), *LOCAL, "--cluster", str(profile), "--wait", "--json")
    assert _paths(first).root.name + "-2" == _paths(second).root.name
    assert tuneyard.status("last")["run_id"] == _paths(second).root.name
    assert tuneyard.status("last-1")["run_id"] == _paths(first).root.name
