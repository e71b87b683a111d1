"""Hears what a rank is told while it works: to stop, to say where it is, that a newer attempt has begun.

Slurm signals every process of a step. SIGUSR1 and SIGUSR2 are therefore blocked, which children inherit, and which
interrupts no import and no save; a thread waits for them. SIGTERM is what people end their own children with, so it is
handled, and blocked in forked children alone: data-loader workers.
"""

import contextlib
import os
import signal
import sys
import threading
import traceback
from multiprocessing import popen_fork
from types import FrameType
from typing import TYPE_CHECKING

from launcher.contract.attempt import is_stale
from launcher.contract.files import write_text
from launcher.contract.paths import RunPaths

if TYPE_CHECKING:
    import torch

EXIT_STOPPED = 75
"""Of a rank that was told to stop and has nothing left to save; EX_TEMPFAIL of sysexits.h."""
EXIT_STALE = 76
STOP_SIGNALS = (signal.SIGUSR2, signal.SIGTERM)
"""The warning before a time limit or a preemption, and what a preemption sends where it sends no warning."""
STACK_SIGNAL = signal.SIGUSR1
LOOK_SECONDS = 5.0
"""Between two looks for a newer attempt, also while the main thread waits for a peer that is cut off."""

_asked = threading.Event()
_has_work = threading.Event()


class Stopped(BaseException):
    """Leaves a stage that was told to stop, all of whose work is saved. No failure, so no Exception."""


def listen(paths: RunPaths, attempt: int, rank: int) -> None:
    """Begin; to be called by the main thread, before anything starts a thread or a process."""
    signals = {signal.SIGUSR2, STACK_SIGNAL}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    signal.signal(signal.SIGTERM, _take)
    os.register_at_fork(before=_block, after_in_parent=_unblock)
    # A worker that SIGTERM does not end would be waited for for ever.
    popen_fork.Popen.terminate = popen_fork.Popen.kill  # type: ignore[method-assign]
    threading.Thread(target=_listen, args=(paths, attempt, rank, signals), daemon=True, name="stop").start()


def hold() -> None:
    """From now on there is work to save: the rank is not ended by a signal, the next :func:`agree` sees it."""
    _has_work.set()


def agree(device: "torch.device | str") -> bool:
    """Whether any rank was told to stop. Collective, on ``device``: all ranks get the same answer."""
    import torch
    import torch.distributed

    hold()
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return _asked.is_set()
    flag = torch.tensor([1.0 if _asked.is_set() else 0.0], device=device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return bool(flag.item())


def is_asked() -> bool:
    """Whether this rank was told to stop; others may not know yet."""
    return _asked.is_set()


def leave_if_stale(paths: RunPaths, attempt: int) -> None:
    """End this process at once where a newer attempt has begun: nothing of it counts any more."""
    if is_stale(paths, attempt):
        os.write(2, f"attempt {attempt} is over: a newer one has begun\n".encode())
        os._exit(EXIT_STALE)


def _listen(paths: RunPaths, attempt: int, rank: int, signals: set[signal.Signals]) -> None:
    while True:
        heard = signal.sigtimedwait(signals, LOOK_SECONDS)
        if heard is None:
            leave_if_stale(paths, attempt)
        elif heard.si_signo == STACK_SIGNAL:
            _write_stack(paths, attempt, rank)
        else:
            _take(heard.si_signo, None)


def _take(number: int, frame: FrameType | None) -> None:
    has_work = _has_work.is_set()
    what = "stops after this step" if has_work else "stops, with nothing to save yet"
    # By os.write, for the main thread may hold the stream's lock.
    os.write(1, f"{signal.Signals(number).name}: {what}\n".encode())
    if not has_work:
        os._exit(EXIT_STOPPED)
    _asked.set()


def _block() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _write_stack(paths: RunPaths, attempt: int, rank: int) -> None:
    ident = threading.main_thread().ident
    frame = sys._current_frames().get(ident) if ident is not None else None
    with contextlib.suppress(OSError):
        write_text(paths.rank_stack(attempt, rank), "".join(traceback.format_stack(frame)) if frame else "")
