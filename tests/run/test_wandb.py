"""A run whose W&B process is killed in the middle: training goes on, and the rows are complete in the end."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from launcher.contract.ledger import merge_metrics, read_run
from launcher.contract.paths import RunPaths
from tests.conftest import Tuneyard

pytestmark = pytest.mark.ranks

STEPS = 100


def _wandb_cores(supervisor: int) -> list[psutil.Process]:
    """wandb's own processes below the exporter of this supervisor."""
    below = psutil.Process(supervisor).children(recursive=True)
    return [process for process in below if "wandb-core" in " ".join(process.cmdline())]


def test_wandb_killed_in_mid_run(tuneyard: Tuneyard, spec: Path) -> None:
    one = ["resources.nodes=1", "resources.gpus_per_node=1", "train.micro_batch=1", "train.global_batch=1"]
    long = [f"train.max_steps={STEPS}", "train.save_every_steps=null", "data.eval=null"]
    done = tuneyard("submit", str(spec), *one, *long, "--cluster", "local", "--json")
    assert done.returncode == 0, done.stderr
    paths = RunPaths(Path(json.loads(done.stdout)["run_dir"]))
    supervisor = json.loads(paths.submission.read_text())["pid"]
    killed_at, deadline = None, time.monotonic() + 120
    while (status := tuneyard.status())["state"] == "running" and time.monotonic() < deadline:
        if killed_at is None and int(str(status["step"])) > 5 and (cores := _wandb_cores(supervisor)):
            for core in cores:
                core.kill()
            killed_at = status["step"]
        time.sleep(0.2)
    assert killed_at is not None
    assert int(str(killed_at)) < STEPS
    assert status["state"] == "completed"
    ledger = [row["step"] for row in merge_metrics(read_run(paths))]
    assert ledger == list(range(1, STEPS + 1))
    synced = json.loads(tuneyard("sync", "last", "--json").stdout)
    assert synced["ledger_rows"] == synced["recorded_rows"] == STEPS
    assert synced["missing_rows"] == synced["duplicate_rows"] == 0
    # By wandb's own tool, once more and without our code in between.
    steps = []
    for segment in sorted(paths.wandb.glob("offline-run-*/*.wandb")):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(segment)]
        steps += _steps(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert sorted(steps) == ledger


def _steps(text: str) -> list[int]:
    """The step of every history record in the tool's output: a JSON object per line."""
    records = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [int(record["history"]["step"].get("num", 0)) for record in records if record.get("type") == "history"]
