"""Overrides, environment variables, paths and durations: what a value becomes."""

import pytest

from launcher.spec import json_schema
from launcher.spec.durations import parse_minutes

from .texts import VALID, edit


def test_defaults_are_filled_in_and_the_text_is_kept(load, folder):
    loaded = load(VALID)
    assert loaded.source == VALID
    assert loaded.spec.model.adapter.r == 16
    assert loaded.spec.data.train == str(folder / "rows.json")


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.max_steps=5", "train.max_steps", 5),
        ("train.learning_rate=1", "train.learning_rate", 1.0),
        ("train.learning_rate=5e-7", "train.learning_rate", 5e-7),
        ("name=no", "name", "no"),
        ("name=123", "name", "123"),
        ("resources.partition=2024", "resources.partition", "2024"),
        ("resources.time=1:30:00", "resources.time", "1:30:00"),
        ("model.adapter.r=8", "model.adapter.r", 8),
        ("train.save_every_steps=null", "train.save_every_steps", None),
        ("tracking.tags=[a, '1']", "tracking.tags", ["a", "1"]),
        ("data.columns.output=answer", "data.columns", {"output": "answer"}),
        ('data.system="a: b # c"', "data.system", "a: b # c"),
        ("data.system=a=b", "data.system", "a=b"),
        ('data.system=""', "data.system", ""),
    ],
)
def test_an_override_has_the_type_of_its_key(load, override, key, value):
    found = load(VALID, override).spec
    for part in key.split("."):
        found = getattr(found, part)
    assert (found, type(found)) == (value, type(value))


def test_null_clears_and_a_key_below_creates_the_section_again(load):
    text = edit(**{"model.adapter": "null", "model.quantization": "none"})
    assert load(text).spec.model.adapter is None
    adapter = load(text, "model.adapter.r=4").spec.model.adapter
    assert (adapter.r, adapter.alpha) == (4, 32)
    assert load(VALID, "model.adapter=null", "model.quantization=none").spec.model.adapter is None
    assert load(VALID, "train.max_steps=null", "train.epochs=1").spec.train.epochs == 1


def test_the_last_override_wins(load):
    assert load(VALID, "train.seed=1", "train.seed=2").spec.train.seed == 2


def test_environment_variables_are_typed_by_the_key(load):
    text = edit(**{
        "train.max_steps": "${env:STEPS:-60}",
        "train.learning_rate": '"${env:LR}"',
        "train.packing": "${env:PACK}",
        "resources.partition": "${env:PARTITION}",
        "cluster": "${env:NONE:-}",
        "tracking": '{project: "a-${env:WHO}-${env:X:-b}", tags: ["${env:WHO}"]}',
    })  # fmt: skip
    env = {"LR": "5e-7", "PACK": "true", "PARTITION": "2024", "WHO": "{x: [1"}
    spec = load(text, "train.seed=${env:SEED}", env={**env, "SEED": "7"}).spec
    assert (spec.train.max_steps, spec.train.learning_rate, spec.train.packing) == (60, 5e-7, True)
    assert (spec.resources.partition, spec.cluster, spec.train.seed) == ("2024", None, 7)
    assert (spec.tracking.project, spec.tracking.tags) == ("a-{x: [1-b", ["{x: [1"])
    assert load(text, "train.seed=1", env={**env, "STEPS": "9"}).spec.train.max_steps == 9


@pytest.mark.parametrize(
    ("value", "env", "message"),
    [
        ("${env:GONE}", {}, "train.seed: the environment has no GONE"),
        ("${env:1X}", {}, "${env:1X} is not a reference"),
        ('"${env:X"', {}, "${env:X is not a reference"),
        ('"${env:A:-${env:B}}"', {}, "is not a reference"),
        ("${env:X}", {"X": "1\nname: b"}, "X holds a line break"),
        ("${env:X}", {"X": "\udcff"}, "X holds a line break or another control character"),
        ("${env:X}", {"X": "canary"}, "expected a whole number; got what ${env:X} holds"),
        ("${env:X}", {"X": "-7"}, "must be at least 0, got what ${env:X} holds"),
    ],
)
def test_a_variable_that_does_not_fit_is_named_and_its_value_is_not(problems, value, env, message):
    told = problems(edit(**{"train.seed": value}), env=env)
    assert told.startswith("spec.yaml:9:9: train.seed: ")
    assert message in told
    assert "canary" not in told


