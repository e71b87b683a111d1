"""Runs again what of a pipeline failed or never started; what is complete stays."""

from collections.abc import Sequence

from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan
from launcher.contract.submission import Submission
from launcher.errors import UserError

from .prepare import render_all
from .resume import plan_resume, resume
from .submit import submit


def plan_retry(stages: Sequence[RunPaths]) -> list[tuple[Plan, RunPaths]]:
    """Plan the stages that are not complete, as they were; writes nothing that a running job reads.

    Raises:
        UserError: all of them are complete.
    """
    left = [paths for paths in stages if not paths.completion.exists()]
    if not left:
        raise UserError(f"{Plan.load(stages[0].plan).group} is complete; there is nothing to run again")
    # A stage whose submission was refused or cut off is as it was planned.
    return [
        (plan_resume(paths, [], cluster=None) if paths.submission.exists() else Plan.load(paths.plan), paths)
        for paths in left
    ]


def retry(stages: Sequence[tuple[Plan, RunPaths]]) -> list[Submission]:
    """Hand ``stages`` over in their order, each as a new attempt from its newest checkpoint, after the one before it.

    Raises:
        ClusterError: the scheduler refused one; those before it are submitted, and a retry goes on from there.
    """
    done: list[Submission] = []
    for plan, paths in stages:
        after = done[-1].job_id if done else None
        if paths.submission.exists():
            done.append(resume(plan, paths, after))
        else:
            render_all(plan)
            done.append(submit(plan, paths, None, after))
    return done
