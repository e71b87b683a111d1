"""Real training of builtin:tiny under each strategy: in effect, the same as DDP, resumed exactly, saved alike."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from jobs.tiny import write_tiny
from launcher.contract.checkpoints import newest_checkpoint
from launcher.contract.files import read_json
from launcher.contract.ledger import events
from launcher.contract.manifest import find_problems
from launcher.contract.paths import RunPaths
from launcher.contract.spec import Adapter, Data, Parallel, Strategy, Train
from launcher.contract.strategies import SHARDS_WEIGHTS
from tests.jobs.reload import reload
from tests.jobs.runs import FLOAT32, QLORA, Start, checkpoint, launch, ledger, make_rows, values, write_rows, write_run

# A fixture trains up to 40 runs; a machine with other work takes more than the usual five minutes for them.
pytestmark = pytest.mark.timeout(600)

SHARDED: tuple[Strategy, ...] = ("fsdp", "zero2", "zero3")
STRATEGIES: tuple[Strategy, ...] = ("ddp", *SHARDED)
ANY_WORLD: tuple[Strategy, ...] = ("ddp", "fsdp")
"""Their checkpoints go on with another number of ranks."""
OFFLOAD = (("fsdp", "all"), ("zero2", "optimizer"), ("zero3", "optimizer"), ("zero3", "all"))
QLORA_RUNS = tuple(f"{strategy}-qlora" for strategy in STRATEGIES)
OFFLOAD_RUNS = tuple(f"{strategy}-{offload}" for strategy, offload in OFFLOAD)
WRAPPERS = {
    "ddp": "DistributedDataParallel",
    "fsdp": "FSDPPeftModelForCausalLM",
    "zero2": "DeepSpeedEngine",
    "zero3": "DeepSpeedEngine",
}
BFLOAT16 = replace(QLORA, quantization="none", adapter=Adapter(dropout=0.0))

PARITY = Train(max_steps=20, global_batch=8, save_every_steps=None, eval_every_steps=10, gradient_checkpointing=False)
SGD = replace(PARITY, optimizer="sgd", learning_rate=0.5)
ADAMW = replace(PARITY, optimizer="adamw", learning_rate=1e-3, warmup_steps=4, save_every_steps=10, weight_decay=0.1)
SHORT = Train(max_steps=6, global_batch=8, save_every_steps=3, eval_every_steps=3, learning_rate=1e-2, keep_last=9)
FEW = replace(SHORT, max_steps=3, save_every_steps=None)
EXTENDED = replace(SHORT, max_steps=8, learning_rate=2e-2)
CLIPPED = replace(SGD, max_steps=1, max_grad_norm=1e-3)
PRUNED = replace(SHORT, max_steps=3, save_every_steps=1, eval_every_steps=1, learning_rate=2e-3, keep_last=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder = tmp_path_factory.mktemp("data")
    return Data(train=str(write_rows(folder / "train.jsonl", make_rows(45))), eval=0.2, max_length=80)


def write_tied(folder: Path) -> Path:
    """builtin:tiny with its head tied to its embedding, as most small models have it."""
    folder.mkdir()
    write_tiny(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory, data: Data) -> Path:
    """DDP, which the others are compared with, and each of them."""
    folder = tmp_path_factory.mktemp("one")
    runs = [(strategy, name, train) for name, train in (("adamw", ADAMW), ("sgd", SGD)) for strategy in STRATEGIES]
    starts = []
    for strategy, name, train in runs:
        root, parallel = folder / f"{strategy}-{name}", Parallel(strategy=strategy)  # type: ignore[arg-type]
        large = replace(train, micro_batch=8)
        starts.append(Start(write_run(root, 1, model=FLOAT32, data=data, train=large, parallel=parallel)))
    launch(1, starts, timeout=300)
    return folder


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory: pytest.TempPathFactory, data: Data) -> Path:
    """SGD and AdamW; the runs with AdamW go on from their step 10 with another micro batch as a second attempt."""
    folder = tmp_path_factory.mktemp("four")
    starts = []
    for strategy in SHARDED:
        for name, train in (("sgd", SGD), ("adamw", ADAMW)):
            parallel = Parallel(strategy=strategy)
            root = write_run(folder / f"{strategy}-{name}", 4, model=FLOAT32, data=data, train=train, parallel=parallel)
            starts.append(Start(root))
        changed = folder / f"{strategy}-changed"
        write_run(changed, 4, model=FLOAT32, data=data, train=replace(ADAMW, micro_batch=1), parallel=parallel)
        starts.append(Start(root, 2, checkpoint(10), changed=changed))
    launch(4, starts, timeout=300)
    return folder


@pytest.fixture(scope="module")
def other_ranks(tmp_path_factory: pytest.TempPathFactory, data: Data, one_rank: Path) -> Path:
    """Runs with AdamW that go on from step 10 with another number of ranks: ``fsdp-2-to-1`` and so on."""
    folder = tmp_path_factory.mktemp("other")

    def write(name: str, ranks: int, strategy: Strategy, source: Path | None = None) -> Path:
        parallel = Parallel(strategy=strategy)
        root = write_run(folder / name, ranks, model=FLOAT32, data=data, train=ADAMW, parallel=parallel)
        if source is not None:
            shutil.copytree(source / checkpoint(10), root / checkpoint(10))
        return root

    starts = [Start(write(f"{strategy}-2", 2, strategy)) for strategy in ANY_WORLD]
    grown = [write(f"{strategy}-1-to-2", 2, strategy, one_rank / f"{strategy}-adamw") for strategy in ANY_WORLD]
    launch(2, [*starts, *(Start(root, 2, checkpoint(10)) for root in grown)])
    shrunk = [write(f"{strategy}-2-to-1", 1, strategy, folder / f"{strategy}-2") for strategy in ANY_WORLD]
    launch(1, [Start(root, 2, checkpoint(10)) for root in shrunk])
    return folder


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory, data: Data) -> Path:
    """QLoRA, resumed and extended; every offload; full fine-tuning; a bfloat16 base; and what must fail."""
    folder = tmp_path_factory.mktemp("two")
    tied = write_tied(folder / "tied")
    starts = []
    for strategy in STRATEGIES:
        parallel = Parallel(strategy=strategy)
        root = write_run(folder / f"{strategy}-qlora", 2, model=QLORA, data=data, train=SHORT, parallel=parallel)
        changed = folder / f"{strategy}-changed"
        write_run(changed, 2, model=QLORA, data=data, train=EXTENDED, parallel=parallel)
        starts += [Start(root), Start(root, 2, checkpoint(3)), Start(root, 3, checkpoint(6, 2), changed=changed)]
        full = replace(FLOAT32, base=str(tied), adapter=None)
        for name, model in (("full", full), ("bfloat16", BFLOAT16)):
            train = replace(FEW, save_every_steps=3, learning_rate=1e-3)
            root = write_run(folder / f"{strategy}-{name}", 2, model=model, data=data, train=train, parallel=parallel)
            starts.append(Start(root))
    for strategy, offload in OFFLOAD:
        parallel = Parallel(strategy=strategy, offload=offload)  # type: ignore[arg-type]
        root = folder / f"{strategy}-{offload}"
        write_run(root, 2, model=QLORA, data=data, train=SHORT, parallel=parallel)
        starts += [Start(root), Start(root, 2, checkpoint(3))]
    for strategy in STRATEGIES:
        parallel = Parallel(strategy=strategy)
        root = write_run(folder / f"{strategy}-clipped", 2, model=FLOAT32, data=data, train=CLIPPED, parallel=parallel)
        starts.append(Start(root))
    # Answers that are unlike those trained on: the better these are learned, the worse is the loss of those.
    other = [{"instruction": f"Spell {n}.", "output": "Z" * 40} for n in range(4)]
    unlike = replace(data, eval=str(write_rows(folder / "unlike.jsonl", other)))
    for strategy in SHARDS_WEIGHTS:
        parallel, name = Parallel(strategy=strategy), f"{strategy}-pruned"
        root = write_run(folder / name, 2, model=QLORA, data=unlike, train=PRUNED, parallel=parallel)
        longer, changed = replace(PRUNED, max_steps=4, save_every_steps=None), folder / f"{name}-changed"
        write_run(changed, 2, model=QLORA, data=unlike, train=longer, parallel=parallel)
        starts += [Start(root), Start(root, 2, checkpoint(3), changed=changed)]
    for strategy in SHARDED:
        root = folder / f"{strategy}-on-cpu"
        write_run(root, 2, model=FLOAT32, data=data, train=FEW, parallel=Parallel(strategy=strategy))
        starts.append(Start(root, env={"ACCELERATE_USE_CPU": "true"}, fails=True))
    root = write_run(folder / "whole", 2, model=QLORA, data=data, train=FEW, parallel=Parallel(strategy="fsdp"))
    starts.append(Start(root, fails=True, whole=True))
    launch(2, starts, timeout=450)
    return folder


@pytest.mark.parametrize(("name", "tolerance"), [("sgd", 1e-5), ("adamw", 1e-4)])
@pytest.mark.parametrize("strategy", SHARDED)
def test_each_strategy_learns_what_ddp_on_one_rank_does(
    one_rank: Path, four_ranks: Path, strategy: str, name: str, tolerance: float
) -> None:
    reference = one_rank / f"ddp-{name}"
    weights = load_file(reference / "final" / "adapter_model.safetensors")
    for root in (folder / f"{strategy}-{name}" for folder in (one_rank, four_ranks)):
        for metric, steps in (("loss", range(1, 21)), ("grad_norm", range(1, 21)), ("eval_loss", (0, 10, 20))):
            asked, got = values(reference, metric), values(root, metric)
            assert set(got) == set(steps)
            worst = max(abs(asked[step] - got[step]) for step in steps)
            assert worst < tolerance, (root.name, metric, worst)
        for metric in ("learning_rate", "tokens", "epoch"):
            assert values(root, metric) == values(reference, metric)
        final = load_file(root / "final" / "adapter_model.safetensors")
        assert set(final) == set(weights)
        assert max(float((final[key] - weights[key]).abs().max()) for key in weights) < tolerance


@pytest.mark.parametrize("strategy", SHARDED)
def test_the_micro_batch_may_change_on_resume(one_rank: Path, four_ranks: Path, strategy: str) -> None:
    resumed = values(four_ranks / f"{strategy}-adamw", "loss", attempt=2)
    reference = values(one_rank / "ddp-adamw", "loss")
    assert list(resumed) == list(range(11, 21))
    assert max(abs(resumed[step] - reference[step]) for step in resumed) < 1e-4


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
@pytest.mark.parametrize("strategy", ANY_WORLD)
def test_the_number_of_ranks_may_change_on_resume(
    one_rank: Path, other_ranks: Path, strategy: str, before: int, after: int
) -> None:
    """Without dropout, whose masks come from the random state of each rank."""
    root, reference = other_ranks / f"{strategy}-{before}-to-{after}", one_rank / "ddp-adamw"
    assert json.loads((root / checkpoint(10) / "manifest.json").read_text())["world_size"] == before
    (row,) = events(ledger(root, 2), "strategy_check")
    assert (row["got"], row["world_size"]) == (strategy, after)
    for metric, steps in (("loss", range(11, 21)), ("grad_norm", range(11, 21)), ("eval_loss", (20,))):
        straight, resumed = values(reference, metric), values(root, metric, attempt=2)
        assert set(resumed) == set(steps)
        assert max(abs(resumed[step] - straight[step]) for step in steps) < 1e-4
    final, asked = (load_file(folder / "final" / "adapter_model.safetensors") for folder in (root, reference))
    assert max(float((final[key] - asked[key]).abs().max()) for key in asked) < 1e-4


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_strategy_in_effect_is_proved(two_ranks: Path, strategy: str) -> None:
    (row,) = events(ledger(two_ranks / f"{strategy}-qlora"), "strategy_check")
    assert (row["asked"], row["got"], row["wrapper"]) == (strategy, strategy, WRAPPERS[strategy])
    assert (row["world_size"], row["quantized_layers"], row["offload"]) == (2, 14, "none")
    (plain,) = events(ledger(two_ranks / f"{strategy}-full"), "strategy_check")
    head = 259 * 64  # of one model it is tied
    assert row["params_total"] - row["trainable_params"] == plain["params_total"] + head
    assert plain["params_total"] == plain["trainable_params"]
    shares = {name: row[f"{name}_local"] / row[total] for name, total in SHARE_OF.items()}
    if strategy in SHARDS_WEIGHTS:
        # DeepSpeed leaves small weights whole.
        assert 0.5 <= shares["params"] < 0.55
    else:
        assert shares["params"] == 1
    assert shares["optimizer"] == (1 if strategy == "ddp" else 0.5)


SHARE_OF = {"params": "params_total", "optimizer": "trainable_params"}


@pytest.mark.parametrize(("strategy", "offload"), OFFLOAD)
def test_offload_is_proved_and_changes_nothing(two_ranks: Path, strategy: str, offload: str) -> None:
    (row,) = events(ledger(two_ranks / f"{strategy}-{offload}"), "strategy_check")
    assert (row["got"], row["offload"]) == (strategy, offload)
    offloaded, kept = (values(two_ranks / f"{strategy}-{name}", "loss") for name in (offload, "qlora"))
    assert offloaded[1] == kept[1]
    assert offloaded == pytest.approx(kept, abs=2e-2)


@pytest.mark.parametrize("strategy", SHARDED)
def test_plain_ddp_instead_of_the_strategy_stops_the_run(two_ranks: Path, strategy: str) -> None:
    root = two_ranks / f"{strategy}-on-cpu"
    for rank in (0, 1):
        reason = read_json(RunPaths(root).rank_error(1, rank))["message"]
        assert f"{strategy} was asked for, ddp is in effect" in reason
        assert "ACCELERATE_USE_CPU is set" in reason
    (row,) = events(ledger(root), "strategy_check")
    assert (row["asked"], row["got"]) == (strategy, "ddp")
    assert events(ledger(root), "failed")
    assert values(root, "loss") == {}


def test_quantized_weights_that_are_left_whole_stop_the_run(two_ranks: Path) -> None:
    """As bytes, which accelerate leaves out of FSDP2; DeepSpeed shards them too."""
    reason = read_json(RunPaths(two_ranks / "whole").rank_error(1, 0))["message"]
    assert "fsdp was asked for, but 14 weights" in reason
    assert "uint8" in reason


@pytest.mark.parametrize("run", [*QLORA_RUNS, *OFFLOAD_RUNS])
def test_a_resumed_run_repeats_an_uninterrupted_one_bit_by_bit(two_ranks: Path, run: str) -> None:
    root = two_ranks / run
    for metric in ("loss", "grad_norm", "tokens", "learning_rate", "eval_loss"):
        straight, resumed = values(root, metric), values(root, metric, attempt=2)
        assert {step: straight[step] for step in resumed} == resumed
    assert list(resumed) == [6]
    first, second = (load_file(root / checkpoint(6, attempt) / "adapter_model.safetensors") for attempt in (1, 2))
    assert all(bool((first[key] == second[key]).all()) for key in first)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_extended_run_takes_the_rates_of_its_new_schedule(two_ranks: Path, strategy: str) -> None:
    rates = values(two_ranks / f"{strategy}-qlora", "learning_rate", attempt=3)
    assert rates == pytest.approx({step: 2e-2 * (1 + math.cos(math.pi * (step - 1) / 8)) / 2 for step in (7, 8)})


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_checkpoint_has_every_ranks_part_and_the_whole_adapter(two_ranks: Path, strategy: str) -> None:
    root = two_ranks / f"{strategy}-qlora"
    folder = root / checkpoint(8, 3)
    assert find_problems(folder) == []
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["strategy"], manifest["world_size"], manifest["data_position"]) == (strategy, 2, 64)
    for rank in (0, 1):
        parts = {
            "ddp": ["optimizer.pt"],
            "fsdp": [f"pytorch_model_fsdp_0/__{rank}_0.distcp", f"optimizer_0/__{rank}_0.distcp"],
            "zero2": [f"global_step8/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"],
            "zero3": [f"global_step8/zero_pp_rank_{rank}_mp_rank_00_{kind}_states.pt" for kind in ("optim", "model")],
        }
        assert {*parts[strategy], f"rng_state_{rank}.pth"} <= set(manifest["files"])
    assert (folder / "adapter_model.safetensors").read_bytes() == (
        root / "final" / "adapter_model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("strategy", SHARDS_WEIGHTS)
def test_the_last_and_the_best_sharded_checkpoints_stay(two_ranks: Path, strategy: str) -> None:
    root = two_ranks / f"{strategy}-pruned"
    losses = values(root, "eval_loss")
    best = min((1, 2, 3), key=losses.__getitem__)
    assert best != 3
    assert len(events(ledger(root), "checkpoint")) == 3
    assert RunPaths(root).published() == [root / checkpoint(best), root / checkpoint(3)]
    for step in (best, 3):
        assert find_problems(root / checkpoint(step)) == []
        assert read_json(root / checkpoint(step) / "manifest.json")["metrics"]["eval_loss"] == losses[step]
    assert newest_checkpoint(RunPaths(root)) == root / checkpoint(3)
    assert list(values(root, "loss", attempt=2)) == [4]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_gradient_is_clipped_by_its_norm_over_all_ranks(one_rank: Path, two_ranks: Path, strategy: str) -> None:
    root = two_ranks / f"{strategy}-clipped"
    norm, unclipped = values(root, "grad_norm")[1], values(one_rank / "ddp-sgd", "grad_norm")[1]
    assert norm == pytest.approx(unclipped, abs=1e-5)
    assert norm > 100 * CLIPPED.max_grad_norm
    # One step of SGD moves only the second matrices: they start at zero, and so the first ones have no gradient yet.
    final = load_file(root / "final" / "adapter_model.safetensors")
    moved = torch.cat([tensor.double().flatten() for name, tensor in final.items() if "lora_B" in name])
    assert float(moved.norm()) == pytest.approx(CLIPPED.learning_rate * CLIPPED.max_grad_norm, rel=1e-4)


def test_an_adapter_keeps_its_own_dtype_beside_a_base_of_another(two_ranks: Path) -> None:
    losses = {strategy: values(two_ranks / f"{strategy}-bfloat16", "loss") for strategy in STRATEGIES}
    for strategy in STRATEGIES:
        final = load_file(two_ranks / f"{strategy}-bfloat16" / "final" / "adapter_model.safetensors")
        assert {str(tensor.dtype) for tensor in final.values()} == {"torch.float32"}
        assert losses[strategy] == pytest.approx(losses["ddp"], abs=1e-3)


def test_full_fine_tuning_is_the_same_under_every_strategy(two_ranks: Path) -> None:
    for strategy in STRATEGIES:
        root, reference = two_ranks / f"{strategy}-full", two_ranks / "ddp-full"
        for metric in ("loss", "grad_norm"):
            assert values(root, metric) == pytest.approx(values(reference, metric), abs=1e-4)
        final, asked = (load_file(folder / "final" / "model.safetensors") for folder in (root, reference))
        assert set(final) == set(asked)
        assert "lm_head.weight" not in final
        assert max(float((final[key] - asked[key]).abs().max()) for key in asked) < 1e-4
        config = json.loads((root / "final" / "config.json").read_text())
        assert config["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_full_model_opened_again_gives_the_live_models_logits(two_ranks: Path, strategy: str) -> None:
    final = two_ranks / f"{strategy}-full" / "final"
    probe = read_json(final / "completion.json")["probe"]
    model: Any = AutoModelForCausalLM.from_pretrained(final, dtype=torch.float32)
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([probe["input_ids"]])).logits[0, -1]
    assert logits.topk(len(probe["top_ids"])).indices.tolist() == probe["top_ids"]
    assert logits[probe["top_ids"]].tolist() == pytest.approx(probe["top_logits"], abs=1e-5)


def test_the_adapters_in_a_fresh_process_with_plain_peft_give_the_live_models_logits(
    two_ranks: Path, tmp_path: Path
) -> None:
    write_tiny(tmp_path)
    for found in reload(tmp_path, *(two_ranks / run / "final" for run in (*QLORA_RUNS, *OFFLOAD_RUNS))):
        assert found["same"] == found["live"]
        assert max(abs(a - b) for a, b in zip(found["without"], found["live"], strict=True)) > 0.05
