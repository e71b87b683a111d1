"""The head of a reward model: one number for a sequence, read off its last token."""

from typing import Any

from launcher.contract.spec import Model

from .errors import JobError


def set_score_head(base: Any, model: Model, seed: int, *, is_new: bool) -> None:
    """Replace ``base.score`` by a head that multiplies in the dtype of its weights; a new one comes from ``seed``.

    The head of transformers 5.23 multiplies in the hidden states' dtype: in bfloat16, with 8 bits of mantissa, two
    answers soon have the same score.

    New weights are normal with standard deviation 1 / (hidden size + 1), so that all scores begin near zero and a
    pair's loss near ln 2. With the square root of it (arXiv:2009.01325, as told in arXiv:2403.17031) SmolLM2-135M
    began with an opinion: a held-out loss of 1.07. They are drawn from a generator of their own: what transformers
    draws depends on the strategy.

    Raises:
        JobError: the model has no head of that name.
    """
    import torch

    old = getattr(base, "score", None)
    if not isinstance(old, torch.nn.Linear):
        raise JobError(f"model.base: {model.base} ({type(base).__name__}) has no score head to train")
    weight = old.weight
    if is_new:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(old.out_features, old.in_features, generator=generator) / (old.in_features + 1)
        weight = torch.nn.Parameter(drawn.to(device=base.device, dtype=getattr(torch, model.dtype)))
    base.score = make_head(weight)


def make_head(weight: Any) -> Any:
    """A linear layer of the parameter ``weight`` (1, hidden size): hidden states (..., hidden size) to scores (..., 1),
    multiplied in the dtype of ``weight`` whatever autocast says."""
    import torch
    from torch.nn import functional

    class Head(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            weight = self.weight
            with torch.autocast(input.device.type, enabled=False):
                return functional.linear(input.to(weight.dtype), weight)

    head = Head(weight.shape[1], weight.shape[0], bias=False, device="meta")
    head.weight = weight
    return head
