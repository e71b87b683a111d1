"""Splits the tree of a pipeline into one tree per stage, each laid over what all stages share."""

import re
import typing
from collections.abc import Iterator, Mapping, Sequence

from launcher.contract.pipeline import REFERENCE
from launcher.contract.spec import Stage
from launcher.errors import Problem

from .tree import Node, Place, clip

KEY = "stages"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_WHOLE = {
    "name": "the pipeline has one name, and each stage is named by its key here",
    "cluster": "one pipeline runs on one cluster; set cluster at the top",
    "stages": "stages do not nest",
    "sweep": "a sweep stands at the top",
}
"""Keys that a stage cannot change, and why."""


def split_stages(root: Node) -> tuple[dict[str, Node], list[Problem]]:
    """Stage name -> its tree, in their order; a file without stages gives none. The trees share no node.

    A stage that does not say what it is, and is called as a kind of stage, is of that kind: ``stages: {sft: {}}``.
    """
    section = root.value.get(KEY) if isinstance(root.value, dict) else None
    if section is None or section.value in (None, {}):
        return {}, []
    if not isinstance(section.value, dict):
        hint = "such as stages: {sft: {}, dpo: {data: {train: pairs.jsonl, format: preference}}}"
        return {}, [section.place.problem(KEY, "expected a section: stage name -> what it changes", hint)]
    shared = _without(root, KEY)
    trees: dict[str, Node] = {}
    problems: list[Problem] = []
    for name, stage in section.value.items():
        problems += _check_stage(name, stage)
        if _NAME.fullmatch(name) and isinstance(stage.value, dict | None):
            trees[name] = _merge(shared, _name_kind(name, stage))
    return trees, problems


def find_bad_references(root: Node, earlier: Sequence[str] | None) -> list[Problem]:
    """What is wrong with ``${stages...}`` below ``root``; ``earlier`` are the stages before this one, None any."""
    return list(_find_bad_references(root, (), earlier))


def _find_bad_references(node: Node, path: tuple[str | int, ...], earlier: Sequence[str] | None) -> Iterator[Problem]:
    if isinstance(node.value, dict):
        for name, child in node.value.items():
            yield from _find_bad_references(child, (*path, name), earlier)
    elif isinstance(node.value, list):
        for index, child in enumerate(node.value):
            yield from _find_bad_references(child, (*path, index), earlier)
    elif isinstance(node.value, str) and "${stages" in node.value:
        key, known = ".".join(map(str, path)), ", ".join(earlier or [])
        if "${stages" in REFERENCE.sub("", node.value):
            hint = "write ${stages.NAME.checkpoint}, or .checkpoint.best or .checkpoint.last"
            yield node.place.problem(key, f"{clip(node.value)} is not a reference to a stage", hint)
            return
        for match in REFERENCE.finditer(node.value):
            if earlier is not None and match["stage"] not in earlier:
                hint = f"the stages before this one: {known}" if known else "only a later stage of a pipeline can refer"
                yield node.place.problem(key, f"{match['stage']} is no earlier stage", hint)


def _check_stage(name: str, stage: Node) -> Iterator[Problem]:
    if not _NAME.fullmatch(name):
        hint = "1 to 32 of A-Z a-z 0-9 _ -, the first a letter or digit"
        yield stage.key_place.problem(f"{KEY}.{clip(name)}", "cannot be the name of a stage", hint)
    elif isinstance(stage.value, dict):
        for key, why in _WHOLE.items():
            if key in stage.value:
                yield stage.value[key].key_place.problem(f"{KEY}.{name}.{key}", "cannot change in a stage", why)
    elif stage.value is not None:
        hint = "write the sections that it changes, or {}"
        yield stage.place.problem(f"{KEY}.{name}", "expected a section", hint)


def _name_kind(name: str, stage: Node) -> Node:
    sections: Mapping[str, Node] = stage.value if isinstance(stage.value, dict) else {}
    if "stage" in sections or name not in typing.get_args(Stage):
        return Node(value=dict(sections), place=stage.place, key_place=stage.key_place)
    place: Place = stage.key_place
    kind = Node(value=name, place=place, key_place=place, text=name)
    return Node(value={"stage": kind, **sections}, place=stage.place, key_place=stage.key_place)


def _merge(under: Node, over: Node) -> Node:
    """``over`` laid over ``under``, section by section; a null of ``over`` clears."""
    if not isinstance(under.value, dict) or not isinstance(over.value, dict):
        return _copy(over)
    names = dict.fromkeys([*under.value, *over.value])
    merged: dict[str, Node] = {}
    for name in names:
        if name in under.value and name in over.value:
            merged[name] = _merge(under.value[name], over.value[name])
        else:
            merged[name] = _copy(over.value[name] if name in over.value else under.value[name])
    return Node(value=merged, place=under.place, key_place=under.key_place)


def _copy(node: Node) -> Node:
    value = node.value
    if isinstance(value, dict):
        value = {name: _copy(child) for name, child in value.items()}
    elif isinstance(value, list):
        value = [_copy(child) for child in value]
    return Node(
        value=value,
        place=node.place,
        key_place=node.key_place,
        text=node.text,
        quoted=node.quoted,
        from_env=node.from_env,
    )


def _without(root: Node, key: str) -> Node:
    assert isinstance(root.value, dict)
    kept = {name: child for name, child in root.value.items() if name != key}
    return Node(value=kept, place=root.place, key_place=root.key_place)
