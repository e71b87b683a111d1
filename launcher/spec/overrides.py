"""Lays command-line overrides (``a.b=value``) over the tree of a file."""

import re
from collections.abc import Sequence

from launcher.errors import Problem, SpecError

from .schema import accepts, find_key, fit_text
from .text import parse_value
from .tree import OVERRIDE, Node, Place

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


def _clear_rivals(root: Node, overrides: Sequence[str]) -> None:
    """An override of one of two keys that exclude each other clears the file's other one."""
    named = {override.partition("=")[0] for override in overrides if not override.endswith("=null")}
    for pair in EXCLUSIVE:
        for name, rival in (pair, pair[::-1]):
            section, key = rival.split(".")
            if name in named and rival not in named and isinstance(root.value, dict):
                node = root.value.get(section)  # missing where the override itself was refused
                if node is not None and isinstance(node.value, dict):
                    node.value.pop(key, None)


def _apply(root: Node, override: str, cls: type) -> None:
    name, equals, text = override.partition("=")
    start = Place(file=OVERRIDE, line=None, col=1, source_line=override)
    if not equals:
        raise SpecError([start.problem("", "expected key=value", "such as train.max_steps=60")])
    if not _KEY.fullmatch(name):
        raise SpecError([start.problem("", "expected a dotted key before the =", "such as train.max_steps=60")])
    path = tuple(name.split("."))
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
