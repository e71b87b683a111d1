"""Runs again what of a pipeline failed or never started; what is complete stays."""

from collections.abc import Mapping, Sequence

from launcher.contract.files import read_json, write_json
from launcher.contract.paths import RunPaths
from launcher.contract.pipeline import list_stages
from launcher.contract.plan import Plan
from launcher.contract.submission import Submission
from launcher.errors import ClusterError, UserError

from .prepare import render_all
from .resume import plan_resume, refuse_orphan, resume
from .submit import refuse, submit


def plan_retry(stages: Sequence[RunPaths]) -> list[tuple[Plan, RunPaths]]:
    """Plan the stages that are not complete, as they were; writes nothing that a running job reads.

    Raises:
        UserError: all of them are complete, or the first of them follows one that is not among them.
    """
    left = [paths for paths in stages if not paths.completion.exists()]
    if not left:
        raise UserError(f"{Plan.load(stages[0].plan).group} is complete; there is nothing to run again")
    names = {paths.root.name for paths in left}
    planned = []
    for paths in left:
        if paths.submission.exists():
            plan = plan_resume(paths, [], cluster=None, together=names)
        else:  # its submission was refused or cut off: it is as it was planned
            plan = Plan.load(paths.plan)
            refuse_orphan(plan, paths, names)
        planned.append((plan, paths))
    return planned


def retry(stages: Sequence[tuple[Plan, RunPaths]], seen: Mapping[RunPaths, bytes | None]) -> list[Submission]:
    """Hand ``stages`` over in their order, each as a new attempt from its newest checkpoint, after the one before it.

    ``seen`` are their records (:func:`launcher.submit.resume.see_submissions`), read before they were judged to have
    ended.

    Raises:
        UserError: another command has handed one over since, or its script cannot be copied.
        ClusterError: the scheduler refused one.

    Either message names those that are submitted all the same.
    """
    done: list[Submission] = []
    for plan, paths in stages:
        after = done[-1].job_id if done else None
        try:
            if paths.submission.exists():
                done.append(resume(plan, paths, seen[paths], after))
            else:
                render_all(plan)
                _keep_git(paths)
                done.append(submit(plan, paths, None, after))
        except (ClusterError, UserError) as error:
            raise refuse(error, done) from error
    return done


def _keep_git(paths: RunPaths) -> None:
    """The state of the user's repository as an earlier stage recorded it, for one that was never submitted."""
    known = [stage.git for stage in list_stages(paths.root.parent) if stage.git.exists()]
    if known and not paths.git.exists():
        write_json(paths.git, read_json(known[0]))
