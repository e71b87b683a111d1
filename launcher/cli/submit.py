"""tuneyard submit: hand a run or a pipeline over, and with --wait follow it to its end."""

from .options import RUNS, AsJson, ClusterName, Overrides, RunsFolder, SpecFile, Wait, Yes


def submit(
    spec: SpecFile,
    overrides: Overrides = None,
    cluster: ClusterName = None,
    wait: Wait = False,
    yes: Yes = False,
    as_json: AsJson = False,
    runs: RunsFolder = RUNS,
) -> None:
    """Plan and submit a run or a pipeline. Exit code with --wait: 0 completed, 1 failed, 130 left running."""
    from launcher.submit import prepare, submit_stages

    from .handover import hand_over

    stages = prepare(spec, overrides or [], cluster=cluster, runs=runs)
    planned = [(stage.plan, stage.paths) for stage in stages]
    root = runs.resolve() / stages[0].plan.group
    hand_over(planned, lambda: submit_stages(stages, spec), root=root, wait=wait, yes=yes, as_json=as_json)
