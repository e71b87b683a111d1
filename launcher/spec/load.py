"""Loads a spec: text, overrides and environment in, one frozen value or every problem out."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.contract.spec import Spec
from launcher.errors import Problem, SpecError

from .checks import find_complaints
from .environment import substitute
from .overrides import apply_overrides
from .paths import resolve_paths
from .stages import find_bad_references, split_stages
from .text import parse_text, read_text
from .tree import Node, find_node
from .validate import get_adapter, validate


@dataclass(frozen=True, kw_only=True)
class LoadedSpec:
    """A spec, the text it came from (overrides not in it), and the places of its values."""

    spec: Spec
    source: str
    path: Path
    _root: Node = field(repr=False)

    def problem(self, key: str, message: str, hint: str | None = None) -> Problem:
        """A problem with the dotted ``key``, at its value in the file or override, or else at the section around it."""
        return make_problem(self._root, key, message, hint)


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
    loaded, found = _load(root, source, path, environ, problems, copied)
    if found or loaded is None:
        raise SpecError(sort_problems(found, overrides))
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
    shared = list(problems)
    stages: dict[str, LoadedSpec] = {}
    for name, tree in (trees or {"": root}).items():
        wrong = find_bad_references(tree, list(stages))
        loaded, found = _load(tree, source, path, environ, [*shared, *wrong])
        # What all stages share is wrong in each of them, and told once.
        problems += [problem for problem in found if problem not in problems]
        if loaded is not None:
            stages[name] = loaded
    if problems:
        raise SpecError(sort_problems(problems, overrides))
    return stages


def _load(
    root: Node,
    source: str,
    path: Path,
    environ: Mapping[str, str] | None,
    problems: list[Problem],
    copied: Collection[str] = (),
) -> tuple[LoadedSpec | None, list[Problem]]:
    """The spec that ``root`` describes, with ``problems`` and those that are found."""
    problems = list(problems)
    problems += substitute(root, Spec, os.environ if environ is None else environ)
    problems += resolve_paths(root, Path(os.path.abspath(path)).parent, Path.cwd(), copied)
    _keep_arguments(root)
    spec, found, bad = validate(Spec, root, problems)
    problems += found
    if spec:
        problems += [make_problem(root, *complaint) for complaint in find_complaints(spec, bad)]
    return (LoadedSpec(spec=spec, source=source, path=path, _root=root) if spec else None), problems


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
