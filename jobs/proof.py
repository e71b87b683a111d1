"""Proves that the strategy in effect is the one that was asked for."""

from typing import Any

from launcher.contract.ledger import LedgerWriter

from .context import RankContext
from .errors import JobError

DISTRIBUTED_TYPES = {"NO": "ddp", "MULTI_CPU": "ddp", "MULTI_GPU": "ddp", "FSDP": "fsdp", "DEEPSPEED": "deepspeed"}
"""What accelerate's ``DistributedType`` stands for, in our words; ``NO`` is DDP with a single rank."""


def check_strategy(trainer: Any, context: RankContext, ledger: LedgerWriter | None) -> None:
    """Compare, on each rank, what ``accelerator.prepare`` made with what the plan asked for; rank 0 writes the row.

    accelerate 1.15 falls back to plain DDP without a word when it is told to use the CPU, so an exit code of 0 says
    nothing about the strategy.

    Raises:
        JobError: they differ.
    """
    asked = context.plan.spec.parallel.strategy
    wrapper = type(trainer.model_wrapped).__name__
    distributed = trainer.accelerator.distributed_type.value
    got = _name_strategy(distributed, wrapper, trainer.accelerator.num_processes)
    world_size = trainer.accelerator.num_processes
    counts = count_parameters(trainer.model_wrapped)
    if ledger is not None:
        ledger.event("strategy_check", asked=asked, got=got, wrapper=wrapper, world_size=world_size, **counts)
    if got != asked:
        raise JobError(
            f"parallel.strategy: {asked} was asked for, {got} is in effect on rank {context.rank} "
            f"(model wrapped as {wrapper}, accelerate's type {distributed})"
        )
    if world_size != context.plan.topology.world_size or trainer.accelerator.process_index != context.rank:
        raise JobError(
            f"the plan has {context.plan.topology.world_size} ranks, of which this is {context.rank}; torch has "
            f"{world_size} and calls it {trainer.accelerator.process_index}"
        )


def count_parameters(model: Any) -> dict[str, int]:
    """Elements in all, elements that this rank holds between steps, trainable elements, quantized layers."""
    total = local = trainable = 0
    for parameter in model.parameters():
        # A 4-bit weight is stored two to a byte or more; its own shape is in its quantization state.
        state = getattr(parameter, "quant_state", None)
        elements = state.shape.numel() if state is not None else parameter.numel()
        total += elements
        local += elements
        trainable += parameter.numel() if parameter.requires_grad else 0
    # By the package: peft wraps each of these in a layer of its own with the same class name.
    quantized = sum(type(module).__module__.startswith("bitsandbytes.nn") for module in model.modules())
    return {"params_total": total, "params_local": local, "trainable_params": trainable, "quantized_layers": quantized}


def _name_strategy(distributed: str, wrapper: str, world_size: int) -> str:
    strategy = DISTRIBUTED_TYPES.get(distributed, distributed)
    if strategy == "ddp" and world_size > 1 and wrapper != "DistributedDataParallel":
        return f"nothing ({wrapper})"
    return strategy
