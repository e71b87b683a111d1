"""Joins the states of a pipeline's stages into one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.contract.files import DAMAGE, DamagedFile
from launcher.contract.paths import PIPELINE, RunPaths
from launcher.contract.pipeline import list_stages

from .status import Status, read_statuses


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


def read_all(roots: Sequence[Path]) -> list[Status | PipelineStatus]:
    """The status of the run or the pipeline in each of ``roots``; Slurm is asked for all of them together.

    What is damaged is ``unknown`` and does not hide the others.
    """
    stages: dict[Path, list[RunPaths]] = {}
    damage: dict[Path, str] = {}
    for root in roots:
        try:
            stages[root] = list_stages(root)
            if not stages[root]:
                raise DamagedFile(root / PIPELINE, "it names no stage")
        except DAMAGE as error:
            stages[root] = []
            damage[root] = str(error)
    statuses = iter(read_statuses([paths for root in roots for paths in stages[root]]))
    found: list[Status | PipelineStatus] = []
    for root in roots:
        mine = [next(statuses) for _ in stages[root]]
        if root in damage:
            found.append(_make(root, state="unknown", step=0, attempt=0, reason=damage[root], stages=[]))
        else:
            found.append(join(root, mine) if (root / PIPELINE).is_file() else mine[0])
    return found


def join(root: Path, stages: Sequence[Status]) -> PipelineStatus:
    """The stage that decides is the first that is not complete; the state is its own, but that a pipeline which has
    begun is running until it has ended."""
    current = next((stage for stage in stages if stage.state != "completed"), stages[-1])
    has_begun = any(stage.state in ("running", "completed") for stage in stages)
    state = "running" if current.state == "pending" and has_begun else current.state
    reason = f"{current.stage_name}: {current.reason}" if current.reason else None
    return _make(root, state=state, step=current.step, attempt=current.attempt, reason=reason, stages=list(stages))


def _make(
    root: Path, *, state: str, step: int, attempt: int, reason: str | None, stages: list[Status]
) -> PipelineStatus:
    return PipelineStatus(
        run_id=root.name, run_dir=str(root), state=state, step=step, attempt=attempt, reason=reason, stages=stages
    )
