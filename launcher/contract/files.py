"""Reads and writes small files so that a reader never sees half of one."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700
VISIBLE_SECONDS = 60.0
"""How long another node's files may stay invisible: NFS caches a folder's entries for up to acdirmax, 60 s."""
DAMAGE = (OSError, AttributeError, LookupError, TypeError, ValueError)
"""What reading a file raises that is not as tuneyard wrote it: no JSON, another kind of value, a key too few."""


class DamagedFile(ValueError):
    """A file of a run that is not as tuneyard wrote it; the text names it and says what is wrong."""

    def __init__(self, path: Path, why: object) -> None:
        super().__init__(f"{path} cannot be read: {why}")


def make_folder(path: Path) -> Path:
    """Create ``path`` and its parents, readable by the owner alone; returns ``path``."""
    path.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    return path


def write_text(path: Path, text: str, mode: int = PRIVATE_FILE, *, is_lasting: bool = True) -> None:
    """Replace ``path`` by ``text`` (UTF-8) with one rename.

    The temporary file lies in the same folder because a rename across file systems is a copy,
    and it is synced first because a rename may reach the disk before the data does: tens of milliseconds, which a file
    of passing interest (not ``is_lasting``) is not worth.
    """
    make_folder(path.parent)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as stream:
            stream.write(text)
            stream.flush()
            if is_lasting:
                os.fsync(stream.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any, *, is_lasting: bool = True) -> None:
    """Replace ``path`` by ``value`` as indented JSON with one rename, as :func:`write_text` does."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", is_lasting=is_lasting)


def read_json(path: Path) -> Any:
    """The value in ``path``, or None where the file does not exist.

    Raises:
        DamagedFile: it is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise DamagedFile(path, error) from error
