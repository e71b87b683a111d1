"""Storage: what a kill, damage, a full or a read-only disk leave of a run's checkpoints."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from launcher.contract.attempt import Attempt
from launcher.contract.checkpoints import choose_checkpoint, newest_checkpoint
from launcher.contract.ledger import merge_metrics, read_run
from launcher.contract.manifest import find_problems
from launcher.contract.paths import RunPaths
from launcher.contract.spec import Data, Train
from tests.conftest import ROOT
from tests.jobs.runs import FLOAT32, Start, launch, make_rows, write_rows, write_run
from tests.reliability import record

SEED = 14


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
