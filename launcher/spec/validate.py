"""Turns a tree into the frozen dataclass it describes, or into plain words about every key that does not fit.

pydantic finds the problems, and nothing of its wording is kept: each message is written from the key's declaration
and from what the user wrote. The tree goes in as JSON in strict mode, which takes mappings for dataclasses and an
integer for a float, and converts nothing else (https://docs.pydantic.dev/latest/concepts/conversion_table/).
"""

import dataclasses
import difflib
import functools
import json
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from launcher.contract.spec import CONSTRAINT_PATTERN, DURATION_PATTERN, NAME_PATTERN, SLURM_NAME_PATTERN
from launcher.errors import Problem, make_printable

from .scalars import Scalar, read_scalar
from .schema import Key, accepts, choices, describe, find_key, list_keys, list_section, section_of, suggest
from .tree import Node, Path, clip, find_node

if typing.TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")

_BOUNDS = {
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
}
_PATTERNS = {
    NAME_PATTERN: "1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or digit",
    DURATION_PATTERN: "a duration such as 90s, 30m, 4h, 1:30:00 or 2-12:00:00",
    SLURM_NAME_PATTERN: "names of A-Z a-z 0-9 . _ - @ +, separated by commas, the first a letter or digit",
    CONSTRAINT_PATTERN: "feature names of A-Z a-z 0-9 . _ - joined by & | , * ( ) [ ]",
}


@functools.cache
def get_adapter(cls: type) -> "TypeAdapter[Any]":
    """pydantic's validator of the dataclass ``cls``, built once."""
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def validate(cls: type[T], root: Node, refused: Sequence[Problem] = ()) -> tuple[T | None, list[Problem], set[str]]:
    """The value that ``root`` describes, the problems found, and the keys that must not be judged any further.

    Keys of ``refused`` problems are left out. Where there are problems, the value has defaults in those places, so
    that what is right can still be checked; it is None where not even that can be built.
    """
    from pydantic import ValidationError

    bad = {problem.key for problem in refused if problem.key}
    problems: list[Problem] = []
    adapter = get_adapter(typing.cast(type, cls))
    try:
        return adapter.validate_json(_to_json(cls, root, bad), strict=True), [], bad
    except ValidationError as error:
        seen = {_strip_members(cls, item): item for item in error.errors(include_url=False)}
    for path, item in seen.items():
        problems += _explain(cls, root, path, item, bad)
    bad |= {problem.key for problem in problems}
    try:
        return adapter.validate_json(_to_json(cls, root, bad, fill=True), strict=True), problems, bad
    except ValidationError:
        return None, problems, bad


def _explain(cls: type, root: Node, path: Path, item: Mapping[str, Any], bad: set[str]) -> list[Problem]:
    kind, dotted = item["type"], ".".join(map(str, path))
    node, is_there = find_node(root, path)
    if kind == "missing":
        names = [name for name in _required_below(cls, dotted) if name not in bad]
        place = node.key_place
        return [place.problem(name, "is missing", list_keys(cls)[name].help) for name in names]
    if kind == "unexpected_keyword_argument":
        meant = suggest(cls, path)
        bad.update(meant)
        known = ", ".join(list_section(cls, path[:-1]))
        hint = None if meant else f"the keys here are {known}"
        if dotted in meant:
            section, _, leaf = dotted.rpartition(".")
            hint = f"dotted keys are for overrides; in a file write `{section}: {{{leaf}: ...}}`"
        return [dataclasses.replace(node.key_place.problem(dotted, "unknown key", hint), meant=tuple(meant))]
    key = find_key(cls, path)
    if key is None or not is_there:
        return [node.place.problem(dotted, f"cannot be used: {item['msg']}")]
    if kind in _BOUNDS:
        limits = {name: int(v) if isinstance(v, float) and v.is_integer() else v for name, v in item["ctx"].items()}
        got = "" if node.value == "" or isinstance(node.value, list) else f", got {_given(node)}"
        return [node.place.problem(dotted, _BOUNDS[kind].format(**limits) + got, key.help)]
    expected = _PATTERNS.get(key.pattern or "", describe(key.type))
    return [node.place.problem(dotted, f"expected {expected}; got {_given(node)}", _remedy(node, key))]


