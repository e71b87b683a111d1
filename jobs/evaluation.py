"""Goes over all held-out rows, each of them once, whatever the number of ranks; draws from no random state.

transformers 5.23 means over batches instead, and repeats rows to fill the last one. No DataLoader either: starting one
draws from torch's random state, and a run with evaluations would differ from one without.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy
from numpy.typing import NDArray

from .data import TokenRows
from .masking import IGNORED
from .pairs import PairRows

if TYPE_CHECKING:
    import torch


def mean_token_loss(trainer: Any, rows: TokenRows) -> dict[str, float]:
    """Mean loss per token of ``rows``; of none where no token carries loss."""
    import torch

    model = trainer.model_wrapped
    sums = torch.zeros(2, dtype=torch.float64, device=trainer.args.device)
    model.eval()
    for indices, num_real in _deal(trainer, rows):
        examples = rows.examples(indices)
        for filler in examples[num_real:]:
            filler["labels"] = [IGNORED] * len(filler["labels"])
        inputs = trainer._prepare_inputs(trainer.data_collator(examples))
        with torch.no_grad(), trainer.compute_loss_context_manager():
            outputs = model(**inputs, fused_lm_head=True, use_cache=False)
        sums += torch.stack([-outputs.log_probs.double().sum(), outputs.label_mask.double().sum()])
        trainer.progress.beat("evaluate")
    model.train()
    loss, tokens = trainer.accelerator.reduce(sums, reduction="sum").tolist()
    return {"eval_loss": loss / tokens, "eval_tokens": int(tokens)} if tokens else {}


def measure_pairs(
    trainer: Any, rows: PairRows, measure: "Callable[[dict[str, Any]], torch.Tensor]"
) -> NDArray[numpy.float64]:
    """``measure`` of every pair: it gets a batch (:meth:`PairRows.batch`) and gives (pairs, values); float64, shape
    (rows, values), in the order of ``rows``, the same on all ranks."""
    import torch
    from accelerate.utils import gather_object

    model = trainer.model_wrapped
    was_training = model.training
    found: list[tuple[int, list[float]]] = []
    model.eval()
    for indices, num_real in _deal(trainer, rows):
        inputs = trainer._prepare_inputs(rows.batch(indices, trainer.processing_class.pad_token_id))
        with torch.no_grad(), trainer.compute_loss_context_manager():
            values = measure(inputs)
        found += list(zip(indices[:num_real], values.double().tolist(), strict=False))
        trainer.progress.beat("evaluate")
    model.train(was_training)
    return numpy.array([values for _, values in sorted(gather_object(found))])


def _deal(trainer: Any, rows: TokenRows | PairRows) -> Iterator[tuple[list[int], int]]:
    """This rank's batches: row indices, and how many of them are not there only to fill the batch.

    All ranks have equally many, for a sharded model's forward pass takes all of them, and at the same time of equal
    size, for TRL gathers what it measures. Only the last batch, of one row, may be filler.
    """
    rank, world_size = trainer.args.process_index, trainer.args.world_size
    # Rows of like length together: less padding, and no effect on a sum over rows.
    order = numpy.argsort(rows.lengths, kind="stable").tolist()
    start = 0
    while start < len(order):
        size = max(1, min(trainer.args.per_device_train_batch_size, (len(order) - start) // world_size))
        mine = order[start + rank * size : start + (rank + 1) * size]
        yield mine or order[:1], len(mine)
        start += size * world_size
