"""Follows a run to its end on the terminal."""

import sys
import time

from launcher.contract.attempt import EXIT_FAILED, EXIT_NO_PROGRESS, read_attempts
from launcher.contract.ledger import merge_metrics, read_run
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan
from launcher.observe import read_status

SHOWN = ("loss", "eval_loss", "grad_norm", "learning_rate", "tokens_per_s")
FILE_SECONDS = 1.0
"""Between two looks at the run's own files; the scheduler is asked no more often than the profile's poll_seconds."""


def wait_for(plan: Plan, paths: RunPaths) -> int:
    """Print progress to stderr until the run has ended; returns its exit code, 130 for Ctrl-C."""
    # A resumed run has rows already.
    shown = {(row["step"], name) for row in merge_metrics(read_run(paths)) for name in row}
    last_line = ""
    next_question = 0.0
    try:
        while True:
            _show_metrics(paths, shown)
            if time.monotonic() >= next_question or paths.completion.exists():
                status = read_status(paths)
                line = f"{status.state}" + (f": {status.reason}" if status.reason else "")
                if line != last_line:
                    print(line, file=sys.stderr)
                    last_line = line
                if status.state not in ("pending", "running", "unknown"):
                    _show_metrics(paths, shown)
                    return _end(plan, paths, status.state)
                next_question = time.monotonic() + plan.cluster.poll_seconds
            time.sleep(FILE_SECONDS)
    except KeyboardInterrupt:
        print(f"\nthe run goes on; follow it with: tuneyard status {plan.run_id}", file=sys.stderr)
        return 130


def _show_metrics(paths: RunPaths, shown: set[tuple[int, str]]) -> None:
    """Print what is new: of a step, training and evaluation may arrive one after the other."""
    for row in merge_metrics(read_run(paths)):
        new = [name for name in SHOWN if name in row and (row["step"], name) not in shown]
        if new:
            shown.update((row["step"], name) for name in new)
            values = "  ".join(f"{name} {row[name]:.4g}" for name in new)
            print(f"step {row['step']:>5}  {values}", file=sys.stderr)


def _end(plan: Plan, paths: RunPaths, state: str) -> int:
    attempts = read_attempts(paths)
    ending = attempts[-1].ended if attempts else None
    if state == "completed":
        print(f"final: {paths.final}", file=sys.stderr)
        return 0
    for line in ending.log if ending else []:
        print(f"  | {line}", file=sys.stderr)
    print(f"logs: tuneyard logs {plan.run_id}", file=sys.stderr)
    return EXIT_NO_PROGRESS if ending is not None and ending.exit_code == EXIT_NO_PROGRESS else EXIT_FAILED
