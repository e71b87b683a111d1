"""The arithmetic between scores and advantages, against formulas written out."""

import math

import numpy
import pytest

from jobs.advantages import (
    Spread,
    adapt_kl_coef,
    estimate_advantages,
    estimate_kl,
    explain_variance,
    shape_rewards,
    whiten,
)

RANDOM = numpy.random.default_rng(0)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_advantages_are_the_double_sum_of_the_paper(gamma: float, lam: float) -> None:
    rewards, values = RANDOM.normal(size=7), RANDOM.normal(size=7)
    advantages, returns = estimate_advantages(rewards, values, gamma, lam)
    following = [*values[1:], 0.0]
    for start in range(7):
        total = 0.0
        for step in range(start, 7):
            error = rewards[step] + gamma * following[step] - values[step]
            total += (gamma * lam) ** (step - start) * error
        assert advantages[start] == pytest.approx(total, abs=1e-12)
        assert returns[start] == pytest.approx(total + values[start], abs=1e-12)


def test_without_values_and_discount_an_advantage_is_the_sum_of_what_follows() -> None:
    rewards = RANDOM.normal(size=5)
    advantages, _ = estimate_advantages(rewards, numpy.zeros(5), 1.0, 1.0)
    assert advantages == pytest.approx([rewards[start:].sum() for start in range(5)])


def test_the_score_stands_at_the_last_token_and_divergence_costs_at_each() -> None:
    assert shape_rewards(numpy.array([1.0, -2.0, 4.0]), 10.0, 0.5).tolist() == [-0.5, 1.0, 8.0]


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_both_estimators_have_the_divergence_as_their_mean(estimator: str) -> None:
    policy, reference = RANDOM.dirichlet(numpy.ones(6)), RANDOM.dirichlet(numpy.ones(6))
    expected = float((policy * numpy.log(policy / reference)).sum())
    each = estimate_kl(numpy.log(policy), numpy.log(reference), estimator)
    assert (policy * each).sum() == pytest.approx(expected, abs=1e-12)
    assert estimator == "k1" or (each >= 0).all()
    assert estimate_kl(numpy.log(policy), numpy.log(policy), estimator) == pytest.approx(numpy.zeros(6), abs=0)


def test_whitening_is_over_all_tokens_and_not_over_each_response() -> None:
    parts = whiten([numpy.array([1.0, 2.0]), numpy.array([30.0])])
    every = numpy.concatenate(parts)
    assert every.mean() == pytest.approx(0.0, abs=1e-12)
    assert every.std() == pytest.approx(1.0, abs=1e-6)
    assert parts[1][0] > 1


def test_explained_variance_is_one_for_foresight_and_zero_for_a_constant() -> None:
    returns = RANDOM.normal(size=50)
    assert explain_variance(returns, returns) == 1.0
    assert explain_variance(numpy.full(50, 3.0), returns) == pytest.approx(0.0, abs=1e-12)
    assert explain_variance(-returns, returns) == pytest.approx(-3.0)


def test_the_coefficient_moves_towards_the_target_and_never_jumps() -> None:
    assert adapt_kl_coef(0.1, 6.0, 6.0, 64, 1000) == 0.1
    assert adapt_kl_coef(0.1, 6.6, 6.0, 100, 1000) == pytest.approx(0.1 * (1 + 0.1 * 0.1))
    assert adapt_kl_coef(0.1, 600.0, 6.0, 100, 1000) == pytest.approx(0.1 * 1.02)
    assert adapt_kl_coef(0.1, -600.0, 6.0, 100, 1000) == pytest.approx(0.1 * 0.98)


def test_the_running_spread_is_that_of_all_numbers_so_far() -> None:
    spread, parts = Spread(), [RANDOM.normal(5, 2, size=size) for size in (1, 7, 30)]
    assert spread.std == 0
    for part in parts:
        spread.add(part)
    every = numpy.concatenate(parts)
    assert (spread.count, spread.mean) == (38, pytest.approx(every.mean()))
    assert spread.std == pytest.approx(every.std())
    assert math.isfinite(spread.squares)
