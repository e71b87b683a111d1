"""Slurm's own commands for tests: asked, wrapped by a line of shell, and a slurmctld that can be killed."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launcher.contract.files import write_text
from tests.conftest import DEVCLUSTER, ROOT

sys.path.insert(0, str(ROOT / "slurm"))
from devcluster_config import Layout
from devcluster_process import kill_processes
from devcluster_state import read_state


def ask(devcluster: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=devcluster, capture_output=True, text=True, check=True, timeout=60).stdout


def list_jobs(devcluster: dict[str, str], name: str) -> list[str]:
    """The ids of all jobs of this name that Slurm remembers."""
    return ask(devcluster, "squeue", "--noheader", "--states=all", f"--name={name}", "--format=%i").split()


def wrap(folder: Path, command: str, line: str) -> dict[str, str]:
    """The environment in which ``command`` is ``line`` of shell; ``$real`` is Slurm's own."""
    text = f"#!/bin/bash\nreal={shutil.which(command)}\n{line}\n"
    write_text(folder / "wrapped" / command, text, mode=0o700)
    return {"PATH": f"{folder / 'wrapped'}:{os.environ['PATH']}"}


@contextmanager
def controller_down(devcluster: dict[str, str]) -> Iterator[float]:
    """slurmctld is killed, and started again at the end whatever happens; yields the time of its end (monotonic)."""
    state = read_state(Layout(Path(devcluster["SLURM_CONF"]).parent))
    assert state is not None
    killed = [process for process in state.list_alive() if process.name == "slurmctld"]
    assert kill_processes(killed) == []
    try:
        yield time.monotonic()
    finally:
        done = subprocess.run([*DEVCLUSTER, "up", f"--nodes={state.num_nodes}"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
