"""Prompts from rows: text and conversations, and what cannot be answered."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import JobError
from jobs.prompts import prepare_prompts
from jobs.tiny import make_tokenizer
from launcher.contract.spec import Data

TOKENIZER = make_tokenizer()


def prepare(folder: Path, rows: list[Any], **options: Any) -> Any:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = Data(**{"train": str(path), "eval": None, "format": "prompt", "max_length": 80, **options})
    return prepare_prompts(data, 20, 0, TOKENIZER)


def test_text_and_conversations_end_where_the_answer_begins(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    data = prepare(tmp_path, [{"prompt": "Say a."}, {"prompt": turns}, {"ask": 1, "prompt": "d", "system": "s"}])
    texts = [TOKENIZER.decode(ids) for ids in data.train.ids]
    assert texts == [
        "<|im_start|>user\nSay a.<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n"
        "<|im_start|>assistant\n",
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nd<|im_end|>\n<|im_start|>assistant\n",
    ]
    assert data.train.said[:2] == ["Say a.", turns]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "x" * 50}, "has 69 tokens; data.max_length without ppo.max_new_tokens leaves 60"),
        ({"prompt": " "}, "prompt: is empty"),
        ({"text": "a"}, "prompt: is missing; the row has text"),
        ({"prompt": [{"role": "assistant", "content": "a"}]}, "ends with the assistant's turn"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: Any, reason: str) -> None:
    with pytest.raises(JobError, match="row 2") as caught:
        prepare(tmp_path, [{"prompt": "a"}, row])
    assert reason in str(caught.value)
    kept = prepare(tmp_path, [{"prompt": "a"}, row], on_bad_row="skip")
    assert (len(kept.train), len(kept.skipped)) == (1, 1)


def test_a_column_of_another_name_is_renamed(tmp_path: Path) -> None:
    data = prepare(tmp_path, [{"instruction": "a"}], columns={"prompt": "instruction"})
    assert data.train.said == ["a"]
    with pytest.raises(JobError, match="the format prompt reads the columns prompt, system"):
        prepare(tmp_path, [{"instruction": "a"}], columns={"output": "instruction"})
