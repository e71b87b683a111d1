"""The ledger: append-only JSONL of metrics and events, one writer per file, and the merged view of all attempts."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .files import make_folder
from .paths import RunPaths

LEDGER_VERSION = 1
Row = dict[str, Any]


class LedgerWriter:
    """Appends rows to one attempt's ledger; only global rank 0 holds one. From any thread.

    Raises:
        OSError: a row could not be written (a full disk), with the ledger's path; nothing of it is there.
    """

    def __init__(self, path: Path, attempt: int) -> None:
        make_folder(path.parent)
        # O_APPEND and one write per row: a reader that follows the file sees whole rows or a last torn one.
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._attempt = attempt
        self._path = path
        self._lock = threading.Lock()  # a checkpoint is published beside training

    def metric(self, step: int, **values: Any) -> None:
        """Append the metrics of optimizer step ``step``; None values are left out."""
        self._append({"kind": "metric", "step": step, **values})

    def event(self, event: str, **values: Any) -> None:
        """Append an event: started, strategy_check, checkpoint, evaluated, skipped_rows, finished, failed, ..."""
        self._append({"kind": "event", "event": event, **values})

    def close(self) -> None:
        os.close(self._handle)

    def _append(self, row: Row) -> None:
        head = {"v": LEDGER_VERSION, "kind": row.pop("kind"), "t": time.time(), "attempt": self._attempt}
        values = {key: value for key, value in row.items() if value is not None}
        line = (json.dumps({**head, **values}, ensure_ascii=False) + "\n").encode()
        with self._lock:
            end = os.fstat(self._handle).st_size
            try:
                # A disk that fills up takes the first part of a row, and tells of it only when the rest is written.
                written = os.write(self._handle, line)
                while written < len(line):
                    written += os.write(self._handle, line[written:])
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._handle, end)  # else the next row would be joined to half of this one
                raise OSError(error.errno, error.strerror, str(self._path)) from None


def read_rows(path: Path) -> list[Row]:
    """The whole rows of one ledger file; a torn last line (a writer died in it) is left out."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    rows = []
    for line in data.split(b"\n")[:-1]:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # a line torn by a dead writer that a later attempt's file system repaired
        if isinstance(row, dict) and all(isinstance(row.get(key), int) for key in _list_numbers(row)):
            rows.append(row)
    return rows


def _list_numbers(row: Row) -> tuple[str, ...]:
    return ("attempt", "step") if row.get("kind") == "metric" else ("attempt",)


def read_run(paths: RunPaths) -> list[Row]:
    """All rows of all attempts, in the order of attempts."""
    return [row for file in sorted(paths.ledgers.glob("a*.jsonl")) for row in read_rows(file)]


def merge_metrics(rows: Iterable[Row]) -> list[Row]:
    """One metric row per step, ascending: of each step the rows of its highest attempt, joined.

    Training and evaluation write a row each for the same step, so the keys of one attempt's rows are united.
    """
    merged: dict[int, Row] = {}
    for row in rows:
        if row.get("kind") != "metric":
            continue
        seen = merged.get(row["step"])
        if seen is None or row["attempt"] > seen["attempt"]:
            merged[row["step"]] = dict(row)
        elif row["attempt"] == seen["attempt"]:
            seen.update(row)
    return [merged[step] for step in sorted(merged)]


def events(rows: Iterable[Row], name: str) -> list[Row]:
    """The rows of the event ``name``."""
    return [row for row in rows if row.get("kind") == "event" and row.get("event") == name]
