"""The stage script in a spec: what it needs, what its arguments become, what is refused."""

import os

import pytest

VALID = """\
name: mine
stage: script
script:
  path: train.py
  args: [--lr, 1e-4, --steps, 010, --flag, true, "2", "${env:WHO:-nobody}"]
"""


@pytest.fixture(autouse=True)
def _script(folder):
    (folder / "train.py").write_text("print('hello')\n")
    (folder / "code").mkdir()
    (folder / "code" / "train.py").write_text("print('hello')\n")


def test_a_script_needs_neither_model_nor_data_nor_a_length(load, folder):
    spec = load(VALID).spec
    assert (spec.model, spec.data) == (None, None)
    assert spec.script.path == str(folder / "train.py")
    assert spec.script.sources is None


def test_arguments_are_text_as_it_was_written(load):
    args = ["--lr", "1e-4", "--steps", "010", "--flag", "true", "2", "nobody"]
    assert load(VALID).spec.script.args == args
    assert load(VALID, env={"WHO": "7"}).spec.script.args[-1] == "7"
    assert load(VALID, "script.args=[--lr, 2e-5]").spec.script.args == ["--lr", "2e-5"]


def test_the_other_sections_may_stand_there_as_in_a_pipeline(load, folder):
    spec = load(VALID + "model: {base: builtin:tiny}\ndata: {train: rows.json}\ntrain: {max_steps: 5}\n").spec
    assert spec.model is not None
    assert spec.train.max_steps == 5


def test_sources_are_relative_to_the_file_and_in_an_override_to_the_current_folder(load, folder, monkeypatch):
    text = VALID.replace("train.py", "code/train.py") + "  sources: .\n"
    assert load(text).spec.script.sources == str(folder)
    assert load(text, "script.sources=code").spec.script.sources == str(folder / "code")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("gone.py", "gone.py does not exist"),
        ("trian.py", "did you mean train.py?"),
        ("code", "code is a folder"),
        ("rows.json", "rows.json is no .py file"),
        ('""', "script.path: must not be empty"),
        ("7", "script.path: expected text; got 7"),
        ("[train.py]", "script.path: expected text; got a list"),
        ("'a\0b.py'", ""),
    ],
)
def test_a_path_that_is_no_script_is_refused_with_its_place(problems, path, message):
    told = problems(VALID.replace("train.py", path))
    assert message in told
    assert "spec.yaml:4:" in told
    assert "hint: " in told


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--lr 1e-4", 'script.args: expected a list of texts; got text "--lr 1e-4"'),
        ("{lr: 1}", "script.args: expected a list of texts; got a section"),
        ("[[--lr]]", "script.args.0: expected text; got a list"),
        ("[{a: b}]", "script.args.0: expected text; got a section"),
        ("[null]", "script.args.0: expected text; got null"),
        ('["a\\0b"]', "a control character"),
        ('["${env:GONE}"]', "script.args.0: the environment has no GONE"),
    ],
)
def test_arguments_that_are_no_words_are_refused(problems, args, message):
    assert message in problems(f"name: mine\nstage: script\nscript:\n  path: train.py\n  args: {args}\n")


def test_a_script_outside_of_its_sources_is_refused(problems):
    told = problems(VALID + "  sources: code\n")
    assert "script.path: " in told
    assert "does not lie in script.sources" in told
    assert "sources: gone" not in told
    assert "gone does not exist" in problems(VALID + "  sources: gone\n")


def test_a_stage_has_the_sections_that_it_needs(problems):
    assert "script.path: is missing" in problems("name: mine\nstage: script\n")
    told = problems("name: mine\nstage: sft\ntrain: {max_steps: 1}\n")
    assert "model.base: is missing" in told
    assert "data.train: is missing" in told
    told = problems(VALID.replace("stage: script", "stage: sft") + "train: {max_steps: 1}\n")
    assert "script: stands beside stage: sft" in told


def test_an_unknown_key_is_refused(problems):
    assert "did you mean script.args?" in problems(VALID.replace("args", "arg"))


def test_nothing_is_looked_for_that_the_run_has_a_copy_of(load, folder):
    from launcher.spec import load_spec

    os.unlink(folder / "train.py")
    (folder / "spec.json").write_text(f'{{"name": "x", "stage": "script", "script": {{"path": "{folder}/train.py"}}}}')
    assert load_spec(folder / "spec.json", copied=("script.path",)).spec.script.path == f"{folder}/train.py"
