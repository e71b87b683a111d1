"""What submit, resume and retry share: ask where it may be dear, hand over, follow, answer."""

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from launcher.contract.paths import RunPaths
    from launcher.contract.plan import Plan
    from launcher.contract.submission import Submission


def hand_over(
    stages: "Sequence[tuple[Plan, RunPaths]]",
    start: "Callable[[], Sequence[Submission]]",
    *,
    root: "Path",
    wait: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Show the plan of each stage, ask if they are dear, ``start`` them; with ``wait`` leave with the exit code.

    ``root`` is the folder of what was named: a pipeline answers as a whole, a stage that was named alone for itself.
    """
    import json
    import sys

    from launcher.errors import UserError

    from .show import show_plan

    print("\n\n".join(show_plan(plan, paths) for plan, paths in stages), file=sys.stderr)
    first = stages[0][0]
    run_id = first.run_id if stages[0][1].root == root else first.group
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
        name = f"{submission.run_id} " if submission.run_id != run_id else ""
        print(f"{name}submitted as {where}", file=sys.stderr)
    code = 0
    if wait:
        from .wait import wait_for

        for plan, paths in stages:
            if plan.run_id != run_id:
                print(f"==> {plan.run_id}", file=sys.stderr)
            if code := wait_for(plan, paths):
                break
    else:
        print(f"next: tuneyard status {run_id}", file=sys.stderr)
    if as_json:
        print(json.dumps({"run_id": run_id, "run_dir": str(root)}))
    elif not wait:
        print(run_id)
    raise typer.Exit(code)
