"""Plan -> the files that the job reads; pure."""

from launcher.contract.environment import format_environment
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan
from launcher.contract.strategies import ZERO_STAGES

from .accelerate import render_accelerate
from .deepspeed import render_deepspeed
from .environment import rank_environment

__all__ = ["render"]


def render(plan: Plan, paths: RunPaths) -> dict[str, str]:
    """Path relative to the run directory -> text, for everything below ``rendered/`` but the job script.

    The job script is submitit's text (see ``launcher.submit.slurm``), so that what is shown is what is submitted.

    Raises:
        ValueError: the strategy is zero2 or zero3, and the plan has no ``ds_base``.
    """
    files = {
        paths.rank_env: format_environment(rank_environment(plan, paths)),
        paths.accelerate: render_accelerate(plan, paths),
    }
    if plan.spec.parallel.strategy in ZERO_STAGES:
        if plan.ds_base is None:
            raise ValueError(f"{plan.spec.parallel.strategy} needs a DeepSpeed config to merge over")
        files[paths.ds_config] = render_deepspeed(plan, plan.ds_base)
    return {path.relative_to(paths.root).as_posix(): text for path, text in files.items()}
