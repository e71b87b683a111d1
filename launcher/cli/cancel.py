"""tuneyard cancel: end a run."""

from typing import TYPE_CHECKING, Annotated

import typer

from .options import RUNS, RunName, RunsFolder

if TYPE_CHECKING:
    from launcher.contract.paths import RunPaths

STOP_SECONDS = 30


def cancel(
    run: RunName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    runs: RunsFolder = RUNS,
) -> None:
    """End a run, or all stages of a pipeline; checkpoints stay. Asks first on a terminal."""
    import sys

    from launcher.errors import UserError
    from launcher.observe import find_stages, read_status

    left = []
    stages = find_stages(run, runs)
    if not any(paths.submission.exists() for paths in stages):
        raise UserError(f"{_name(stages[0])} was planned but never submitted")
    for paths in stages:
        state = read_status(paths).state if paths.submission.exists() else "never submitted"
        if state in ("completed", "failed", "cancelled", "never submitted"):
            print(f"{_name(paths)} is {state}; nothing to end", file=sys.stderr)
        else:
            left.append((paths, state))
    if left and not yes and sys.stdin.isatty():
        names = ", ".join(f"{_name(paths)} ({state})" for paths, state in left)
        typer.confirm(f"End {names}?", abort=True, err=True)
    # The last stage first: none may start because the one before it has ended.
    for paths, _ in reversed(left):
        _end(paths)


def _end(paths: "RunPaths") -> None:
    import time

    from launcher.contract.plan import Plan
    from launcher.observe import read_status
    from launcher.submit.cancel import cancel_run

    cancel_run(paths)
    deadline = time.monotonic() + STOP_SECONDS
    while (state := read_status(paths).state) in ("pending", "running") and time.monotonic() < deadline:
        time.sleep(Plan.load(paths.plan).cluster.poll_seconds)
    print(f"{'cancelled' if state == 'cancelled' else f'asked to end, still {state}:'} {_name(paths)}")


def _name(paths: "RunPaths") -> str:
    from launcher.contract.plan import Plan

    return Plan.load(paths.plan).run_id
