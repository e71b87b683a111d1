"""tuneyard collect: gather what came of a run."""

from .options import RUNS, AsJson, RunName, RunsFolder


def collect(run: RunName, as_json: AsJson = False, runs: RunsFolder = RUNS) -> None:
    """Write summary.json from the ledger and the checkpoints of a run, or of each stage, and show it."""
    import json

    from launcher.collect.summary import summarize
    from launcher.collect.terminal import format_summary
    from launcher.observe import read_statuses

    from .named import find_named

    summaries = []
    found = find_named(run, runs)
    for paths, status in zip(found.stages, read_statuses(found.stages), strict=True):
        if status.state in ("completed", "failed", "cancelled"):
            paths.secrets.unlink(missing_ok=True)  # what a supervisor that was killed could not remove
        summaries.append(summarize(paths, status.state, status.reason))
    if as_json:
        print(json.dumps(summaries if found.is_pipeline else summaries[0], indent=2))
    else:
        print("\n\n".join(format_summary(summary) for summary in summaries))
