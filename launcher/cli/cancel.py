"""tuneyard cancel: end a run."""

from typing import TYPE_CHECKING, Annotated

import typer

from .options import RUNS, RunName, RunsFolder

if TYPE_CHECKING:
    from launcher.contract.paths import RunPaths


def cancel(
    run: RunName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    runs: RunsFolder = RUNS,
) -> None:
    """End a run, or all stages of a pipeline; checkpoints stay. Asks first on a terminal."""
    import sys

    from launcher.errors import TuneyardError, UserError
    from launcher.observe import read_statuses

    from .named import find_named

    left = []
    found = find_named(run, runs)
    statuses = read_statuses(found.stages)
    if not any(paths.submission.exists() for paths in found.stages):
        raise UserError(
            f"{found.root.name if found.is_pipeline else statuses[0].run_id} was planned but never submitted"
        )
    for paths, status in zip(found.stages, statuses, strict=True):
        state = status.state if paths.submission.exists() else "never submitted"
        if state in ("completed", "failed", "cancelled", "never submitted"):
            print(f"{status.run_id} is {state}; nothing to end", file=sys.stderr)
        else:
            left.append((paths, status))
    if left and not yes and sys.stdin.isatty():
        names = ", ".join(f"{status.run_id} ({status.state})" for _, status in left)
        typer.confirm(f"End {names}?", abort=True, err=True)
    failed: list[TuneyardError] = []
    # The last stage first: none may start because the one before it has ended.
    for paths, status in reversed(left):
        try:
            _end(paths, status.run_id)
        except TuneyardError as error:
            failed.append(error)
        except (OSError, TypeError, ValueError) as error:
            failed.append(UserError(f"{status.run_id}: its files cannot be read, so it may still run: {error}"))
    if failed:
        worst = max(failed, key=lambda error: error.exit_code)
        raise type(worst)("\n".join(str(error) for error in failed))


def _end(paths: "RunPaths", run_id: str) -> None:
    import time

    from launcher.contract.plan import Plan
    from launcher.observe import read_status
    from launcher.submit.cancel import STOP_SECONDS, cancel_run

    cancel_run(paths)
    deadline = time.monotonic() + STOP_SECONDS
    while (status := read_status(paths)).state in ("pending", "running") and time.monotonic() < deadline:
        time.sleep(Plan.load(paths.plan).cluster.poll_seconds)
    if status.state == "cancelled":
        print(f"cancelled {run_id}")
    else:
        print(f"asked to end, still {status.state}{f' ({status.reason})' if status.reason else ''}: {run_id}")
