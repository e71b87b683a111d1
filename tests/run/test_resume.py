"""Resume: what it continues, what it refuses, and that a refusal leaves the run as it was."""

import json
from pathlib import Path

import pytest

from launcher.contract.attempt import read_attempts
from launcher.contract.ledger import merge_metrics, read_run
from launcher.contract.paths import RunPaths
from tests.conftest import Tuneyard

from .conftest import write_profile

pytestmark = pytest.mark.ranks

ONE = ["resources.nodes=1", "resources.gpus_per_node=1", "train.micro_batch=4", "tracking.wandb=disabled"]


def test_a_finished_run_goes_on_and_refusals_change_nothing(tuneyard: Tuneyard, spec: Path) -> None:
    done = tuneyard("submit", str(spec), *ONE, "--cluster", "local", "--wait", "--json")
    assert done.returncode == 0, done.stderr
    paths = RunPaths(Path(json.loads(done.stdout)["run_dir"]))
    before = {file: file.read_bytes() for file in (paths.plan, paths.submission, paths.completion)}

    again = tuneyard("resume", "last")
    assert again.returncode == 2
    assert "is complete at step 4" in again.stderr
    other = tuneyard("resume", "last", "train.seed=1", "model.dtype=bfloat16")
    assert other.returncode == 2
    assert "train.seed" in other.stderr
    assert "model.dtype" in other.stderr
    dear = write_profile(tuneyard.folder, scheduler="local", more="confirm_gpu_hours: 0.001")
    asked = tuneyard("resume", "last", "train.max_steps=6", "--cluster", str(dear))
    assert asked.returncode == 2
    assert "add --yes" in asked.stderr
    assert {file: file.read_bytes() for file in before} == before
    assert tuneyard.status()["state"] == "completed"

    extended = tuneyard("resume", "last", "train.max_steps=6", "train.micro_batch=2", "--wait")
    assert extended.returncode == 0, extended.stderr
    attempts = read_attempts(paths)
    assert [attempt.resumed_from for attempt in attempts] == [None, "checkpoints/a01/step-000004"]
    rows = merge_metrics(read_run(paths))
    assert [row["step"] for row in rows] == list(range(7))
    assert [row["attempt"] for row in rows] == [1, 1, 1, 1, 1, 2, 2]
    assert json.loads(paths.completion.read_text())["step"] == 6


def test_a_run_that_never_started_can_be_resumed(tuneyard: Tuneyard, spec: Path) -> None:
    """Its interpreter did not exist: no attempt, and the log says why."""
    profile = write_profile(tuneyard.folder, scheduler="local", more="python: /nonexistent/python")
    failed = tuneyard("submit", str(spec), *ONE, "--cluster", str(profile), "--wait")
    assert failed.returncode == 1
    assert "/nonexistent/python" in tuneyard("logs", "last").stdout
    fault = write_profile(tuneyard.folder, scheduler="local", fault="0 import 0 raise")
    resumed = tuneyard("resume", "last", "recovery.max_attempts=1", "--cluster", str(fault), "--wait")
    assert resumed.returncode == 1
    assert "injected on purpose" in resumed.stderr
