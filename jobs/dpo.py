"""Direct preference optimization of one run, as its plan says, with TRL's DPOTrainer.

Each rank is ``python -m jobs.rank RUN_DIR`` in the environment of ``RUN_DIR/rendered/rank.env`` with its numbers set.
"""

from dataclasses import replace
from typing import Any

from launcher.contract.ledger import LedgerWriter

from .context import RankContext
from .stage import (
    find_dtypes,
    find_start,
    load_weights,
    make_arguments,
    make_trainer,
    run_stage,
    run_trainer,
    start_progress,
)


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
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    from .evaluation import measure_pairs
    from .pair_trainer import Floats, PairTrainer, summarize_margins
    from .pairs import prepare_pairs
    from .reference import keep_reference, use_reference
    from .trainer import Metrics

    # Rows to tokens.
    spec = context.plan.spec
    asked, rows = spec.require_model(), spec.require_data()
    origin, tokenizer = find_start(context)
    data = prepare_pairs(rows, spec.train.seed, tokenizer)
    progress = start_progress(context, ledger, data, data.train)

    # Weights.
    context.beat(0, "load")
    arguments = make_arguments(
        DPOConfig,
        progress,
        has_eval=data.eval is not None,
        # Rows are tokens already, truncated and checked.
        max_length=None,
        beta=spec.dpo.beta,
        loss_type=spec.dpo.loss_type,
        label_smoothing=spec.dpo.label_smoothing,
        # The policy is compared with the reference, and the two would lose other features.
        disable_dropout=True,
        remove_unused_columns=False,
    )
    model = load_weights(context, origin)

    class Trainer(PairTrainer, DPOTrainer):  # type: ignore[misc]
        """TRL's trainer, told what the reference says; a reward is beta * log(policy / reference)."""

        METRICS = ("dpo/margin", "dpo/accuracy", "dpo/reward_chosen", "dpo/reward_rejected")

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            keep_reference(self.model, find_dtypes(asked)[0], is_base=origin.folder is None)
            self.precompute_ref_logps = True  # or by compute_rewards, but never by TRL

        def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
            prepared = super()._prepare_for_training(*args, **kwargs)
            if spec.dpo.precompute_reference:
                self.rows = replace(self.rows, reference=measure_pairs(self, self.rows, self.ask_reference))
                if self.eval_rows is not None:
                    known = measure_pairs(self, self.eval_rows, self.ask_reference)
                    self.eval_rows = replace(self.eval_rows, reference=known)
            return prepared

        def compute_rewards(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
            if "ref_chosen_logps" not in inputs:
                known = self.ask_reference(inputs).unbind(1)
                inputs |= {"ref_chosen_logps": known[0], "ref_rejected_logps": known[1]}
            said: list[torch.Tensor] = []

            def ask(**kwargs: Any) -> Any:
                outputs = model(**kwargs)
                said.append(outputs.log_probs.detach().sum(1))
                return outputs

            loss = DPOTrainer.compute_loss(self, ask, inputs)  # type: ignore[no-untyped-call]
            policy = torch.stack(said[0].chunk(2), dim=1)
            reference = torch.stack([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]], dim=1)
            return loss, self.beta * (policy - reference)

        def ask_reference(self, inputs: dict[str, Any]) -> torch.Tensor:
            """Log-probabilities of both answers under the reference: shape (pairs, 2)."""
            # The wrapped model: what the policy goes through, so that equal weights say the same to the last bit.
            with torch.no_grad(), use_reference(self.model, self.model_wrapped):
                outputs = self.model_wrapped(
                    input_ids=inputs["input_ids"],
                    attention_mask=inputs["attention_mask"],
                    labels=inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100),
                    use_cache=False,
                    fused_lm_head=True,
                )
            return torch.stack(outputs.log_probs.sum(1).chunk(2), dim=1)

        def summarize(self, chosen: Floats, rejected: Floats) -> Metrics:
            means = {"reward_chosen": float(chosen.mean()), "reward_rejected": float(rejected.mean())}
            return {**summarize_margins(chosen, rejected), **means}

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
