"""What the launcher and the ranks both hold of each strategy."""

from .spec import Spec, Strategy

SHARDS_WEIGHTS: tuple[Strategy, ...] = ("fsdp", "zero3")
"""A rank holds a part of each weight; under the others it holds all of the base."""

FIXED_WORLD: tuple[Strategy, ...] = ("zero2", "zero3")
"""Each rank reads the part of the optimizer's state that it wrote (DeepSpeed 0.19, load_checkpoint). DDP's state is
whole, and FSDP2's is dealt anew (torch.distributed.checkpoint)."""


def has_fixed_world(spec: Spec) -> bool:
    """Whether a run goes on only with as many ranks as wrote its checkpoint.

    Of ZeRO the job makes a universal checkpoint, which any number of ranks can read. DeepSpeed 0.19 knows the states of
    Adam alone for that (ds_to_universal.py), a script loads what it wrote itself, and ppo has not been tried.
    """
    can_convert = spec.train.optimizer == "adamw" and spec.stage in ("sft", "reward", "dpo")
    return spec.parallel.strategy in FIXED_WORLD and not can_convert


ZERO_STAGES: dict[Strategy, int] = {"zero2": 2, "zero3": 3}
"""The strategies that are DeepSpeed's, and their ``zero_optimization.stage``."""

LEGAL_OFFLOAD: dict[Strategy, tuple[str, ...]] = {
    "ddp": ("none",),
    "fsdp": ("none", "all"),
    "zero2": ("none", "optimizer"),
    "zero3": ("none", "optimizer", "all"),
}
"""What ``parallel.offload`` can be: FSDP2 offloads parameters together with the optimizer's state, ZeRO-2 holds every
parameter on each rank."""
