"""Proves that the strategy in effect is the one that was asked for."""

import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from launcher.contract.ledger import LedgerWriter
from launcher.contract.plan import Plan
from launcher.contract.strategies import SHARDS_WEIGHTS

from .context import RankContext
from .errors import JobError

DISTRIBUTED_TYPES = {"NO": "ddp", "MULTI_CPU": "ddp", "MULTI_GPU": "ddp", "FSDP": "fsdp", "DEEPSPEED": "deepspeed"}
"""What accelerate's ``DistributedType`` stands for, in our words; ``NO`` is DDP with a single rank."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Elements of a model in all, those that this rank holds between steps and their bytes; what is trained.

    A 4-bit weight counts its own elements, not the bytes that they are packed into. DeepSpeed pads each part to equal
    length, and FSDP2 deals rows, so the ranks' parts may differ a little or sum up to more than all.
    """

    params_total: int
    params_local: int
    bytes_local: int
    trainable_params: int
    quantized_layers: int


def check_strategy(trainer: Any, before: Counts, context: RankContext, ledger: LedgerWriter | None) -> None:
    """Compare, on each rank, what ``accelerator.prepare`` made with what the plan asked for; rank 0 writes the row.

    accelerate 1.15 falls back to plain DDP without a word when it is told to use the CPU, so an exit code of 0 says
    nothing about the strategy. ``before`` counts the model as it was before that call.

    Raises:
        JobError: they differ on some rank; the same error on all of them.
    """
    from accelerate.utils import gather_object

    model, asked = trainer.model_wrapped, context.plan.spec.parallel.strategy
    got, counts = name_strategy(trainer), count_parameters(model)
    optimizer_local = count_optimizer(trainer)
    problems = list(_find_problems(trainer, got, before, counts, optimizer_local, context))
    found = gather_object([(context.rank, counts.params_local, problems)])
    if ledger is not None:
        ledger.event(
            "strategy_check",
            asked=asked,
            got=got,
            wrapper=type(model).__name__,
            world_size=trainer.accelerator.num_processes,
            offload=name_offload(trainer),
            **asdict(counts),
            params_local_max=max(local for _, local, _ in found),
            optimizer_local=optimizer_local,
        )
    wrong = [(rank, text) for rank, _, texts in found for text in texts]
    if wrong:
        rank, text = wrong[0]
        ranks = len({rank for rank, _ in wrong})
        raise JobError(f"parallel.strategy: {text} (rank {rank}, {ranks} of {len(found)} ranks differ)")


def count_parameters(model: Any) -> Counts:
    """Count ``model``, wrapped or not."""
    total = local = bytes_local = trainable = quantized = 0
    seen = set()
    for module in model.modules():
        # By the package: peft wraps each of these in a layer of its own with the same class name.
        is_quantized = type(module).__module__.startswith("bitsandbytes.nn")
        quantized += is_quantized
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:  # tied
                continue
            seen.add(id(parameter))
            stored, held = _stored(parameter)
            is_packed = is_quantized and name == "weight" and stored != module.in_features * module.out_features
            elements = module.in_features * module.out_features if is_packed else stored
            total += elements
            local += elements * held // stored if stored else 0
            bytes_local += held * parameter.element_size()
            trainable += elements if parameter.requires_grad else 0
    return Counts(
        params_total=total,
        params_local=local,
        bytes_local=bytes_local,
        trainable_params=trainable,
        quantized_layers=quantized,
    )


def count_optimizer(trainer: Any) -> int:
    """Elements whose optimizer state this rank keeps."""
    optimizer = trainer.model_wrapped.optimizer if _is_deepspeed(trainer.model_wrapped) else trainer.optimizer
    for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"):  # ZeRO-2, ZeRO-3
        if hasattr(optimizer, name):
            return sum(int(part.numel()) for part in getattr(optimizer, name))
    return sum(_stored(parameter)[1] for group in trainer.optimizer.param_groups for parameter in group["params"])


def name_strategy(trainer: Any) -> str:
    """What is in effect, in the plan's words; otherwise what it is called in accelerate's and torch's."""
    from torch.distributed.fsdp import FSDPModule

    model, distributed = trainer.model_wrapped, trainer.accelerator.distributed_type.value
    strategy = DISTRIBUTED_TYPES.get(distributed, distributed)
    if strategy == "fsdp" and isinstance(model, FSDPModule):
        return "fsdp"
    if strategy == "deepspeed" and _is_deepspeed(model):
        return f"zero{model.zero_optimization_stage()}"
    if strategy == "ddp":
        has_wrapper = trainer.accelerator.num_processes == 1 or type(model).__name__ == "DistributedDataParallel"
        return "ddp" if has_wrapper else f"nothing ({type(model).__name__})"
    return f"{strategy} ({type(model).__name__})"


