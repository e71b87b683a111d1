"""tuneyard cancel: end a run."""

from typing import Annotated

import typer

from .options import RUNS, RunName, RunsFolder

STOP_SECONDS = 30


def cancel(
    run: RunName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    runs: RunsFolder = RUNS,
) -> None:
    """End a run; its checkpoints stay. Asks first on a terminal."""
    import sys
    import time

    from launcher.contract.plan import Plan
    from launcher.observe import find_run, read_status
    from launcher.submit.cancel import cancel_run

    paths = find_run(run, runs)
    state = read_status(paths).state
    if state in ("completed", "failed", "cancelled"):
        print(f"{paths.root.name} is {state} already", file=sys.stderr)
        return
    if not yes and sys.stdin.isatty():
        typer.confirm(f"End {paths.root.name} ({state})?", abort=True, err=True)
    cancel_run(paths)
    deadline = time.monotonic() + STOP_SECONDS
    while (state := read_status(paths).state) in ("pending", "running") and time.monotonic() < deadline:
        time.sleep(Plan.load(paths.plan).cluster.poll_seconds)
    print(f"{'cancelled' if state == 'cancelled' else f'asked to end, still {state}:'} {paths.root.name}")
