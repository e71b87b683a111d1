"""Processes of the development cluster: started detached, recognised by start time, ended."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

# A login shell of a plain user often lacks the sbin folders, where every daemon lies.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


@dataclass(frozen=True)
class Daemon:
    """What to start: `user` None means the caller's (root)."""

    name: str
    argv: tuple[str, ...]
    user: str | None = None


@dataclass(frozen=True)
class Process:
    """What was started. A pid alone may be somebody else's by now; with its start time it is not."""

    name: str
    pid: int
    start: int


class CommandFailed(Exception):
    """A short-lived command failed; the text is its own message."""


def find_program(name: str) -> str | None:
    return shutil.which(name, path=SEARCH_PATH)


def run_command(argv: Sequence[str], *, env: dict[str, str] | None = None, stdin: str = "", timeout: float = 20) -> str:
    """Run to the end and return stdout; raises CommandFailed with the command's stderr."""
    pipe = subprocess.PIPE
    try:
        # A session of its own, so that an interrupted script (mariadb-install-db) ends with its children.
        child = subprocess.Popen(
            argv, stdin=pipe, stdout=pipe, stderr=pipe, env=env, cwd="/", text=True, start_new_session=True
        )
    except OSError as error:
        raise CommandFailed(f"{argv[0]}: {error}") from None
    try:
        output, errors = child.communicate(stdin, timeout=timeout)
    except BaseException as error:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise CommandFailed(f"{argv[0]}: no answer within {timeout:g} s") from None
        raise
    if child.returncode != 0:
        text = (errors or output).strip() or f"exit code {child.returncode}"
        raise CommandFailed(f"{' '.join(argv[:4])}: {text}")
    return output


def start_daemon(daemon: Daemon, env: dict[str, str], output: Path) -> Process:
    """Start in a session of its own, with no descriptor of the caller's: `up | tee` must end when `up` does."""
    with output.open("ab") as sink:
        child = subprocess.Popen(
            daemon.argv,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env=env,
            cwd="/",
            start_new_session=True,
            user=daemon.user,
            group=daemon.user,
            extra_groups=None if daemon.user is None else [],
        )
    # The child is ours and not yet waited for, so even a dead one still has its entry in /proc.
    start, _ = read_stat(child.pid) or (0, "Z")
    return Process(daemon.name, child.pid, start)


def read_stat(pid: int) -> tuple[int, str] | None:
    """(start time in ticks since boot, state letter) of a process; None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # proc(5): field 2 is the name in parentheses and may hold spaces; 3 is the state, 22 the start time.
    fields = text.rpartition(")")[2].split()
    return int(fields[19]), fields[0]


def is_alive(process: Process) -> bool:
    stat = read_stat(process.pid)
    return stat is not None and stat[0] == process.start and stat[1] not in "ZX"


def list_namespace_processes(namespaces: Iterable[Path]) -> list[Process]:
    """Every process inside these network namespaces: slurmd, slurmstepd and whatever their jobs left behind."""
    inodes = set()
    for path in namespaces:
        try:
            inodes.add(path.stat().st_ino)
        except OSError:
            continue
    found = []
    for entry in Path("/proc").iterdir() if inodes else ():
        if not entry.name.isdigit():
            continue
        try:
            inode = (entry / "ns/net").stat().st_ino
        except OSError:  # ended meanwhile
            continue
        stat = read_stat(int(entry.name))
        if inode in inodes and stat is not None:
            found.append(Process("job", int(entry.name), stat[0]))
    return found


def kill_processes(processes: Sequence[Process], timeout: float = 10) -> list[Process]:
    """SIGKILL each one that is still the recorded one; returns those alive after `timeout` seconds."""
    for process in processes:
        if is_alive(process):
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
    deadline = time.monotonic() + timeout
    left = [process for process in processes if is_alive(process)]
    while left and time.monotonic() < deadline:
        time.sleep(0.02)
        left = [process for process in left if is_alive(process)]
    return left
