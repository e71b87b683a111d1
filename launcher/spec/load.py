"""Loads a spec: text, overrides and environment in, one frozen value or every problem out."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.contract.spec import Spec
from launcher.errors import Problem, SpecError

from .checks import find_complaints
from .environment import substitute
from .overrides import apply_overrides
from .parents import get_parent
from .paths import resolve_paths
from .stages import (
    find_bad_references,
    find_lost_overrides,
    find_misplaced_overrides,
    find_missing_kind,
    name_stages,
    prefix_key,
    split_stages,
)
from .text import parse_text, read_text
from .tree import Node, find_node
from .validate import get_adapter, validate


@dataclass(frozen=True, kw_only=True)
class LoadedSpec:
    """A spec, the text it came from (overrides not in it), and the places of its values."""

    spec: Spec
    source: str
    path: Path
    stage: str = ""
    """Its name in a pipeline."""
    _root: Node = field(repr=False)

    def problem(self, key: str, message: str, hint: str | None = None) -> Problem:
        """A problem with the dotted ``key``, at its value in the file or override, or else at the section around it."""
        problem = make_problem(self._root, key, message, hint)
        return replace(problem, key=prefix_key(self.stage, key))


def load_spec(
    path: Path,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    copied: Collection[str] = (),
) -> LoadedSpec:
    """The spec of one run in ``path`` with ``overrides`` (``a.b=value``) laid over it.

    ``environ`` is by default this process's. A reference to another stage of its pipeline is left as it is.

    The files of keys in ``copied`` are not looked for: the run has a copy, and they may have gone.

    Raises:
        SpecError: with everything that is wrong.
    """
    source = read_text(path)
    root, problems = parse_text(source, str(path))
    problems += apply_overrides(root, overrides, Spec)
    loaded, found = _load(root, source, path, environ, problems, copied=copied)
    if (problems := problems + found) or loaded is None:
        raise SpecError(sort_problems(problems, overrides))
    return loaded


def load_stages(
    path: Path, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> dict[str, LoadedSpec]:
    """Stage name -> its spec, in their order, of the pipeline in ``path``; of a file without stages its only one
    under the empty name. ``overrides`` may reach into a stage: ``stages.dpo.train.max_steps=60``.

    Raises:
        SpecError: with everything that is wrong.
    """
    source = read_text(path)
    root, problems = parse_text(source, str(path))
    problems += apply_overrides(root, overrides, Spec)
    trees, found = split_stages(root)
    problems += found
    problems += find_misplaced_overrides(root, trees)
    stages: dict[str, LoadedSpec] = {}
    wrong: dict[str, list[Problem]] = {}
    earlier: dict[str, Spec | None] = {}
    for name, tree in (trees or {"": root}).items():
        loaded, wrong[name] = _load(tree, source, path, environ, problems, stage=name, earlier=earlier)
        earlier[name] = loaded.spec if loaded is not None and not wrong[name] else None
        if loaded is not None:
            stages[name] = loaded
    problems += name_stages(root, wrong) if trees else wrong[""]
    problems += find_lost_overrides(root)
    if problems:
        raise SpecError(sort_problems(problems, overrides))
    return stages


def _load(
    root: Node,
    source: str,
    path: Path,
    environ: Mapping[str, str] | None,
    refused: Sequence[Problem],
    *,
    copied: Collection[str] = (),
    stage: str = "",
    earlier: Mapping[str, Spec | None] | None = None,
) -> tuple[LoadedSpec | None, list[Problem]]:
    """The spec that ``root`` describes, and what is found beside the problems ``refused``, whose keys are left out.

    ``earlier`` has the stages before ``stage``, None for one that is itself wrong; without it they are not known.
    """
    refused = [replace(problem, key=problem.key.removeprefix(prefix_key(stage, "") + ".")) for problem in refused]
    problems = find_missing_kind(stage, root)
    problems += substitute(root, Spec, os.environ if environ is None else environ)
    problems += find_bad_references(root, earlier)
    problems += resolve_paths(root, Path(os.path.abspath(path)).parent, Path.cwd(), copied)
    _keep_arguments(root)
    spec, found, bad = validate(Spec, root, [*refused, *problems])
    problems += found
    if spec is None:
        return None, problems
    parent = get_parent(spec, earlier or {})
    problems += [make_problem(root, *complaint) for complaint in find_complaints(spec, bad, parent)]
    return LoadedSpec(spec=spec, source=source, path=path, stage=stage, _root=root), problems


def json_schema() -> dict[str, Any]:
    """The JSON schema of a spec, for editors that complete and check YAML."""
    schema = get_adapter(Spec).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "tuneyard experiment", **schema}


def make_problem(root: Node, key: str, message: str, hint: str | None = None) -> Problem:
    """A problem with ``key``, at its value in ``root``, or else at the key of the section around it."""
    node, is_there = find_node(root, tuple(key.split(".")))
    place = node.place if is_there and not isinstance(node.value, dict) else node.key_place
    return place.problem(key, message, hint)


def _keep_arguments(root: Node) -> None:
    """A script's arguments are text as it was written, as a shell would hand them over: 1e-4 stays 1e-4."""
    node, is_there = find_node(root, ("script", "args"))
    for item in node.value if is_there and isinstance(node.value, list) else []:
        if isinstance(item.value, bool | int | float):
            item.value = item.text


def sort_problems(problems: Sequence[Problem], overrides: Sequence[str] = ()) -> list[Problem]:
    """In the order of the text, then of the overrides."""

    def order(problem: Problem) -> tuple[int, int, int]:
        is_override = problem.line is None
        return is_override, overrides.index(problem.source_line) if is_override else problem.line or 0, problem.col

    return sorted(problems, key=order)
