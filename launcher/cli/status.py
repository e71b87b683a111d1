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

    from launcher.observe import find_root, list_runs, read_all

    from .show import show_status

    found = read_all(list_runs(runs.resolve()) if run is None else [find_root(run, runs)])
    if as_json:
        values = [dataclasses.asdict(item) for item in found]
        print(json.dumps(values[0] if run else values, indent=2))
    elif found:
        # Of all runs the first line of each reason; `tuneyard status RUN` has the whole.
        print("\n".join(show_status(item, is_brief=run is None) for item in found))
    else:
        print(f"no runs below {runs.resolve()}")
