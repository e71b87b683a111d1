"""Finds and copies the folder of a user's own script: what a run began with, whatever is edited later."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from launcher.contract.files import make_folder
from launcher.contract.spec import Script
from launcher.errors import UserError, make_printable

MAX_FILES = 5_000
MAX_MIB = 64
LEFT_OUT = ("__pycache__", "node_modules", "runs", "wandb")
"""Folders that hold no code of the user's; nor do virtual environments, and what begins with a dot (.git, .env)."""


def find_sources(script: Script, runs: Path) -> list[Path]:
    """The files to copy, relative to the folder that is copied; ``runs`` and what :data:`LEFT_OUT` says are not.

    Raises:
        UserError: they are too many or too large, a folder cannot be read, or a link leads out of it.
    """
    root = find_root(script)
    sizes: dict[Path, int] = {}
    total = 0
    for path in _walk(root, runs):
        name = path.relative_to(root)
        if path.is_symlink() and (path.is_dir() or not path.resolve().is_relative_to(root.resolve())):
            where = "a folder" if path.is_dir() else "a file outside of the folder that is copied with the script"
            hint = "put the files themselves there; name data by its absolute path in script.args"
            raise _refuse(f"{_show(root / name)} is a link to {where}", hint)
        if path.is_file():
            sizes[name] = path.stat().st_size
            total += sizes[name]
        if len(sizes) > MAX_FILES or total > MAX_MIB * 2**20:
            largest = max(sizes, key=lambda name: sizes[name])
            raise _refuse(
                f"{_show(root)} is copied with the script, and has more than {MAX_FILES:,} files or {MAX_MIB} MiB; "
                f"the largest so far is {_show(largest)} with {sizes[largest] / 2**20:.1f} MiB",
                "give the script a folder of its own; name data by its absolute path in script.args",
            )
    return list(sizes)


def copy_sources(script: Script, runs: Path, target: Path) -> None:
    """Copy the files to ``target``, which is emptied first; a link to a file becomes that file.

    Raises:
        UserError: as :func:`find_sources`, or a file cannot be read.
    """
    root = find_root(script)
    shutil.rmtree(target, ignore_errors=True)
    make_folder(target)
    for name in find_sources(script, runs):
        make_folder((target / name).parent)
        try:
            shutil.copy(root / name, target / name)
        except OSError as error:
            raise _refuse(f"{_show(root / name)} cannot be copied: {error.strerror}", "check its permissions") from None


def find_root(script: Script) -> Path:
    """The folder that is copied: ``script.sources``, or the script's own."""
    return Path(script.sources) if script.sources is not None else Path(script.path).parent


def _walk(root: Path, runs: Path) -> Iterator[Path]:
    """Everything below ``root`` but folders that are no links, in a fixed order."""

    def stop(error: OSError) -> None:
        raise _refuse(f"{_show(Path(error.filename))} cannot be read: {error.strerror}", "check its permissions")

    for folder, folders, files in os.walk(root, onerror=stop):
        here = Path(folder)
        kept = [name for name in sorted(folders) if not _is_left_out(here / name, runs)]
        folders[:] = [name for name in kept if not (here / name).is_symlink()]
        yield from (here / name for name in kept if (here / name).is_symlink())
        yield from (here / name for name in sorted(files) if not name.startswith("."))


def _is_left_out(folder: Path, runs: Path) -> bool:
    is_known = folder.name in LEFT_OUT or folder.name.startswith(".")
    return is_known or (folder / "pyvenv.cfg").exists() or folder.resolve() == runs


def _refuse(message: str, hint: str) -> UserError:
    return UserError(f"script.path: {message}; nothing was submitted\n  hint: {hint}")


def _show(path: Path) -> str:
    return make_printable(str(path))
