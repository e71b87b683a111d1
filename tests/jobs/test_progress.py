"""What progress counts, and when it stops a run."""

import math
from pathlib import Path

import numpy
import pytest

from jobs.context import RankContext
from jobs.errors import JobError
from jobs.finite import MAX_SKIPPED, LossWatch
from jobs.order import RowOrder
from jobs.progress import Progress
from launcher.contract.heartbeat import read_heartbeats
from launcher.contract.ledger import LedgerWriter, events, read_rows
from launcher.contract.paths import RunPaths
from tests.plans import LOCAL, plan_on


@pytest.fixture
def progress(tmp_path: Path) -> Progress:
    """Global batches of 8 from 5 rows with 1, 10, ... 10000 tokens: the sum tells which rows were used."""
    paths = RunPaths(tmp_path)
    context = RankContext(paths=paths, plan=plan_on(LOCAL), attempt=1, rank=0, local_rank=0, world_size=4, node="n0")
    ledger = LedgerWriter(paths.ledger(1), 1)
    order = RowOrder(5, 0, 1000)
    return Progress(context, ledger, order, lambda step: order.count_tokens(10 ** numpy.arange(5), step * 8), 100)


def test_tokens_are_those_of_the_rows_used_so_far(progress: Progress) -> None:
    stream, lengths = RowOrder(5, 0, 1000).indices(0, 1000), 10 ** numpy.arange(5)
    for start in (0, 3):  # from the start, then resumed
        progress.begin(start)
        for step in range(start + 1, 8):
            progress.record_step(step, loss=1.0, learning_rate=0.1, grad_norm=1.0)
    rows = read_rows(progress.context.paths.ledger(1))
    assert [row["step"] for row in rows] == [*range(1, 8), *range(4, 8)]
    assert all(row["tokens"] == lengths[stream[: row["step"] * 8]].sum() for row in rows)
    assert all(row["epoch"] == row["step"] * 8 / 5 for row in rows)
    assert read_heartbeats(progress.context.paths)[0].phase == "train"


def test_a_loss_that_is_no_number_stops_the_run_and_is_in_the_ledger(progress: Progress) -> None:
    progress.begin(0)
    with pytest.raises(JobError, match="the loss is nan at step 1"):
        progress.record_step(1, loss=math.nan, learning_rate=0.1, grad_norm=math.nan)
    (row,) = read_rows(progress.context.paths.ledger(1))
    assert (row["event"], row["step"]) == ("nan", 1)


def test_only_a_step_with_rate_and_gradient_moves_weights(progress: Progress) -> None:
    progress.begin(0)
    progress.record_step(1, loss=1.0, learning_rate=0.0, grad_norm=1.0)
    assert not progress.has_moved
    progress.record_step(2, loss=1.0, learning_rate=0.1, grad_norm=1.0)
    assert progress.has_moved


def test_steps_are_skipped_until_too_many_in_a_row(progress: Progress) -> None:
    watch = LossWatch("skip", progress.ledger)
    for step in range(1, MAX_SKIPPED):
        assert not watch.judge(step, math.nan, None)
    assert watch.judge(MAX_SKIPPED, 1.0, 1.0)
    for step in range(1, MAX_SKIPPED):
        assert not watch.judge(step, 1.0, math.inf)
    with pytest.raises(JobError, match="the gradient norm is inf at step 9, after 4 steps that were skipped"):
        watch.judge(9, 1.0, math.inf)
    rows = events(read_rows(progress.context.paths.ledger(1)), "nan")
    assert [row["in_a_row"] for row in rows] == [1, 2, 3, 4, 1, 2, 3, 4, 5]


def test_a_spike_is_an_event_and_no_more(progress: Progress) -> None:
    progress.begin(0)
    for step, loss in enumerate([2.0] * 12 + [9.0, 2.0], start=1):
        progress.record_step(step, loss=loss, learning_rate=0.1, grad_norm=1.0)
    (row,) = events(read_rows(progress.context.paths.ledger(1)), "spike")
    assert (row["step"], row["loss"], row["median"]) == (13, 9.0, 2.0)
