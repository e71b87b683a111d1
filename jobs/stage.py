"""What all stages do alike: the frame of a run, its length, the trainer's arguments, the weights, start and end."""

import contextlib
import logging
import math
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from launcher.contract.adapter import COMPARING, name_missing_adapter
from launcher.contract.files import read_json
from launcher.contract.ledger import LedgerWriter
from launcher.contract.manifest import MANIFEST
from launcher.contract.paths import read_step
from launcher.contract.spec import Model
from launcher.contract.strategies import SHARDS_WEIGHTS

from .adapter import Origin, find_origin
from .checkpoint import check_resumable, clear_unfinished, writing_folder
from .context import RankContext
from .data import PreparedData
from .errors import JobError
from .model import Task
from .order import RowOrder
from .progress import Progress
from .stop import Stopped
from .storage import name_faults
from .untrusted import read_as_data

if TYPE_CHECKING:
    import torch

LISTED = 1000
"""Skipped rows that the ledger lists; all are counted."""
SCHEDULERS = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
OPTIMIZERS = {"adamw": "adamw_torch_fused", "sgd": "sgd"}
"""Our names -> the Trainer's; AdamW updates all weights in one kernel, which is transformers 5.23's default too."""


def run_stage(context: RankContext, train: Callable[[RankContext, LedgerWriter | None], None]) -> None:
    """Call ``train``; on rank 0 the ledger says how it went, whatever happens.

    Raises:
        JobError: something that the user can mend.
    """
    ledger = LedgerWriter(context.paths.ledger(context.attempt), context.attempt) if context.is_main else None
    try:
        with name_faults(context):
            context.beat(0, "import")
            check_resumable(context)
            if context.is_main:
                clear_unfinished(context)
            strategy = context.plan.spec.parallel.strategy
            if context.plan.cluster.accelerator == "cpu" and strategy != "ddp":
                from . import cpu

                cpu.enable(strategy, context.plan.topology.ranks_per_node)
            hush_missing_kernel()
            read_as_data(strategy)
            import datasets
            import transformers

            datasets.disable_progress_bars()
            transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
            train(context, ledger)
    except Exception as error:
        if ledger is not None:
            with contextlib.suppress(OSError):  # it may be the cause
                ledger.event("failed", reason=str(error) or type(error).__name__, type=type(error).__name__)
        raise
    finally:
        if ledger is not None:
            ledger.close()


def hush_missing_kernel() -> None:
    """Drop the one warning that bitsandbytes gives on import where a CPU has AVX512-BF16 and the optional package
    ``kernels`` is not installed; it would stand just above the errors of a run. Call it before the import.

    bitsandbytes 0.50, backends/cpu/ops.py: without that kernel it uses its own code.
    """
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.addFilter(lambda record: not str(record.msg).startswith("Failed to load CPU gemm_4bit_forward"))


def find_start(context: RankContext) -> tuple[Origin, Any]:
    """Where the weights of the run come from, and the tokenizer that its rows are written with.

    Raises:
        JobError: the model, its tokenizer or its adapter is not there or does not fit the stage or the rows.
    """
    from .model import check_config, load_config, load_tokenizer

    context.beat(0, "data")
    spec = context.plan.spec
    asked, rows = spec.require_model(), spec.require_data()
    if spec.stage in COMPARING and asked.adapter is None:
        raise JobError("{}: {}; {}".format(*name_missing_adapter(spec.stage)))
    origin = find_origin(asked, spec.stage)
    tokenizer = load_tokenizer(origin.tokenizer, rows.chat_template)
    check_config(load_config(origin.base), origin.base, tokenizer, rows.max_length)
    return origin, tokenizer


def start_progress(
    context: RankContext, ledger: LedgerWriter | None, data: PreparedData[Any], sequences: Any
) -> Progress:
    """The order in which ``sequences`` (or pairs) are used, and how far it has got; the ledger says what there is.

    Raises:
        JobError: the run's length is not told.
    """
    max_steps = count_steps(context, len(sequences))
    order = RowOrder(len(sequences), context.plan.spec.train.seed, max_steps * context.plan.batch.global_batch)
    if ledger is not None:
        record_data(ledger, context, data, len(sequences), max_steps)
    lengths, batch = sequences.lengths, context.plan.batch.global_batch
    return Progress(context, ledger, order, lambda step: order.count_tokens(lengths, step * batch), max_steps)


