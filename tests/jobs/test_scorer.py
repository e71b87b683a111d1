"""What ppo.reward names, and how a model that is no role of the policy's scores."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.adapter import Origin
from jobs.errors import JobError
from jobs.scorer import Answer, find_adapter, make_scorer
from jobs.tiny import TINY, make_model, make_tokenizer, write_tiny
from launcher.contract.spec import Model, Ppo


def write_adapter(folder: Path, **config: Any) -> str:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "task_type": "SEQ_CLS", **config}))
    return str(folder)


def start_from(base: str, revision: str | None = None) -> Origin:
    model = Model(base=base, revision=revision)
    return Origin(model, model)


def test_an_adapter_on_the_policys_base_is_a_role_also_where_the_base_is_named_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to("model")
    for number, name in enumerate(("model", "link")):
        reward = write_adapter(tmp_path / f"reward{number}", base_model_name_or_path=str(tmp_path / name))
        for start in ("model", "link"):
            assert find_adapter(reward, start_from(str(tmp_path / start))) == Path(reward)


def test_an_adapter_on_another_base_or_revision_stands_beside_the_policy(tmp_path: Path) -> None:
    reward = write_adapter(tmp_path / "reward", base_model_name_or_path="owner/model", revision="a" * 40)
    assert find_adapter(reward, start_from("owner/model", "a" * 40)) == Path(reward)
    assert find_adapter(reward, start_from("owner/model", "b" * 40)) is None
    assert find_adapter(reward, start_from("owner/other", "a" * 40)) is None
    assert find_adapter("owner/reward-model", start_from("owner/model")) is None


def test_an_adapter_of_a_language_model_scores_nothing(tmp_path: Path) -> None:
    sft = write_adapter(tmp_path / "sft", base_model_name_or_path="owner/model", task_type="CAUSAL_LM")
    with pytest.raises(JobError, match=r"ppo.reward: .* holds no reward model; name the final/ of a stage: reward"):
        find_adapter(sft, start_from("owner/model"))


@pytest.mark.parametrize("has_template", [True, False])
def test_a_model_beside_the_policy_scores_what_its_own_tokenizer_writes(tmp_path: Path, has_template: bool) -> None:
    import torch
    from transformers import LlamaForSequenceClassification

    tokenizer, config = make_tokenizer(), make_model().config
    config.num_labels = 1
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.chat_template = tokenizer.chat_template if has_template else None
    tokenizer.save_pretrained(tmp_path)
    score = make_scorer(Ppo(reward=str(tmp_path)), Model(base=TINY, dtype="float32"), torch.device("cpu"))
    start, end = ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n") if has_template else ("", "")
    answers = [Answer("One?", [1], " Two.", True), Answer("A longer one?", [1], " Yes.", False)]
    for answer, scored in zip(answers, score(answers), strict=True):
        text = f"{start}{answer.said}{end}{answer.text}<|im_end|>" + ("\n" if has_template else "")
        with torch.no_grad():
            assert model(**tokenizer(text, return_tensors="pt")).logits.item() == pytest.approx(scored, abs=1e-5)
    if not has_template:
        with pytest.raises(JobError, match="a conversation needs a chat template"):
            score([Answer([{"role": "user", "content": "One?"}], [1], "Two.", True)])


def test_a_language_model_scores_nothing(tmp_path: Path) -> None:
    import torch

    write_tiny(tmp_path)
    with pytest.raises(JobError, match=r"holds no reward model, for it has no score\.weight"):
        make_scorer(Ppo(reward=str(tmp_path)), Model(base=TINY), torch.device("cpu"))
