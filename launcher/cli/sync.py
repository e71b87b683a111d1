"""tuneyard sync: make W&B equal to the ledger."""

from .options import RUNS, AsJson, RunName, RunsFolder


def sync(run: RunName, as_json: AsJson = False, runs: RunsFolder = RUNS) -> None:
    """Check that W&B's rows equal the ledger's, add those that are missing, and upload where there is an account."""
    import dataclasses
    import json

    from launcher.collect.sync import format_sync
    from launcher.collect.sync import sync as sync_run
    from launcher.errors import UserError
    from launcher.observe import read_statuses

    from .named import find_named

    found = find_named(run, runs)
    stages = [paths for paths in found.stages if paths.submission.exists()]
    if not stages:
        raise UserError(f"{run} was never submitted: there is nothing to sync")
    results = [sync_run(paths, status.state) for paths, status in zip(stages, read_statuses(stages), strict=True)]
    if as_json:
        values = [dataclasses.asdict(result) for result in results]
        print(json.dumps(values if found.is_pipeline else values[0], indent=2))
    else:
        print("\n\n".join(format_sync(result) for result in results))
