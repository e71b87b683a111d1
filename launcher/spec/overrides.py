"""Lays command-line overrides (``a.b=value``) over the tree of a file."""

import difflib
import re
from collections.abc import Iterator, Sequence

from launcher.errors import Problem, SpecError

from .schema import accepts, find_key, fit_text
from .text import parse_value
from .tree import OVERRIDE, Node, Place, find_node

EXCLUSIVE = (("train.max_steps", "train.epochs"), ("train.warmup_steps", "train.warmup_ratio"))
_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


def apply_overrides(root: Node, overrides: Sequence[str], cls: type) -> list[Problem]:
    """Set every override in ``root``, in place and in order, so the last one wins; returns what is wrong with them."""
    problems: list[Problem] = []
    for override in overrides:
        try:
            _apply(root, override, cls)
        except SpecError as error:
            problems += error.problems
    _clear_rivals(root, overrides)
    return problems


def _check_stage(root: Node, path: Sequence[str], start: Place) -> None:
    """An override changes the stages that the file has; a misspelt name must not add one."""
    if path[0] != "stages" or len(path) < 3:
        return
    section = root.value.get("stages") if isinstance(root.value, dict) else None
    names = list(section.value) if section is not None and isinstance(section.value, dict) else []
    if path[1] not in names:
        close = difflib.get_close_matches(path[1], names, n=1)
        known = f"the stages of the file are {', '.join(names)}" if names else "the file has no stages"
        hint = f"did you mean stages.{close[0]}?" if close else known
        raise SpecError([start.problem(f"stages.{path[1]}", "is no stage of the file", hint)])


def list_rivals() -> Iterator[tuple[str, str]]:
    """Each key that excludes another, and that other one."""
    for pair in EXCLUSIVE:
        yield from (pair, pair[::-1])


def _clear_rivals(root: Node, overrides: Sequence[str]) -> None:
    """An override of one of two keys that exclude each other clears the file's other one, in a stage the stage's."""
    named = {name for name, equals, text in (item.partition("=") for item in overrides) if equals and text != "null"}
    for name in named:
        stage = re.match(r"stages\.[^.]+\.", name)
        prefix = stage[0] if stage else ""
        for key, rival in list_rivals():
            if name == prefix + key and prefix + rival not in named:
                *sections, last = (prefix + rival).split(".")
                around, is_there = find_node(root, tuple(sections))  # missing where the override itself was refused
                if is_there and isinstance(around.value, dict):
                    around.value.pop(last, None)


def _apply(root: Node, override: str, cls: type) -> None:
    name, equals, text = override.partition("=")
    start = Place(file=OVERRIDE, line=None, col=1, source_line=override)
    if not equals:
        raise SpecError([start.problem("", "expected key=value", "such as train.max_steps=60")])
    if not _KEY.fullmatch(name):
        raise SpecError([start.problem("", "expected a dotted key before the =", "such as train.max_steps=60")])
    path = tuple(name.split("."))
    _check_stage(root, path, start)
    if not text.strip():
        # An unset shell variable must not clear a value by accident.
        hint = f"`{name}=null` clears it; `{name}='\"\"'` is empty text"
        raise SpecError([start.problem(name, "nothing stands after the =", hint)])
    node = parse_value(override, len(name) + 1)
    node.key_place = start
    key = find_key(cls, path)
    if key and not node.quoted and isinstance(node.value, bool | int | float) and not accepts(key.type, node.value):
        # A shell eats quotes, so `resources.partition=2024` is the text "2024" because the schema says text.
        node.value = fit_text(node.text, key.type)
    section = root
    for depth, part in enumerate(path[:-1]):
        assert isinstance(section.value, dict)
        child = section.value.get(part)
        if child is None or child.value is None:
            child = section.value[part] = Node(value={}, place=start, key_place=start)
        if not isinstance(child.value, dict):
            message = f"{'.'.join(path[: depth + 1])} is not a section"
            raise SpecError([start.problem(name, message, "override it as a whole")])
        section = child
    assert isinstance(section.value, dict)
    section.value[path[-1]] = node
