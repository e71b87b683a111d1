"""Finds what the user named, and says what of it is gone."""

import sys
from pathlib import Path

from launcher.observe import Found, find


def find_named(name: str, runs: Path) -> Found:
    """As :func:`launcher.observe.find`, with a line on stderr for each stage that has no run directory any more."""
    found = find(name, runs)
    for stage in found.missing:
        print(f"{found.root.name}/{stage}: its run directory is gone; left out", file=sys.stderr)
    return found
