"""The plan: everything that will happen, as one value; all later steps are a function of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .cluster import Cluster
from .files import write_json
from .spec import Spec
from .values import read_value, to_value

PLAN_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Processes: ``world_size = nodes * ranks_per_node``, one rank per GPU (on cpu: per ``gpus_per_node``)."""

    nodes: int
    ranks_per_node: int
    world_size: int
    cpus_per_rank: int | None
    time_minutes: int


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Sequences: ``global_batch = micro * accumulation * world_size``."""

    micro: int
    accumulation: int
    global_batch: int


@dataclass(frozen=True, kw_only=True)
class Note:
    """Something the user should know before submitting: the key it concerns, what, and what to do."""

    key: str
    message: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will run. ``runs`` is the absolute folder that holds the run directories."""

    v: int = PLAN_VERSION
    tuneyard: str
    run_id: str
    """The run's path below ``runs``: ``NAME-DIGEST``, in a pipeline ``NAME-DIGEST/STAGE``."""
    runs: str
    spec: Spec
    cluster: Cluster
    topology: Topology
    batch: Batch
    ds_base: dict[str, Any] | None = None
    """The DeepSpeed config that ds.json is merged over, as it was read; None without DeepSpeed."""
    after: str | None = None
    """The stage of the same pipeline that must be complete before this one starts."""
    gpu_hours: float
    """Upper bound: nodes x ranks per node x wall-time limit."""
    warnings: list[Note] = field(default_factory=list)

    @property
    def group(self) -> str:
        """The pipeline's id, or the run's own."""
        return self.run_id.partition("/")[0]

    @property
    def job_name(self) -> str:
        """What the scheduler calls it."""
        return self.run_id.replace("/", ".")

    def save(self, path: Path) -> None:
        """Write ``plan.json``."""
        write_json(path, to_value(self))

    @classmethod
    def load(cls, path: Path) -> "Plan":
        """Read ``plan.json``.

        Raises:
            FileNotFoundError: there is none.
            DamagedFile: it cannot be read.
        """
        plan = read_value(cls, path)
        if plan is None:
            raise FileNotFoundError(f"{path}: no plan here; is this a run directory?")
        return plan
