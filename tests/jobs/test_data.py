"""Token rows: truncation, bad rows, the split, packing."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.data import TokenRows, pack, prepare_data, split
from jobs.errors import JobError
from jobs.masking import IGNORED
from jobs.tiny import make_tokenizer
from launcher.contract.spec import Data
from tests.conftest import SHARED_DATA
from tests.jobs.runs import make_rows, write_rows


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


def test_long_rows_are_cut_and_counted_and_rows_cut_of_all_loss_are_bad(tmp_path: Path, tokenizer: Any) -> None:
    rows = [
        {"instruction": "q", "output": "short"},
        {"instruction": "q", "output": "long " * 50},
        {"instruction": "q" * 90, "output": "out of reach"},
    ]
    data = Data(train=str(write_rows(tmp_path / "a.jsonl", rows)), eval=None, max_length=64, on_bad_row="skip")
    prepared = prepare_data(data, "assistant", 0, tokenizer)
    assert [len(ids) for ids in prepared.train.ids][1] == 64
    assert prepared.train.num_truncated == 1
    (bad,) = prepared.skipped
    assert (bad.row, bad.column) == (3, "output")
    assert bad.reason == "nothing of it is left within data.max_length 64: 109 of 123 tokens come before it"


def test_the_first_ten_bad_rows_are_named(tmp_path: Path, tokenizer: Any) -> None:
    rows: list[dict[str, Any]] = [*make_rows(3), *({"instruction": "q"} for _ in range(12))]
    path = write_rows(tmp_path / "a.jsonl", rows)
    with pytest.raises(JobError) as caught:
        prepare_data(Data(train=str(path)), "assistant", 0, tokenizer)
    lines = str(caught.value).splitlines()
    assert lines[0] == "data.train: 12 of 15 rows are bad"
    assert lines[1] == f"  {path}, row 4: output: is missing; the row has instruction"
    assert lines[11] == "  ... and 2 more"
    assert lines[12] == "mend them, or set data.on_bad_row: skip to train without them"
    only_bad = write_rows(tmp_path / "b.jsonl", rows[3:])
    with pytest.raises(JobError, match=r"12 of 12 rows are bad(.|\n)* or set data.format, data.columns"):
        prepare_data(Data(train=str(only_bad)), "assistant", 0, tokenizer)
    one_bad = write_rows(tmp_path / "c.jsonl", rows[2:4])
    with pytest.raises(JobError, match="1 of 2 rows is bad"):
        prepare_data(Data(train=str(one_bad)), "assistant", 0, tokenizer)
    with pytest.raises(JobError, match="none of 12 rows can be used"):
        prepare_data(Data(train=str(only_bad), on_bad_row="skip"), "assistant", 0, tokenizer)


def test_what_cannot_work_is_said_before_any_row(tmp_path: Path, tokenizer: Any) -> None:
    path = str(write_rows(tmp_path / "a.jsonl", make_rows(3)))
    with pytest.raises(JobError, match="format: preference is not for this stage"):
        prepare_data(Data(train=path, format="preference"), "assistant", 0, tokenizer)
    with pytest.raises(JobError, match="columns: answer"):
        prepare_data(Data(train=path, columns={"answer": "output"}), "assistant", 0, tokenizer)
    bare = make_tokenizer()
    bare.chat_template = None
    with pytest.raises(JobError, match="needs a chat template"):
        prepare_data(Data(train=path), "assistant", 0, bare)
    with pytest.raises(JobError, match="has no rows"):
        prepare_data(Data(train=str(write_rows(tmp_path / "e.jsonl", []))), "assistant", 0, tokenizer)


def test_the_split_is_seeded_disjoint_and_keeps_equal_rows_together() -> None:
    rows = TokenRows([[n % 15] for n in range(30)], [[n % 15] for n in range(30)])
    train, held_out = split(rows, 0.1, seed=5)
    assert not {tuple(ids) for ids in train.ids} & {tuple(ids) for ids in held_out.ids}
    assert len(train) + len(held_out) == 30
    assert 3 <= len(held_out) <= 6
    assert split(rows, 0.1, seed=5) == (train, held_out)
    assert split(rows, 0.1, seed=6)[1] != held_out
    with pytest.raises(JobError, match="leaves none to train on"):
        split(rows.select([0, 15]), 0.1, seed=5)


def test_an_eval_file_is_taken_as_it_is(tmp_path: Path, tokenizer: Any) -> None:
    train, held_out = (write_rows(tmp_path / f"{name}.jsonl", make_rows(count)) for name, count in (("a", 9), ("b", 4)))
    prepared = prepare_data(Data(train=str(train), eval=str(held_out)), "assistant", 0, tokenizer)
    assert prepared.eval is not None
    assert (len(prepared.train), len(prepared.eval), prepared.num_eval_rows_in_train) == (9, 4, 4)


def test_packing_keeps_every_token(tmp_path: Path, tokenizer: Any) -> None:
    data = Data(train=str(write_rows(tmp_path / "a.jsonl", make_rows(20))), eval=None, max_length=200)
    rows = prepare_data(data, "assistant", 0, tokenizer).train
    packed = pack(rows, 200)
    assert len(packed) < len(rows)
    assert packed.parts is not None
    assert sorted(length for parts in packed.parts for length in parts) == sorted(rows.lengths.tolist())
    assert all(sum(parts) == len(ids) <= 200 for parts, ids in zip(packed.parts, packed.ids, strict=True))
    assert packed.num_loss_tokens == rows.num_loss_tokens


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the real data is not here")
@pytest.mark.parametrize("name", ["alpaca_en_demo.json", "alpaca_zh_demo.json", "wiki_demo.txt", "kto_en_demo.json"])
def test_real_files(name: str, tokenizer: Any) -> None:
    format = {"w": "text", "k": "messages"}.get(name[0], "alpaca")
    data = Data(train=str(SHARED_DATA / name), eval=None, format=format, max_length=2048, on_bad_row="skip")  # type: ignore[arg-type]
    prepared = prepare_data(data, "assistant", 0, tokenizer)
    assert len(prepared.skipped) < len(prepared.train) / 5
    if format != "text":
        first = json.loads((SHARED_DATA / name).read_text(encoding="utf-8"))[0]
        answer = first["output"] if format == "alpaca" else first["messages"][-1]["content"]
        labels = [label for label in prepared.train.labels[0] if label != IGNORED]
        assert tokenizer.decode(labels).endswith(f"{answer}<|im_end|>\n")


def test_loss_on_reaches_the_rows(tmp_path: Path, tokenizer: Any) -> None:
    data = Data(train=str(write_rows(tmp_path / "a.jsonl", make_rows(2))), eval=None)
    counts = [prepare_data(replace(data), on, 0, tokenizer).train.num_loss_tokens for on in ("assistant", "all")]
    assert counts[0] < counts[1]
