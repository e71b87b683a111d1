"""Finds a run by id, unique prefix, name, directory, ``last`` or ``last-1``."""

import re
from pathlib import Path

from launcher.contract.files import read_json
from launcher.contract.paths import PIPELINE, RunPaths
from launcher.contract.pipeline import list_stages
from launcher.errors import UserError


def list_runs(runs: Path) -> list[Path]:
    """The folders of the submitted runs and pipelines below ``runs``, the newest submission first."""
    found = {folder: _submitted_at(folder) for folder in _list_folders(runs)}
    return sorted((folder for folder, t in found.items() if t is not None), key=lambda folder: -(found[folder] or 0.0))


def find_stages(name: str, runs: Path) -> list[RunPaths]:
    """The runs that ``name`` means: one, or all stages of a pipeline; ``PIPELINE/STAGE`` is one of them.

    Raises:
        UserError: no run, or several, are meant.
    """
    if (as_folder := Path(name).resolve()) and _is_run(as_folder):
        return list_stages(as_folder)
    runs = runs.resolve()
    head, _, stage = name.partition("/")
    stages = list_stages(_find_folder(head, runs))
    if not stage:
        return stages
    for paths in stages:
        if paths.root.name == stage and len(stages) > 1:
            return [paths]
    known = ", ".join(paths.root.name for paths in stages) if len(stages) > 1 else "none: it is a single run"
    raise UserError(f"{name}: no stage {stage}; the stages of {stages[0].root.parent.name} are {known}")


def find_run(name: str, runs: Path) -> RunPaths:
    """The one run that ``name`` means; of a pipeline the first stage that is not complete, else the last.

    Raises:
        UserError: no run, or several, are meant.
    """
    stages = find_stages(name, runs)
    return next((paths for paths in stages if not paths.completion.exists()), stages[-1])


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
    except (KeyError, TypeError, ValueError):
        return 0.0  # a damaged record must not hide the other runs


def _read_name(folder: Path) -> str | None:
    try:
        record = read_json(folder / PIPELINE) or read_json(RunPaths(folder).spec) or {}
        return record.get("name")
    except ValueError:
        return None
