"""From scores to advantages: the arithmetic of PPO that needs no model."""

from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

Floats = NDArray[numpy.float64]


def estimate_kl(log_probs: Floats, reference: Floats, estimator: str) -> Floats:
    """KL(policy || reference) of each token, from the policy's own sample of it; same shape as both.

    ``k1`` is unbiased, and may be negative; ``k3`` is unbiased, never negative and varies less
    (http://joschu.net/blog/kl-approx.html).
    """
    difference = log_probs - reference
    return difference if estimator == "k1" else numpy.expm1(-difference) + difference


def shape_rewards(kl: Floats, score: float, kl_coef: float) -> Floats:
    """Reward of each token of a response: what the divergence ``kl`` costs, and the score at its last token."""
    rewards = -kl_coef * kl
    rewards[-1] += score
    return rewards


def estimate_advantages(rewards: Floats, values: Floats, gamma: float, lam: float) -> tuple[Floats, Floats]:
    """Generalized advantages and returns of one response, each of shape (tokens,) (arXiv:1506.02438, eq. 16).

    ``values[t]`` is that of the state before token ``t``; the state after the last one is worth nothing, for the
    episode has ended.
    """
    advantages = numpy.zeros_like(rewards)
    following, carried = 0.0, 0.0
    for step in reversed(range(len(rewards))):
        carried = rewards[step] + gamma * following - values[step] + gamma * lam * carried
        advantages[step], following = carried, values[step]
    return advantages, advantages + values


def whiten(parts: list[Floats]) -> list[Floats]:
    """``parts`` moved and scaled so that all their numbers together have mean 0 and standard deviation 1."""
    every = numpy.concatenate(parts)
    mean, scale = every.mean(), every.std() + 1e-8
    return [(part - mean) / scale for part in parts]


def explain_variance(values: Floats, returns: Floats) -> float:
    """Share of the variance of ``returns`` that ``values`` foresaw: 1 all of it, 0 none, below 0 worse than none."""
    variance = float(numpy.var(returns))
    return 1 - float(numpy.var(returns - values)) / variance if variance > 0 else 0.0


def adapt_kl_coef(kl_coef: float, kl: float, target: float, sequences: int, horizon: int) -> float:
    """The coefficient after ``sequences`` responses whose mean divergence was ``kl`` (arXiv:1909.08593, sec. 2.2)."""
    error = float(numpy.clip(kl / target - 1, -0.2, 0.2))
    return kl_coef * (1 + error * sequences / horizon)


@dataclass
class Spread:
    """Mean and variance of all numbers so far, in one pass (Chan et al. 1979)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, numbers: Floats) -> None:
        count, mean = self.count + len(numbers), float(numbers.mean())
        shift = mean - self.mean
        self.squares += float(((numbers - mean) ** 2).sum()) + shift**2 * self.count * len(numbers) / count
        self.mean += shift * len(numbers) / count
        self.count = count

    @property
    def std(self) -> float:
        return float(numpy.sqrt(self.squares / self.count)) if self.count else 0.0
