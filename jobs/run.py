"""What a training script of one's own may use of its run: metrics, progress, checkpoints, where to go on from.

    from jobs.run import current_run

    run = current_run()
    run.log(step, loss=loss.item())
    with run.checkpoint(step) as folder:
        torch.save(state, folder / "state.pt")

A script that is started by hand can call all of it too: rank 0 prints, and nothing is kept.
"""

import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launcher.contract.files import make_folder
from launcher.contract.ledger import LedgerWriter

from .context import RankContext
from .errors import JobError
from .stop import Stopped, is_asked

BEAT_SECONDS = 1.0
"""Shortest time between two heartbeats, each of which is a file."""
RESERVED = ("v", "kind", "t", "attempt", "step", "event")
"""Names in a ledger row that are not the script's to write."""


class Run:
    """This rank's part in the run; ``context`` is None in a script that was started by hand."""

    def __init__(self, context: RankContext | None = None, ledger: LedgerWriter | None = None) -> None:
        self.step = 0
        """The newest step that the script has named."""
        self._context = context
        self._ledger = ledger
        self._metrics: tuple[int, dict[str, float]] = (-1, {})
        self._saved: set[int] = set()
        self._last_beat = 0.0

    @property
    def resume_from(self) -> Path | None:
        """The newest whole checkpoint of the attempts before, or None at the first start."""
        return self._context.resume_from if self._context is not None else None

    @property
    def final(self) -> Path:
        """Where the result belongs: ``final/`` of the run directory, by hand that of the current folder."""
        return self._context.paths.final if self._context is not None else Path("final")

    def progress(self, step: int) -> None:
        """Say that optimizer step ``step`` is done; ``tuneyard status`` shows it."""
        self.step = step
        if self._context is not None and time.monotonic() - self._last_beat >= BEAT_SECONDS:
            self._last_beat = time.monotonic()
            self._context.beat(step, "train")

    def log(self, step: int, **metrics: Any) -> None:
        """Append the metrics of ``step`` (numbers, or tensors of one element) to the ledger; also progress.

        Every rank may call it, and only global rank 0 writes. What is not finite becomes an event ``nan``.

        Raises:
            ValueError: on rank 0, if a name is the ledger's own, or a value no number.
        """
        self.progress(step)
        if not self._is_main():
            return
        values = {name: _read_number(name, value) for name, value in metrics.items() if value is not None}
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        before = self._metrics[1] if self._metrics[0] == step else {}
        self._metrics = (step, before | finite)
        if self._ledger is None:
            print(f"step {step}", *(f"{name} {value:.6g}" for name, value in values.items()), sep="  ", flush=True)
            return
        if finite:
            self._ledger.metric(step, **finite)
        if bad := {name: str(value) for name, value in values.items() if name not in finite}:
            self._ledger.event("nan", step=step, metrics=bad)

    @contextmanager
    def checkpoint(self, step: int) -> Iterator[Path]:
        """A folder, the same on every rank, that becomes the checkpoint of ``step`` when all have left the block.

        Collective: every rank enters, and writes what it has. Rank 0 then publishes it with its manifest, and removes
        older ones as train.keep_last and train.keep_best say, by the metrics logged for the same step. A second
        checkpoint of one step is thrown away; so is that of a block that raises. Where the scheduler has warned a rank
        of the job's end, all of them leave the script after the block, to go on from there.

        Raises:
            JobError: there are several ranks, and torch.distributed is not initialised.
        """
        context = self._context
        if context is None:
            with tempfile.TemporaryDirectory(prefix="checkpoint-") as scratch:
                yield Path(scratch)
            print(f"step {step}  checkpoint not kept: this is no run of tuneyard", flush=True)
            return
        from .checkpoint import list_names, publish_step, writing_folder

        started = time.perf_counter()
        self.step = step
        context.beat(step, "save")
        folder = writing_folder(context.paths, context.attempt) / f"checkpoint-{step}"
        if context.is_main:
            shutil.rmtree(folder, ignore_errors=True)
            make_folder(folder)
        _unite(context, set())
        yield folder
        names = _unite(context, list_names(folder))
        if context.is_main and step in self._saved:
            shutil.rmtree(folder)
        elif context.is_main:
            metrics = self._metrics[1] if self._metrics[0] == step else {}
            publish_step(context, self._ledger, folder, names, step, metrics, started)
        self._saved.add(step)
        if _unite(context, {"stop"} if is_asked() else set()):
            raise Stopped

    def _is_main(self) -> bool:
        return self._context.is_main if self._context is not None else os.environ.get("RANK", "0") == "0"


_current = Run()


def current_run() -> Run:
    """The run that this rank is part of, or one that only prints."""
    return _current


def bind(run: Run) -> None:
    """Make ``run`` what :func:`current_run` gives."""
    global _current
    _current = run


def _read_number(name: str, value: Any) -> float:
    if name in RESERVED:
        raise ValueError(f"{name}: this name is the ledger's own; call the metric otherwise")
    try:
        return value if type(value) is int else float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: a metric is a number, got {value!r:.60}") from None


def _unite(context: RankContext, names: set[str]) -> set[str]:
    """The names of all ranks; no rank leaves before all have come."""
    if context.world_size == 1:
        return names
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_initialized():
        raise JobError(
            f"run.checkpoint: {context.world_size} ranks write one checkpoint together, and torch.distributed is not "
            "initialised; make the Accelerator, or call init_process_group, before"
        )
    parts: list[Any] = [None] * context.world_size
    distributed.all_gather_object(parts, sorted(names))
    return {name for part in parts for name in part}
