"""What submit and resume share: ask where it may be dear, hand over, follow, answer."""

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from launcher.contract.paths import RunPaths
    from launcher.contract.plan import Plan
    from launcher.contract.submission import Submission


def hand_over(
    plan: "Plan", paths: "RunPaths", start: "Callable[[], Submission]", *, wait: bool, yes: bool, as_json: bool
) -> None:
    """Show the plan, ask if it is dear, ``start`` it; with ``wait`` leave with the run's exit code."""
    import json
    import sys

    from launcher.errors import UserError

    from .show import show_plan

    print(show_plan(plan, paths), file=sys.stderr)
    limit = plan.cluster.confirm_gpu_hours
    if limit is not None and plan.gpu_hours > limit and not yes:
        if not sys.stdin.isatty():
            raise UserError(
                f"up to {plan.gpu_hours:g} GPU-hours, {plan.cluster.name} asks above {limit:g}; "
                "nothing was submitted\nhint: add --yes, or set a shorter resources.time"
            )
        typer.confirm(f"Up to {plan.gpu_hours:g} GPU-hours. Submit?", abort=True, err=True)
    submission = start()
    where = f"Slurm job {submission.job_id}" if submission.job_id else f"process {submission.pid} on this machine"
    print(f"submitted as {where}", file=sys.stderr)
    code = 0
    if wait:
        from .wait import wait_for

        code = wait_for(paths, plan.cluster.poll_seconds)
    else:
        print(f"next: tuneyard status {submission.run_id}", file=sys.stderr)
    if as_json:
        print(json.dumps({"run_id": submission.run_id, "run_dir": submission.run_dir}))
    elif not wait:
        print(submission.run_id)
    raise typer.Exit(code)
