"""Joins the states of a pipeline's stages into one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.contract.pipeline import list_stages, read_pipeline

from .status import Status, read_or_tell


@dataclass(frozen=True, kw_only=True)
class PipelineStatus:
    """``state`` and ``step`` as those of a run: of the stage that decides it."""

    run_id: str
    run_dir: str
    state: str
    step: int
    attempt: int
    reason: str | None
    stages: list[Status]


def read_any(root: Path) -> Status | PipelineStatus:
    """The status of the run or the pipeline in ``root``."""
    stages = [read_or_tell(paths) for paths in list_stages(root)]
    return join(root, stages) if read_pipeline(root) else stages[0]


def join(root: Path, stages: Sequence[Status]) -> PipelineStatus:
    """The stage that decides is the first that is not complete; the state is its own, but that a pipeline which has
    begun is running until it has ended."""
    current = next((stage for stage in stages if stage.state != "completed"), stages[-1])
    has_begun = any(stage.state in ("running", "completed") for stage in stages)
    state = "running" if current.state == "pending" and has_begun else current.state
    reason = f"{current.stage_name}: {current.reason}" if current.reason else None
    return PipelineStatus(
        run_id=root.name,
        run_dir=str(root),
        state=state,
        step=current.step,
        attempt=current.attempt,
        reason=reason,
        stages=list(stages),
    )
