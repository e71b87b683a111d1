"""Supervised fine-tuning of one run, as its plan says, with TRL's SFTTrainer.

Each rank is ``python -m jobs.rank RUN_DIR`` in the environment of ``RUN_DIR/rendered/rank.env`` with its numbers set.
"""

import math
import os
from dataclasses import asdict
from typing import Any

from launcher.contract.files import read_json
from launcher.contract.ledger import LedgerWriter
from launcher.contract.manifest import MANIFEST
from launcher.contract.strategies import SHARDS_WEIGHTS

from .checkpoint import check_resumable, writing_folder
from .context import RankContext
from .data import PreparedData
from .errors import JobError
from .order import RowOrder

LISTED = 1000
"""Skipped rows that the ledger lists; all are counted."""
SCHEDULERS = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
OPTIMIZERS = {"adamw": "adamw_torch_fused", "sgd": "sgd"}
"""Our names -> the Trainer's; AdamW updates all weights in one kernel, which is transformers 5.23's default too."""


def main(context: RankContext) -> None:
    """Train; on rank 0 the ledger says how it went, whatever happens.

    Raises:
        JobError: something that the user can mend.
    """
    ledger = LedgerWriter(context.paths.ledger(context.attempt), context.attempt) if context.is_main else None
    try:
        train(context, ledger)
    except Exception as error:
        if ledger is not None:
            ledger.event("failed", reason=str(error) or type(error).__name__, type=type(error).__name__)
        raise
    finally:
        if ledger is not None:
            ledger.close()


def train(context: RankContext, ledger: LedgerWriter | None) -> None:
    """Data, model, trainer, training, final save: in this order, so that bad rows are found before weights load."""
    spec = context.plan.spec
    base, rows = spec.require_model(), spec.require_data()
    context.beat(0, "import")
    check_resumable(context)
    if context.plan.cluster.accelerator == "cpu" and spec.parallel.strategy != "ddp":
        from . import cpu

        cpu.enable(spec.parallel.strategy, context.plan.topology.ranks_per_node)
    import datasets
    import torch
    import transformers
    from trl.trainer.sft_trainer import SFTTrainer

    from .data import pack, prepare_data
    from .final import save_final
    from .model import add_adapter, cast_trainable, check_config, load_base, load_config, load_tokenizer
    from .progress import Progress
    from .trainer import RunTrainer

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]

    # Rows to tokens.
    context.beat(0, "data")
    tokenizer = load_tokenizer(base, rows.chat_template)
    check_config(load_config(base), base, tokenizer, rows.max_length)
    data = prepare_data(rows, spec.train.loss_on, spec.train.seed, tokenizer)
    sequences = pack(data.train, rows.max_length) if spec.train.packing else data.train
    max_steps = count_steps(context, len(sequences))
    order = RowOrder(len(sequences), spec.train.seed, max_steps * context.plan.batch.global_batch)
    progress = Progress(context, ledger, order, sequences.lengths, max_steps)
    if ledger is not None:
        record_data(ledger, context, data, len(sequences), max_steps)

    # Weights. The arguments come first: they join this rank to the others and choose its device.
    context.beat(0, "load")
    arguments = make_arguments(context, max_steps, has_eval=data.eval is not None)
    model: Any = load_base(base, is_sharded=spec.parallel.strategy in SHARDS_WEIGHTS)
    trainable_dtype = compute_dtype = getattr(torch, base.dtype)
    if base.adapter is not None:
        model = add_adapter(model, base, spec.train.seed)
        trainable_dtype = getattr(torch, base.adapter.dtype)

    class Trainer(RunTrainer, SFTTrainer):  # type: ignore[misc]
        """TRL's trainer with what every stage adds."""

    trainable = {name: weight.data for name, weight in model.named_parameters() if weight.requires_grad}
    trainer: Any = Trainer(
        model=model,
        args=arguments,
        train_dataset=datasets.Dataset.from_dict(sequences.columns()),
        processing_class=tokenizer,
    )
    restore_trainable(model, trainable)
    cast_trainable(model, trainable_dtype)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.attach(progress, order, data.eval, trainable_dtype, compute_dtype)

    # Dropout of each rank from a random state of its own; until here all ranks drew alike, so that weights agree.
    transformers.set_seed(spec.train.seed + context.rank)
    resume = str(context.resume_from) if context.resume_from is not None else None
    trainer.train(resume_from_checkpoint=resume)

    step = trainer.state.global_step
    metrics = progress.metrics_at(step)
    if context.resume_from is not None and not metrics:
        metrics = (read_json(context.resume_from / MANIFEST) or {}).get("metrics", {})
    save_final(trainer, progress, metrics)
    if ledger is not None:
        ledger.event("finished", step=step, **metrics)
    context.beat(step, "done")


