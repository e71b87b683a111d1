"""Finds what the user named, says what of it is gone, and refuses what has not ended."""

import sys
from pathlib import Path

from launcher.errors import UserError
from launcher.observe import Found, Status, find


def find_named(name: str, runs: Path) -> Found:
    """As :func:`launcher.observe.find`, with a line on stderr for each stage that has no run directory any more."""
    found = find(name, runs)
    for stage in found.missing:
        print(f"{found.root.name}/{stage}: its run directory is gone; left out", file=sys.stderr)
    return found


def refuse_living(status: Status) -> None:
    """Refuse to hand a run over while it goes on, or while nobody knows whether it does.

    Raises:
        UserError: it has not ended, as far as one knows.
    """
    if status.state not in ("pending", "running", "unknown"):
        return
    reason = f" ({status.reason})" if status.reason else ""
    raise UserError(
        f"{status.run_id} is {status.state}{reason}; only what has ended can go on, and nothing was submitted\n"
        f"hint: wait until it has ended, or tuneyard cancel {status.run_id} ends what there is of it"
    )
