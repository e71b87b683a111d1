"""Plan -> the files that the job reads; pure."""

from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan

from .accelerate import render_accelerate
from .environment import format_environment, rank_environment


def render(plan: Plan, paths: RunPaths) -> dict[str, str]:
    """Path relative to the run directory -> text, for everything below ``rendered/`` but the job script.

    The job script is submitit's text (see ``launcher.submit.slurm``), so that what is shown is what is submitted.
    """
    return {
        paths.rank_env.relative_to(paths.root).as_posix(): format_environment(rank_environment(plan)),
        paths.accelerate.relative_to(paths.root).as_posix(): render_accelerate(plan),
    }