def name_offload(trainer: Any) -> str:
    """What is kept in host memory, in the plan's words."""
    model = trainer.model_wrapped
    if _is_deepspeed(model):
        if model.zero_offload_param():
            return "all"
        return "optimizer" if model.zero_offload_optimizer() else "none"
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    return "all" if plugin is not None and type(plugin.cpu_offload).__name__ == "CPUOffloadPolicy" else "none"


def _find_problems(
    trainer: Any, got: str, before: Counts, after: Counts, optimizer_local: int, context: RankContext
) -> Iterator[str]:
    plan = context.plan
    asked, world_size = plan.spec.parallel.strategy, trainer.accelerator.num_processes
    if got != asked:
        yield (
            f"{asked} was asked for, {got} is in effect: the model is wrapped as "
            f"{type(trainer.model_wrapped).__name__}, accelerate's type is "
            f"{trainer.accelerator.distributed_type.value}{_explain(asked)}"
        )
        return
    if world_size != plan.topology.world_size or trainer.accelerator.process_index != context.rank:
        yield (
            f"the plan has {plan.topology.world_size} ranks, of which this is {context.rank}; torch has "
            f"{world_size} and calls it {trainer.accelerator.process_index}"
        )
    if (offload := name_offload(trainer)) != plan.spec.parallel.offload:
        yield f"parallel.offload={plan.spec.parallel.offload} was asked for with {asked}, {offload} is in effect"
    for name in ("params_total", "trainable_params", "quantized_layers"):
        if getattr(before, name) != getattr(after, name):
            yield (
                f"{name} was {getattr(before, name)} in the loaded model and is {getattr(after, name)} in the one "
                f"that {asked} trains: wrapping lost or froze weights"
            )
    yield from _check_quantization(plan, after)
    if asked in SHARDS_WEIGHTS:
        yield from _check_sharded(trainer.model_wrapped, asked, world_size)
    if asked != "ddp" and world_size > 1 and optimizer_local >= after.trainable_params:
        yield (
            f"{asked} was asked for, but this rank keeps optimizer states of {optimizer_local} of "
            f"{after.trainable_params} trained parameters"
        )


def _check_quantization(plan: Plan, counts: Counts) -> Iterator[str]:
    quantization = plan.spec.require_model().quantization
    is_asked = quantization != "none"
    if is_asked != (counts.quantized_layers > 0):
        yield (
            f"model.quantization={quantization} was asked for, and the model has "
            f"{counts.quantized_layers} quantized layers"
        )


def _check_sharded(model: Any, asked: str, world_size: int) -> Iterator[str]:
    """Every weight must be spread: whoever leaves some whole (accelerate, for integer dtypes) says so in a warning."""
    from torch.distributed.tensor import DTensor, Shard

    whole = []
    for name, parameter in model.named_parameters():
        stored, held = _stored(parameter)
        if asked == "fsdp":
            # Rows are dealt in equal chunks, the last ones shorter or empty.
            spread = isinstance(parameter, DTensor) and any(isinstance(place, Shard) for place in parameter.placements)
            rows = parameter.shape[0] if parameter.dim() else 1
            limit = math.ceil(rows / world_size) * (stored // rows if rows else 0)
        else:
            spread = hasattr(parameter, "ds_tensor")
            limit = stored if getattr(parameter, "ds_persist", False) else math.ceil(stored / world_size)
        if not spread or held > limit:
            whole.append((name, stored, str(parameter.dtype).removeprefix("torch.")))
    if whole:
        elements = sum(stored for _, stored, _ in whole)
        dtypes = ", ".join(sorted({dtype for _, _, dtype in whole}))
        yield (
            f"{asked} was asked for, but {len(whole)} weights ({elements} stored elements, {dtypes}) are whole on this "
            f"rank, {whole[0][0]} among them; integer storage of quantized weights is not sharded, bfloat16 is"
        )


def _stored(parameter: Any) -> tuple[int, int]:
    """Elements as they are stored: of the whole tensor, and of what this rank holds now."""
    from torch.distributed.tensor import DTensor

    if isinstance(parameter, DTensor):
        return int(parameter.numel()), int(parameter.to_local().numel())
    if hasattr(parameter, "ds_numel"):
        # From the first step on, small weights stay whole (stage3_param_persistence_threshold).
        whole = int(parameter.ds_numel)
        return whole, whole if parameter.ds_persist else int(parameter.ds_tensor.numel())
    return int(parameter.numel()), int(parameter.numel())


def _is_deepspeed(model: Any) -> bool:
    return type(model).__name__ == "DeepSpeedEngine"


def _explain(asked: str) -> str:
    """The likely cause of another strategy than the one that was asked for."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1"):
        return "; ACCELERATE_USE_CPU is set, and with it accelerate trains as plain DDP"
    variable = "ACCELERATE_USE_FSDP" if asked == "fsdp" else "ACCELERATE_USE_DEEPSPEED"
    if asked != "ddp" and os.environ.get(variable, "").lower() not in ("true", "1"):
        return f"; {variable} is not set: the ranks did not get rendered/rank.env"
    return ""
