"""Derives gradient accumulation from the batch that was asked for."""

from launcher.contract.plan import Batch


class BatchError(ValueError):
    """The global batch can't be made of whole micro batches; ``hint`` names global batches that can."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def derive_batch(*, micro: int, global_batch: int, world_size: int) -> Batch:
    """Split ``global_batch`` sequences into micro batches: global = micro * accumulation * world size.

    Raises:
        BatchError: the quotient is not a whole number.
    """
    per_pass = micro * world_size
    if global_batch % per_pass == 0:
        return Batch(micro=micro, accumulation=global_batch // per_pass, global_batch=global_batch)
    below, above = global_batch // per_pass * per_pass, (global_batch // per_pass + 1) * per_pass
    choices = " or ".join(str(value) for value in (below, above) if value > 0)
    smaller = [size for size in range(micro, 0, -1) if global_batch % (size * world_size) == 0]
    remedy = f", or train.micro_batch={smaller[0]}" if smaller else ""
    raise BatchError(
        f"{global_batch} sequences per step do not divide into {world_size} ranks x {micro} sequences "
        f"(= {per_pass} per pass)",
        f"set train.global_batch={choices}{remedy}",
    )
