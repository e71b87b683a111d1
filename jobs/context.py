"""What one rank knows of its run: the plan, the paths, its own numbers."""

from dataclasses import dataclass
from pathlib import Path

from launcher.contract.heartbeat import beat
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan

from .stop import leave_if_stale


@dataclass(frozen=True, kw_only=True)
class RankContext:
    """Handed to a stage's ``main``; torch's RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT are set already."""

    paths: RunPaths
    plan: Plan
    attempt: int
    rank: int
    local_rank: int
    world_size: int
    node: str
    resume_from: Path | None = None
    """The verified checkpoint that this attempt starts from."""

    @property
    def is_main(self) -> bool:
        """Global rank 0: the only one that writes the ledger, checkpoints' manifests and the final files."""
        return self.rank == 0

    def beat(self, step: int, phase: str, round_trip_s: float | None = None) -> None:
        """Say how far this rank is: ``phase`` is import, load, data, train, evaluate, rollout, score, reward, save,
        finish or done. Ends the rank where a newer attempt has begun."""
        leave_if_stale(self.paths, self.attempt)
        beat(self.paths, rank=self.rank, attempt=self.attempt, step=step, phase=phase, round_trip_s=round_trip_s)
