"""Takes the snapshot of the code that a run imports, with the state of the user's repository."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import launcher
from launcher.contract.files import make_folder, write_json
from launcher.contract.paths import RunPaths

_LEFT_OUT = shutil.ignore_patterns("__pycache__", "_data")


def take_snapshot(paths: RunPaths, repository: Path | None) -> None:
    """Copy tuneyard's own packages to ``code/`` and write ``git.json`` of the repository around the file, if given."""
    package = Path(launcher.__file__).parent
    make_folder(paths.code)
    for name in ("launcher", "jobs"):
        target = paths.code / name
        if target.exists():
            shutil.rmtree(target)
        shutil.copytree(package.parent / name, target, ignore=_LEFT_OUT)
    if repository is not None:
        write_json(paths.git, read_git(repository.resolve().parent))


def read_git(folder: Path) -> dict[str, Any]:
    """Commit, branch and changed files of the repository around ``folder``; all None outside one.

    The remote's address is left out: people keep tokens in it.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain")
    return {
        "tuneyard": launcher.__version__,
        "commit": commit,
        "branch": _git(folder, "rev-parse", "--abbrev-ref", "HEAD") if commit else None,
        "changed_files": None if changed is None else [line[3:] for line in changed.splitlines()],
    }


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None
