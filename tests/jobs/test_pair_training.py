"""Real reward and dpo training of builtin:tiny under each strategy, from the base and from an sft adapter."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from jobs.tiny import write_tiny
from launcher.contract.files import read_json
from launcher.contract.ledger import events
from launcher.contract.manifest import find_problems
from launcher.contract.paths import RunPaths
from launcher.contract.spec import Adapter, Data, Dpo, Model, Parallel, Strategy, Train
from tests.jobs.reload import reload
from tests.jobs.runs import (
    FLOAT32,
    QLORA,
    Start,
    checkpoint,
    launch,
    ledger,
    make_pairs,
    make_rows,
    values,
    write_rows,
    write_run,
)

STRATEGIES: tuple[Strategy, ...] = ("ddp", "fsdp", "zero2", "zero3")
STAGES = ("reward", "dpo")
PARITY = Train(
    max_steps=4,
    global_batch=8,
    optimizer="sgd",
    learning_rate=0.05,
    save_every_steps=None,
    eval_every_steps=2,
    gradient_checkpointing=False,
)
SHORT = Train(max_steps=4, global_batch=8, learning_rate=1e-2, save_every_steps=2, eval_every_steps=2)
METRICS = {
    "reward": ("reward/accuracy", "reward/margin", "eval_accuracy", "eval_margin", "eval_calibration_error"),
    "dpo": ("dpo/accuracy", "dpo/margin", "dpo/reward_chosen", "dpo/reward_rejected", "eval_margin"),
}
SMALL = Adapter(r=8, alpha=16, dropout=0.1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder = tmp_path_factory.mktemp("data")
    pairs = write_rows(folder / "pairs.jsonl", make_pairs(51))
    # 15 held-out rows on 2 ranks in batches of 2: the last two batches are smaller, and one rank fills its last.
    return Data(train=str(pairs), eval=0.2, max_length=80, format="preference")


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory, data: Data) -> Path:
    """What the others are compared with; an adapter from sft; dpo on it with the reference asked before."""
    folder = tmp_path_factory.mktemp("one")
    rows = Data(train=str(write_rows(folder / "rows.jsonl", make_rows(30))), eval=None, max_length=80)
    large = replace(PARITY, micro_batch=8)
    few = replace(SHORT, max_steps=2)
    sft = write_run(folder / "sft", 1, model=replace(QLORA, adapter=SMALL), data=rows, train=few)
    on_sft = Model(base=str(sft / "final"), quantization="none", dtype="float32", adapter=SMALL)
    starts = [Start(sft)]
    for stage in STAGES:
        root = write_run(folder / stage, 1, model=FLOAT32, data=data, train=large, stage=stage)  # type: ignore[arg-type]
        starts.append(Start(root, counts=True))
    for name, dpo in (("on-sft", Dpo()), ("precomputed", Dpo(precompute_reference=True))):
        root = write_run(folder / name, 1, model=on_sft, data=data, train=large, stage="dpo", dpo=dpo)
        starts.append(Start(root, counts=True))
    starts.append(Start(write_run(folder / "more-sft", 1, model=on_sft, data=rows, train=few)))
    wrong = replace(on_sft, adapter=Adapter(r=4, target_modules=["q_proj"]))
    starts.append(Start(write_run(folder / "wrong", 1, model=wrong, data=data, train=few, stage="dpo"), fails=True))
    full = replace(FLOAT32, adapter=None)
    starts.append(Start(write_run(folder / "full", 1, model=full, data=data, train=few, stage="reward")))
    launch(1, starts, timeout=300)
    return folder


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory, data: Data, one_rank: Path) -> Path:
    """Each stage under each strategy: in float32, and NF4 with the sft adapter, resumed; dpo with a fresh one too."""
    folder = tmp_path_factory.mktemp("two")
    on_sft = replace(QLORA, base=str(one_rank / "sft" / checkpoint(2)), adapter=SMALL)
    starts = []
    for strategy in STRATEGIES:
        for stage in STAGES:
            options: Any = {"parallel": Parallel(strategy=strategy), "stage": stage, "data": data}
            root = folder / f"{strategy}-{stage}-sgd"
            starts.append(Start(write_run(root, 2, model=FLOAT32, train=PARITY, **options)))
            root = write_run(folder / f"{strategy}-{stage}-on-sft", 2, model=on_sft, train=SHORT, **options)
            starts += [Start(root), Start(root, 2, checkpoint(2))]
        root = folder / f"{strategy}-dpo-qlora"
        starts.append(Start(write_run(root, 2, model=QLORA, train=SHORT, **options)))
    launch(2, starts, timeout=600)
    return folder


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("stage", STAGES)
def test_accumulation_over_two_ranks_is_one_large_batch(
    one_rank: Path, two_ranks: Path, stage: str, strategy: str
) -> None:
    one, two = one_rank / stage, two_ranks / f"{strategy}-{stage}-sgd"
    for metric in ("loss", "grad_norm", "eval_loss", *METRICS[stage]):
        expected, found = values(one, metric), values(two, metric)
        assert set(expected) == set(found) == ({0, 2, 4} if metric.startswith("eval") else {1, 2, 3, 4})
        assert found == pytest.approx(expected, abs=1e-5, rel=1e-5), metric
    assert values(one, "loss")[4] < values(one, "loss")[1]
    assert values(two, "eval_pairs") == {0: 15, 2: 15, 4: 15}
    for metric in ("tokens", "learning_rate", "epoch"):
        assert values(one, metric) == values(two, metric)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_resumed_run_repeats_an_uninterrupted_one_bit_by_bit(two_ranks: Path, strategy: str) -> None:
    for stage in STAGES:
        root = two_ranks / f"{strategy}-{stage}-on-sft"
        for metric in ("loss", "grad_norm", "tokens", "learning_rate", "eval_loss", *METRICS[stage]):
            straight, resumed = values(root, metric), values(root, metric, attempt=2)
            assert {step: straight[step] for step in resumed} == resumed
            assert max(resumed) == 4
        assert find_problems(root / checkpoint(4, 2)) == []
        first, second = (load_file(root / checkpoint(4, attempt) / "adapter_model.safetensors") for attempt in (1, 2))
        assert all(bool((first[key] == second[key]).all()) for key in first)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_dpo_starts_at_its_reference(two_ranks: Path, strategy: str) -> None:
    for name in ("qlora", "on-sft"):
        root = two_ranks / f"{strategy}-dpo-{name}"
        for metric in ("eval_margin", "eval_reward_chosen", "eval_reward_rejected"):
            assert values(root, metric)[0] == 0
        assert values(root, "eval_loss")[0] == pytest.approx(math.log(2), abs=1e-7)
        assert values(root, "loss")[1] == pytest.approx(math.log(2), abs=1e-7)
        assert values(root, "eval_margin")[4] > 0
    # Another start is another reference, though the base is the same.
    assert values(root, "dpo/margin")[2] != values(two_ranks / f"{strategy}-dpo-qlora", "dpo/margin")[2]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_reference_is_sharded_and_not_trained(two_ranks: Path, strategy: str) -> None:
    (plain,) = events(ledger(two_ranks / f"{strategy}-dpo-qlora"), "strategy_check")
    (row,) = events(ledger(two_ranks / f"{strategy}-dpo-on-sft"), "strategy_check")
    assert (row["got"], row["quantized_layers"], plain["quantized_layers"]) == (strategy, 14, 14)
    # Of rank 16 there is one adapter, of rank 8 two.
    assert row["params_total"] == plain["params_total"]
    assert row["trainable_params"] == plain["trainable_params"] / 2
    # DeepSpeed leaves small weights whole, and those of an adapter of rank 8 are.
    low, high = {"fsdp": (0.5, 0.51), "zero3": (0.5, 0.6)}.get(strategy, (1, 1))
    assert low <= row["params_local"] / row["params_total"] <= high
    assert row["optimizer_local"] == row["trainable_params"] / (1 if strategy == "ddp" else 2)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_saved_is_one_adapter_on_the_base(two_ranks: Path, strategy: str) -> None:
    for stage in STAGES:
        root = two_ranks / f"{strategy}-{stage}-on-sft"
        for folder in (root / "final", root / checkpoint(4, 2)):
            config = json.loads((folder / "adapter_config.json").read_text())
            assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == ("builtin:tiny", 8, 16)
            assert config["task_type"] == {"reward": "SEQ_CLS", "dpo": "CAUSAL_LM"}[stage]
            weights = load_file(folder / "adapter_model.safetensors")
            assert not (folder / "ref").exists()
            assert {str(weight.dtype) for weight in weights.values()} == {"torch.float32"}
            assert ("base_model.model.score.weight" in weights) == (stage == "reward")
            assert len(weights) == 28 + (stage == "reward")


def test_the_adapters_in_a_fresh_process_with_plain_peft_are_the_live_models(two_ranks: Path, tmp_path: Path) -> None:
    write_tiny(tmp_path)
    names = [f"{strategy}-{stage}-on-sft" for strategy in STRATEGIES for stage in STAGES]
    for name, found in zip(names, reload(tmp_path, *(two_ranks / name / "final" for name in names)), strict=True):
        assert found["same"] == pytest.approx(found["live"], rel=1e-6), name
        assert max(abs(a - b) for a, b in zip(found["without"], found["live"], strict=True)) > 0.02
        # transformers multiplies the head in the base's bfloat16, 8 bits of mantissa.
        assert found.get("plain", found["live"]) == pytest.approx(found["live"], rel=0.02, abs=0.02)


def test_the_base_is_in_memory_once(one_rank: Path) -> None:
    """12 matrices of builtin:tiny have 4096 elements or more: five of each of its two layers, embedding and head."""
    counts = {name: read_json(one_rank / name / "storages.json") for name in ("reward", "dpo", "on-sft", "precomputed")}
    assert counts == {"reward": 11, "dpo": 12, "on-sft": 12, "precomputed": 12}


def test_asking_the_reference_before_training_changes_nothing(one_rank: Path) -> None:
    for metric in ("loss", "eval_loss", "dpo/margin", "eval_margin"):
        straight, precomputed = values(one_rank / "on-sft", metric), values(one_rank / "precomputed", metric)
        assert precomputed == pytest.approx(straight, abs=1e-5)
    assert values(one_rank / "on-sft", "eval_margin")[0] == 0


def test_sft_goes_on_with_an_adapter_too(one_rank: Path) -> None:
    first, second = values(one_rank / "sft", "loss"), values(one_rank / "more-sft", "loss")
    assert second[1] < first[1]


def test_an_adapter_that_is_not_the_one_asked_for_stops_the_run(one_rank: Path) -> None:
    reason = read_json(RunPaths(one_rank / "wrong").rank_error(1, 0))["message"]
    assert "model.adapter.r: 4, but the adapter in model.base has 8; set model.adapter.r: 8" in reason
    assert "model.adapter.alpha: 32, but the adapter in model.base has 16" in reason
    assert "model.adapter.target_modules: the adapter in model.base is on other layers" in reason


def test_all_weights_of_a_reward_model_can_be_trained(one_rank: Path) -> None:
    final = load_file(one_rank / "full" / "final" / "model.safetensors")
    assert "score.weight" in final
    assert values(one_rank / "full", "loss")[2] < values(one_rank / "full", "loss")[1]
