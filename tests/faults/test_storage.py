"""Storage: what a kill, damage, a full or a read-only disk leave of a run's checkpoints."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from jobs.storage import RESERVE_BYTES
from launcher.contract.attempt import Attempt, read_attempts
from launcher.contract.checkpoints import choose_checkpoint, newest_checkpoint
from launcher.contract.ledger import events, merge_metrics, read_rows, read_run
from launcher.contract.manifest import find_problems
from launcher.contract.paths import RunPaths, read_step
from launcher.contract.spec import Data, Train
from tests.conftest import ROOT, Tuneyard
from tests.faults.disk import Disk
from tests.jobs.runs import FLOAT32, Start, launch, make_rows, write_rows, write_run
from tests.reliability import record
from tests.run.conftest import SPEC

SEED = 14
STALL_SECONDS = 60


@pytest.mark.ranks
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "kills", [pytest.param(20, marks=pytest.mark.fault_class), pytest.param(200, marks=pytest.mark.faults)]
)
def test_a_kill_at_a_random_moment_of_a_save_loses_no_checkpoint(tmp_path: Path, kills: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.saver", str(tmp_path / "run"), str(kills), str(SEED)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] == kills
    assert (found["committed_lost"], found["incomplete_chosen"]) == (0, 0), found
    assert found["published"] > kills / 2
    # The moments are spread over the whole of a save.
    assert min(found["killed_while_writing"], found["killed_before_rename"]) > 0, found
    figures = {name: found[name] for name in found if name.startswith(("killed", "committed_l", "incomplete", "publ"))}
    record(
        "14 kill during a save",
        "SIGKILL of two ranks that save without end, at a seeded random moment",
        "the newest committed checkpoint is chosen, and holds what every rank wrote; the half-written one is cleared",
        kills=kills,
        seed=SEED,
        **figures,
    )


DAMAGES = ("truncated", "flipped", "emptied", "removed", "torn manifest")


def damage(folder: Path, how: str) -> None:
    """Spoil the optimizer's state, or the manifest, of a checkpoint."""
    file = folder / ("manifest.json" if how == "torn manifest" else "optimizer.pt")
    content = file.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    kept = {"truncated": content[:-1], "flipped": flipped, "emptied": b"", "torn manifest": content[:middle]}
    file.unlink() if how == "removed" else file.write_bytes(kept[how])


def same_weights(one: Path, other: Path) -> bool:
    """Whether two ``final/`` hold the same adapter, bit by bit."""
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    return first.keys() == second.keys() and all(bool((first[name] == second[name]).all()) for name in first)


