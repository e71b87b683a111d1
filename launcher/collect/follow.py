"""Follows the ledger of all attempts, handing out each step's merged row once it is whole."""

import json
from pathlib import Path

from launcher.contract.ledger import Row, merge_metrics
from launcher.contract.paths import RunPaths


class LedgerFollower:
    """Reads what is new at each call; it keeps the rows of steps not yet handed out, never the whole ledger."""

    def __init__(self, paths: RunPaths) -> None:
        self._paths = paths
        self._offsets: dict[Path, int] = {}
        self._pending: list[Row] = []
        self._high_water = -1

    def take(self, *, ended: bool) -> list[Row]:
        """The merged rows that became whole, by step, each step once.

        Training and evaluation write one row each for a step, so the newest step is held back until a later one
        shows that it is whole, or ``ended`` that no more will come. No event shows it: an evaluation may follow
        ``finished``, and after ``failed`` the next attempt repeats the step.
        """
        for file in sorted(self._paths.ledgers.glob("a*.jsonl")):
            self._read(file)
        merged = merge_metrics(self._pending)
        newest = merged[-1]["step"] if merged else -1
        ready = merged if ended else [row for row in merged if row["step"] < newest]
        if ready:
            self._high_water = ready[-1]["step"]
            self._pending = [row for row in self._pending if row["step"] > self._high_water]
        return ready

    def _read(self, file: Path) -> None:
        start = self._offsets.get(file, 0)
        try:
            with file.open("rb") as stream:
                stream.seek(start)
                data = stream.read()
        except OSError:
            return  # the file system stalls or the run is being removed; what is missed now is read later
        whole = data[: data.rfind(b"\n") + 1]
        self._offsets[file] = start + len(whole)
        rows = []
        for line in whole.splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue  # torn by a writer that died in it
        self._pending += [row for row in rows if row.get("kind") == "metric" and row["step"] > self._high_water]
