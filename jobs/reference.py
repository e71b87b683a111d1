"""The model that dpo compares with, on the weights of the one that it trains: the base is there once.

A run that starts from a plain base compares with the base, which is the model with its adapter off. One that starts
from an adapter compares with a frozen copy of that adapter.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

REFERENCE = "ref"
"""TRL's name for the copy of the adapter (dpo_trainer.py): it makes one for each model that has an adapter."""


def keep_reference(model: Any, dtype: "torch.dtype", *, is_base: bool) -> None:
    """Freeze TRL's copy of the adapter in ``dtype``, that of the adapter itself; or remove it where the reference is
    the base: a fresh adapter does nothing, and neither would its copy."""
    if is_base:
        model.delete_adapter(REFERENCE)
        return
    for name, weight in model.named_parameters():
        if f".{REFERENCE}." in name:
            weight.requires_grad_(False)
            weight.data = weight.data.to(dtype)


@contextmanager
def use_reference(model: Any, wrapped: Any) -> Iterator[None]:
    """Within it ``wrapped``, which is ``model`` as its strategy wraps it, is the reference: no dropout, no gradient
    checkpointing.

    peft's own switches also set ``requires_grad``, on which FSDP2, DDP and DeepSpeed have long decided.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    has_copy, was_training = REFERENCE in model.peft_config, wrapped.training
    active = [layer._active_adapter for layer in layers]
    wrapped.eval()
    for layer in layers:
        if has_copy:
            layer._active_adapter = [REFERENCE]
        else:
            layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, name in zip(layers, active, strict=True):
            layer._active_adapter, layer._disable_adapters = name, False
        wrapped.train(was_training)
