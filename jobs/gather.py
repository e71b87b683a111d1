"""Gathers the trained weights whole, whatever the strategy shards them into."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.distributed.tensor import DTensor

BUCKET = 2**24
"""Elements that are gathered at once; a larger tensor alone."""


def gather_trained(trainer: Any, *, keep: bool) -> "dict[str, torch.Tensor] | None":
    """The trained weights in host memory under the names of the model's state dict; of a full model all of them.

    Collective: every rank takes part, a few tensors at a time, and those with ``keep`` hold on to the result; the
    others get None.
    """
    from peft import PeftModel

    model = trainer.model
    if isinstance(model, PeftModel):
        # Not its state dict: bitsandbytes would put the parts of each quantized weight in.
        tensors = ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)
    else:
        # Tied weights under the first of their names, as save_pretrained has it.
        first: dict[int, tuple[str, Any]] = {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            first.setdefault(id(tensor), (name, tensor))
        tensors = (pair for pair in first.values())
    with _settled(trainer.model_wrapped):
        found = {name: tensor.detach().cpu().clone() for name, tensor in _whole(tensors) if keep}
    return found if keep else None


@contextmanager
def _settled(engine: Any) -> Iterator[None]:
    """ZeRO-3 fetches weights ahead of their use; those of a pass that did not use them are still on their way, and
    to gather one of them is an error. Its own save brackets itself with these two calls too (DeepSpeed 0.19)."""
    optimizer: Any = getattr(engine, "optimizer", None)
    if not hasattr(optimizer, "parameter_offload"):
        yield
        return
    optimizer.checkpoint_event_prologue()
    yield
    optimizer.checkpoint_event_epilogue()


def _whole(tensors: "Iterable[tuple[str, Any]]") -> "Iterator[tuple[str, torch.Tensor]]":
    from torch.distributed.tensor import DTensor

    bucket: list[tuple[str, DTensor]] = []
    for name, tensor in tensors:
        if isinstance(tensor, DTensor):
            elements = sum(other.numel() for _, other in bucket) + tensor.numel()
            if bucket and (elements > BUCKET or tensor.dtype != bucket[0][1].dtype):
                yield from _gather_bucket(bucket)
                bucket = []
            bucket.append((name, tensor))
        elif hasattr(tensor, "ds_id"):
            import deepspeed

            with deepspeed.zero.GatheredParameters([tensor]):
                yield name, tensor
        else:
            yield name, tensor
    if bucket:
        yield from _gather_bucket(bucket)


def _gather_bucket(bucket: "list[tuple[str, DTensor]]") -> "Iterator[tuple[str, torch.Tensor]]":
    """Tensors of one dtype in a single collective: ``full_tensor`` takes one for each, and an adapter has hundreds."""
    import torch
    from torch.distributed.tensor import Shard

    group = bucket[0][1].device_mesh.get_group()
    parts, sizes = [], []
    for name, tensor in bucket:
        assert tensor.placements == (Shard(0),), name
        # FSDP2 deals rows in equal chunks, of which the last ones may be shorter or empty.
        size = math.ceil(tensor.shape[0] / group.size()) * tensor.shape[1:].numel()
        part = tensor.to_local().detach().flatten()
        parts.append(torch.nn.functional.pad(part, (0, size - part.numel())))
        sizes.append(size)
    mine = torch.cat(parts)
    gathered = mine.new_empty(group.size() * mine.numel())
    torch.distributed.all_gather_single(gathered, mine, group=group)
    columns = torch.split(gathered.view(group.size(), -1), sizes, dim=1)
    for (name, tensor), chunks in zip(bucket, columns, strict=True):
        yield name, chunks.flatten()[: tensor.numel()].view(tensor.shape)