def count_steps(context: RankContext, num_rows: int) -> int:
    """Optimizer steps in all: as asked, or the epochs' rows in global batches, rounded up.

    Raises:
        JobError: neither or both are set, or the warmup takes all of them.
    """
    train = context.plan.spec.train
    if (train.max_steps is None) == (train.epochs is None):
        raise JobError("train: set one of max_steps and epochs")
    if train.max_steps is not None:
        steps = train.max_steps
    else:
        steps = math.ceil((train.epochs or 0) * num_rows / context.plan.batch.global_batch)
    warmup = count_warmup_steps(context, steps)
    if warmup >= steps and warmup > 0:
        raise JobError(f"train.warmup_steps: {warmup} steps of warmup, {steps} in all")
    return steps


def count_warmup_steps(context: RankContext, max_steps: int) -> int:
    train = context.plan.spec.train
    if train.warmup_steps is not None:
        return train.warmup_steps
    return math.ceil((train.warmup_ratio or 0.0) * max_steps) if max_steps > 1 else 0


def make_arguments(context: RankContext, max_steps: int, *, has_eval: bool) -> Any:
    """The plan in the Trainer's words. What is not named here has no effect on a run or is TRL 1.16's default."""
    from trl.trainer.sft_config import SFTConfig

    train, batch = context.plan.spec.train, context.plan.batch
    arguments = SFTConfig(
        output_dir=str(writing_folder(context.paths, context.attempt)),
        per_device_train_batch_size=batch.micro,
        gradient_accumulation_steps=batch.accumulation,
        max_steps=max_steps,
        learning_rate=train.learning_rate,
        lr_scheduler_type=SCHEDULERS[train.scheduler],
        warmup_steps=count_warmup_steps(context, max_steps),
        optim=OPTIMIZERS[train.optimizer],
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        seed=train.seed,
        # Dtypes are set on the weights, mixed precision is ours (trainer.py): TRL's default is bf16=True.
        bf16=False,
        gradient_checkpointing=train.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        # The loss is a mean over the tokens of all ranks, not a mean of the ranks' means.
        average_tokens_across_devices=True,
        # Rows are tokens already, truncated and checked.
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        # Packed sequences are flattened into one per micro batch; where one row ends is told by the positions.
        padding_free=train.packing,
        use_cpu=os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true",
        # peft hides the model's class, and the Trainer would look for unused parameters at every step.
        ddp_find_unused_parameters=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        # progress.py decides when to evaluate and to save; a resumed run has had its first evaluation.
        eval_on_start=has_eval and context.resume_from is None,
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    if config := read_json(context.paths.ds_config):
        # transformers 5.23 compares these with the engine's 16-bit mode (HfTrainerDeepSpeedConfig), and nothing else
        # reads them under DeepSpeed. Set here, for as options they ask for a GPU.
        arguments.bf16, arguments.fp16 = config["bf16"]["enabled"], config["fp16"]["enabled"]
    return arguments


def restore_trainable(model: Any, weights: dict[str, Any]) -> None:
    """Put back the trainable weights that SFTTrainer's start rounded: it casts QLoRA adapters to bfloat16."""
    for name, parameter in model.named_parameters():
        if name in weights and parameter.dtype != weights[name].dtype:
            parameter.data = weights[name].to(parameter.device)


def record_data(
    ledger: LedgerWriter, context: RankContext, data: PreparedData, num_sequences: int, max_steps: int
) -> None:
    """The events that say what the run starts from."""
    held_out = data.eval
    ledger.event(
        "started",
        run_id=context.plan.run_id,
        world_size=context.world_size,
        max_steps=max_steps,
        rows=len(data.train),
        sequences=num_sequences,
        tokens=int(data.train.lengths.sum()),
        loss_tokens=data.train.num_loss_tokens,
        truncated_rows=data.train.num_truncated,
        eval_rows=len(held_out) if held_out is not None else 0,
        eval_rows_in_train=data.num_eval_rows_in_train,
        resumed_from=str(context.resume_from.relative_to(context.paths.root)) if context.resume_from else None,
    )
    batch = context.plan.batch.global_batch
    if num_sequences < batch:
        print(f"note: {num_sequences} sequences fill a global batch of {batch} only by repeating", flush=True)
    if data.skipped:
        ledger.event("skipped_rows", count=len(data.skipped), rows=[asdict(row) for row in data.skipped[:LISTED]])