def _given(node: Node) -> str:
    if node.from_env:
        return f"what {clip(node.text)} holds"  # never the value: it may be a secret
    if node.value is None:
        return "null" if node.text else "nothing"
    if isinstance(node.value, dict | list):
        return "a section" if isinstance(node.value, dict) else "a list"
    return f'text "{clip(node.value)}"' if isinstance(node.value, str) else clip(node.text)


def _remedy(node: Node, key: Key) -> str:
    value, words = node.value, choices(key.type)
    if isinstance(value, str) and not node.from_env:
        likeness = {word: difflib.SequenceMatcher(None, word, value.lower()).ratio() for word in words}
        # Of equally close ones the first that is declared: for zero1 that is zero2, and not zero3.
        if likeness and likeness[nearest := max(likeness, key=likeness.__getitem__)] >= 0.5:
            return f"did you mean {nearest}?"
        if (unquoted := _read(value)) != value and accepts(key.type, unquoted):
            return f"remove the quotes: {make_printable(value)}"
        if (number := _read(value.replace("_", "").replace(",", ""))) != value and accepts(key.type, number):
            return f"write {number}"
        if value.lower() in ("yes", "on", "no", "off") and accepts(key.type, True):
            return f"write {'true' if value.lower() in ('yes', 'on') else 'false'}"
        if value.lower() == "none" and accepts(key.type, None):
            return "write null"
    if isinstance(value, float) and value.is_integer() and accepts(key.type, int(value)):
        return f"write {int(value)}"
    if type(value) in (int, float) and accepts(key.type, "text") and key.pattern in (None, NAME_PATTERN):
        return f'put it in quotes: "{make_printable(node.text)}"'
    if isinstance(value, dict | list) and accepts(key.type, "text"):
        return "put text with a colon, brackets or braces in double quotes"
    if value is None and "a section" in describe(key.type):
        return "remove the key, or write {}"
    if not isinstance(value, dict | list) and "a list" in describe(key.type):
        return f"write a list: [{make_printable(node.text)}]"
    return key.help


def _read(text: str) -> Scalar:
    try:
        return read_scalar(text)
    except ValueError:
        return text


def _strip_members(cls: type, item: Mapping[str, Any]) -> Path:
    """A problem's location without the union members that pydantic names in it (``data.train.list[str]``)."""
    *inner, last = item["loc"]
    path: Path = ()
    for part in inner:
        path = (*path, part) if find_key(cls, (*path, part)) else path
    is_kept = item["type"] == "unexpected_keyword_argument" or find_key(cls, (*path, last))
    return (*path, last) if is_kept else path


def _required_below(cls: type, dotted: str) -> list[str]:
    """The required keys in the missing section ``dotted``, or itself where it is no section."""
    keys = list_keys(cls)
    below = [name for name, key in keys.items() if name.startswith(f"{dotted}.") and key.required]
    return below or [dotted]


def _to_json(cls: type, root: Node, bad: set[str], fill: bool = False) -> str:
    value = _plain(root, "", bad)
    return json.dumps(_fill(cls, value) if fill else value)


def _plain(node: Node, path: str, bad: set[str]) -> Any:
    prefix = f"{path}." if path else ""
    if isinstance(node.value, dict):
        items = {name: child for name, child in node.value.items() if prefix + name not in bad}
        return {name: _plain(child, prefix + name, bad) for name, child in items.items()}
    if isinstance(node.value, list):
        kept = [(f"{prefix}{index}", child) for index, child in enumerate(node.value)]
        return [_plain(child, name, bad) for name, child in kept if name not in bad]
    return node.value


def _fill(cls: type, value: dict[str, Any]) -> dict[str, Any]:
    """``value`` with something harmless under the required keys that it lacks; they are reported already."""
    hints = typing.get_type_hints(cls)
    filled = dict(value)
    for field in dataclasses.fields(cls):
        section, words = section_of(hints[field.name]), choices(hints[field.name])
        if section and isinstance(filled.get(field.name), dict):
            filled[field.name] = _fill(section, filled[field.name])
        elif (
            field.name not in filled
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ):
            filled[field.name] = _fill(section, {}) if section else words[0] if words else "missing"
    return filled
