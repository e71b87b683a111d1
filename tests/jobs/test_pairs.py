"""Token pairs: truncation, bad rows, the split by prompt, batches."""

import json
from pathlib import Path
from typing import Any

import numpy
import pytest

from jobs.errors import JobError
from jobs.masking import IGNORED
from jobs.pairs import prepare_pairs
from jobs.tiny import make_tokenizer
from launcher.contract.spec import Data
from tests.conftest import SHARED_DATA
from tests.jobs.runs import write_rows


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


def pair(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    user = {"role": "user", "content": prompt}
    return {"prompt": [user], "chosen": chosen, "rejected": rejected}


def prepare(path: Path, rows: list[dict[str, Any]], tokenizer: Any, **changes: Any) -> Any:
    source = str(write_rows(path / "pairs.jsonl", rows))
    return prepare_pairs(Data(**{"train": source, "eval": None, "format": "preference", **changes}), 3, tokenizer)


def test_labels_lie_on_the_answers_alone(tmp_path: Path, tokenizer: Any) -> None:
    rows = prepare(tmp_path, [pair("q", "yes", "no")], tokenizer).train
    for side, answer in ((rows.chosen, "yes"), (rows.rejected, "no")):
        learned = [label for label in side.labels[0] if label != IGNORED]
        assert tokenizer.decode(learned) == f"{answer}<|im_end|>\n"
    assert rows.prompts == ["<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"]
    assert rows.lengths.tolist() == [len(rows.chosen.ids[0]) + len(rows.rejected.ids[0])]


def test_every_kind_of_bad_row_is_named_or_skipped(tmp_path: Path, tokenizer: Any) -> None:
    rows = [
        pair("q", "short", "shorter"),
        pair("q", "same", "same"),
        pair("q", "alike " * 20 + "a", "alike " * 20 + "b"),
        pair("q" * 90, "out of reach", "no"),
        {"prompt": "q", "chosen": "a"},
        pair("q", "long " * 20, "short"),
    ]
    prepared = prepare(tmp_path, rows, tokenizer, max_length=64, on_bad_row="skip")
    assert len(prepared.train) == 2
    assert prepared.train.num_truncated == 1
    assert max(len(ids) for ids in prepared.train.chosen.ids) == 64
    assert [(bad.row, bad.column, bad.reason) for bad in prepared.skipped] == [
        (2, "rejected", "is equal to chosen"),
        (3, "rejected", "is equal to chosen once both are cut to max_length 64"),
        (4, "chosen", "nothing of it is left within data.max_length 64: 109 of 123 tokens come before it"),
        (5, "rejected", "is missing; the row has prompt, chosen"),
    ]
    with pytest.raises(JobError) as caught:
        prepare(tmp_path, rows, tokenizer, max_length=64)
    assert str(caught.value).splitlines()[1] == f"  {tmp_path}/pairs.jsonl, row 2: rejected: is equal to chosen"


def test_what_cannot_work_is_said_before_any_row(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(JobError, match="alpaca has no pairs; this stage reads preference"):
        prepare(tmp_path, [pair("q", "a", "b")], tokenizer, format="alpaca")
    with pytest.raises(JobError, match="columns: answer"):
        prepare(tmp_path, [pair("q", "a", "b")], tokenizer, columns={"answer": "chosen"})
    bare = make_tokenizer()
    bare.chat_template = None
    with pytest.raises(JobError, match="needs a chat template"):
        prepare(tmp_path, [pair("q", "a", "b")], bare)
    plain = prepare(tmp_path, [{"prompt": "q", "chosen": "a", "rejected": "b"}], bare).train
    assert bare.decode(plain.chosen.ids[0]) == "qa<|im_end|>"


def test_pairs_of_one_prompt_go_to_the_same_side(tmp_path: Path, tokenizer: Any) -> None:
    rows = [pair(f"q{n % 10}", f"a{n}", f"b{n}") for n in range(30)]
    prepared = prepare(tmp_path, rows, tokenizer, eval=0.1)
    assert not set(prepared.train.prompts) & set(prepared.eval.prompts)
    assert len(prepared.eval) in (3, 6, 9)
    assert len(prepared.train) + len(prepared.eval) == 30
    whole = prepare(tmp_path, rows, tokenizer, eval=str(tmp_path / "pairs.jsonl"))
    assert whole.num_eval_rows_in_train == 30


def test_a_batch_has_the_chosen_sequences_first(tmp_path: Path, tokenizer: Any) -> None:
    rows = prepare(tmp_path, [pair("q", "a", "bb"), pair("qq", "ccc", "d")], tokenizer).train
    batch = rows.batch([1, 0], tokenizer.pad_token_id)
    assert set(batch) == {"input_ids", "attention_mask", "completion_mask"}
    texts = [
        tokenizer.decode(ids[mask.bool()])
        for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    ]
    assert texts == [f"{answer}<|im_end|>\n" for answer in ("ccc", "a", "d", "bb")]
    lengths = batch["attention_mask"].sum(1).tolist()
    assert all(
        ids[length:].eq(tokenizer.pad_token_id).all() for ids, length in zip(batch["input_ids"], lengths, strict=True)
    )
    known = type(rows)(rows.chosen, rows.rejected, rows.prompts, 0, numpy.array([[1.0, 2.0], [3.0, 4.0]]))
    batch = known.batch([1, 0], 0)
    assert batch["ref_chosen_logps"].tolist() == [3.0, 1.0]
    assert batch["ref_rejected_logps"].tolist() == [4.0, 2.0]


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the real data is not here")
@pytest.mark.parametrize("name", ["dpo_en_demo.json", "dpo_zh_demo.json"])
def test_real_files(name: str, tokenizer: Any) -> None:
    data = Data(train=str(SHARED_DATA / name), eval=0.1, format="preference", max_length=2048, on_bad_row="skip")
    prepared = prepare_pairs(data, 0, tokenizer)
    assert len(prepared.skipped) < 150
    first = json.loads((SHARED_DATA / name).read_text(encoding="utf-8"))[0]
    whole = prepare_pairs(Data(train=data.train, eval=None, format="preference", max_length=2**15), 0, tokenizer)
    labels = [label for label in whole.train.rejected.labels[0] if label != IGNORED]
    assert tokenizer.decode(labels) == f"{first['rejected']['value']}<|im_end|>\n"
    assert len(whole.train) == 300
