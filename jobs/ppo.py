"""Proximal policy optimization of one run, as its plan says: all roles on one base, on transformers' Trainer.

Each rank is ``python -m jobs.rank RUN_DIR`` in the environment of ``RUN_DIR/rendered/rank.env`` with its numbers set.
"""

from typing import Any

from launcher.contract.ledger import LedgerWriter

from .context import RankContext
from .errors import JobError
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
    from transformers import Trainer, TrainingArguments
    from trl.trainer.utils import disable_dropout_in_model

    from .ppo_trainer import PpoTrainer
    from .prompts import prepare_prompts
    from .roles import Roles
    from .scorer import find_adapter, make_scorer
    from .vllm_engine import check_installed

    # Rows to tokens.
    spec = context.plan.spec
    asked, rows = spec.require_model(), spec.require_data()
    if spec.ppo.reward is None:
        raise JobError("ppo.reward: is missing")
    if spec.ppo.engine == "vllm":
        check_installed()
    origin, tokenizer = find_start(context)
    stop = tokenizer.eos_token_id if spec.ppo.stop_token is None else find_token(tokenizer, spec.ppo.stop_token)
    data = prepare_prompts(rows, spec.ppo.max_new_tokens, spec.train.seed, tokenizer)
    progress = start_progress(context, ledger, data, data.train)
    reward = find_adapter(spec.ppo.reward, origin)

    # Weights.
    context.beat(0, "load")
    arguments = make_arguments(TrainingArguments, progress, has_eval=data.eval is not None, remove_unused_columns=False)
    model = load_weights(context, origin)
    trained_dtype, compute_dtype = find_dtypes(asked)
    roles = Roles(
        model,
        critic=spec.ppo.critic,
        reward=reward,
        is_base=origin.folder is None,
        dtype=trained_dtype,
        frozen_dtype=compute_dtype,
    )
    # A policy with dropout has another probability for the same token at each look.
    disable_dropout_in_model(model)
    roles.install(spec.ppo.temperature)
    arguments.activation_checkpointing_kwargs["context_fn"] = roles.keep_role
    scorer = make_scorer(spec.ppo, asked, arguments.device) if reward is None else None

    class StageTrainer(PpoTrainer, Trainer):  # type: ignore[misc]
        """transformers' trainer, which learns from rollouts."""

    trainer = make_trainer(
        StageTrainer,
        model,
        progress,
        data.eval,
        rows=data.train,
        roles=roles,
        scorer=scorer,
        stop=stop,
        args=arguments,
        # What the Trainer sees of the prompts is how many there are.
        train_dataset=datasets.Dataset.from_dict({"row": range(len(data.train))}),
        processing_class=tokenizer,
    )
    run_trainer(trainer)


def find_token(tokenizer: Any, text: str) -> int:
    """The id of the one token that is ``text``.

    Raises:
        JobError: there is none.
    """
    found = tokenizer.get_vocab().get(text)
    if found is None:
        raise JobError(f"ppo.stop_token: {text} is no token of model.base; null is its end of sequence")
    return int(found)
