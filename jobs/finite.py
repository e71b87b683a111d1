"""Watches losses, gradients and weights for what is no number, and losses for spikes."""

import math
import statistics
from collections import deque
from typing import TYPE_CHECKING

from launcher.contract.ledger import LedgerWriter
from launcher.contract.spec import Train

from .errors import JobError, RollbackError

if TYPE_CHECKING:
    import torch

MAX_SKIPPED = 5
"""Steps in a row that are left out before the run is given up."""
SPIKE = 3.0
"""A loss is a spike from so many times the median of the steps before it."""
WINDOW, FEWEST = 50, 10
"""How many steps that median is of, at most and at least."""


class LossWatch:
    """Judges each step by its loss (the mean over the ranks) and its gradient norm (of all ranks), which are the same
    on every rank: so all ranks decide alike, without asking one another."""

    def __init__(self, policy: str, ledger: LedgerWriter | None) -> None:
        """``policy`` is train.on_nonfinite; ``ledger`` is rank 0's."""
        self._policy = policy
        self._ledger = ledger
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._skipped = 0

    def judge(self, step: int, loss: float, grad_norm: float | None) -> bool:
        """Whether both are numbers; ``grad_norm`` is None where nobody has measured it.

        Raises:
            JobError: they are not, and the run is to stop, or has left out too many steps in a row.
            RollbackError: they are not, and the next attempt is to go on from the newest checkpoint.
        """
        if math.isfinite(loss) and (grad_norm is None or math.isfinite(grad_norm)):
            self._skipped = 0
            self._note_spike(step, loss)
            return True
        self._skipped += 1
        if self._ledger is not None:
            self._ledger.event(
                "nan", step=step, loss=str(loss), grad_norm=str(grad_norm), policy=self._policy, in_a_row=self._skipped
            )
        what = "the gradient norm" if math.isfinite(loss) else "the loss"
        told = f"{what} is {grad_norm if math.isfinite(loss) else loss} at step {step}"
        remedy = "a smaller train.learning_rate may help"
        if self._policy == "rollback":
            raise RollbackError(f"{told}; the run goes on from its newest checkpoint (train.on_nonfinite: rollback)")
        if self._policy == "stop":
            raise JobError(f"{told}; {remedy}")
        if self._skipped == MAX_SKIPPED:
            raise JobError(f"{told}, after {MAX_SKIPPED - 1} steps that were skipped for the same; {remedy}")
        return False

    def _note_spike(self, step: int, loss: float) -> None:
        if len(self._losses) >= FEWEST and self._ledger is not None:
            median = statistics.median(self._losses)
            if loss > SPIKE * median > 0:
                self._ledger.event("spike", step=step, loss=loss, median=median)
        self._losses.append(loss)


def skips(train: Train) -> bool:
    """Whether a step whose gradient is no number is left out."""
    return train.on_nonfinite == "skip"


def check_finite(weights: "dict[str, torch.Tensor] | None") -> None:
    """Whether weights that are about to be written are numbers; None on the ranks that do not hold them.

    Collective.

    Raises:
        JobError: on every rank, if one is not.
    """
    from accelerate.utils import gather_object

    floating = {name: tensor for name, tensor in (weights or {}).items() if tensor.is_floating_point()}
    bad = [name for name, tensor in floating.items() if tensor.numel() and not _is_finite(tensor)]
    if found := gather_object(bad):
        raise JobError(f"save: {len(found)} weights are no numbers, {found[0]} among them; nothing is published")


def _is_finite(tensor: "torch.Tensor") -> bool:
    # Either bound is NaN where a value is, and neither takes memory of its own.
    return all(bool(bound.isfinite()) for bound in tensor.aminmax())
