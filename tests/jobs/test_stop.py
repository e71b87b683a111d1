"""What a rank hears while it works."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.stop import EXIT_STALE, EXIT_STOPPED
from launcher.contract.attempt import Attempt
from launcher.contract.paths import RunPaths
from tests.conftest import ROOT

RANK = """
import os, subprocess, sys, time
from pathlib import Path
from jobs import stop
from launcher.contract.paths import RunPaths
stop.LOOK_SECONDS = 0.5
stop.listen(RunPaths(Path(sys.argv[1])), 1, 0)
forked = os.fork()
if forked == 0:
    time.sleep(60)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
if sys.argv[2] == "hold":
    stop.hold()
print(forked, child.pid, flush=True)
def wait_here():
    while not stop.is_asked():
        time.sleep(0.05)
wait_here()
"""


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path)


def _start(paths: RunPaths, what: str) -> "tuple[subprocess.Popen[str], list[int]]":
    command = [sys.executable, "-c", RANK, str(paths.root), what]
    rank = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert rank.stdout is not None
    return rank, [int(pid) for pid in rank.stdout.readline().split()]


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
@pytest.mark.parametrize(("what", "code"), [("start", EXIT_STOPPED), ("hold", 0)])
def test_a_stop_signal_to_all_processes_of_a_step(
    paths: RunPaths, number: signal.Signals, what: str, code: int
) -> None:
    """The rank leaves at once where there is nothing to save, else at its own time. Its children hear nothing of a
    warning, and forked ones, such as data-loader workers, nothing of SIGTERM either."""
    rank, children = _start(paths, what)
    try:
        os.killpg(rank.pid, number)
        assert rank.wait(20) == code
        time.sleep(0.3)
        for pid in children[: 1 if number == signal.SIGTERM else 2]:
            assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    finally:
        os.killpg(rank.pid, signal.SIGKILL)


def test_a_worker_that_is_terminated_ends(paths: RunPaths) -> None:
    code = """
import multiprocessing, sys, time
from pathlib import Path
from jobs import stop
from launcher.contract.paths import RunPaths
stop.listen(RunPaths(Path(sys.argv[1])), 1, 0)
worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
worker.start()
"""
    # At its end the interpreter terminates such a process, and waits for it.
    assert subprocess.run([sys.executable, "-c", code, str(paths.root)], cwd=ROOT, timeout=20).returncode == 0


def test_a_newer_attempt_ends_a_rank_that_waits(paths: RunPaths) -> None:
    rank, _ = _start(paths, "hold")
    try:
        assert Attempt(number=1, started=0.0, nodes=[]).claim(paths)
        with pytest.raises(subprocess.TimeoutExpired):
            rank.wait(1.5)
        assert Attempt(number=2, started=0.0, nodes=[]).claim(paths)
        assert rank.wait(10) == EXIT_STALE
    finally:
        os.killpg(rank.pid, signal.SIGKILL)


def test_a_rank_says_where_it_is(paths: RunPaths) -> None:
    rank, _ = _start(paths, "hold")
    try:
        time.sleep(0.5)  # on its way from the line that it has printed
        os.kill(rank.pid, signal.SIGUSR1)
        deadline = time.monotonic() + 10
        while not paths.rank_stack(1, 0).exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert "in wait_here" in paths.rank_stack(1, 0).read_text()
        assert rank.poll() is None
    finally:
        os.killpg(rank.pid, signal.SIGKILL)


def test_an_attempt_has_one_owner(paths: RunPaths) -> None:
    mine, other = (Attempt(number=1, started=t, nodes=[]) for t in (1.0, 2.0))
    assert mine.claim(paths)
    assert not other.claim(paths)
    assert '"started": 1.0' in paths.attempt(1).read_text()
    assert [file.name for file in paths.attempts.iterdir()] == ["a01.json"]
