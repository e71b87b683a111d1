"""The demo's rows: well formed, distinct, short, and no held-out wording among the training rows."""

import json
import re
from pathlib import Path
from typing import Any

from launcher.spec import load_spec

from ..conftest import ROOT

DATA = ROOT / "examples" / "data"
LINE = re.compile(r"team: (\w+) \| urgency: (low|normal|high) \| ask: ([a-z][a-z -]+)")
MAX_BYTES = 170
"""Of message and line together; English has more than three bytes a token, so this is under 60 tokens."""


def read_rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def messages(rows: list[dict[str, Any]]) -> list[str]:
    return [row["messages"][0]["content"] for row in rows]


def test_rows_are_one_message_and_one_line() -> None:
    for row in read_rows("triage.jsonl") + read_rows("triage_eval.jsonl"):
        assert list(row) == ["messages"]
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
        message, line = (turn["content"] for turn in row["messages"])
        assert message == message.strip()
        assert not re.search(r"[{}]|  |\n", message), message
        assert LINE.fullmatch(line), line


def test_rows_are_distinct_and_held_out_rows_are_not_trained_on() -> None:
    train, held_out = messages(read_rows("triage.jsonl")), messages(read_rows("triage_eval.jsonl"))
    assert (len(train), len(held_out)) == (360, 40)
    assert len({text.casefold() for text in train + held_out}) == 400


def test_held_out_wordings_are_in_no_training_row() -> None:
    from make_triage import HURRY, HURRY_EVAL, read_topics

    train = messages(read_rows("triage.jsonl"))
    for topic in read_topics():
        assert len(set(topic.wordings)) == 5, topic.ask
        fixed = max(re.split(r"\{\w+\}", topic.wordings[-1]), key=len)  # the longest part without a slot
        assert len(fixed) > 8
        assert not [text for text in train if fixed.casefold() in text.casefold()], fixed
    for level, phrases in HURRY_EVAL.items():
        assert not set(phrases) & set(HURRY[level]) - {""}


def test_every_held_out_task_is_trained() -> None:
    asks = [{row["messages"][1]["content"].split(" | ")[2] for row in read_rows(name)} for name in FILES]
    assert asks[1] <= asks[0]


def test_generator_writes_these_files() -> None:
    from make_triage import make_rows

    assert make_rows() == (read_rows("triage.jsonl"), read_rows("triage_eval.jsonl"))


def test_a_pair_is_a_row_with_its_line_and_one_that_is_wrong_in_one_field() -> None:
    from make_triage import make_pairs

    for name in FILES:
        rows, pairs = read_rows(name), read_rows(name.replace("triage", "triage_pairs"))
        assert pairs == make_pairs(rows)
        for row, pair in zip(rows, pairs, strict=True):
            assert [*pair["prompt"], *pair["chosen"]] == row["messages"]
            chosen, rejected = (LINE.fullmatch(pair[side][0]["content"]) for side in ("chosen", "rejected"))
            assert chosen is not None
            assert rejected is not None
            assert sum(a != b for a, b in zip(chosen.groups(), rejected.groups(), strict=True)) == 1


def test_rows_fit_the_demo_uncut() -> None:
    from smollm2 import DEFAULT_FOLDER

    rows = read_rows("triage.jsonl") + read_rows("triage_eval.jsonl")
    for row in rows:
        assert sum(len(turn["content"].encode()) for turn in row["messages"]) <= MAX_BYTES
    folder: Path = DEFAULT_FOLDER.expanduser()
    if folder.exists():  # where the demo has run: the model's own tokens
        from transformers import AutoTokenizer

        data = load_spec(ROOT / "examples" / "demo.yaml", [f"model.base={folder}"]).spec.data
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        system = {"role": "system", "content": data.system}
        texts = [tokenizer.apply_chat_template([system, *row["messages"]], tokenize=False) for row in rows]
        assert max(len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]) <= data.max_length


FILES = ("triage.jsonl", "triage_eval.jsonl")