def test_a_path_in_the_file_is_relative_to_it_and_one_in_an_override_to_the_current_folder(folder, monkeypatch):
    from launcher.spec import load_spec

    (folder / "spec.yaml").write_text(VALID)
    here = folder / "else where"
    here.mkdir()
    (here / "rows.json").write_text("[]")
    monkeypatch.chdir(here)
    assert load_spec(folder / "spec.yaml", (), {}).spec.data.train == str(folder / "rows.json")
    assert load_spec(folder / "spec.yaml", ["data.train=rows.json"], {}).spec.data.train == str(here / "rows.json")


def test_a_model_is_a_folder_a_hub_id_or_built_in(load, problems, folder):
    (folder / "model").mkdir()
    assert "has neither config.json nor adapter_config.json" in problems(edit(**{"model.base": "model"}))
    (folder / "model" / "config.json").write_text("{}")
    assert load(edit(**{"model.base": "./model"})).spec.model.base == str(folder / "model")
    assert load(edit(**{"model.base": "owner/name"})).spec.model.base == "owner/name"
    for value in ("./owner/name", "~nobody/x", "gpt2", "a/b/c", "rows.json", "builtin:huge", "../..", "a b/c"):
        assert "spec.yaml:4:9: model.base: " in problems(edit(**{"model.base": value}))


def test_data_is_files_a_folder_or_a_hub_id(load, problems, folder):
    (folder / "rows").mkdir()
    for value in ("rows", "[rows.json, owner/name]", "owner/name"):
        load(edit(**{"data.train": value}))
    for value in ("gone.jsonl", "./gone", "gone", "/gone/x"):
        assert "spec.yaml:6:10: data.train: " in problems(edit(**{"data.train": value}))
    assert "6:22: data.train.1: " in problems(edit(**{"data.train": "[rows.json, gone.csv]"}))
    assert load(edit(**{"data.eval": "rows.json"})).spec.data.eval == str(folder / "rows.json")
    assert load(edit(**{"data.eval": "null"})).spec.data.eval is None


def test_a_chat_template_is_a_file_or_jinja(load, problems, folder):
    (folder / "t.jinja").write_text("{{ x }}")
    assert load(edit(**{"data.chat_template": "t.jinja"})).spec.data.chat_template == str(folder / "t.jinja")
    assert load(edit(**{"data.chat_template": "'{{ x }}'"})).spec.data.chat_template == "{{ x }}"
    assert "does not exist" in problems(edit(**{"data.chat_template": "gone.jinja"}))


def test_a_ds_config_is_a_json_object(problems, folder):
    for text, message in (("{", "is not JSON"), ("[]", "is not a JSON object"), ("[" * 100_000, "is not JSON")):
        (folder / "ds.json").write_text(text)
        assert message in problems(edit(**{"parallel.ds_config": "ds.json"}))
    assert "does not exist" in problems(edit(**{"parallel.ds_config": "gone.json"}))


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("1s", 1), ("90s", 2), ("30m", 30), ("4h", 240), ("1.5h", 90), ("2d", 2880), ("1:30:00", 90), ("0:00:01", 1),
     ("2-12:00:00", 3600)],
)  # fmt: skip
def test_minutes_are_rounded_up(text, minutes):
    assert parse_minutes(text) == minutes


@pytest.mark.parametrize("text", ["", "0s", "5", "-1h", "1h30m", "1:30", "400d", "9" * 400 + "h", "\u0663h", "1h\n"])
def test_what_is_no_duration_is_an_error(text):
    with pytest.raises(ValueError, match=r"duration|longer"):
        parse_minutes(text)


def test_the_json_schema_has_every_key_with_its_help():
    schema = json_schema()
    train = schema["$defs"]["Train"]
    assert train["additionalProperties"] is False
    assert train["properties"]["max_steps"]["description"] == "Optimizer steps in all."
    assert set(schema["required"]) == {"name", "stage"}  # model and data are, but for stage: script
