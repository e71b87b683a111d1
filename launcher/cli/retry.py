"""tuneyard retry: run again what failed or never started."""

import shlex

import typer

from .options import RUNS, AsJson, RunName, RunsFolder, Wait, Yes


def retry(
    context: typer.Context,
    run: RunName,
    wait: Wait = False,
    yes: Yes = False,
    as_json: AsJson = False,
    runs: RunsFolder = RUNS,
) -> None:
    """Run the stages of a pipeline that are not complete, each from its newest checkpoint; the others stay."""
    from launcher.errors import UserError
    from launcher.observe import read_statuses
    from launcher.submit.resume import see_submissions
    from launcher.submit.retry import plan_retry
    from launcher.submit.retry import retry as start

    from .handover import hand_over
    from .named import find_named, refuse_living

    found = find_named(run, runs)
    if context.args:
        name = f"{found.root.name}/STAGE" if found.is_pipeline else run
        raise UserError(f"retry takes no changes; `tuneyard resume {name} {shlex.join(context.args)}` does")
    if found.missing:
        gone = ", ".join(found.missing)
        raise UserError(
            f"{found.root.name}: {gone} cannot be run again, its run directory is gone; submit the file anew"
        )
    seen = see_submissions(found.stages)
    for paths, status in zip(found.stages, read_statuses(found.stages), strict=True):
        if paths.submission.exists():
            refuse_living(status)
    planned = plan_retry(found.stages)
    hand_over(planned, lambda: start(planned, seen), root=found.root, wait=wait, yes=yes, as_json=as_json)
