"""Tells whether a process is still the one that was started: pids are used again."""

from pathlib import Path


def process_start(pid: int) -> int | None:
    """Start time of ``pid`` in clock ticks since boot (field 22 of /proc/PID/stat), or None if it is gone.

    A zombie counts as gone: it runs no more.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the command's name may hold spaces and parentheses
    return None if fields[0] in ("Z", "X") else int(fields[19])


def is_running(pid: int, start: int | None) -> bool:
    """Whether ``pid`` runs and started at ``start`` clock ticks."""
    now = process_start(pid)
    return now is not None and now == start
