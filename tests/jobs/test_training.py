"""Real training of builtin:tiny: parity of 1 and 4 ranks, exact resume, what a run leaves behind."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.tiny import write_tiny
from launcher.contract.files import read_json
from launcher.contract.ledger import events
from launcher.contract.manifest import find_problems
from launcher.contract.paths import RunPaths
from launcher.contract.spec import Data, Train
from tests.jobs.reload import reload
from tests.jobs.runs import FLOAT32, QLORA, Start, checkpoint, launch, ledger, make_rows, values, write_rows, write_run

PARITY = Train(max_steps=20, global_batch=8, save_every_steps=None, eval_every_steps=10, gradient_checkpointing=False)
SGD = replace(PARITY, optimizer="sgd", learning_rate=0.5)
ADAMW = replace(PARITY, optimizer="adamw", learning_rate=1e-3, warmup_steps=4)
SHORT = Train(max_steps=6, global_batch=8, save_every_steps=3, eval_every_steps=3, learning_rate=1e-2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder = tmp_path_factory.mktemp("data")
    train = write_rows(folder / "train.jsonl", make_rows(45))
    return Data(train=str(train), eval=0.2, max_length=80)


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory: pytest.TempPathFactory, data: Data) -> Path:
    """Runs on four ranks: sgd, adamw, and qlora with a second attempt from its step 3."""
    folder = tmp_path_factory.mktemp("four")
    for name, train in (("sgd", SGD), ("adamw", ADAMW)):
        write_run(folder / name, 4, model=FLOAT32, data=data, train=train)
    qlora = write_run(folder / "qlora", 4, model=QLORA, data=data, train=replace(SHORT, keep_last=3))
    launch(4, [Start(folder / "sgd"), Start(folder / "adamw"), Start(qlora), Start(qlora, 2, checkpoint(3))])
    return folder


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory, data: Data) -> Path:
    """Runs on one rank; accumulation makes up for the ranks, or a larger micro batch does."""
    folder = tmp_path_factory.mktemp("one")
    bad = write_rows(folder / "bad.jsonl", [*make_rows(12), {"instruction": "no answer", "output": " "}])
    whole = replace(data, eval=data.train)
    runs = {
        "sgd": (FLOAT32, data, replace(SGD, micro_batch=8)),
        "adamw": (FLOAT32, data, ADAMW),
        "packed": (FLOAT32, replace(data, max_length=256), replace(SGD, max_steps=2, packing=True)),
        "unpacked": (FLOAT32, replace(data, max_length=256), replace(SGD, max_steps=2)),
        "full": (replace(FLOAT32, adapter=None), data, replace(SHORT, learning_rate=1e-3)),
        "evaluated": (QLORA, whole, replace(SHORT, max_steps=3, save_every_steps=None, eval_every_steps=1)),
        "unevaluated": (QLORA, replace(data, eval=None), replace(SHORT, max_steps=3, save_every_steps=None)),
        "skip": (FLOAT32, Data(train=str(bad), eval=None, on_bad_row="skip"), replace(SHORT, max_steps=None, epochs=2)),
        "fail": (FLOAT32, Data(train=str(bad), eval=None), SHORT),
    }
    for name, (model, rows, train) in runs.items():
        write_run(folder / name, 1, model=model, data=rows, train=train)
    launch(1, [Start(folder / name, fails=name == "fail") for name in runs])
    return folder


@pytest.mark.parametrize(("name", "tolerance"), [("sgd", 1e-5), ("adamw", 1e-4)])
def test_one_rank_and_four_learn_the_same(one_rank: Path, four_ranks: Path, name: str, tolerance: float) -> None:
    for metric, steps in (("loss", range(1, 21)), ("eval_loss", (0, 10, 20)), ("grad_norm", range(1, 21))):
        one, four = values(one_rank / name, metric), values(four_ranks / name, metric)
        assert set(one) == set(four) == set(steps)
        assert all(abs(one[step] - four[step]) < tolerance for step in steps), (one, four)
    for metric in ("tokens", "eval_tokens", "learning_rate", "epoch"):
        assert values(one_rank / name, metric) == values(four_ranks / name, metric)
    losses = values(four_ranks / name, "eval_loss")
    assert losses[20] < losses[0]


def test_the_learning_rate_is_the_one_that_the_step_used(one_rank: Path) -> None:
    rates = values(one_rank / "adamw", "learning_rate")
    assert [rates[step] for step in (1, 2, 3, 5)] == pytest.approx([0, 0.25e-3, 0.5e-3, 1e-3])


def test_a_resumed_run_repeats_an_uninterrupted_one_bit_by_bit(four_ranks: Path) -> None:
    for metric in ("loss", "grad_norm", "tokens", "learning_rate", "eval_loss"):
        straight, resumed = values(four_ranks / "qlora", metric), values(four_ranks / "qlora", metric, attempt=2)
        assert {step: straight[step] for step in resumed} == resumed
        assert max(resumed) == 6
        assert min(resumed) > 3


def test_a_checkpoint_is_complete_and_says_where_it_stands(four_ranks: Path) -> None:
    paths = RunPaths(four_ranks / "qlora")
    for attempt, step in ((1, 3), (1, 6), (2, 6)):
        folder = paths.checkpoint(attempt, step)
        assert find_problems(folder) == []
        manifest = json.loads((folder / "manifest.json").read_text())
        facts = {name: manifest[name] for name in ("step", "world_size", "strategy", "data_position")}
        assert facts == {"step": step, "world_size": 4, "strategy": "ddp", "data_position": step * 8}
        assert manifest["metrics"]["eval_loss"] == values(four_ranks / "qlora", "eval_loss", attempt)[step]
        assert {f"rng_state_{rank}.pth" for rank in range(4)} <= set(manifest["files"])


def test_each_rank_proves_its_strategy(one_rank: Path, four_ranks: Path) -> None:
    (row,) = events(ledger(four_ranks / "qlora"), "strategy_check")
    assert (row["asked"], row["got"], row["wrapper"]) == ("ddp", "ddp", "DistributedDataParallel")
    assert (row["world_size"], row["quantized_layers"]) == (4, 14)
    (plain,) = events(ledger(one_rank / "full"), "strategy_check")
    assert row["params_total"] - row["trainable_params"] == plain["params_total"] == plain["trainable_params"]


def test_evaluation_leaves_training_as_it_is(one_rank: Path) -> None:
    """Neither the random state nor, on CPUs with AVX512-BF16, the packing of the NF4 weights."""
    assert values(one_rank / "evaluated", "loss") == values(one_rank / "unevaluated", "loss")


def test_rows_packed_together_do_not_see_each_other(one_rank: Path) -> None:
    packed, unpacked = values(one_rank / "packed", "eval_loss"), values(one_rank / "unpacked", "eval_loss")
    assert packed[0] == pytest.approx(unpacked[0], abs=1e-5)
    (started,) = events(ledger(one_rank / "packed"), "started")
    assert started["sequences"] < started["rows"] == 36


def test_bad_rows_stop_the_run_by_name_or_are_listed(one_rank: Path) -> None:
    error = read_json(RunPaths(one_rank / "fail").rank_error(1, 0))["message"]
    assert "1 of 13 rows is bad" in error
    assert "bad.jsonl, row 13: output: is empty" in error
    assert "data.on_bad_row: skip" in error
    (failed,) = events(ledger(one_rank / "fail"), "failed")
    assert failed["reason"] == error
    (skipped,) = events(ledger(one_rank / "skip"), "skipped_rows")
    assert skipped["count"] == 1
    assert {name: skipped["rows"][0][name] for name in ("row", "column")} == {"row": 13, "column": "output"}


def test_epochs_are_counted_in_rows_and_rounded_up_to_steps(one_rank: Path) -> None:
    epochs = values(one_rank / "skip", "epoch")
    assert list(epochs) == [1, 2, 3]  # 2 epochs of 12 rows in batches of 8
    assert epochs[3] == 2.0


def test_a_run_ends_with_its_completion_record(one_rank: Path) -> None:
    paths = RunPaths(one_rank / "full")
    completion = json.loads(paths.completion.read_text())
    assert (completion["run_id"], completion["attempt"], completion["step"]) == ("full", 1, 6)
    assert completion["metrics"]["eval_loss"] == values(paths.root, "eval_loss")[6]
    assert set(completion["files"]) == {path.name for path in paths.final.iterdir()} - {"completion.json"}
    assert "model.safetensors" in completion["files"]
    assert [row["event"] for row in ledger(paths.root) if row["kind"] == "event"][-1] == "finished"
    assert {path.name for path in paths.checkpoints.glob("a01/*")} == {"step-000003", "step-000006"}


def test_the_adapter_in_a_fresh_process_with_plain_peft_gives_the_live_models_logits(
    four_ranks: Path, tmp_path: Path
) -> None:
    write_tiny(tmp_path)
    (logits,) = reload(tmp_path, four_ranks / "qlora" / "final")
    # With the NF4 weights in the layout that they are trained in: the same numbers.
    assert logits["same"] == logits["live"]
    # In evaluation mode bitsandbytes 0.50 repacks them on CPUs with AVX512-BF16 and rounds the block scales to
    # bfloat16 (8 bits of mantissa): logits move in their third digit.
    assert logits["repacked"] == pytest.approx(logits["live"], abs=0.02)
    assert max(abs(a - b) for a, b in zip(logits["without"], logits["live"], strict=True)) > 0.05
