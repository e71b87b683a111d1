"""tuneyard retry: run again what failed or never started."""

from .options import RUNS, AsJson, RunName, RunsFolder, Wait, Yes


def retry(run: RunName, wait: Wait = False, yes: Yes = False, as_json: AsJson = False, runs: RunsFolder = RUNS) -> None:
    """Run the stages of a pipeline that are not complete, each from its newest checkpoint; the others stay."""
    from launcher.errors import UserError
    from launcher.observe import find_stages, read_status
    from launcher.submit.retry import plan_retry
    from launcher.submit.retry import retry as start

    from .handover import hand_over

    stages = find_stages(run, runs)
    for status in (read_status(paths) for paths in stages if paths.submission.exists()):
        if status.state in ("pending", "running", "unknown"):
            raise UserError(f"{status.run_id} is {status.state}; only what has ended can be run again")
    planned = plan_retry(stages)
    hand_over(planned, lambda: start(planned), wait=wait, yes=yes, as_json=as_json)
