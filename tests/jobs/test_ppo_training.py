"""Real PPO of builtin:tiny: under each strategy, resumed, with each kind of reward; it learns, and only that way."""

import json
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
from launcher.contract.spec import Adapter, Data, Model, Parallel, Ppo, Strategy, Train
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

pytestmark = pytest.mark.timeout(900)  # for a fixture that starts many runs
STRATEGIES: tuple[Strategy, ...] = ("ddp", "fsdp", "zero2", "zero3")
BASES = {"nf4": "bfloat16", "none": "bfloat16"}
SMALL = Adapter(r=8, alpha=16, dropout=0.1)
PARITY = Train(
    max_steps=4, global_batch=8, optimizer="sgd", learning_rate=0.5, save_every_steps=None, eval_every_steps=2
)
# Four steps per rollout: the checkpoint of step 3 stands in the middle of the first one.
SHORT = Train(max_steps=6, global_batch=8, learning_rate=1e-2, save_every_steps=3, eval_every_steps=3)
ROLLOUTS = Ppo(reward="builtin:length", max_new_tokens=10, rollout_batch=16, epochs=2, temperature=0.2, kl_coef=0.1)
SEEDS = (1, 2, 3)
LEARNING = Train(
    max_steps=40,
    global_batch=128,
    micro_batch=128,
    learning_rate=0.01,
    scheduler="constant",
    save_every_steps=None,
    eval_every_steps=None,
    gradient_checkpointing=False,
)
REWARD = """\
from letters import WANTED


def share(prompts, completions):
    assert all(isinstance(prompt, str) for prompt in prompts)
    return [text.count(WANTED) / 4 for text in completions]


def broken(prompts, completions):
    return [0.0]
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    rows = [{"prompt": f"Say {'a' * (number % 7)} {number}."} for number in range(90)]
    path = write_rows(tmp_path_factory.mktemp("data") / "prompts.jsonl", rows)
    # 9 held-out prompts on 2 ranks in batches of 2.
    return Data(train=str(path), eval=0.1, max_length=64, format="prompt")


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory, data: Data) -> Path:
    """An sft and a reward adapter, and a reward model; what the others are compared with; kinds of rewards."""
    folder = tmp_path_factory.mktemp("one")
    (folder / "letters.py").write_text('WANTED = "a"\n')
    (folder / "rewards.py").write_text(REWARD)
    rows = Data(train=str(write_rows(folder / "rows.jsonl", make_rows(30))), eval=None, max_length=80)
    pairs = write_rows(folder / "pairs.jsonl", make_pairs(30))
    preferences = Data(train=str(pairs), eval=None, max_length=80, format="preference")
    few, small = Train(max_steps=2, global_batch=8, save_every_steps=None), replace(FLOAT32, adapter=SMALL)
    sft = write_run(folder / "sft", 1, model=small, data=rows, train=few)
    reward = write_run(folder / "reward", 1, model=small, data=preferences, train=few, stage="reward")
    judge = write_run(
        folder / "judge", 1, model=replace(FLOAT32, adapter=None), data=preferences, train=few, stage="reward"
    )
    starts = [Start(sft), Start(reward), Start(judge)]

    def add(name: str, ppo: Ppo, model: Model = FLOAT32, train: Train = SHORT, **options: Any) -> None:
        root = write_run(folder / name, 1, model=model, data=data, train=train, stage="ppo", ppo=ppo)
        starts.append(Start(root, **options))

    on_sft = replace(small, base=str(sft / "final"))
    by_adapter = replace(ROLLOUTS, reward=str(reward / "final"))
    add("parity", _parity(folder), train=replace(PARITY, micro_batch=8))
    add("roles", by_adapter, on_sft, counts=True)
    add("shared", replace(by_adapter, critic="shared", critic_learning_rate=1e-12), on_sft, counts=True)
    add("far", replace(ROLLOUTS, stop_kl=1e-9))
    add("broken", replace(ROLLOUTS, reward=f"{folder / 'rewards.py'}:broken"), fails=True)
    launch(1, starts, timeout=280)
    return folder


def _parity(folder: Path) -> Ppo:
    """A separate reward model, whole on every rank, and a critic on the policy's trunk."""
    reward = str(folder / "judge" / "final")
    return replace(ROLLOUTS, reward=reward, critic="shared", kl_target=1.0, normalize_reward=True)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task whose optimum is known: one letter is rewarded, and a score of 1 is that letter at each place."""
    folder = tmp_path_factory.mktemp("learned")
    (folder / "letters.py").write_text('WANTED = "a"\n')
    (folder / "rewards.py").write_text(REWARD)
    prompts = write_rows(folder / "prompts.jsonl", [{"prompt": f"{number}"} for number in range(90)])
    data = Data(train=str(prompts), eval=0.1, max_length=40, format="prompt")
    ppo = Ppo(
        reward=f"{folder / 'rewards.py'}:share", max_new_tokens=4, kl_coef=0.0, temperature=0.2, generation_batch=128
    )
    starts = []
    for seed in SEEDS:
        for name in (f"{seed}", *(["flipped"] if seed == SEEDS[0] else [])):
            train = replace(LEARNING, seed=seed)
            root = write_run(folder / name, 1, model=FLOAT32, data=data, train=train, stage="ppo", ppo=ppo)
            starts.append(Start(root, flipped=name == "flipped"))
    launch(1, starts, timeout=280)
    return folder


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory, data: Data, one_rank: Path) -> Path:
    """Each strategy: in float32; on both kinds of base with the adapters of sft and reward, resumed."""
    folder = tmp_path_factory.mktemp("two")
    starts = []
    for strategy in STRATEGIES:
        options: Any = {"parallel": Parallel(strategy=strategy), "stage": "ppo", "data": data}
        root = folder / f"{strategy}-sgd"
        starts.append(Start(write_run(root, 2, model=FLOAT32, train=PARITY, ppo=_parity(one_rank), **options)))
        for quantization, dtype in BASES.items():
            base: Any = {"base": str(one_rank / "sft" / "final"), "quantization": quantization, "dtype": dtype}
            ppo = replace(ROLLOUTS, reward=str(one_rank / "reward" / "final"), gather_for_rollout=quantization == "nf4")
            model = replace(QLORA, adapter=SMALL, **base)
            root = write_run(folder / f"{strategy}-{quantization}", 2, model=model, train=SHORT, ppo=ppo, **options)
            starts += [Start(root), Start(root, 2, checkpoint(3))]
    launch(2, starts, timeout=600)
    return folder


METRICS = ("loss", "grad_norm", "ppo/value_loss", "ppo/approx_kl", "ppo/entropy", "ppo/score", "ppo/kl")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_write_and_learn_what_one_does(one_rank: Path, two_ranks: Path, strategy: str) -> None:
    one, two = one_rank / "parity", two_ranks / f"{strategy}-sgd"
    for metric in (*METRICS, "ppo/kl_coef", "eval_score", "eval_kl", "eval_loss"):
        expected = values(one, metric)
        assert expected, metric
        assert values(two, metric) == pytest.approx(expected, abs=1e-5, rel=1e-4), metric
    for metric in ("tokens", "epoch", "learning_rate", "ppo/response_length"):
        assert values(one, metric) == values(two, metric)
    assert values(one, "eval_prompts") == {0: 9, 2: 9, 4: 9}


def test_the_policy_starts_at_its_reference_and_at_the_one_that_wrote(one_rank: Path, two_ranks: Path) -> None:
    runs = [one_rank / "roles", one_rank / "shared"]
    runs += [two_ranks / f"{strategy}-{base}" for strategy in STRATEGIES for base in BASES]
    for root in runs:
        # Under ZeRO-3 a bfloat16 base that is not quantized rounds otherwise from pass to pass; why was not found.
        near = 1e-3 if root.name == "zero3-none" else 0
        assert values(root, "ppo/kl")[1] == pytest.approx(0, abs=near)
        assert values(root, "ppo/approx_kl")[1] == pytest.approx(0, abs=near)
        assert values(root, "ppo/ratio")[1] == pytest.approx(1, abs=near)
        assert values(root, "ppo/clip_fraction")[1] == 0
        assert values(root, "eval_kl")[0] == pytest.approx(0, abs=near)
        # The second rollout, at step 5, is written by a policy that has moved, and whose ratio is 1 again.
        assert values(root, "ppo/ratio")[5] == pytest.approx(1, abs=near)
        assert values(root, "ppo/kl")[5] != 0
        assert values(root, "ppo/approx_kl")[4] > 0


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_resumed_within_a_rollout_repeats_an_uninterrupted_one(two_ranks: Path, strategy: str, base: str) -> None:
    root = two_ranks / f"{strategy}-{base}"
    for metric in (*METRICS, "tokens", "epoch", "learning_rate", "eval_score", "eval_kl"):
        straight, resumed = values(root, metric), values(root, metric, attempt=2)
        assert resumed == {step: value for step, value in straight.items() if step > 3}, metric
    assert find_problems(root / checkpoint(6, 2)) == []
    for name in ("adapter_model.safetensors", "critic/adapter_model.safetensors", "critic/value_head.safetensors"):
        first, second = (load_file(root / checkpoint(6, attempt) / name) for attempt in (1, 2))
        assert first
        assert all(bool((first[key] == second[key]).all()) for key in first)


@pytest.mark.parametrize("base", BASES)
def test_the_first_update_is_the_same_under_every_strategy(two_ranks: Path, base: str) -> None:
    for metric in ("loss", "ppo/value_loss", "ppo/score", "grad_norm"):
        first = [values(two_ranks / f"{strategy}-{base}", metric)[1] for strategy in STRATEGIES]
        assert first == pytest.approx([first[0]] * 4, rel=2e-2, abs=1e-4), metric


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_all_roles_are_sharded_and_only_policy_and_critic_are_trained(
    two_ranks: Path, strategy: str, base: str
) -> None:
    (row, _) = (events(ledger(two_ranks / f"{strategy}-{base}", n), "strategy_check")[0] for n in (1, 2))
    assert (row["got"], row["quantized_layers"]) == (strategy, 14 if base == "nf4" else 0)
    adapter = 8 * sum((64 + 64, 64 + 32, 64 + 32, 64 + 64, *(64 + 192,) * 3)) * 2
    assert row["trainable_params"] == 2 * adapter + 64
    # DeepSpeed leaves small weights whole, and those of adapters of rank 8 are.
    low, high = {"fsdp": (0.5, 0.51), "zero3": (0.5, 0.65)}.get(strategy, (1, 1))
    assert low <= row["params_local"] / row["params_total"] <= high


def test_the_final_adapter_in_plain_peft_is_the_live_policy(two_ranks: Path, tmp_path: Path) -> None:
    write_tiny(tmp_path)
    names = [f"{strategy}-nf4" for strategy in STRATEGIES]
    for name, found in zip(names, reload(tmp_path, *(two_ranks / name / "final" for name in names)), strict=True):
        assert found["same"] == pytest.approx(found["live"], rel=1e-6), name
    for name in names:
        config = json.loads((two_ranks / name / "final" / "critic" / "adapter_config.json").read_text())
        assert (config["r"], config["base_model_name_or_path"]) == (8, "builtin:tiny")


def test_the_base_is_in_memory_once_for_all_roles(one_rank: Path) -> None:
    """12 matrices of builtin:tiny have 4096 elements or more: five of each of its two layers, embedding and head."""
    assert [read_json(one_rank / name / "storages.json") for name in ("roles", "shared")] == [12, 12]


def test_the_critic_has_a_learning_rate_of_its_own(one_rank: Path) -> None:
    (head,) = load_file(one_rank / "shared" / "final" / "critic" / "value_head.safetensors").values()
    assert 0 < head.abs().max() < 1e-8  # it began at 0, and Adam's first steps are as long as the rate
    (head,) = load_file(one_rank / "parity" / "final" / "critic" / "value_head.safetensors").values()
    assert head.abs().max() > 1e-4


def test_a_reward_adapter_scores_as_it_does_alone(one_rank: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    write_tiny(tmp_path)
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, one_rank / "reward" / "final").eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(one_rank / "reward" / "final")
    (event, *_) = events(ledger(one_rank / "roles"), "rollout")
    for sample in event["samples"]:
        if "\ufffd" in sample["response"]:
            continue  # bytes that are no text
        turns = [{"role": "user", "content": sample["prompt"]}, {"role": "assistant", "content": sample["response"]}]
        ids = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), return_tensors="pt")
        with torch.no_grad():
            assert model(**ids).logits.item() == pytest.approx(sample["score"], abs=1e-4)


def test_a_policy_that_has_moved_too_far_leaves_its_rollout(one_rank: Path) -> None:
    # The first step has not moved yet; after the second a new rollout begins.
    assert list(values(one_rank / "far", "ppo/score")) == [1, 3, 5]
    assert list(values(one_rank / "roles", "ppo/score")) == [1, 5]


def test_a_reward_function_that_gives_no_score_for_each_response_stops_the_run(one_rank: Path) -> None:
    reason = read_json(RunPaths(one_rank / "broken").rank_error(1, 0))["message"]
    assert reason.startswith("ppo.reward: broken gave 1 scores for ")


def test_what_is_rewarded_is_learned_and_with_the_sign_flipped_it_is_not(learned: Path) -> None:
    for seed in SEEDS:
        score = values(learned / str(seed), "eval_score")
        assert score[0] < 0.05
        assert score[LEARNING.max_steps] > 0.5
    assert values(learned / "flipped", "eval_score")[LEARNING.max_steps] < 0.05
