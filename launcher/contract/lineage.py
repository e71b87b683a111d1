"""Lineage: what a run is made from, by name and hash, and the plan with that filled in."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .files import write_json
from .paths import RunPaths
from .pipeline import REFERENCE, read_pipeline
from .plan import Plan
from .values import from_value, read_value, to_value


@dataclass(frozen=True, kw_only=True)
class Parent:
    """A checkpoint of an earlier stage. ``reference`` is the text that stands for it in the spec; ``path`` its
    folder, relative to the run directory of the one that uses it; ``manifest_sha256`` covers every file in it."""

    reference: str
    stage: str
    run_id: str
    path: str
    step: int
    metrics: dict[str, float]
    manifest_sha256: str

    def folder(self, paths: RunPaths) -> Path:
        """Where ``path`` leads from the run directory of the one that uses it."""
        return paths.root.parent / self.path.removeprefix("../")


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """``lineage.json``. ``data`` has path -> SHA-256 of every local file of rows, ``code`` what git.json says."""

    v: int = 1
    t: float
    run_id: str
    parents: list[Parent] = field(default_factory=list)
    data: dict[str, str] = field(default_factory=dict)
    code: dict[str, Any] = field(default_factory=dict)

    def save(self, paths: RunPaths) -> None:
        write_json(paths.lineage, to_value(self))


def read_lineage(paths: RunPaths) -> Lineage | None:
    return read_value(Lineage, paths.lineage)


def find_used(paths: RunPaths) -> set[Path]:
    """The folders of this run that other stages of its pipeline are made from."""
    root = paths.root.parent
    pipeline = read_pipeline(root)
    others = [RunPaths(root / stage) for stage in pipeline.stages] if pipeline else []
    parents = [(other, parent) for other in others if (found := read_lineage(other)) for parent in found.parents]
    return {parent.folder(other) for other, parent in parents if parent.stage == paths.root.name}


def list_references(value: Any) -> list[str]:
    """Every reference to an earlier stage in the texts of ``value`` (as :func:`to_value` gives it), each once."""
    if isinstance(value, str):
        return [match[0] for match in REFERENCE.finditer(value)]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return list(dict.fromkeys(found for item in items for found in list_references(item)))


def fill_in(plan: Plan, paths: RunPaths) -> Plan:
    """``plan`` with the folders of its lineage in place of references; what :mod:`jobs` trains by.

    Raises:
        KeyError: a reference has no parent in ``lineage.json``.
    """
    lineage = read_lineage(paths)
    folders = {parent.reference: parent.folder(paths) for parent in lineage.parents} if lineage else {}
    if not list_references(to_value(plan.spec)):
        return plan
    spec = from_value(type(plan.spec), _replace(to_value(plan.spec), folders))
    return dataclasses.replace(plan, spec=spec)


def _replace(value: Any, folders: dict[str, Path]) -> Any:
    if isinstance(value, str):
        return REFERENCE.sub(lambda match: str(folders[match[0]].resolve()), value)
    if isinstance(value, dict):
        return {key: _replace(item, folders) for key, item in value.items()}
    return [_replace(item, folders) for item in value] if isinstance(value, list) else value
