"""A DeepSpeed config of the user's: how it is read, and what in it contradicts the spec."""

import copy
from pathlib import Path
from typing import Any

import pytest

from launcher.contract.spec import Parallel, Spec
from launcher.errors import UserError
from launcher.spec.deepspeed import find_conflicts, read_base
from tests.plans import DEVCLUSTER, plan_on


def _spec(offload: str = "none", ds_config: str | None = None) -> Spec:
    parallel = Parallel(strategy="zero3", offload=offload, ds_config=ds_config)
    return plan_on(DEVCLUSTER, parallel=parallel).spec


USERS: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "scheduler": {"type": "WarmupCosineLR", "params": {"total_num_steps": "auto", "warmup_num_steps": "auto"}},
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "auto", "pin_memory": "auto", "buffer_count": 4},
        "sub_group_size": 1000000000,
        "reduce_bucket_size": "auto",
    },
    "wall_clock_breakdown": False,
}


@pytest.mark.parametrize(
    ("key", "value", "says", "owner"),
    [
        ("train_micro_batch_size_per_gpu", 4, "train_micro_batch_size_per_gpu is 4", "train.micro_batch"),
        ("train_batch_size", 16, "train_batch_size is 16", "train.global_batch"),
        ("gradient_clipping", 1.0, "gradient_clipping is 1.0", "train.max_grad_norm"),
        ("bf16.enabled", True, "bf16.enabled is true", "model.dtype"),
        ("fp16.enabled", False, "fp16.enabled is false", "model.dtype"),
        ("optimizer.params.lr", 1e-4, "optimizer.params.lr is 0.0001", "train.optimizer"),
        ("optimizer.type", "Lion", 'optimizer.type is "Lion"', "train.optimizer"),
        ("scheduler.type", "WarmupLR", 'scheduler.type is "WarmupLR"', "train.scheduler"),
        ("zero_optimization.stage", 2, "zero_optimization.stage is 2", "parallel.strategy"),
        ("zero_optimization.offload_param.device", "nvme", 'offload_param.device is "nvme"', "parallel.offload"),
        ("zero_optimization.overlap_comm", "auto", 'overlap_comm is "auto"', None),
    ],
)
def test_a_value_that_the_plan_owns_is_refused_with_its_name(
    key: str, value: Any, says: str, owner: str | None
) -> None:
    config = copy.deepcopy(USERS)
    *sections, name = key.split(".")
    place = config
    for section in sections:
        place = place.setdefault(section, {})
    place[name] = value
    [(message, hint)] = find_conflicts(_spec("optimizer"), config)
    assert says in message
    if owner:
        assert f"{owner} decides it" in message
        assert owner in hint


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text('{"gradient_clipping": "auto", "gradient_clipping": 2.0}')
    with pytest.raises(UserError, match='"gradient_clipping" stands twice'):
        read_base(_spec(ds_config=str(file)))
