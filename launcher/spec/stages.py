"""Splits the tree of a pipeline into one tree per stage, each laid over what all stages share."""

import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from launcher.contract.pipeline import REFERENCE, REFERENCE_START
from launcher.contract.spec import Spec, Stage
from launcher.errors import Problem

from .not_yet import ROWS
from .overrides import list_rivals
from .tree import OVERRIDE, Node, Place, clip, find_node

KEY = "stages"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_WHOLE = {
    "name": "the pipeline has one name, and each stage is named by its key here",
    "cluster": "one pipeline runs on one cluster; set cluster at the top",
    "stages": "stages do not nest",
    "sweep": "a sweep stands at the top",
}
"""Keys that a stage cannot change, and why."""
_FILLED_IN = (("model", "base"), ("data", "train"), ("data", "eval"), ("script", "args"), ("ppo", "reward"))
"""Where a reference may stand: what only the job reads. All else is looked at before, or never reaches the job."""


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
            stage = _name_kind(name, stage)
            trees[name] = _merge(_without_rivals(shared, stage), stage)
    return trees, problems


def find_lost_overrides(root: Node) -> list[Problem]:
    """The overrides of what all stages share that reach none of them, because each writes the key itself."""
    section = root.value.get(KEY) if isinstance(root.value, dict) else None
    if section is None or not isinstance(section.value, dict) or not section.value:
        return []
    stages = {name: _name_kind(name, stage) for name, stage in section.value.items()}
    problems = []
    for path, node in _list_leaves(_without(root, KEY), ()):
        if node.place.file == OVERRIDE and all(_writes(stage, path) for stage in stages.values()):
            key = ".".join(path)
            either = " or ".join([key, *(rival for name, rival in list_rivals() if name == key)])
            message = f"has no effect: {either} is set in {' and in '.join(stages)}"
            hint = f"name the stage, such as {KEY}.{next(iter(stages))}.{key}={node.text}"
            problems.append(node.place.problem(key, message, hint))
    return problems


def find_misplaced_overrides(root: Node, trees: Mapping[str, Node]) -> list[Problem]:
    """The overrides, for all stages, of the section of one kind of stage, where some of ``trees`` are of another."""
    tops = {name: tree.value for name, tree in trees.items() if isinstance(tree.value, dict)}
    kinds = {name: top["stage"].value for name, top in tops.items() if "stage" in top}
    problems = []
    for path, node in _list_leaves(_without(root, KEY), ()) if kinds else ():
        meant = [name for name, kind in kinds.items() if kind == path[0]]
        others = [name for name in kinds if name not in meant]
        if node.place.file == OVERRIDE and meant and others:
            message = f"settings of the {path[0]} stage, and the stage {others[0]} is {kinds[others[0]]}"
            hint = f"name the stage: {KEY}.{meant[0]}.{node.place.source_line}"
            problems.append(node.place.problem(".".join(path), message, hint))
    return problems


def find_missing_kind(name: str, tree: Node) -> list[Problem]:
    """What is missing in the stage ``name`` that neither says nor is called what it is."""
    assert isinstance(tree.value, dict)
    if not name or "stage" in tree.value:
        return []
    works = next(row.works for row in ROWS if row.key == "stage")
    return [tree.key_place.problem("stage", "is missing", f"write {works}")]


def name_stages(root: Node, found: Mapping[str, Sequence[Problem]]) -> list[Problem]:
    """All problems of the stages' trees: what is wrong in each stage once, all else with the stage in its key."""
    assert isinstance(root.value, dict)
    stages = root.value[KEY].value
    assert isinstance(stages, dict)

    def share(name: str, problem: Problem) -> Problem:
        """What lacks in a whole stage stands at its key, but what lacks in all of them is the top's."""
        is_whole = len(found) > 1 and _place_of(problem) == stages[name].key_place
        return root.key_place.problem(problem.key, problem.message, problem.hint) if is_whole else problem

    everywhere = set.intersection(*({share(name, item) for item in items} for name, items in found.items()))
    told: dict[Problem, None] = {}
    for name, items in found.items():
        own = set(_list_places(stages[name]))
        for item in items:
            shared = share(name, item)
            is_shared = shared in everywhere and _place_of(shared) not in own
            meant = tuple(prefix_key(name, key) for key in item.meant)
            told[shared if is_shared else replace(item, key=prefix_key(name, item.key), meant=meant)] = None
    return list(told)


def prefix_key(name: str, key: str) -> str:
    """The dotted ``key`` of the stage ``name``, from the top; of a file without stages, as it is."""
    return f"{KEY}.{name}.{key}".rstrip(".") if name else key


