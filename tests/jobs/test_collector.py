"""Scores on their way to rewards."""

from typing import Any

import numpy
import pytest

from jobs.collector import Collector
from jobs.rollout import Rollout, State
from launcher.contract.spec import Ppo

STOP = 9
ROLLOUT = Rollout(prompts=[[1]] * 4, responses=[[2, STOP], [2, 3], [STOP], [2, STOP, 2]])


def shape(ppo: Ppo, scores: list[float], state: State | None = None) -> list[float]:
    collector: Any = Collector.__new__(Collector)
    collector.ppo, collector.stop = ppo, STOP
    used: list[float] = collector._shape_scores(numpy.array(scores), ROLLOUT, state or State()).tolist()
    return used


def test_a_response_without_an_end_loses_the_penalty() -> None:
    assert shape(Ppo(), [4.0, 3.0, 2.0, 1.0]) == [4.0, 3.0, 2.0, 1.0]
    assert shape(Ppo(missing_eos_penalty=1.5), [4.0, 3.0, 2.0, 1.0]) == [4.0, 1.5, 2.0, -0.5]


def test_scores_are_clipped_last() -> None:
    assert shape(Ppo(missing_eos_penalty=1.5, clip_reward=2.0), [4.0, 3.0, 2.0, -1.0]) == [2.0, 1.5, 2.0, -2.0]


def test_scores_are_normalised_by_all_so_far() -> None:
    state, first, second = State(), [4.0, 3.0, 2.0, 1.0], [10.0, 0.0, 0.0, 2.0]
    assert shape(Ppo(normalize_reward=True), first, state) == pytest.approx(
        [(score - 2.5) / numpy.std(first) for score in first]
    )
    every = numpy.array(first + second)
    expected = [(score - every.mean()) / every.std() for score in second]
    assert shape(Ppo(normalize_reward=True), second, state) == pytest.approx(expected)
