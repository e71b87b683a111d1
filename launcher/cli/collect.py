"""tuneyard collect: gather what came of a run."""

from .options import RUNS, AsJson, RunName, RunsFolder


def collect(run: RunName, as_json: AsJson = False, runs: RunsFolder = RUNS) -> None:
    """Write summary.json from the ledger and the checkpoints of a run, or of each stage, and show it."""
    import json

    from launcher.collect.summary import summarize
    from launcher.collect.terminal import format_summary
    from launcher.observe import find_stages, read_status

    summaries = []
    for paths in find_stages(run, runs):
        status = read_status(paths)
        if status.state in ("completed", "failed", "cancelled"):
            paths.secrets.unlink(missing_ok=True)  # what a supervisor that was killed could not remove
        summaries.append(summarize(paths, status.state, status.reason))
    if as_json:
        print(json.dumps(summaries[0] if len(summaries) == 1 else summaries, indent=2))
    else:
        print("\n\n".join(format_summary(summary) for summary in summaries))
