"""A rank has the device of its plan, or says why not."""

import os
from pathlib import Path

import pytest
import torch

from jobs.context import RankContext
from jobs.device import claim_device
from jobs.errors import JobError
from launcher.contract.cluster import Cluster
from launcher.contract.paths import RunPaths
from tests.plans import H100, LOCAL, plan_on


def _context(cluster: Cluster, local_rank: int) -> RankContext:
    plan = plan_on(cluster)
    return RankContext(
        paths=RunPaths(Path()), plan=plan, attempt=1, rank=local_rank, local_rank=local_rank, world_size=4, node="n0"
    )


def test_a_rank_without_a_gpu_of_its_own_is_stopped() -> None:
    """accelerate would train it on the CPU, or on another rank's GPU."""
    count = torch.cuda.device_count()
    with pytest.raises(JobError, match=f"profile h100 says cuda, and rank {count} of n0 sees {count} GPUs"):
        claim_device(_context(H100, count))


def test_a_rank_on_the_cpu_sees_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")  # as Slurm sets it where nodes have GPUs
    claim_device(_context(LOCAL, 0))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
