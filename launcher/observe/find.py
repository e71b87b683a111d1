"""Finds a run by id, unique prefix, name, directory, ``last`` or ``last-1``."""

import re
from pathlib import Path

from launcher.contract.files import read_json
from launcher.contract.paths import RunPaths
from launcher.errors import UserError


def list_runs(runs: Path) -> list[RunPaths]:
    """The submitted runs below ``runs``, the newest submission first."""
    found = [RunPaths(file.parent) for file in runs.glob("*/submission.json")]
    return sorted(found, key=_submitted_at, reverse=True)


def _submitted_at(paths: RunPaths) -> float:
    try:
        return float((read_json(paths.submission) or {})["t"])
    except (KeyError, TypeError, ValueError):
        return 0.0  # a damaged record must not hide the other runs


def find_run(name: str, runs: Path) -> RunPaths:
    """The run that ``name`` means; of several runs of one experiment name, the newest.

    Raises:
        UserError: no run, or several, are meant.
    """
    as_folder = Path(name)
    if (as_folder / "plan.json").is_file():
        return RunPaths(as_folder.resolve())
    runs = runs.resolve()
    if match := re.fullmatch(r"last(?:-(\d+))?", name):
        submitted, back = list_runs(runs), int(match[1] or 0)
        if back < len(submitted):
            return submitted[back]
        raise UserError(
            f"{name}: {len(submitted)} runs were submitted below {runs}\n"
            "hint: --runs or TUNEYARD_RUNS says where they are"
        )
    if "/" not in name and (runs / name / "plan.json").is_file():
        return RunPaths(runs / name)
    planned = {file.parent.name: RunPaths(file.parent) for file in sorted(runs.glob("*/plan.json"))}
    same_name = [paths for paths in list_runs(runs) if (read_json(paths.spec) or {}).get("name") == name]
    if same_name:
        return same_name[0]
    matches = [run_id for run_id in planned if run_id.startswith(name)]
    if len(matches) == 1:
        return planned[matches[0]]
    if matches:
        raise UserError(f"{name} is the start of several runs: {', '.join(matches[:8])}\nhint: give more of the id")
    raise UserError(f"no run {name} below {runs}\nhint: `tuneyard status` lists the runs; --runs says where they are")
