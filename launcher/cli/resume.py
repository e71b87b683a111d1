"""tuneyard resume: go on with a run from its newest verified checkpoint."""

from .options import RUNS, AsJson, ClusterName, Overrides, RunName, RunsFolder, Wait, Yes


def resume(
    run: RunName,
    overrides: Overrides = None,
    cluster: ClusterName = None,
    wait: Wait = False,
    yes: Yes = False,
    as_json: AsJson = False,
    runs: RunsFolder = RUNS,
) -> None:
    """Go on with a run that has ended, as a new attempt; train.max_steps=N extends a finished one."""
    from launcher.errors import UserError
    from launcher.observe import read_statuses
    from launcher.submit.resume import list_followers, plan_resume, refuse_while_followed, see_submissions
    from launcher.submit.retry import retry as start

    from .handover import hand_over
    from .named import find_named, refuse_living

    found = find_named(run, runs)
    if found.is_pipeline:
        group = found.root.name
        raise UserError(
            f"{group} is a pipeline; nothing was submitted\nhint: tuneyard retry {group} runs what is left of it, "
            f"tuneyard resume {group}/{found.stages[-1].root.name} one stage"
        )
    (paths,) = found.stages
    seen = see_submissions([paths])
    status, *followers = read_statuses([paths, *list_followers(paths)])
    if paths.submission.exists():
        refuse_living(status)
    plan = plan_resume(paths, overrides or [], cluster=cluster)
    left = [item for item in followers if item.state in ("pending", "running", "unknown")]
    refuse_while_followed(
        plan, {item.run_id: f"{item.state} ({item.reason})" if item.reason else item.state for item in left}
    )
    planned = [(plan, paths)]
    hand_over(planned, lambda: start(planned, seen), root=found.root, wait=wait, yes=yes, as_json=as_json)
