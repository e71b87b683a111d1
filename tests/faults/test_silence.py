"""slurmctld is away: nothing is concluded from that, nothing healthy is touched, what is to be asked is asked again."""

import os
import signal
import subprocess
import time

import pytest

from tests.conftest import DEVCLUSTER
from tests.reliability import record

from .conftest import Hurt, Submit, find_daemon

pytestmark = [pytest.mark.slurm, pytest.mark.faults, pytest.mark.timeout(420)]


def _says_away(run: Hurt) -> bool:
    logs = run.paths.root.glob("logs/a*/supervisor.log")
    return any("slurmctld is away" in log.read_text() for log in logs)


@pytest.mark.parametrize("event", ["nothing", "requeue", "crash"])
def test_slurmctld_is_away(submit: Submit, weights: bytes, mended: None, event: str) -> None:
    """While the ranks train; when they were told to stop and the job is to be requeued; when a rank dies."""
    run = submit(pace=1.0)
    run.wait_for_step(3)
    os.kill(find_daemon("slurmctld"), signal.SIGKILL)
    away = time.monotonic()
    status = run.status()
    assert (status["state"], status["attempt"]) in (("unknown", 1), ("running", 1))  # accounting may still answer
    if event == "requeue":
        for beat in run.beats(1):
            os.kill(beat.pid, signal.SIGUSR2)
        run.wait_for(lambda: _says_away(run))
    elif event == "crash":
        os.kill(run.beats(1)[1].pid, signal.SIGKILL)
        # New ranks are tried for in the same allocation first.
        run.wait_for(lambda: _says_away(run), 180)
    else:
        run.wait_for_step(10)
    seconds = time.monotonic() - away
    subprocess.run([*DEVCLUSTER, "up", "--nodes", "4"], capture_output=True, check=True, timeout=120)
    assert run.wait_for_end()["state"] == "completed", run.tell()
    restarts = {"nothing": 0, "requeue": 1, "crash": 1}[event]
    assert run.attempts()[-1].slurm_restart_count == restarts
    run.check_whole(weights)
    run.check_nobody_left()
    jobs = run.slurm("squeue", "-h", "--states=all", f"--name={run.paths.root.name}", "-o", "%i").split()
    assert jobs == [run.job]
    what = "tried until it is back, one requeue" if restarts else "the job runs on"
    record(f"12 slurmctld away, {event}", f"kill -9 for {seconds:.0f} s", what, requeues=restarts)