def count_steps(context: RankContext, num_rows: int) -> int:
    """Optimizer steps in all: as asked, or the epochs' rows in global batches, rounded up.

    Raises:
        JobError: neither or both are set, or the warmup takes all of them.
    """
    train, ppo = context.plan.spec.train, context.plan.spec.ppo
    batch = context.plan.batch.global_batch
    if (train.max_steps is None) == (train.epochs is None):
        raise JobError("train: set one of max_steps and epochs")
    if train.max_steps is not None:
        steps = train.max_steps
    elif context.plan.spec.stage == "ppo":
        rollout = ppo.rollout_batch or batch
        steps = math.ceil((train.epochs or 0) * num_rows / rollout) * ppo.epochs * (rollout // batch)
    else:
        steps = math.ceil((train.epochs or 0) * num_rows / batch)
    warmup = count_warmup_steps(context, steps)
    if warmup >= steps and warmup > 0:
        raise JobError(f"train.warmup_steps: {warmup} steps of warmup, {steps} in all")
    return steps


def count_warmup_steps(context: RankContext, max_steps: int) -> int:
    train = context.plan.spec.train
    if train.warmup_steps is not None:
        return train.warmup_steps
    return math.ceil((train.warmup_ratio or 0.0) * max_steps) if max_steps > 1 else 0


def make_arguments(config: Callable[..., Any], progress: Progress, *, has_eval: bool, **options: Any) -> Any:
    """The plan in the Trainer's words, as a ``config`` of TRL's with the stage's own ``options``.

    What is not named here has no effect on a run or is TRL 1.16's default. Made before the weights are loaded: it
    joins this rank to the others and chooses its device.
    """
    context = progress.context
    train, batch = context.plan.spec.train, context.plan.batch
    arguments = config(
        output_dir=str(writing_folder(context.paths, context.attempt)),
        per_device_train_batch_size=batch.micro,
        gradient_accumulation_steps=batch.accumulation,
        max_steps=progress.max_steps,
        learning_rate=train.learning_rate,
        lr_scheduler_type=SCHEDULERS[train.scheduler],
        warmup_steps=count_warmup_steps(context, progress.max_steps),
        optim=OPTIMIZERS[train.optimizer],
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        seed=train.seed,
        # Dtypes are set on the weights, mixed precision is ours (trainer.py): TRL's default is bf16=True.
        bf16=False,
        activation_checkpointing=train.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        use_cpu=os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true",
        # peft hides the model's class, and the Trainer would look for unused parameters at every step.
        ddp_find_unused_parameters=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        # progress.py decides when to evaluate and to save.
        eval_on_start=has_eval and _lacks_evaluation(context),
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **options,
    )
    if ds_config := read_json(context.paths.ds_config):
        # transformers 5.23 compares these with the engine's 16-bit mode (HfTrainerDeepSpeedConfig), and nothing else
        # reads them under DeepSpeed. Set here, for as options they ask for a GPU.
        arguments.bf16, arguments.fp16 = ds_config["bf16"]["enabled"], ds_config["fp16"]["enabled"]
    return arguments


def _lacks_evaluation(context: RankContext) -> bool:
    """Whether the step that training starts from is to be evaluated and was not: at the start of a run, and where it
    was told to stop at a step with an evaluation."""
    if context.resume_from is None:
        return True
    every, written = context.plan.spec.train.eval_every_steps, read_json(context.resume_from / MANIFEST) or {}
    has_metrics = any(name.startswith("eval_") for name in written.get("metrics", {}))
    return every is not None and read_step(context.resume_from) % every == 0 and not has_metrics


def load_weights(context: RankContext, origin: Origin, task: Task = "CAUSAL_LM") -> Any:
    """The model to train: ``origin``'s base, with the adapter on it unless all of it is trained."""
    from .adapter import add_adapter
    from .model import load_base

    spec = context.plan.spec
    is_sharded = spec.parallel.strategy in SHARDS_WEIGHTS
    base = load_base(origin.base, is_sharded=is_sharded, task=task, seed=spec.train.seed)
    adapter = spec.require_model().adapter
    return base if adapter is None else add_adapter(base, origin, adapter, spec.train.seed, task)


def find_dtypes(model: Model) -> "tuple[torch.dtype, torch.dtype]":
    """What trained weights are kept in, and what is multiplied in."""
    import torch

    compute_dtype = getattr(torch, model.dtype)
    return (compute_dtype if model.adapter is None else getattr(torch, model.adapter.dtype)), compute_dtype


def make_trainer(
    trainer_class: Callable[..., Any], model: Any, progress: Progress, eval_rows: Any, **options: Any
) -> Any:
    """``trainer_class`` (a :class:`jobs.trainer.RunTrainer`) of ``options`` for ``model``, bound to the run."""
    import transformers

    from .adapter import cast_trainable

    trainable_dtype, compute_dtype = find_dtypes(progress.context.plan.spec.require_model())
    # TRL's trainers cast QLoRA adapters to bfloat16 when they start; what that rounded is put back.
    weights = {name: weight.data for name, weight in model.named_parameters() if weight.requires_grad}
    trainer = trainer_class(model=model, **options)
    for name, parameter in model.named_parameters():
        if name in weights and parameter.dtype != weights[name].dtype:
            parameter.data = weights[name].to(parameter.device)
    cast_trainable(model, trainable_dtype)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.attach(progress, eval_rows, trainable_dtype, compute_dtype)
    return trainer


def run_trainer(trainer: Any) -> None:
    """Train from the start or the checkpoint, then write ``final/``."""
    import transformers

    from .final import save_final
    from .universal import find_origin

    progress: Progress = trainer.progress
    context = progress.context
    # Dropout of each rank from a random state of its own; until here all ranks drew alike, so that weights agree.
    transformers.set_seed(context.plan.spec.train.seed + context.rank)
    origin = find_origin(trainer, context)
    try:
        trainer.train(resume_from_checkpoint=str(origin) if origin is not None else None)
    finally:
        progress.background.wait()
    if progress.is_stopped:
        trainer.accelerator.wait_for_everyone()  # the first rank to leave ends the step, and rank 0 may still publish
        raise Stopped
    step = trainer.state.global_step
    metrics = progress.metrics_at(step)
    if context.resume_from is not None and not metrics:
        metrics = (read_json(context.resume_from / MANIFEST) or {}).get("metrics", {})
    save_final(trainer, progress, metrics)
    if progress.ledger is not None:
        progress.ledger.event("finished", step=step, **metrics)
    context.beat(step, "done")


def record_data(
    ledger: LedgerWriter, context: RankContext, data: PreparedData[Any], num_sequences: int, max_steps: int
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
