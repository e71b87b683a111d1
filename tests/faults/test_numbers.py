"""Numbers: a loss, a gradient or a weight that is no number, on one rank only."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from launcher.contract.checkpoints import newest_checkpoint
from launcher.contract.files import read_json
from launcher.contract.ledger import events
from launcher.contract.paths import RunPaths
from launcher.contract.spec import Data, Parallel, Strategy, Train
from tests.jobs.runs import (
    FLOAT32,
    Start,
    checkpoint,
    launch,
    ledger,
    make_rows,
    values,
    write_rows,
    write_run,
)
from tests.reliability import record

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(600)]
TRAIN = Train(max_steps=8, global_batch=8, save_every_steps=2, eval_every_steps=4, learning_rate=1e-2, keep_last=9)
STRATEGIES: tuple[Strategy, ...] = ("ddp", "fsdp", "zero2", "zero3")
BAD_STEP = 5


def write(folder: Path, name: str, policy: str, strategy: Strategy = "ddp", train: Train = TRAIN) -> Path:
    rows = write_rows(folder / "rows.jsonl", make_rows(45))
    data = Data(train=str(rows), eval=0.2, max_length=80)
    train = replace(train, on_nonfinite=policy)  # type: ignore[arg-type]
    return write_run(folder / name, 2, model=FLOAT32, data=data, train=train, parallel=Parallel(strategy=strategy))


def load(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(folder / "adapter_model.safetensors")
    return found


def differ(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def reasons(root: Path, attempt: int = 1) -> list[dict[str, Any]]:
    """What each of the two ranks says of its end."""
    return [read_json(RunPaths(root).rank_error(attempt, rank)) for rank in (0, 1)]


@pytest.mark.fault_class
def test_a_number_that_is_none_on_one_rank_stops_all_within_the_step(tmp_path: Path) -> None:
    """Stop, skip, roll back; nothing that is NaN is published."""
    straight, stopped, skipped, rolled, spoiled = (
        write(tmp_path, name, policy)
        for name, policy in (
            ("straight", "stop"),
            ("stopped", "stop"),
            ("skipped", "skip"),
            ("rolled", "rollback"),
            ("spoiled", "stop"),
        )
    )
    launch(
        2,
        [
            Start(straight),
            Start(stopped, poison=("gradient", 1, BAD_STEP), fails=True),
            Start(skipped, poison=("loss", 1, BAD_STEP)),
            Start(rolled, poison=("loss", 0, BAD_STEP), fails=True),
            Start(rolled, 2, checkpoint(4)),
            Start(spoiled, poison=("weight", 0, 4), fails=True),
        ],
    )
    # Stop: both ranks name the step, whose weights are in no checkpoint.
    for error in reasons(stopped):
        assert "the gradient norm is nan at step 5" in error["message"]
    assert newest_checkpoint(RunPaths(stopped)) == stopped / checkpoint(4)
    # Skip: the step is not taken, and the loss of the next one is a number again.
    (told,) = events(ledger(skipped), "nan")
    assert (told["step"], told["policy"], told["in_a_row"]) == (BAD_STEP, "skip", 1)
    assert list(values(skipped, "loss")) == [1, 2, 3, 4, 6, 7, 8]
    assert list(values(skipped, "tokens")) == list(range(1, 9))
    assert values(skipped, "learning_rate") == values(straight, "learning_rate")
    assert differ(load(straight / checkpoint(4)), load(skipped / checkpoint(4))) == 0
    assert all(bool(tensor.isfinite().all()) for tensor in load(skipped / "final").values())
    # Roll back: the next attempt ends where an uninterrupted run does.
    assert [error["type"] for error in reasons(rolled)] == ["RollbackError"] * 2
    assert differ(load(straight / "final"), load(rolled / "final")) == 0
    # Weights that are NaN are not published.
    assert all("1 weights are no numbers" in error["message"] for error in reasons(spoiled))
    assert newest_checkpoint(RunPaths(spoiled)) == spoiled / checkpoint(2)
    for root in (stopped, skipped, rolled, spoiled):
        text = RunPaths(root).ledger(1).read_text()
        assert all(json.loads(line, parse_constant=pytest.fail) for line in text.splitlines())
    record(
        "16 loss, gradient or weight is NaN",
        f"on one of two ranks at step {BAD_STEP}; the weight at the save of step 4",
        "all ranks stop at that step, leave it out, or go on from the checkpoint before with bitwise equal final "
        "weights; no checkpoint has a NaN",
        steps_lost=0,
    )


@pytest.mark.faults
def test_every_strategy_leaves_the_same_step_out(tmp_path: Path) -> None:
    roots = {
        (strategy, kind): write(tmp_path, f"{strategy}-{kind}", "skip", strategy)
        for strategy in STRATEGIES
        for kind in ("loss", "gradient")
    }
    launch(2, [Start(root, poison=(kind, 1, BAD_STEP)) for (_, kind), root in roots.items()], timeout=300)
    reference = roots["ddp", "loss"]
    for root in roots.values():
        (told,) = events(ledger(root), "nan")
        assert told["step"] == BAD_STEP
        assert values(root, "learning_rate") == values(reference, "learning_rate")
        assert differ(load(root / "final"), load(reference / "final")) < 1e-4
        for row in values(root, "loss").items():
            assert row == pytest.approx((row[0], values(reference, "loss").get(row[0], row[1])), abs=1e-4)
    record(
        "16 a skipped step under every strategy",
        f"loss or gradient NaN on one of two ranks at step {BAD_STEP}, train.on_nonfinite: skip",
        "DDP, FSDP2, ZeRO-2 and ZeRO-3 leave the step out; final weights within 1e-4 of DDP's",
    )
