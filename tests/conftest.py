"""Fixtures that all tests share."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"
DEVCLUSTER = [sys.executable, str(ROOT / "slurm" / "devcluster.py")]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own settings don't reach the tests."""
    for name in [
        name for name in os.environ if name.startswith(("TUNEYARD_R", "TUNEYARD_CLUSTER", "WANDB_", "HF_TOKEN"))
    ]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def devcluster() -> Iterator[dict[str, str]]:
    """A running development cluster of four nodes; yields the environment that reaches it.

    Started here where nobody has, and then ended here.
    """
    if os.geteuid() != 0 or not shutil.which("slurmctld"):
        missing = "the development cluster needs root and Slurm's packages (make slurm-packages)"
        assert not os.environ.get("TUNEYARD_REQUIRE_SLURM"), missing  # CI must not pass by skipping
        pytest.skip(missing)
    status = subprocess.run([*DEVCLUSTER, "status", "--json"], capture_output=True, text=True)
    was_up = bool(json.loads(status.stdout)["nodes"])  # a node of it may be down: another test's fault, or to be mended
    if status.returncode != 0:
        done = subprocess.run([*DEVCLUSTER, "up", "--nodes", "4"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    folder = os.environ.get("TUNEYARD_DEVCLUSTER_DIR", "/var/lib/tuneyard-devcluster")
    yield {**os.environ, "SLURM_CONF": f"{folder}/slurm.conf"}
    if not was_up:
        subprocess.run([*DEVCLUSTER, "down"], capture_output=True)


class Tuneyard:
    """Runs the command line as a user does, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(
        self, *arguments: str, env: dict[str, str] | None = None, timeout: float = 240
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "launcher", *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    def status(self, run: str = "last") -> dict[str, object]:
        return json.loads(self("status", run, "--json").stdout)


@pytest.fixture
def tuneyard(tmp_path: Path) -> Tuneyard:
    return Tuneyard(tmp_path)
