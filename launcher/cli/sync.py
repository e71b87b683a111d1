"""tuneyard sync: make W&B equal to the ledger."""

from .options import RUNS, AsJson, RunName, RunsFolder


def sync(run: RunName, as_json: AsJson = False, runs: RunsFolder = RUNS) -> None:
    """Check that W&B's rows equal the ledger's, add those that are missing, and upload where there is an account."""
    import dataclasses
    import json

    from launcher.collect.sync import format_sync
    from launcher.collect.sync import sync as sync_run
    from launcher.errors import UserError
    from launcher.observe import find_run, read_status

    paths = find_run(run, runs)
    if not paths.submission.exists():
        raise UserError(f"{paths.root.name} was never submitted: there is nothing to sync")
    result = sync_run(paths, read_status(paths).state)
    print(json.dumps(dataclasses.asdict(result), indent=2) if as_json else format_sync(result))
