"""What ppo.reward names, as far as that needs no weights."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.adapter import Origin
from jobs.errors import JobError
from jobs.scorer import find_adapter
from launcher.contract.spec import Model


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
