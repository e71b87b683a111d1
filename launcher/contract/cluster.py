"""What a cluster profile says: one YAML file per cluster, no secrets, no user names."""

from dataclasses import dataclass
from typing import Any, Literal

from .spec import DURATION_PATTERN, FORBID_UNKNOWN, SLURM_NAME_PATTERN, _key


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A resolved cluster profile; ``name`` is the file's stem."""

    __pydantic_config__ = FORBID_UNKNOWN

    name: str = _key("", "Filled in from the file's name.")
    scheduler: Literal["slurm", "local"] = _key("slurm", "Who starts the job.")
    accelerator: Literal["cuda", "cpu", "auto"] = _key("cuda", "What ranks run on; auto (local only): cuda if present.")
    gpu: str | None = _key(None, "Kind of GPU, such as h100-80gb.")
    gpus_per_node: int | None = _key(None, "GPUs a node has; on cpu, the default number of ranks per node.", ge=1)
    cpus_per_node: int | None = _key(None, "CPU cores a node has; shared out evenly over its GPUs.", ge=1)
    nodes: int | None = _key(None, "Nodes the cluster has.", ge=1)
    partition: str | None = _key(None, "Default partition.", pattern=SLURM_NAME_PATTERN)
    account: str | None = _key(None, "Default account.", pattern=SLURM_NAME_PATTERN)
    max_time: str | None = _key(None, "Longest wall time allowed.", pattern=DURATION_PATTERN)
    python: str | None = _key(None, "Python interpreter on the nodes; default the one that runs the launcher.")
    container: list[str] = _key([], "Command prefix that enters a container.")
    setup: list[str] = _key([], "Shell lines at the head of the job script (module load ...).")
    env: dict[str, str] = _key({}, "Environment variables of the ranks.")
    network_interface: str | None = _key(None, "Interface that NCCL and gloo use.")
    scratch: str | None = _key(None, "Node-local folder for temporary files.")
    internet: bool = _key(False, "Whether compute nodes reach the internet.")
    slurm_conf: str | None = _key(None, "Path of slurm.conf where it is not the default one.")
    gres_devices: bool = _key(True, "Whether to ask for --gpus-per-node (false where CPU nodes have none).")
    sbatch: dict[str, Any] = _key({}, "More sbatch options, long name -> value.")
    srun_args: list[str] = _key([], "More srun arguments.")
    poll_seconds: float = _key(10.0, "Shortest time between two questions to the scheduler.", gt=0)
    confirm_gpu_hours: float | None = _key(None, "Above this many GPU-hours submit asks.", gt=0)
