"""Finds a run by id, unique prefix, name, directory, ``last`` or ``last-1``."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from launcher.contract.files import DAMAGE, read_json
from launcher.contract.paths import PIPELINE, RunPaths
from launcher.contract.pipeline import list_stages
from launcher.contract.plan import Plan
from launcher.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a name means: a run, one stage of a pipeline, or a pipeline as a whole.

    ``root`` is its folder; ``stages`` the runs in it, in their order, of a run or a stage itself; ``missing`` names
    the stages of a pipeline that have no run directory any more.
    """

    root: Path
    stages: list[RunPaths]
    is_pipeline: bool = False
    missing: list[str] = field(default_factory=list)

    @property
    def current(self) -> RunPaths:
        """The first stage that is not complete, else the last."""
        return next((paths for paths in self.stages if not paths.completion.exists()), self.stages[-1])


def list_runs(runs: Path) -> list[Path]:
    """The folders of the submitted runs and pipelines below ``runs``, the newest submission first."""
    found = {folder: _submitted_at(folder) for folder in _list_folders(runs)}
    return sorted((folder for folder, t in found.items() if t is not None), key=lambda folder: -(found[folder] or 0.0))


def find(name: str, runs: Path) -> Found:
    """The run, the pipeline or, as ``PIPELINE/STAGE``, the stage that ``name`` means.

    Raises:
        UserError: as :func:`find_root`; the pipeline's record is damaged, or all of its stages are gone.
    """
    return _look_into(find_root(name, runs))


def find_root(name: str, runs: Path) -> Path:
    """The folder of what ``name`` means; a damaged pipeline has one as well.

    Raises:
        UserError: nothing, or several, are meant.
    """
    if (as_folder := Path(name).resolve()) and _is_run(as_folder):
        return as_folder
    head, _, stage = name.partition("/")
    root = _find_folder(head, runs.resolve())
    if not stage:
        return root
    if not (root / PIPELINE).is_file():
        raise UserError(f"{name}: {root.name} is a single run, without stages")
    if _is_run(root / stage):
        return root / stage
    known = ", ".join(paths.root.name for paths in _look_into(root).stages)
    raise UserError(f"{name}: no stage {stage}; the stages of {root.name} are {known}")


def name_by_place(root: Path) -> str:
    """The run id of the run in ``root`` by its place, for where its plan cannot be read."""
    return f"{root.parent.name}/{root.name}" if (root.parent / PIPELINE).is_file() else root.name


def read_plan(paths: RunPaths) -> Plan:
    """The plan of a run.

    Raises:
        FileNotFoundError: ``paths`` is no run directory (no plan.json).
        UserError: the file is damaged.
    """
    try:
        return Plan.load(paths.plan)
    except FileNotFoundError:
        raise
    except DAMAGE as error:
        raise UserError(
            f"{error}\nhint: put a copy of it back; checkpoints, ledger and logs beside it are files of their own"
        ) from error


def _look_into(root: Path) -> Found:
    if not (root / PIPELINE).is_file():
        return Found(root=root, stages=[RunPaths(root)])
    try:
        stages = list_stages(root)
    except DAMAGE as error:
        raise UserError(f"{error}\nhint: each stage is a run of its own, {root.name}/STAGE") from error
    there = [paths for paths in stages if paths.plan.is_file()]
    if not there:
        raise UserError(f"{root.name}: the folders of all its stages are gone")
    missing = [paths.root.name for paths in stages if paths not in there]
    return Found(root=root, stages=there, is_pipeline=True, missing=missing)


def _find_folder(name: str, runs: Path) -> Path:
    if match := re.fullmatch(r"last(?:-(\d+))?", name):
        submitted, back = list_runs(runs), int(match[1] or 0)
        if back < len(submitted):
            return submitted[back]
        raise UserError(
            f"{name}: {len(submitted)} runs were submitted below {runs}\n"
            "hint: --runs or TUNEYARD_RUNS says where they are"
        )
    if _is_run(runs / name):
        return runs / name
    same_name = [folder for folder in list_runs(runs) if _read_name(folder) == name]
    if same_name:
        return same_name[0]
    matches = sorted(folder for folder in _list_folders(runs) if folder.name.startswith(name))
    if len(matches) == 1:
        return matches[0]
    if matches:
        known = ", ".join(folder.name for folder in matches[:8])
        raise UserError(f"{name} is the start of several runs: {known}\nhint: give more of the id")
    raise UserError(f"no run {name} below {runs}\nhint: `tuneyard status` lists the runs; --runs says where they are")


def _list_folders(runs: Path) -> list[Path]:
    return [file.parent for pattern in ("*/plan.json", f"*/{PIPELINE}") for file in runs.glob(pattern)]


def _is_run(folder: Path) -> bool:
    return (folder / "plan.json").is_file() or (folder / PIPELINE).is_file()


def _submitted_at(folder: Path) -> float | None:
    """Seconds since the epoch, or None for what was only planned."""
    try:
        records = [read_json(paths.submission) for paths in list_stages(folder)]
        return max((float(record["t"]) for record in records if record is not None), default=None)
    except DAMAGE:
        return 0.0  # a damaged record must not hide the other runs


def _read_name(folder: Path) -> str | None:
    try:
        record = read_json(folder / PIPELINE) or read_json(RunPaths(folder).spec) or {}
        return record.get("name")
    except DAMAGE:
        return None
