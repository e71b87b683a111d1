"""The stage ppo in a spec: what scores responses, what goes together, what is refused."""

import pytest

VALID = """\
name: mine
stage: ppo
model: {base: builtin:tiny}
data: {train: rows.json, format: prompt}
train: {max_steps: 10, global_batch: 16}
ppo: {reward: builtin:length}
"""


@pytest.fixture(autouse=True)
def _rewards(folder):
    (folder / "rewards.py").write_text("def score(prompts, completions):\n    return [1.0 for _ in completions]\n")
    (folder / "package").mkdir()
    (folder / "package" / "more.py").write_text("def other(prompts, completions):\n    return []\n")
    (folder / "broken.py").write_text("def score(:\n")


@pytest.mark.parametrize(
    ("reward", "found"),
    [
        ("rewards.py:score", "rewards.py:score"),
        ("rewards:score", "rewards.py:score"),
        ("package.more:other", "package/more.py:other"),
    ],
)
def test_a_function_is_one_of_a_file_beside_the_spec(load, folder, reward, found):
    assert load(VALID, f"ppo.reward={reward}").spec.ppo.reward == str(folder / found)


def test_a_model_is_a_folder_or_a_hub_id(load, folder):
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    assert load(VALID, "ppo.reward=./model").spec.ppo.reward == str(folder / "model")
    assert load(VALID, "ppo.reward=owner/reward-model").spec.ppo.reward == "owner/reward-model"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("ppo.reward=null", "ppo.reward: is missing"),
        ("ppo.reward=builtin:size", "ppo.reward: there is no builtin:size"),
        (
            "ppo.reward=rewards.py:scores",
            "rewards.py has no function scores\nhint: it has score; write FILE.py:FUNCTION",
        ),
        ("ppo.reward=broken.py:score", "broken.py is not Python"),
        ("ppo.reward=reward.py:score", "reward.py does not exist\nhint: did you mean rewards.py?"),
        ("ppo.reward=./nothing", "nothing does not exist"),
        ("ppo.rollout_batch=24", "ppo.rollout_batch: 24 is no multiple of train.global_batch, 16"),
        ("ppo.max_new_tokens=512", "ppo.max_new_tokens: 512 tokens leave no room for a prompt in data.max_length, 512"),
        ("data.format=alpaca", "data.format: ppo does not learn from alpaca rows\nhint: ppo reads prompt"),
        ("train.packing=true", "train.packing: ppo writes its sequences itself"),
        ("ppo.critic=none", "ppo.critic: expected one of own, shared"),
        ("ppo.clip_rang=0.1", "ppo.clip_rang: unknown key\nhint: did you mean ppo.clip_range?"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(problems, override, told):
    message, _, hint = told.partition("\n")
    found = problems(VALID, override)
    assert message in found
    assert hint in found


def test_all_weights_are_not_trained_for_the_reference_would_be_a_second_copy(problems):
    found = problems(VALID, "model.adapter=null", "model.quantization=none")
    assert "model.adapter: ppo compares with the model that it started from" in found


def test_a_coefficient_of_zero_has_no_target(problems):
    found = problems(VALID, "ppo.kl_coef=0", "ppo.kl_target=6")
    assert "ppo.kl_target: adapts ppo.kl_coef by factors, and 0 stays 0" in found
    assert "set ppo.kl_coef above 0" in found


def test_the_coefficient_adapts_over_a_rollout_or_more(problems):
    found = problems(VALID, "ppo.kl_target=6", "ppo.kl_horizon=31", "ppo.rollout_batch=32")
    assert "ppo.kl_horizon: 31 sequences are fewer than a rollout has, 32" in found


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("model.quantization=nf4",), "model.quantization: nf4 is learned from"),
        (
            ("model.quantization=none", "model.base=builtin:tiny"),
            "builtin:tiny is smaller than anything",
        ),
        (("model.quantization=none", "model.adapter.r=600"), "vllm takes adapters up to rank 512"),
        (("model.quantization=none", "ppo.temperature=0.001"), "vllm takes a temperature below 0.01 for 0.01"),
    ],
)
def test_vllm_is_refused_where_it_would_not_be_the_policy(problems, overrides, told):
    found = problems(VALID.replace("builtin:tiny", "org/name"), "ppo.engine=vllm", *overrides)
    assert told in found
    assert "set ppo.engine: builtin" in found


def test_another_stage_has_no_ppo_section_and_no_prompts(problems):
    assert "ppo: settings of the ppo stage, and this stage is sft" in problems(VALID, "stage=sft", "data.format=alpaca")
    assert "data.format: sft does not learn from prompt rows" in problems(VALID.replace("ppo: {", "#"), "stage=sft")
