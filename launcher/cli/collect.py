"""tuneyard collect: gather what came of a run."""

from .options import RUNS, AsJson, RunName, RunsFolder


def collect(run: RunName, as_json: AsJson = False, runs: RunsFolder = RUNS) -> None:
    """Write summary.json from the ledger and the checkpoints, and show it."""
    import json

    from launcher.collect.summary import summarize
    from launcher.collect.terminal import format_summary
    from launcher.observe import find_run

    summary = summarize(find_run(run, runs))
    print(json.dumps(summary, indent=2) if as_json else format_summary(summary))
