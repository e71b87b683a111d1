"""Minibatches and micro batches of a rollout."""

import numpy

from jobs.rollout import choose, deal, trim


def test_an_epoch_has_each_response_once_in_an_order_of_its_own() -> None:
    lengths = numpy.array([9, 3, 7, 5, 5, 8, 2, 6])
    epochs = [[choose(1, 4, 2 * epoch + half, 4, lengths).tolist() for half in (0, 1)] for epoch in (0, 1)]
    for first, second in epochs:
        assert sorted(first + second) == list(range(8))
    assert set(epochs[0][0]) != set(epochs[1][0])


def test_like_lengths_stand_together() -> None:
    lengths = numpy.array([50, 10, 49, 11, 48, 12, 47, 13])
    chosen = choose(1, 1, 0, 8, lengths)
    assert lengths[chosen].tolist() == sorted(lengths.tolist())
    # Two ranks get micro batches of like lengths at the same time.
    first, second = deal(chosen, 2, 0, 2), deal(chosen, 2, 1, 2)
    assert [lengths[part].tolist() for part in first] == [[10, 11], [47, 48]]
    assert [lengths[part].tolist() for part in second] == [[12, 13], [49, 50]]


def test_what_pads_is_taken_off_the_end_alone() -> None:
    assert trim([2, 5, 2, 7, 2, 2], 2) == [2, 5, 2, 7]
    assert trim([2, 5, 7], 2) == [2, 5, 7]
    assert trim([2, 2], 2) == [2]
