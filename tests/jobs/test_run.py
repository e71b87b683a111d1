"""What a script of the user's own writes through its run, on one rank."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.context import RankContext
from jobs.run import Run, current_run
from launcher.contract.ledger import LedgerWriter, events, merge_metrics, read_rows, read_run
from launcher.contract.manifest import find_problems
from launcher.contract.paths import RunPaths
from launcher.contract.spec import Script, Train
from tests.plans import LOCAL, plan_on

TRAIN = Train(keep_last=1, keep_best="eval_loss", global_batch=2)


def _context(folder: Path, **numbers: Any) -> RankContext:
    plan = plan_on(LOCAL, nodes=1, ranks_per_node=1, stage="script", script=Script(path="/x.py"), train=TRAIN)
    values: dict[str, Any] = {"attempt": 1, "rank": 0, "local_rank": 0, "world_size": 1, "node": "here"}
    return RankContext(paths=RunPaths(folder / "run"), plan=replace(plan), **(values | numbers))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    context = _context(tmp_path)
    ledger = LedgerWriter(context.paths.ledger(1), 1)
    yield Run(context, ledger)
    ledger.close()


def _rows(tmp_path: Path) -> list[dict[str, Any]]:
    return read_run(RunPaths(tmp_path / "run"))


def test_metrics_are_numbers_whatever_holds_them(run: Run, tmp_path: Path) -> None:
    import numpy
    import torch

    run.log(3, loss=torch.tensor(0.5), lr=numpy.float32(0.25), rows=7, absent=None, seconds=1.5)
    (row,) = merge_metrics(_rows(tmp_path))
    assert {"step": 3, "loss": 0.5, "lr": 0.25, "rows": 7, "seconds": 1.5}.items() <= row.items()
    assert "absent" not in row


def test_what_is_not_finite_is_an_event_and_the_ledger_stays_json(run: Run, tmp_path: Path) -> None:
    run.log(1, loss=float("nan"), grad_norm=float("inf"), lr=1.0)
    (row,) = merge_metrics(_rows(tmp_path))
    assert "loss" not in row
    (event,) = events(_rows(tmp_path), "nan")
    assert event["metrics"] == {"loss": "nan", "grad_norm": "inf"}
    assert "NaN" not in (tmp_path / "run" / "ledger" / "a01.jsonl").read_text()


@pytest.mark.parametrize("metrics", [{"kind": 1}, {"t": 1}, {"loss": "low"}, {"loss": [1, 2]}, {"loss": {}}])
def test_what_cannot_stand_in_a_row_is_refused_with_its_name(run: Run, tmp_path: Path, metrics: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(metrics))):
        run.log(1, **metrics)
    assert _rows(tmp_path) == []


def test_other_ranks_write_no_rows(tmp_path: Path) -> None:
    Run(_context(tmp_path, rank=1, world_size=2)).log(1, loss=0.5)
    assert read_rows(RunPaths(tmp_path / "run").ledger(1)) == []
    assert RunPaths(tmp_path / "run").heartbeat(1).exists()


def test_checkpoints_are_kept_by_the_metrics_of_their_step(run: Run, tmp_path: Path) -> None:
    for step, loss in ((1, 0.5), (2, 0.1), (3, 0.7), (4, 0.9)):
        run.log(step, eval_loss=loss, seconds=2.0)
        with run.checkpoint(step) as folder:
            (folder / "state.txt").write_text(str(step))
    published = RunPaths(tmp_path / "run").published()
    assert [path.name for path in published] == ["step-000002", "step-000004"]  # the best, the last
    assert [find_problems(path) for path in published] == [[], []]
    assert [row["step"] for row in events(_rows(tmp_path), "checkpoint")] == [1, 2, 3, 4]


def test_a_block_that_raises_publishes_nothing(run: Run, tmp_path: Path) -> None:
    def save() -> None:
        with run.checkpoint(1) as folder:
            (folder / "half.txt").touch()
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        save()
    assert RunPaths(tmp_path / "run").published() == []
    with run.checkpoint(1) as folder:
        (folder / "whole.txt").touch()
    (published,) = RunPaths(tmp_path / "run").published()
    assert {file.name for file in published.iterdir()} == {"whole.txt", "manifest.json"}


def test_a_second_checkpoint_of_a_step_leaves_the_first(run: Run, tmp_path: Path) -> None:
    for text in ("first", "second"):
        with run.checkpoint(5) as folder:
            (folder / "state.txt").write_text(text)
    (published,) = RunPaths(tmp_path / "run").published()
    assert (published / "state.txt").read_text() == "first"


def test_importing_it_loads_no_library() -> None:
    code = "import sys, jobs.run; print({'torch', 'numpy', 'transformers', 'accelerate'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_outside_of_a_run_it_prints(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = current_run()
    assert (run.resume_from, run.final) == (None, Path("final"))
    run.log(2, loss=0.25)
    with run.checkpoint(2) as folder:
        (folder / "state.txt").touch()
    assert not folder.exists()
    assert capsys.readouterr().out.splitlines()[0] == "step 2  loss 0.25"
