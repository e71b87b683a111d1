"""Overrides of keys that exclude each other."""

from pathlib import Path

import pytest

from launcher.errors import SpecError
from launcher.spec import load_spec

HEAD = "{name: x, stage: sft, model: {base: 'builtin:tiny'}, data: {train: rows.jsonl, format: messages}"


def _write(folder: Path, train: str) -> Path:
    (folder / "rows.jsonl").write_text('{"messages": []}\n')
    file = folder / "s.yaml"
    file.write_text(HEAD + train + "}\n")
    return file


def test_an_override_of_one_clears_the_files_other(tmp_path: Path) -> None:
    file = _write(tmp_path, ", train: {epochs: 3, warmup_ratio: 0.1}")
    train = load_spec(file, ["train.max_steps=20", "train.warmup_steps=2"]).spec.train
    assert (train.max_steps, train.epochs, train.warmup_steps, train.warmup_ratio) == (20, None, 2, None)


def test_two_overrides_that_exclude_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="epochs"):
        load_spec(_write(tmp_path, ""), ["train.max_steps=20", "train.epochs=2"])


def test_an_empty_override_without_the_section_is_an_error_and_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="nothing stands after the ="):
        load_spec(_write(tmp_path, ""), ["train.max_steps="])


def test_an_override_without_a_value_clears_nothing(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(_write(tmp_path, ", train: {epochs: 3}"), ["train.max_steps", "20"])
    assert [problem.message for problem in caught.value.problems] == ["expected key=value"] * 2
