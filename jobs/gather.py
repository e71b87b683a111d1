"""Gathers the trained weights whole, whatever the strategy shards them into."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def gather_trained(trainer: Any, *, keep: bool) -> "dict[str, torch.Tensor] | None":
    """The trained weights in host memory under the names of the model's state dict; of a full model all of them.

    Collective: every rank takes part, one tensor at a time, and those with ``keep`` hold on to the result; the others
    get None.
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


def _whole(tensors: "Iterator[tuple[str, Any]]") -> "Iterator[tuple[str, torch.Tensor]]":
    from torch.distributed.tensor import DTensor

    for name, tensor in tensors:
        if isinstance(tensor, DTensor):
            yield name, tensor.full_tensor()
        elif hasattr(tensor, "ds_id"):
            import deepspeed

            with deepspeed.zero.GatheredParameters([tensor]):
                yield name, tensor
        else:
            yield name, tensor
