"""Reads back what W&B's own files hold of a run, with wandb's own tool."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .wandb_run import ExportPaths, make_environment

SENT_MARK = "sent"
"""File in an online segment: wandb-core said that its queue is empty, so that all of the segment was sent."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One ``.wandb`` file: the rows by step in the order of writing, and the artifacts' fingerprints."""

    file: Path
    rows: list[dict[str, Any]]
    fingerprints: list[str]

    @property
    def is_cut(self) -> bool:
        """Online and not finished: how much of it reached the server, only the server knows."""
        return not self.file.parent.name.startswith("offline-") and not (self.file.parent / SENT_MARK).exists()


@dataclass(frozen=True, kw_only=True)
class Records:
    """All segments of a run."""

    segments: list[Segment] = field(default_factory=list)

    @property
    def recorded(self) -> Counter[int]:
        """Step -> times recorded for certain: in offline segments and in online ones that were sent."""
        return Counter(row["_step"] for item in self.segments if not item.is_cut for row in item.rows)

    @property
    def uncertain(self) -> set[int]:
        """Steps that only a cut online segment holds."""
        return {row["_step"] for item in self.segments if item.is_cut for row in item.rows} - set(self.recorded)

    @property
    def fingerprints(self) -> set[str]:
        return {mark for item in self.segments if not item.is_cut for mark in item.fingerprints}


def read_records(paths: ExportPaths) -> Records:
    """Read every segment of the run, one that is being written included (as far as it is flushed)."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        return Records(segments=list(pool.map(lambda file: _read_segment(paths, file), paths.segments())))


def _read_segment(paths: ExportPaths, file: Path) -> Segment:
    # wandb.sdk.internal.datastore is gone in 0.31; this command needs no account. It exits 0 on a torn file and prints
    # the records before the tear, which is what is wanted. A file without one whole record gives nothing.
    result = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)],
        env=make_environment(paths, online=False, base=os.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return parse_records(file, result.stdout.decode(errors="replace").splitlines())


def parse_records(file: Path, lines: Iterable[str]) -> Segment:
    """One segment from the lines of ``wandb leet inspect --json``: an object per line, ``type`` names its kind."""
    rows, fingerprints = [], []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record.get("type") == "history":
            history = record["history"]
            rows.append({**history["item"], "_step": int(history["step"].get("num", 0))})
        elif record.get("type") == "artifact":
            metadata = json.loads(record["artifact"].get("metadata") or "{}")
            fingerprints.append(str(metadata.get("fingerprint")))
    return Segment(file=file, rows=rows, fingerprints=fingerprints)
