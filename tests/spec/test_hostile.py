"""Hostile and broken text is refused in a moment, with its place and a remedy; nothing in it runs or grows."""

import time
import tracemalloc
from pathlib import Path

import pytest

from launcher.errors import SpecError
from launcher.spec import load_spec

from .texts import VALID, edit

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))

HOSTILE = {
    "tab": ("name: a\n\tstage: sft\n", "spec.yaml:2:1: not YAML: a tab"),
    "duplicate": (VALID + "name: b\n", "spec.yaml:9:1: name: the key stands twice, first at line 1, column 1"),
    "alias": ("name: &n a\nstage: *n\n", "spec.yaml:2:8: stage: an alias (*...) cannot stand here"),
    "anchor": ("name: &n a\n", "spec.yaml:1:7: name: an anchor (&...) cannot stand here"),
    "bomb": (BOMB, "spec.yaml:2:10: a1.0: an alias (*...) cannot stand here"),
    "merge key": ("base: &b {a: 1}\n<<: *b\n", "spec.yaml:2:5: <<: an alias (*...) cannot stand here"),
    "python tag": ("name: !!python/object/apply:os.system [touch x]\n", "spec.yaml:1:7: name: a tag (!...) cannot"),
    "verbatim tag": ("name: !<tag:yaml.org,2002:python/name:os.system> x\n", "1:7: name: a tag (!...) cannot"),
    "own tag": ("name: !mine x\n", "spec.yaml:1:7: name: a tag (!...) cannot stand here"),
    "standard tag": ("name: !!str 1\n", "spec.yaml:1:7: name: a tag (!...) cannot stand here"),
    "tag handle": ("name: !m!x 1\n", "spec.yaml:1:7: not YAML: a tag (!...)"),
    "two documents": (VALID + "---\nname: b\n", "spec.yaml:9:1: a second document cannot stand here"),
    "directive": ("%YAML 1.1\n---\nname: no\n", "a directive (%...) cannot stand here"),
    "unknown directive": ("%FOO\n", "spec.yaml:2:1: not YAML: a directive (%...)"),
    "not UTF-8": (b"name: caf\xe9\n", "spec.yaml:1:10: the byte 0xe9 is not UTF-8"),
    "UTF-16": (VALID.encode("utf-16"), "spec.yaml:1:1: the byte 0xff is not UTF-8"),
    "NUL": (b"name: a\nstage: s\x00ft\n", "spec.yaml:2:9: the character U+0000 cannot stand in YAML"),
    "escape": (b"name: \x1b[31m\n", "spec.yaml:1:7: the character U+001B cannot stand in YAML"),
    "escaped NUL": ('name: "a\\0b"\n', "spec.yaml:1:7: name: a control character cannot stand here"),
    "surrogate": ('name: "\\ud800"\n', "a control character cannot stand here"),
    "top-level list": ("- a\n", "spec.yaml:1:1: expected `key: value` lines at the top level, got a list"),
    "top-level text": ("hello\n", "expected `key: value` lines at the top level, got a single value"),
    "number as key": ("1: x\n", "spec.yaml:1:1: the key 1 is not text"),
    "null as key": ("~: x\n", "spec.yaml:1:1: the key ~ is not text"),
    "list as key": ("? [a]\n: x\n", "spec.yaml:1:3: a list or section as a key is not text"),
    "open quote": ('name: "a\nstage: sft\n', "spec.yaml:1:7: not YAML: a quote that is never closed"),
    "open list": ("name: [a\nstage: sft\n", "not YAML: a list without its end, or a comma"),
    "open braces": ("model: {base: x", "spec.yaml:1:8: not YAML: a section without its end, or a comma"),
    "two colons": ("name: a: b\n", "spec.yaml:1:8: not YAML: a colon where none can be"),
    "no space": ("name:a\nstage: sft\n", "not YAML: a colon where none can be"),
    "indent": ("model:\n    base: x\n  dtype: y\n", "spec.yaml:3:3: not YAML: a line that does not fit"),
    "backtick": ("name: `id`\n", "spec.yaml:1:7: not YAML: a character that cannot start a value"),
    "deep list": ("a: " + "[" * 100_000, "spec.yaml:1:35: more than 32 levels of nesting"),
    "deep section": ("{a: " * 100_000, "more than 32 levels of nesting"),
    "many values": ("a: [" + "1, " * 300_000 + "]", "more than 10,000 values"),
    "long number": (edit(**{"train.seed": "9" * 5000}), "train.seed: 99999"),
    "huge integer": (edit(**{"train.seed": "9" * 4000}), "train.seed: "),
    "10 MB": ("a: b\n" * 2_000_000, "spec.yaml:1:1: is larger than 1,000,000 bytes"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_text_is_refused_with_its_place(problems, folder, case):
    text, message = HOSTILE[case]
    before, started = set(folder.iterdir()), time.monotonic()
    tracemalloc.start()
    told = problems(text)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert message in told
    assert "hint: " in told
    assert "Traceback" not in told
    assert len(told) < 40_000
    assert time.monotonic() - started < 60  # bounded, on a busy machine too
    assert peak < 40e6
    assert set(folder.iterdir()) - before <= {folder / "spec.yaml"}


def test_a_byte_order_mark_crlf_and_comments_change_nothing(load):
    plain = load(VALID).spec
    assert load(b"\xef\xbb\xbf" + VALID.encode()).spec == plain
    assert load(VALID.replace("\n", "  # why\r\n")).spec == plain
    assert load("---\n" + VALID + "...\n").spec == plain


@pytest.mark.parametrize("path", ["missing.yaml", ".", "a\0b", "x" * 300, "spec.yaml/x"])
def test_a_file_that_cannot_be_read_is_a_users_error(folder, path):
    Path("spec.yaml").write_text(VALID)
    with pytest.raises(SpecError, match="cannot be read"):
        load_spec(Path(path))


@pytest.mark.parametrize("override", [
    "a", "=1", "-x=1", "a..b=1", "train.seed=", "train.seed=!!python/name:os.system x", "train.seed=*x",
    "train.seed=[1",
    "data.system=a # b", "data.system=a\nname: b", "data.system=a\0", "data.system=\udcff", "model.base.x=1", "$(id)=1",
    "train.seed=.nan", "data.system=%x", "name=a\n#SBATCH --x", "train.seed=--- 1", "tracking.tags.0=a",
])  # fmt: skip
def test_a_hostile_override_is_refused_and_named(problems, override):
    told = problems(VALID, override)
    assert told.startswith("override: ")
    assert "hint: " in told
