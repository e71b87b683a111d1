"""tuneyard submit: hand a run over, and with --wait follow it to its end."""

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
    """Plan and submit a run. Exit code with --wait: 0 completed, 1 failed, 130 left running."""
    from launcher.submit import prepare
    from launcher.submit import submit as start

    from .handover import hand_over

    prepared = prepare(spec, overrides or [], cluster=cluster, runs=runs)
    plan, paths = prepared.plan, prepared.paths
    hand_over(plan, paths, lambda: start(plan, paths, spec), wait=wait, yes=yes, as_json=as_json)
