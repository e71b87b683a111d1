"""What submit, resume and retry share: ask where it may be dear, hand over, follow, answer."""

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from launcher.contract.paths import RunPaths
    from launcher.contract.plan import Plan
    from launcher.contract.submission import Submission


def hand_over(
    stages: "Sequence[tuple[Plan, RunPaths]]",
    start: "Callable[[], Sequence[Submission]]",
    *,
    wait: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Show the plan of each stage, ask if they are dear, ``start`` them; with ``wait`` leave with the exit code."""
    import json
    import sys

    from launcher.errors import UserError

    from .show import show_plan

    print("\n\n".join(show_plan(plan, paths) for plan, paths in stages), file=sys.stderr)
    first, folder = stages[0][0], stages[0][1].root
    hours, limit = round(sum(plan.gpu_hours for plan, _ in stages), 2), first.cluster.confirm_gpu_hours
    if limit is not None and hours > limit and not yes:
        if not sys.stdin.isatty():
            raise UserError(
                f"up to {hours:g} GPU-hours, {first.cluster.name} asks above {limit:g}; "
                "nothing was submitted\nhint: add --yes, or set a shorter resources.time"
            )
        typer.confirm(f"Up to {hours:g} GPU-hours. Submit?", abort=True, err=True)
    for submission in start():
        where = f"Slurm job {submission.job_id}" if submission.job_id else f"process {submission.pid} on this machine"
        name = f"{submission.run_id} " if len(stages) > 1 else ""
        print(f"{name}submitted as {where}", file=sys.stderr)
    # A stage that was named alone answers for itself, a pipeline as a whole.
    run_id, run_dir = (first.group, folder.parent) if len(stages) > 1 else (first.run_id, folder)
    code = 0
    if wait:
        from .wait import wait_for

        for plan, paths in stages:
            code = code or wait_for(paths, plan.cluster.poll_seconds)
    else:
        print(f"next: tuneyard status {run_id}", file=sys.stderr)
    if as_json:
        print(json.dumps({"run_id": run_id, "run_dir": str(run_dir)}))
    elif not wait:
        print(run_id)
    raise typer.Exit(code)
