"""A manifest makes a checkpoint complete: it names every file with its size and hash."""

import hashlib
import os
from pathlib import Path
from typing import Any

from .files import read_json, write_json

MANIFEST = "manifest.json"


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def list_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Relative path -> size in bytes and SHA-256 of every file below ``folder``."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": hash_file(path)} for path in files
    }


def publish(folder: Path, target: Path, **facts: Any) -> None:
    """Write the manifest of ``folder`` with ``facts`` (step, world_size, ...), then rename the folder to ``target``.

    Raises:
        FileExistsError: ``target`` exists (attempts never share a folder to write in), or the folder has a file of the
            manifest's name.
    """
    if (folder / MANIFEST).exists():
        raise FileExistsError(f"{folder / MANIFEST}: this name is the checkpoint's own record; call the file otherwise")
    write_json(folder / MANIFEST, {"v": 1, **facts, "files": list_files(folder)})
    for path in folder.rglob("*"):
        if path.is_file():
            _sync(path)
    if target.exists():
        raise FileExistsError(f"{target}: a checkpoint of that name has been published already")
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(folder, target)
    _sync(target.parent)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What :func:`publish` wrote of ``folder``; None where there is no manifest, or one that is not JSON."""
    try:
        manifest: dict[str, Any] | None = read_json(folder / MANIFEST)
    except ValueError:
        return None
    return manifest if isinstance(manifest, dict) else None


def find_problems(folder: Path) -> list[str]:
    """What is wrong with the checkpoint in ``folder``; empty when every file is as its manifest says."""
    try:
        manifest = read_json(folder / MANIFEST)
    except ValueError:
        return [f"{MANIFEST} is not JSON"]
    if manifest is None:
        return [f"no {MANIFEST}: the save did not finish"]
    try:
        return find_changes(folder, manifest["files"])
    except (AttributeError, LookupError, TypeError):
        return [f"{MANIFEST} is not a manifest"]


def find_changes(folder: Path, files: dict[str, dict[str, Any]]) -> list[str]:
    """What of ``files`` (as :func:`list_files` gave them) is missing in ``folder``, or is not what it was."""
    problems = []
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != expected["bytes"]:
            problems.append(f"{name} has {path.stat().st_size} bytes, not {expected['bytes']}")
        elif hash_file(path) != expected["sha256"]:
            problems.append(f"{name} differs from its hash")
    return problems


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
