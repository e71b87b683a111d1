"""Loss and gradients of one PPO update against formulas written out token by token in float64."""

from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

from jobs.ppo_trainer import STEP_METRICS, PpoTrainer
from jobs.rollout import Rollout
from launcher.contract.spec import Ppo

RANDOM = numpy.random.default_rng(3)
LENGTHS = (3, 1, 5)
ROLLOUT = Rollout(
    prompts=[[1, 2], [3, 4, 5], [6]],
    responses=[[7] * length for length in LENGTHS],
    **{
        name: [RANDOM.normal(size=length) * 0.5 for length in LENGTHS]
        for name in ("log_probs", "values", "advantages", "returns")
    },
)
TOKENS, RANKS = 20, 4


def update(ppo: Ppo, log_probs: torch.Tensor, values: torch.Tensor, entropy: torch.Tensor) -> tuple[Any, Any]:
    """The loss that the trainer computes where the model says this, and what it notes down."""
    trainer: Any = PpoTrainer.__new__(PpoTrainer)
    trainer.ppo, trainer.args = ppo, SimpleNamespace(world_size=RANKS)
    trainer._num_tokens, trainer._sums = TOKENS, torch.zeros(len(STEP_METRICS), dtype=torch.float64)

    def model(**asked: Any) -> dict[str, torch.Tensor]:
        assert asked["roles"] == ("policy", "critic")
        return {"log_probs": log_probs, "values": values, "entropy": entropy}

    batch = ROLLOUT.batch([0, 1, 2], pad_token=0)
    return trainer.compute_loss(model, batch), dict(zip(STEP_METRICS, trainer._sums.tolist(), strict=True))


@pytest.mark.parametrize(
    "ppo",
    [
        Ppo(),
        Ppo(clip_range=0.05, value_clip_range=0.1, value_coef=0.7, entropy_coef=0.02),
        Ppo(value_clip_range=None, value_coef=1.0),
    ],
)
def test_loss_and_gradients_are_those_of_the_formulas(ppo: Ppo) -> None:
    width = max(len(a) + len(b) for a, b in zip(ROLLOUT.prompts, ROLLOUT.responses, strict=True)) - 1
    told = [torch.tensor(RANDOM.normal(size=(3, width)) * 0.5, dtype=torch.float32) for _ in range(3)]
    log_probs, values, entropy = (tensor.requires_grad_() for tensor in told)
    loss, noted = update(ppo, log_probs, values, entropy)
    loss.backward()

    copies = [tensor.detach().double().requires_grad_() for tensor in (log_probs, values, entropy)]
    total = torch.zeros((), dtype=torch.float64)
    clipped, ratios = 0, 0.0
    for row, length in enumerate(LENGTHS):
        for token in range(length):
            place = len(ROLLOUT.prompts[row]) - 1 + token
            new, value, spread = (copy[row, place] for copy in copies)
            old = {name: float(getattr(ROLLOUT, name)[row][token]) for name in ("log_probs", "values")}
            advantage, target = float(ROLLOUT.advantages[row][token]), float(ROLLOUT.returns[row][token])
            ratio = torch.exp(new - old["log_probs"])
            inside = ratio.clamp(1 - ppo.clip_range, 1 + ppo.clip_range)
            total = total - torch.minimum(ratio * advantage, inside * advantage)
            error = (value - target) ** 2
            if ppo.value_clip_range is not None:
                step = (value - old["values"]).clamp(-ppo.value_clip_range, ppo.value_clip_range)
                error = torch.maximum(error, (old["values"] + step - target) ** 2)
            total = total + ppo.value_coef * 0.5 * error - ppo.entropy_coef * spread
            clipped += bool((ratio - 1).abs() > ppo.clip_range)
            ratios += ratio.item()
    expected = total * RANKS / TOKENS
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for tensor, copy in zip((log_probs, values, entropy), copies, strict=True):
        wanted = copy.grad if copy.grad is not None else torch.zeros_like(copy)
        assert torch.allclose(tensor.grad.double(), wanted, atol=1e-6)
    assert noted["clip_fraction"] == clipped > 0
    assert noted["ratio"] == pytest.approx(ratios, rel=1e-5)


def test_a_batch_has_each_number_at_the_place_before_its_token() -> None:
    batch = ROLLOUT.batch([2, 1], pad_token=9)
    assert batch["input_ids"].tolist() == [[6, 7, 7, 7, 7, 7], [3, 4, 5, 7, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 7, 7, 7, 7, 7], [-100, -100, -100, 7, -100, -100]]
    assert ROLLOUT.pick(batch["returns"], [2, 1]) == [
        pytest.approx(ROLLOUT.returns[2].tolist()),
        pytest.approx(ROLLOUT.returns[1].tolist()),
    ]
    assert batch["returns"].shape == (2, 5)
    assert batch["returns"].count_nonzero() == 6
