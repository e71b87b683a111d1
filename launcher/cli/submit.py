"""tuneyard submit: hand a run over, and with --wait follow it to its end."""

from typing import Annotated

import typer

from .options import RUNS, AsJson, ClusterName, Overrides, RunsFolder, SpecFile


def submit(
    spec: SpecFile,
    overrides: Overrides = None,
    cluster: ClusterName = None,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Follow the run; Ctrl-C leaves it running.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask, however many GPU-hours it may take.")] = False,
    as_json: AsJson = False,
    runs: RunsFolder = RUNS,
) -> None:
    """Plan and submit a run. Exit code with --wait: 0 completed, 1 failed, 130 left running."""
    import json
    import sys

    from launcher.errors import UserError
    from launcher.submit import prepare
    from launcher.submit import submit as hand_over

    from .show import show_plan

    prepared = prepare(spec, overrides or [], cluster=cluster, runs=runs)
    print(show_plan(prepared.plan, prepared.paths), file=sys.stderr)
    limit = prepared.plan.cluster.confirm_gpu_hours
    if limit is not None and prepared.plan.gpu_hours > limit and not yes:
        if not sys.stdin.isatty():
            raise UserError(
                f"up to {prepared.plan.gpu_hours:g} GPU-hours, {prepared.plan.cluster.name} asks above {limit:g}; "
                "nothing was submitted\nhint: add --yes, or set a shorter resources.time"
            )
        typer.confirm(f"Up to {prepared.plan.gpu_hours:g} GPU-hours. Submit?", abort=True, err=True)
    submission = hand_over(prepared, spec)
    where = f"Slurm job {submission.job_id}" if submission.job_id else f"process {submission.pid} on this machine"
    print(f"submitted as {where}", file=sys.stderr)
    code = 0
    if wait:
        from .wait import wait_for

        code = wait_for(prepared.paths, prepared.plan.cluster.poll_seconds)
    else:
        print(f"next: tuneyard status {submission.run_id}", file=sys.stderr)
    if as_json:
        print(json.dumps({"run_id": submission.run_id, "run_dir": submission.run_dir}))
    elif not wait:
        print(submission.run_id)
    raise typer.Exit(code)