def find_bad_references(root: Node, earlier: Mapping[str, Spec | None] | None) -> list[Problem]:
    """What is wrong with ``${stages...}`` below ``root``.

    ``earlier`` has the stages before this one, None for one that is itself wrong; without it they are not known.
    """
    return list(_find_bad_references(root, (), earlier))


def _find_bad_references(
    node: Node, path: tuple[str | int, ...], earlier: Mapping[str, Spec | None] | None
) -> Iterator[Problem]:
    if isinstance(node.value, dict):
        for name, child in node.value.items():
            yield from _find_bad_references(child, (*path, name), earlier)
    elif isinstance(node.value, list):
        for index, child in enumerate(node.value):
            yield from _find_bad_references(child, (*path, index), earlier)
    elif isinstance(node.value, str) and REFERENCE_START in node.value:
        for message, hint in _judge_text(node, path, earlier):
            yield node.place.problem(".".join(map(str, path)), message, hint)


def _judge_text(
    node: Node, path: tuple[str | int, ...], earlier: Mapping[str, Spec | None] | None
) -> Iterator[tuple[str, str]]:
    text = str(node.value)
    if tuple(part for part in path if isinstance(part, str)) not in _FILLED_IN:
        keys = ", ".join(map(".".join, _FILLED_IN))
        yield "a reference to a stage cannot stand here", f"write the value itself; what takes one is {keys}"
    elif REFERENCE_START in REFERENCE.sub("", text):
        hint = "write ${stages.NAME.checkpoint}, or .checkpoint.best or .checkpoint.last"
        yield f"{clip(node.text)} is not a reference to a stage", hint
    elif earlier is not None:
        for match in REFERENCE.finditer(text):
            stage, parent = match["stage"], earlier.get(match["stage"])
            if stage not in earlier:
                known = ", ".join(earlier)
                none = "no stage is before this one, and only a later stage of a pipeline can refer"
                hint = f"the stages before this one: {known}" if known else none
                yield f"{stage} is no earlier stage", hint
            elif parent is not None and match["kind"] == "best":
                newest = f"write {match[0].replace('.best', '')}, which is then the newest"
                if (metric := parent.train.keep_best) is None:
                    message = f"{stage} has train.keep_best: null, so none of its checkpoints is best"
                    yield message, f"{newest}, or name a metric there"
                elif _measures_nothing(parent):
                    message = f"{stage} has data.eval: null, so none of its checkpoints has {metric} and is best"
                    yield message, f"{newest}, or give {stage} rows to evaluate, such as data.eval: 0.05"


def _measures_nothing(spec: Spec) -> bool:
    """Whether its checkpoints will have no metric: those are of evaluations. A script logs what it likes, and where
    none is saved the final save is taken."""
    return spec.stage != "script" and bool(spec.data and spec.data.eval is None and spec.train.save_every_steps)


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


def _writes(stage: Node, path: tuple[str, ...]) -> bool:
    """Whether ``stage`` has a word of its own on the key at ``path``, or on the one that it excludes."""
    rivals = [tuple(rival.split(".")) for key, rival in list_rivals() if key == ".".join(path)]
    around, is_there = find_node(stage, path)
    is_cleared = not is_there and not isinstance(around.value, dict)
    return is_there or is_cleared or any(_is_set(stage, rival) for rival in rivals)


def _is_set(root: Node, path: tuple[str, ...]) -> bool:
    node, is_there = find_node(root, path)
    return is_there and node.value is not None


def _without_rivals(shared: Node, stage: Node) -> Node:
    """``shared`` without what excludes a key that ``stage`` writes: its max_steps replaces the epochs of all."""
    shared = _copy(shared)
    for key, rival in list_rivals():
        *sections, last = rival.split(".")
        around, is_there = find_node(shared, tuple(sections))
        if is_there and isinstance(around.value, dict) and _is_set(stage, tuple(key.split("."))):
            around.value.pop(last, None)
    return shared


def _list_leaves(node: Node, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Node]]:
    if isinstance(node.value, dict):
        for name, child in node.value.items():
            yield from _list_leaves(child, (*path, name))
    else:
        yield path, node


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
    return Node(value=merged, place=over.place, key_place=over.key_place)


def _list_places(node: Node) -> Iterator[Place]:
    yield from (node.place, node.key_place)
    items = node.value.values() if isinstance(node.value, dict) else node.value if isinstance(node.value, list) else ()
    for item in items:
        yield from _list_places(item)


def _place_of(problem: Problem) -> Place:
    return Place(file=problem.file, line=problem.line, col=problem.col, source_line=problem.source_line)


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
