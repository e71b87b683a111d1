"""Supervised fine-tuning of one run, as its plan says, with TRL's SFTTrainer.

Each rank is ``python -m jobs.rank RUN_DIR`` in the environment of ``RUN_DIR/rendered/rank.env`` with its numbers set.
"""

from launcher.contract.ledger import LedgerWriter

from .context import RankContext
from .stage import find_start, load_weights, make_arguments, make_trainer, run_stage, run_trainer, start_progress


def main(context: RankContext) -> None:
    """Train.

    Raises:
        JobError: something that the user can mend.
    """
    run_stage(context, train)


def train(context: RankContext, ledger: LedgerWriter | None) -> None:
    """Data, model, trainer, training, final save: in this order, so that bad rows are found before weights load."""
    import datasets
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from .data import pack, prepare_data
    from .evaluation import mean_token_loss
    from .trainer import Metrics, RunTrainer

    # Rows to tokens.
    spec = context.plan.spec
    rows = spec.require_data()
    origin, tokenizer = find_start(context)
    data = prepare_data(rows, spec.train.loss_on, spec.train.seed, tokenizer)
    sequences = pack(data.train, rows.max_length) if spec.train.packing else data.train
    progress = start_progress(context, ledger, data, sequences)

    # Weights.
    context.beat(0, "load")
    arguments = make_arguments(
        SFTConfig,
        progress,
        has_eval=data.eval is not None,
        # Rows are tokens already, truncated and checked.
        max_length=None,
        # The loss is a mean over the tokens of all ranks, not a mean of the ranks' means.
        average_tokens_across_devices=True,
        dataset_kwargs={"skip_prepare_dataset": True},
        # Packed sequences are flattened into one per micro batch; where one row ends is told by the positions.
        padding_free=spec.train.packing,
    )
    model = load_weights(context, origin)

    class Trainer(RunTrainer, SFTTrainer):  # type: ignore[misc]
        """TRL's trainer with what every stage adds."""

        def measure(self) -> Metrics:
            return mean_token_loss(self, self.eval_rows)

    trainer = make_trainer(
        Trainer,
        model,
        progress,
        data.eval,
        args=arguments,
        train_dataset=datasets.Dataset.from_dict(sequences.columns()),
        processing_class=tokenizer,
    )
    run_trainer(trainer)
