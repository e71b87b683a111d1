"""Sums a run up in ``summary.json``: state, steps, losses, speed, checkpoints and what to worry about."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from launcher.contract.attempt import Attempt, read_attempts
from launcher.contract.checkpoints import list_checkpoints
from launcher.contract.files import write_json
from launcher.contract.ledger import Row, events, merge_metrics, read_run
from launcher.contract.manifest import find_problems, read_manifest
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan
from launcher.observe import read_plan

State = Literal["pending", "running", "completed", "failed", "cancelled", "unknown"]
SUMMARY_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint: path relative to the run directory, its step (None without a manifest), what is wrong with it."""

    path: str
    step: int | None
    problems: list[str]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that :func:`make_summary` reads, so that it can do without the file system."""

    plan: Plan
    attempts: Sequence[Attempt]
    rows: Sequence[Row]
    completed: bool
    cancelled: bool
    checkpoints: Sequence[Checkpoint]
    final_files: Sequence[str]


def summarize(paths: RunPaths, state: str, reason: str | None = None) -> dict[str, Any]:
    """Sum the run up, which is in ``state`` for ``reason`` (``launcher.observe``), and write ``summary.json``.

    Every checkpoint's files are hashed against its manifest.

    Raises:
        FileNotFoundError: ``paths`` is no run directory (no plan.json).
        UserError: its plan.json is damaged.
    """
    summary = make_summary(gather_findings(paths), state, reason)
    write_json(paths.summary, summary)
    return summary


def gather_findings(paths: RunPaths) -> Findings:
    """Read everything from the run directory."""
    return Findings(
        plan=read_plan(paths),
        attempts=read_attempts(paths),
        rows=read_run(paths),
        completed=paths.completion.exists(),
        cancelled=paths.cancelled.exists(),
        checkpoints=_read_checkpoints(paths),
        final_files=sorted(
            path.relative_to(paths.root).as_posix() for path in paths.final.rglob("*") if path.is_file()
        ),
    )


def make_summary(found: Findings, state: str, reason: str | None) -> dict[str, Any]:
    """The summary as the value of ``summary.json``; times in seconds, ``tokens_per_s`` the median over the steps."""
    metrics = merge_metrics(found.rows)
    # Every attempt reads the data again and says the same, so only the newest one's word counts.
    skips = events(found.rows, "skipped_rows")
    skipped = sum(_count_skipped(row) for row in skips if row["attempt"] == skips[-1]["attempt"])
    return {
        "v": SUMMARY_VERSION,
        "run_id": found.plan.run_id,
        "name": found.plan.spec.name,
        "stage": found.plan.spec.stage,
        "state": state,
        "reason": reason,
        "steps": max((row["step"] for row in metrics), default=0),
        "attempts": len(found.attempts),
        "loss": _summarize_series(metrics, "loss"),
        "eval_loss": _summarize_series(metrics, "eval_loss"),
        "tokens": max(_series(metrics, "tokens").values(), default=None),
        "tokens_per_s": _median(_series(metrics, "tokens_per_s").values()),
        "wall_seconds": _wall_seconds(found),
        "checkpoints": [
            {"path": item.path, "step": item.step, "verified": not item.problems} for item in found.checkpoints
        ],
        "final_files": list(found.final_files),
        "skipped_rows": skipped,
        "warnings": _find_warnings(found, metrics, skipped),
    }


def _series(metrics: Sequence[Row], key: str) -> dict[int, Any]:
    """Step -> finite value of ``key``."""
    return {row["step"]: row[key] for row in metrics if _is_finite(row.get(key))}


def _summarize_series(metrics: Sequence[Row], key: str) -> dict[str, Any] | None:
    """First (the baseline, where step 0 was evaluated), last and lowest value with their steps."""
    series = _series(metrics, key)
    if not series:
        return None
    chosen = {"first": min(series), "last": max(series), "best": min(series, key=lambda step: (series[step], step))}
    return {name: {"step": step, "value": series[step]} for name, step in chosen.items()}


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _median(values: Any) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None


def _count_skipped(event: Row) -> int:
    """Rows that one ``skipped_rows`` event speaks of: its count, or the length of its list."""
    count = event.get("count")
    return count if isinstance(count, int) else len(event.get("rows", []))


def _wall_seconds(found: Findings) -> float | None:
    """From the start of the first attempt to the end of the last, queueing in between included; while it runs, to
    the newest row."""
    if not found.attempts:
        return None
    last = found.attempts[-1].ended
    times = [row["t"] for row in found.rows if "t" in row] if last is None else [last.t]
    return max([0.0, *(t - found.attempts[0].started for t in times)])


def _find_warnings(found: Findings, metrics: Sequence[Row], skipped: int) -> list[str]:
    warnings = [f"{item.path}: {'; '.join(item.problems)}" for item in found.checkpoints if item.problems]
    for key in ("loss", "eval_loss"):
        bad = [row["step"] for row in metrics if key in row and not _is_finite(row[key])]
        if bad:
            warnings.append(f"{key} is not finite at {len(bad)} steps, the first is {bad[0]}")
    is_script = found.plan.spec.stage == "script"  # which need not log or save anything
    if not metrics and not is_script:
        warnings.append("the ledger holds no metric: no step was finished")
    if skipped:
        warnings.append(f"{skipped} rows of the data were skipped; the ledger's skipped_rows events list them")
    saves = not is_script and found.plan.spec.train.save_every_steps is not None
    if found.completed and not found.checkpoints and saves:
        warnings.append("no checkpoint was kept")
    return warnings


def _read_checkpoints(paths: RunPaths) -> list[Checkpoint]:
    found = []
    for folder in list_checkpoints(paths):
        problems = find_problems(folder)
        step = (read_manifest(folder) or {}).get("step")
        found.append(Checkpoint(path=folder.relative_to(paths.root).as_posix(), step=step, problems=problems))
    return found