@pytest.mark.ranks
@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_damaged_checkpoint_is_found_before_it_is_loaded(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", make_rows(45))
    data = Data(train=str(rows), eval=None, max_length=80)
    train = Train(max_steps=6, global_batch=8, save_every_steps=2, learning_rate=1e-2, keep_last=2)
    root = write_run(tmp_path / "run", 2, model=FLOAT32, data=data, train=train)
    paths = RunPaths(root)
    attempts, lost = len(DAMAGES) + 1, []
    for number in range(1, attempts + 1):
        if number > 1:
            newest = newest_checkpoint(paths)
            assert newest is not None
            damage(newest, DAMAGES[number - 2])
        choice = choose_checkpoint(paths)
        origin = choice.checkpoint and choice.checkpoint.relative_to(root).as_posix()
        Attempt(
            number=number, started=time.time(), nodes=["here"], resumed_from=origin, passed_over=choice.passed_over
        ).save(paths)
        launch(2, [Start(root, number, origin)])
        assert find_problems(paths.checkpoint(number, 6)) == []
        shutil.copytree(paths.final, tmp_path / f"final-{number}")
        if number > 1:
            assert origin == "checkpoints/a01/step-000004"
            assert len(choice.passed_over) == 1
            assert same_weights(tmp_path / "final-1", tmp_path / f"final-{number}")
            lost.append(2)
    assert [row["step"] for row in merge_metrics(read_run(paths)) if "loss" in row] == [1, 2, 3, 4, 5, 6]
    record(
        "14 damaged checkpoint",
        f"the newest checkpoint {', '.join(DAMAGES)}",
        "found by its manifest, the one before is loaded, the attempt's record says why; final weights bitwise equal",
        steps_lost=max(lost),
        committed_checkpoints_lost=0,
    )


@pytest.fixture
def disk(tuneyard: Tuneyard, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    """Where ``tuneyard`` keeps its runs."""
    made = Disk(tuneyard.folder / "runs", tmp_path_factory.mktemp("image") / "disk", 32)
    yield made
    with contextlib.suppress(subprocess.CalledProcessError):  # it may not be stalled
        made.stall(on=False)
    tuneyard("cancel", "last", "-y")  # of a test that has failed
    made.unmount()


class Runs:
    """Runs on one rank with a constant rate, so that one that is extended is the same as one that goes straight on."""

    CHANGES = ("resources.nodes=1", "resources.gpus_per_node=1", "train.micro_batch=4", "train.keep_last=50")

    def __init__(self, tuneyard: Tuneyard, *changes: str) -> None:
        self.tuneyard = tuneyard
        spec = tuneyard.folder / "tiny.yaml"
        spec.write_text(SPEC)
        fixed = ("train.scheduler=constant", "train.eval_every_steps=null", "data.eval=null", "tracking.wandb=disabled")
        self.arguments = (str(spec), *self.CHANGES, *fixed, *changes, "--cluster", "local")

    def submit(self, *arguments: str) -> RunPaths:
        done = self.tuneyard("submit", *self.arguments, "--json", *arguments)
        assert done.returncode == 0, done.stderr
        return RunPaths(self.tuneyard.folder / json.loads(done.stdout.splitlines()[-1])["run_dir"])

    def resume(self, *arguments: str) -> int:
        return self.tuneyard("resume", "last", *arguments, "--wait").returncode

    def straight(self, *changes: str) -> Path:
        """``final/`` of the same run on a disk with room."""
        return self.submit(*changes, "--runs", "elsewhere", "--wait").final


def await_state(tuneyard: Tuneyard, *states: str, seconds: float = 300) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while (status := tuneyard.status())["state"] not in states:
        assert time.monotonic() < deadline, status
        time.sleep(0.5)
    return status


def await_checkpoint(paths: RunPaths, step: int, seconds: float = 300) -> Path:
    deadline = time.monotonic() + seconds
    while (newest := newest_checkpoint(paths)) is None or read_step(newest) < step:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return newest


@pytest.mark.ranks
@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_disk_that_fills_up_in_a_save_stops_the_run_and_says_so(tuneyard: Tuneyard, disk: Disk) -> None:
    runs = Runs(tuneyard)
    paths = runs.submit("--wait")
    size = sum(file.stat().st_size for file in paths.checkpoint(1, 4).iterdir())
    # Room for what the run keeps back and for the next checkpoint, not for the one after it.
    disk.fill(RESERVE_BYTES + 3 * size // 2)
    assert runs.resume("train.max_steps=12") != 0
    status = tuneyard.status()
    assert status["state"] == "failed"
    assert "the disk is full: " in str(status["reason"]), status
    assert str(paths.root) in str(status["reason"])
    kept = newest_checkpoint(paths)
    assert kept is not None
    assert read_step(kept) == 6
    assert not any(find_problems(path) for path in paths.published())
    disk.empty()
    assert runs.resume() == 0
    assert read_attempts(paths)[-1].resumed_from == kept.relative_to(paths.root).as_posix()
    assert same_weights(runs.straight("train.max_steps=12"), paths.final)
    record(
        "15 disk full during a save",
        "an ext4 file system with room for one checkpoint and a half",
        "stopped, status says that the disk is full and where; resumed with room, final weights bitwise equal",
        steps_lost=1,
        committed_checkpoints_lost=0,
    )


@pytest.mark.ranks
@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_disk_that_fills_up_in_the_logs_stops_the_run_and_says_so(tuneyard: Tuneyard, disk: Disk) -> None:
    runs = Runs(tuneyard, "train.max_steps=2")
    paths = runs.submit("--wait")
    changes = ("train.max_steps=2000", "train.save_every_steps=null")
    assert tuneyard("resume", "last", *changes).returncode == 0
    deadline = time.monotonic() + 300
    while not events(read_rows(paths.ledger(2)), "memory"):  # its first step is done
        assert time.monotonic() < deadline
        time.sleep(0.2)
    disk.fill(2**14)
    await_state(tuneyard, "failed")
    status = tuneyard.status()
    assert status["state"] == "failed"
    assert "the disk is full: " in str(status["reason"]), status
    rows = [row for row in merge_metrics(read_run(paths)) if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    text = paths.ledger(len(read_attempts(paths))).read_text()
    assert text == "" or text.endswith("\n")  # no half row
    disk.empty()
    assert runs.resume("train.max_steps=12") == 0
    assert same_weights(runs.straight("train.max_steps=12"), paths.final)
    record(
        "15 disk full during a log write",
        "an ext4 file system that is filled while training",
        "stopped, status says that the disk is full and where; no row is torn; resumed, final weights bitwise equal",
        committed_checkpoints_lost=0,
    )


@pytest.mark.ranks
@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_disk_that_becomes_read_only_stops_the_run(tuneyard: Tuneyard, disk: Disk) -> None:
    runs = Runs(tuneyard, "train.max_steps=2000", "train.save_every_steps=5")
    paths = runs.submit()
    await_checkpoint(paths, 5)
    disk.break_()
    started = time.monotonic()
    status = await_state(tuneyard, "failed")
    seconds = time.monotonic() - started
    assert "the disk is read-only" in str(status["reason"]), status
    kept = newest_checkpoint(paths)
    assert kept is not None
    disk.mend()
    assert newest_checkpoint(paths) == kept
    step = read_step(kept) + 5
    assert runs.resume(f"train.max_steps={step}") == 0
    assert same_weights(runs.straight(f"train.max_steps={step}"), paths.final)
    record(
        "15 storage becomes read-only",
        "an error in an ext4 file system, errors=remount-ro",
        "stopped, status says that the disk is read-only; mended and resumed, final weights bitwise equal",
        detect_s=seconds,
        committed_checkpoints_lost=0,
    )


@pytest.mark.ranks
@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_run_outlives_storage_that_stalls(tuneyard: Tuneyard, disk: Disk) -> None:
    runs = Runs(tuneyard, "train.max_steps=120", "train.save_every_steps=10")
    paths = runs.submit()
    await_checkpoint(paths, 10)
    disk.stall(on=True)
    began = time.monotonic()
    while time.monotonic() < began + STALL_SECONDS:
        assert tuneyard.status()["state"] == "running"
        time.sleep(5)
    disk.stall(on=False)
    await_state(tuneyard, "completed")
    assert len(read_attempts(paths)) == 1
    assert [row["step"] for row in merge_metrics(read_run(paths)) if "loss" in row] == list(range(1, 121))
    record(
        "15 storage stalls",
        f"fsfreeze of an ext4 file system for {STALL_SECONDS} s while training",
        "one attempt, every step in the ledger once, completed",
        steps_lost=0,
        restarts_of_healthy_jobs=0,
    )
