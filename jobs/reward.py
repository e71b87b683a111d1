"""Reward modelling of one run, as its plan says, with TRL's RewardTrainer.

Each rank is ``python -m jobs.rank RUN_DIR`` in the environment of ``RUN_DIR/rendered/rank.env`` with its numbers set.
"""

from typing import Any

import numpy
from numpy.typing import NDArray

from launcher.contract.ledger import LedgerWriter

from .context import RankContext
from .stage import find_start, load_weights, make_arguments, make_trainer, run_stage, run_trainer, start_progress

BINS = 10
"""Of the calibration error, between 1/2 and 1."""


def main(context: RankContext) -> None:
    """Train.

    Raises:
        JobError: something that the user can mend.
    """
    run_stage(context, train)


def train(context: RankContext, ledger: LedgerWriter | None) -> None:
    """Data, model, trainer, training, final save: in this order, so that bad rows are found before weights load."""
    import datasets
    import torch
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    from .pair_trainer import Floats, PairTrainer, summarize_margins
    from .pairs import prepare_pairs
    from .trainer import Metrics

    # Rows to tokens.
    spec = context.plan.spec
    rows = spec.require_data()
    origin, tokenizer = find_start(context)
    data = prepare_pairs(rows, spec.train.seed, tokenizer)
    progress = start_progress(context, ledger, data, data.train)

    # Weights.
    context.beat(0, "load")
    arguments = make_arguments(
        RewardConfig,
        progress,
        has_eval=data.eval is not None,
        # Rows are tokens already, truncated and checked.
        max_length=None,
        center_rewards_coefficient=spec.reward.center or None,
        # Both sides of a pair would lose other features, and their difference is what is learned.
        disable_dropout=True,
        remove_unused_columns=False,
    )
    model = load_weights(context, origin, "SEQ_CLS")

    class Trainer(PairTrainer, RewardTrainer):  # type: ignore[misc]
        """TRL's trainer; a pair's loss is -log sigmoid(margin) (arXiv:2203.02155, eq. 1)."""

        METRICS = ("reward/accuracy", "reward/margin")

        def compute_rewards(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
            inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            loss, outputs = RewardTrainer.compute_loss(self, model, inputs, return_outputs=True)  # type: ignore[no-untyped-call]
            return loss, torch.stack(outputs.logits.detach().squeeze(-1).chunk(2), dim=1)

        def summarize(self, chosen: Floats, rejected: Floats) -> Metrics:
            error = measure_calibration_error(chosen - rejected)
            return {**summarize_margins(chosen, rejected), "calibration_error": error}

    trainer = make_trainer(
        Trainer,
        model,
        progress,
        data.eval,
        rows=data.train,
        args=arguments,
        train_dataset=datasets.Dataset.from_dict({"row": range(len(data.train))}),
        processing_class=tokenizer,
    )
    run_trainer(trainer)


def measure_calibration_error(margins: NDArray[numpy.float64]) -> float:
    """Expected calibration error of the model's preferences: 0 where it is right as often as it says.

    A reward model says of the side that it prefers that a person does so too with probability sigmoid(abs(margin)).
    In each of 10 bins of equal width between 1/2 and 1 its mean is compared with the share of pairs in which it
    prefers the chosen side (arXiv:1706.04599, eq. 3); a margin of 0 is right half of the time.

    ``margins``: float64, shape (pairs,).
    """
    says = 1 / (1 + numpy.exp(-numpy.abs(margins)))
    right = (margins > 0) + 0.5 * (margins == 0)
    bins = numpy.minimum(((says - 0.5) * 2 * BINS).astype(int), BINS - 1)
    gaps = [abs((right[bins == index] - says[bins == index]).sum()) for index in range(BINS)]
    return float(sum(gaps) / len(margins))
