"""Names a storage that is full or read-only as the cause of a failure, with room kept on it to say so."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from launcher.contract.files import PRIVATE_FILE

from .context import RankContext
from .errors import JobError

RESERVE = ".reserve"
RESERVE_BYTES = 2**20
"""Enough for the last words of an attempt: error files, log lines, its record."""
FAULTS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the disk is read-only",
    errno.EIO: "the disk gives input/output errors",
    errno.ESTALE: "the network file system has lost the folder",
}
TORCH_WRITER = "inline_container.cc"
"""In what torch 2.13 raises when torch.save cannot write; it does not tell why."""


@contextlib.contextmanager
def name_faults(context: RankContext) -> Iterator[None]:
    """Around all that a rank does: what comes of a fault of the storage is raised as a JobError that says which.

    Rank 0 keeps a file that takes up room; it is given back before the last words, which would not fit otherwise.
    """
    reserve = context.paths.root / RESERVE
    try:
        if context.is_main:
            _take_room(reserve)
        yield
    except Exception as error:
        fault = explain(error, context)
        if fault is None:
            raise
        raise JobError(fault) from error
    finally:
        with contextlib.suppress(OSError):  # it may be read-only
            reserve.unlink(missing_ok=True)


def explain(error: BaseException, context: RankContext) -> str | None:
    """The fault of the storage that ``error`` comes from: what, where, how full; None where it is no such."""
    root = context.paths.root
    found = next(_find_faults(error, root), None)
    if found is None and any(TORCH_WRITER in str(part) for part in _chain(error)):
        found = _try_writing(root)
    if found is None:
        return None
    number, place = found
    told = f"{FAULTS[number]}: {place}"
    with contextlib.suppress(OSError):
        state = os.statvfs(next(folder for folder in (place, *place.parents) if folder.exists()))
        free, size = state.f_bavail * state.f_frsize, state.f_blocks * state.f_frsize
        told += f" ({free / 2**20:.0f} of {size / 2**20:.0f} MiB are free)"
    return f"{told}; mend that, then: tuneyard resume {context.plan.run_id}"


def _take_room(reserve: Path) -> None:
    # Written and not only sized: a file of holes takes no room.
    handle = os.open(reserve, os.O_WRONLY | os.O_CREAT, PRIVATE_FILE)
    try:
        if os.write(handle, bytes(RESERVE_BYTES)) < RESERVE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(reserve))
        os.fsync(handle)
    finally:
        os.close(handle)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _find_faults(error: BaseException, root: Path) -> Iterator[tuple[int, Path]]:
    for part in _chain(error):
        if isinstance(part, OSError) and part.errno in FAULTS:
            yield part.errno, Path(os.fsdecode(part.filename)) if part.filename else root
        # safetensors raises an error of its own with the system's words in it.
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            if os.strerror(number) in str(part):
                yield number, root


def _try_writing(folder: Path) -> tuple[int, Path] | None:
    """What the file system itself says when a little is written there."""
    probe = folder / f".probe.{os.getpid()}"
    try:
        probe.write_bytes(bytes(RESERVE_BYTES))
    except OSError as error:
        return (error.errno, folder) if error.errno in FAULTS else None
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    return None
