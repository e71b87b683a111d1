"""tuneyard status: where a run is, or all of them."""

from typing import Annotated

import typer

from .options import RUNS, AsJson, RunsFolder


def status(
    run: Annotated[str | None, typer.Argument(help="Run; without one, all runs.", show_default=False)] = None,
    as_json: AsJson = False,
    runs: RunsFolder = RUNS,
) -> None:
    """Show state, step, attempt and reason. Exit code 0 whatever the state."""
    import dataclasses
    import json

    from launcher.observe import find_stages, list_runs, read_any, read_status

    from .show import show_status

    if run is None:
        found = [read_any(folder) for folder in list_runs(runs.resolve())]
    else:
        stages = find_stages(run, runs)
        found = [read_any(stages[0].root.parent) if len(stages) > 1 else read_status(stages[0])]
    if as_json:
        values = [dataclasses.asdict(item) for item in found]
        print(json.dumps(values[0] if run else values, indent=2))
    elif found:
        print("\n".join(show_status(item) for item in found))
    else:
        print(f"no runs below {runs.resolve()}")
