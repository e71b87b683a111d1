"""tuneyard collect: gather what came of a run."""

from .options import RUNS, AsJson, RunName, RunsFolder


def collect(run: RunName, as_json: AsJson = False, runs: RunsFolder = RUNS) -> None:
    """Write summary.json from the ledger and the checkpoints, and show it."""
    import json

    from launcher.collect.summary import summarize
    from launcher.collect.terminal import format_summary
    from launcher.observe import find_run, read_status

    paths = find_run(run, runs)
    status = read_status(paths)
    if status.state in ("completed", "failed", "cancelled"):
        paths.secrets.unlink(missing_ok=True)  # what a supervisor that was killed could not remove
    summary = summarize(paths, status.state, status.reason)
    print(json.dumps(summary, indent=2) if as_json else format_summary(summary))
