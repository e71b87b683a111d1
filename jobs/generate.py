"""Writes responses to prompts: batches of like length, one cache of keys and values, an end when all have ended."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy
from numpy.typing import NDArray

SHRINK = 0.75
"""A batch is cut down to the sequences that go on once no more than this share of it does."""


def draw_noise(seed: int, positions: NDArray[numpy.int64], length: int) -> NDArray[numpy.float64]:
    """Uniform numbers in [0, 1) that choose the tokens of the responses, float64 of shape (positions, length).

    ``positions`` are the prompts' places in the stream of all prompts: a response depends on neither the number of
    ranks nor on what was drawn before, and a resumed run needs no random state.
    """
    rows = [numpy.random.default_rng([seed, int(position)]).random(length) for position in positions]
    return numpy.array(rows).reshape(len(positions), length)


def generate(
    model: Any,
    prompts: list[list[int]],
    noise: NDArray[numpy.float64],
    *,
    temperature: float,
    stop: int,
    pad: int,
    batch_size: int,
    device: Any,
    any_rank: Callable[[bool], bool] | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """A response to each prompt, in their order: at most ``noise.shape[1]`` tokens, the last of them ``stop`` where the
    model came to an end.

    ``noise[i]``, float64 of shape (tokens,), chooses the tokens of response ``i`` (:func:`draw_noise`). Where every
    forward pass is collective, ``any_rank`` tells whether any rank goes on; all ranks then have equally many prompts.
    ``on_step`` is called after each forward pass.
    """
    import torch

    responses: list[list[int]] = [[] for _ in prompts]
    # Like lengths together: little padding, and batches that end at about the same time.
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    with torch.no_grad():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            part = [prompts[index] for index in chosen]
            written = _generate_batch(model, part, noise[chosen], temperature, stop, pad, device, any_rank, on_step)
            for index, response in zip(chosen, written, strict=True):
                responses[index] = response
    return responses


def _generate_batch(
    model: Any,
    prompts: list[list[int]],
    noise: NDArray[numpy.float64],
    temperature: float,
    stop: int,
    pad: int,
    device: Any,
    any_rank: Callable[[bool], bool] | None,
    on_step: Callable[[], None],
) -> list[list[int]]:
    import torch
    from transformers import DynamicCache

    width = max(map(len, prompts))
    # Padded on the left, so that the next token of every sequence is the last position's.
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    uniform = torch.tensor(noise, device=device)
    cache = DynamicCache(config=model.config.get_text_config())
    responses: list[list[int]] = [[] for _ in prompts]
    # Which responses the rows of the batch are, and which of these go on.
    rows, alive = list(range(len(prompts))), [True] * len(prompts)
    for number in range(noise.shape[1]):
        outputs = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        tokens = sample(outputs.logits[:, -1], uniform[rows, number], temperature)
        for place, token in enumerate(tokens.tolist()):
            if alive[place]:
                responses[rows[place]].append(token)
                alive[place] = token != stop
        on_step()
        is_last = number == noise.shape[1] - 1
        if is_last or not (any(alive) if any_rank is None else any_rank(any(alive))):
            break
        kept = [place for place, lives in enumerate(alive) if lives] or [0]
        if len(kept) <= SHRINK * len(rows):
            keep = torch.tensor(kept, device=device)
            cache.batch_select_indices(keep)
            tokens, mask, positions = tokens[keep], mask[keep], positions[keep]
            rows, alive = [rows[place] for place in kept], [alive[place] for place in kept]
        ids, positions = tokens[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
    return responses


def sample(logits: Any, uniform: Any, temperature: float) -> Any:
    """One token per row by the inverse of the distribution function.

    ``logits``: (batch, vocabulary); ``uniform``: float64, (batch,), in [0, 1). Returns int64, (batch,).
    """
    import torch

    shares = torch.softmax(logits.float() / temperature, dim=-1).double().cumsum(-1)
    # By the last sum instead of 1, which rounding misses: no token beyond the vocabulary.
    return torch.searchsorted(shares, uniform[:, None] * shares[:, -1:], right=True).squeeze(1)


@contextmanager
def gather_weights(trainer: Any, *, is_wanted: bool) -> Iterator[bool]:
    """Hold the whole weights on every rank within it, where the strategy shards them and ``is_wanted``.

    Gives whether forward passes within it are collective: those of weights that stay sharded are.
    """
    from torch.distributed.fsdp import FSDPModule

    model = trainer.model_wrapped
    groups = [module for module in model.modules() if isinstance(module, FSDPModule)]
    is_zero3 = hasattr(getattr(model, "optimizer", None), "parameter_offload")
    if not groups and not is_zero3:
        yield False
    elif not is_wanted:
        yield True
        if is_zero3:
            # It fetches ahead in the order that it has seen; what comes next goes another way, and gathers by itself
            # what would then be on its way.
            coordinator = model.optimizer.parameter_offload.get_param_coordinator()
            if not coordinator.is_invalid_trace():
                coordinator._invalidate_trace()
    elif groups:
        for group in groups:
            group.set_reshard_after_forward(False, recurse=False)
            group.unshard()
        try:
            yield False
        finally:
            for group in groups:
                group.set_reshard_after_forward(True, recurse=False)
                group.reshard()
    else:
        import deepspeed
        from trl.models.utils import add_hooks, remove_hooks

        # Its hooks would release each weight after its use.
        with deepspeed.zero.GatheredParameters(list(model.module.parameters())):
            remove_hooks(model)
            try:
                yield False
            finally:
                add_hooks(model)
