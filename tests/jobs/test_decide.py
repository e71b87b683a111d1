"""What follows an attempt, as a function of the run's history alone."""

from dataclasses import replace

import pytest

from jobs.decide import MAX_INTERRUPTIONS, Decision, decide, find_lemon
from launcher.contract.attempt import EXIT_FAILED, EXIT_NO_PROGRESS, EXIT_OK, Attempt, Ending

NODES = ["n0", "n1"]


def attempt(
    cause: str | None,
    reached: int = 0,
    *,
    start: int = 0,
    node: str | None = "n1",
    nodes: list[str] = NODES,
    state: str = "",
    excluded: tuple[str, ...] = (),
) -> Attempt:
    """One that ended by ``cause`` with a checkpoint of step ``reached``."""
    is_failure = cause in ("crash", "hang", "error", "node")
    ending = Ending(
        t=0.0,
        state=state or ("failed" if is_failure else "interrupted"),  # type: ignore[arg-type]
        exit_code=1,
        reason="it broke",
        cause=cause,  # type: ignore[arg-type]
        node=node,
        checkpoint_step=reached,
        excluded=list(excluded),
    )
    resumed = f"checkpoints/a01/step-{start:06d}" if start else None
    return Attempt(number=1, started=0.0, nodes=nodes, resumed_from=resumed, ended=ending)


def after(*history: Attempt, max_attempts: int = 3, can_requeue: bool = True, are_nodes_well: bool = True) -> Decision:
    numbered = [replace(item, number=number) for number, item in enumerate(history, 1)]
    return decide(numbered, max_attempts=max_attempts, can_requeue=can_requeue, are_nodes_well=are_nodes_well)


def test_a_failure_starts_again_where_it_was_and_not_where_a_node_is_sick() -> None:
    assert after(attempt("crash")).then == "restart"
    assert after(attempt("hang"), can_requeue=False).then == "restart"
    assert after(attempt("crash"), are_nodes_well=False).then == "requeue"
    assert after(attempt("node")).then == "requeue"


def test_what_only_the_user_can_mend_is_not_tried_again() -> None:
    assert after(attempt("error")) == Decision("stop", EXIT_FAILED, "it broke")
    for reached in (0, 5):
        assert after(attempt("crash", reached), max_attempts=1) == Decision("stop", EXIT_FAILED, "it broke")
    assert after(attempt(None, state="cancelled")).then == "stop"
    assert after(attempt(None, state="completed")) == Decision("stop", EXIT_OK, "it broke")


def test_three_failures_without_a_newer_checkpoint_stop_the_run() -> None:
    stopped = after(attempt("crash"), attempt("crash"), attempt("crash"))
    assert (stopped.then, stopped.exit_code) == ("stop", EXIT_NO_PROGRESS)
    assert stopped.reason == "it broke; stopped: 3 attempts in a row failed without a newer checkpoint"
    # Back at the same step each time, though it is not the first.
    assert after(attempt("crash", 20), *[attempt("crash", 20, start=20)] * 3).exit_code == EXIT_NO_PROGRESS
    assert after(attempt("crash", 20), *[attempt("crash", 20, start=20)] * 2).then == "restart"
    # An older checkpoint written once more is no progress.
    torn = [attempt("crash", 20), attempt("crash", 20, start=10), attempt("crash", 20, start=10)]
    assert after(*torn, attempt("crash", 20, start=10)).exit_code == EXIT_NO_PROGRESS
    # A failure a day is no reason to stop a run of weeks.
    assert after(*[attempt("crash", 20 * day, start=20 * day - 20) for day in range(1, 30)]).then == "restart"


@pytest.mark.parametrize("cause", ["preempted", "requeued", "stopped", "node", "time_limit"])
def test_what_comes_from_outside_costs_no_attempt(cause: str) -> None:
    crashes = [attempt("crash"), attempt("crash")]
    assert after(*crashes, attempt(cause)).then == "requeue"
    assert after(*crashes, attempt(cause), attempt("crash")).exit_code == EXIT_NO_PROGRESS
    assert after(attempt(cause), attempt(cause), attempt("crash")).then == "restart"
    assert after(attempt(cause), can_requeue=False).then == "stop"


def test_time_limits_and_preemptions_end_too_where_nothing_is_ever_saved() -> None:
    chain = [attempt("time_limit", 4 * n, start=4 * n - 4) for n in range(1, 6)]
    assert after(*chain).then == "requeue"
    assert after(attempt("time_limit"), max_attempts=1).then == "requeue"
    short = after(*[attempt("time_limit")] * 3)
    assert short.exit_code == EXIT_NO_PROGRESS
    assert "resources.time" in short.reason
    assert after(*[attempt("preempted")] * (MAX_INTERRUPTIONS - 1)).then == "requeue"
    assert after(*[attempt("preempted")] * MAX_INTERRUPTIONS).exit_code == EXIT_NO_PROGRESS


def test_an_attempt_without_a_record_of_its_end_is_no_failure_of_the_program() -> None:
    gone = replace(attempt("crash"), ended=None)
    assert after(gone, gone, attempt("crash")).then == "restart"


def test_a_node_is_bad_when_it_fails_whichever_ranks_it_has() -> None:
    here, moved = attempt("crash"), attempt("crash", nodes=["n1", "n0"])
    second = after(here, here)
    assert (second.then, second.is_moved) == ("restart", True)
    third = after(here, here, moved)
    assert (third.then, third.excluded) == ("requeue", ("n1",))
    # It followed the rank to the other node: it is the program.
    follows = attempt("crash", node="n0", nodes=["n1", "n0"])
    assert after(here, here, follows).exit_code == EXIT_NO_PROGRESS
    assert find_lemon([here, here, here]) is None
    # Once it is left out, the count begins anew.
    out = replace(moved, ended=replace(moved.ended, excluded=["n1"]))  # type: ignore[type-var]
    assert after(here, here, out, attempt("crash", node="n2", nodes=["n0", "n2"])).then == "restart"
