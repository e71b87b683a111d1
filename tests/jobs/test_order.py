"""The data order is a pure function of seed and rows."""

import numpy

from jobs.order import RowOrder


def test_each_epoch_uses_each_row_once_in_an_order_of_its_own() -> None:
    order = RowOrder(rows=10, seed=1, length=35)
    stream = list(order)
    assert len(order) == len(stream) == 35
    epochs = [stream[start : start + 10] for start in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_any_part_of_the_stream_can_be_asked_for_directly() -> None:
    stream = numpy.array(list(RowOrder(rows=7, seed=3, length=100)))
    for start, stop in ((0, 0), (0, 7), (5, 30), (98, 100)):
        assert numpy.array_equal(RowOrder(rows=7, seed=3, length=100).indices(start, stop), stream[start:stop])


def test_the_order_hangs_on_the_seed_and_not_on_the_length_of_the_run() -> None:
    assert list(RowOrder(9, 1, 20)) == list(RowOrder(9, 1, 40))[:20]
    assert list(RowOrder(9, 1, 9)) != list(RowOrder(9, 2, 9))


def test_the_order_stays_what_it_was() -> None:
    """A resumed run must find the order that its checkpoint was made with."""
    assert list(RowOrder(8, 42, 16)) == [3, 4, 2, 7, 6, 1, 5, 0, 0, 4, 6, 1, 2, 7, 3, 5]
