"""What the launcher and the ranks both hold of each strategy."""

from .spec import Strategy

SHARDS_WEIGHTS: tuple[Strategy, ...] = ("fsdp", "zero3")
"""A rank holds a part of each weight; under the others it holds all of the base."""

FIXED_WORLD: tuple[Strategy, ...] = ("zero2", "zero3")
"""A checkpoint goes on only with as many ranks as wrote it: each reads its own part of the optimizer's state
(DeepSpeed 0.19, load_checkpoint). DDP's is whole, and FSDP2's is dealt anew (torch.distributed.checkpoint)."""

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
