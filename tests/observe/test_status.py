"""One state out of the scheduler's word and the run's files."""

import dataclasses
import os
from pathlib import Path

import pytest

from launcher.contract.attempt import Attempt, Ending
from launcher.contract.heartbeat import Heartbeat, beat, find_straggler
from launcher.contract.process import is_running, process_start
from launcher.contract.submission import Submission
from launcher.observe.slurm import STATES, JobView, parse_sacct, parse_squeue
from launcher.observe.status import decide, read_status
from tests.pipelines import hand_over, make_pipeline

SLURM = Submission(t=1.0, run_id="r", run_dir="/r", cluster="c", scheduler="slurm", job_id="7")
GOING = Attempt(number=1, started=1.0, nodes=["n0"], slurm_job_id="7")
FAILED = Attempt(
    number=1,
    started=1.0,
    slurm_job_id="7",
    nodes=["n0"],
    ended=Ending(t=2.0, state="failed", exit_code=1, reason="rank 1 on n0: ValueError: x"),
)


def _decide(**changes: object) -> tuple[str, str | None]:
    given = {"is_complete": False, "is_cancelled": False, "submission": SLURM, "last": None, "job": None}
    return decide(**{**given, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(("state", "then"), [("failed", "restart"), ("failed", "requeue"), ("interrupted", "requeue")])
def test_an_attempt_that_another_follows_is_no_end_of_the_run(state: str, then: str) -> None:
    assert FAILED.ended is not None
    last = dataclasses.replace(FAILED, ended=dataclasses.replace(FAILED.ended, state=state, then=then))  # type: ignore[arg-type]
    assert _decide(job=JobView("RUNNING", None), last=last)[0] == "running"
    assert _decide(job=JobView("PENDING", "BeginTime"), last=last)[0] == "pending"
    assert _decide(job=None, last=last)[0] == "unknown"
    assert _decide(job=JobView("CANCELLED", None), last=last)[0] == "cancelled"


def test_why_a_run_is_at_a_later_attempt_is_told_while_it_goes_on(tmp_path: Path) -> None:
    (paths,) = make_pipeline(tmp_path, "sft")
    hand_over(paths, t=1.0, pid=os.getpid())
    assert FAILED.ended is not None
    ended = dataclasses.replace(FAILED.ended, then="restart")
    dataclasses.replace(FAILED, slurm_job_id=None, ended=ended).save(paths)
    dataclasses.replace(GOING, number=2, slurm_job_id=None).save(paths)
    status = read_status(paths)
    assert (status.state, status.attempt) == ("running", 2)
    assert status.reason == "attempt 1 failed: rank 1 on n0: ValueError: x"


def test_silence_of_the_scheduler_is_unknown_never_an_end() -> None:
    state, reason = _decide(last=GOING)
    assert state == "unknown"
    assert "7" in str(reason)


def test_the_completion_record_outranks_the_scheduler() -> None:
    assert _decide(is_complete=True, job=JobView("FAILED", None))[0] == "completed"


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (JobView("PENDING", "Resources"), ("pending", "Resources")),
        (JobView("RUNNING", None), ("running", None)),
        (JobView("CANCELLED", None), ("cancelled", "cancelled in Slurm")),
    ],
)
def test_slurm_says_whether_it_lives(view: JobView, expected: tuple[str, str | None]) -> None:
    assert _decide(job=view, last=GOING) == expected


@pytest.mark.parametrize("words", ["launch failed requeued held", "launch_failed_requeued_held"])
def test_a_job_that_slurm_holds_after_a_failed_launch_has_a_remedy(words: str) -> None:
    state, reason = _decide(job=JobView("PENDING", words), last=GOING)
    assert state == "pending"
    assert "a node could not start it" in str(reason)
    assert "scontrol release 7 lets it start" in str(reason)


def test_only_an_administrator_ends_an_administrators_hold() -> None:
    reason = _decide(job=JobView("PENDING", "JobHeldAdmin"))[1]
    assert "an administrator can release it" in str(reason)
    assert "scontrol" not in str(reason)


@pytest.mark.parametrize("job", [None, JobView("FAILED", None), JobView("TIMEOUT", None), JobView("RUNNING", None)])
def test_the_attempts_own_word_on_its_end_outranks_the_scheduler(job: JobView | None) -> None:
    """Also where accounting has forgotten the job, or the end of the exporter ran into the time limit."""
    assert _decide(job=job, last=FAILED) == ("failed", "rank 1 on n0: ValueError: x")


def test_an_attempt_of_an_earlier_hand_over_says_nothing_of_this_one() -> None:
    resumed = dataclasses.replace(SLURM, job_id="8")
    assert _decide(submission=resumed, job=JobView("PENDING", None), last=FAILED) == ("pending", None)
    state, reason = _decide(submission=resumed, job=JobView("BOOT_FAIL", None), last=FAILED)
    assert (state, reason) == ("failed", "a node did not boot")


def test_completed_by_the_attempts_word_though_the_record_is_not_in_sight_yet() -> None:
    ended = dataclasses.replace(FAILED.ended, state="completed", reason="all ranks finished")  # type: ignore[type-var]
    assert _decide(last=dataclasses.replace(FAILED, ended=ended), job=JobView("COMPLETED", None))[0] == "completed"


def test_a_job_that_slurm_calls_completed_without_a_completion_record_failed() -> None:
    state, reason = _decide(job=JobView("COMPLETED", None))
    assert state == "failed"
    assert "no record" in str(reason)


def test_a_run_that_could_write_no_record_has_its_disk_as_the_reason() -> None:
    fault = "the disk is read-only: /runs/a"
    local = dataclasses.replace(SLURM, scheduler="local", job_id=None, pid=1, pid_start=0)
    for changes in ({"submission": local}, {"job": JobView("COMPLETED", None)}):
        state, reason = _decide(last=GOING, find_fault=lambda: fault, **changes)
        assert state == "failed"
        assert fault in str(reason)
        assert "no record" in str(reason) or "without a record" in str(reason)


def test_time_limit_has_a_remedy() -> None:
    state, reason = _decide(job=JobView("TIMEOUT", None), last=GOING)
    assert state == "failed"
    assert "resources.time" in str(reason)


def test_a_state_nobody_knows_is_unknown() -> None:
    assert "PONDERING" not in STATES
    assert _decide(job=JobView("PONDERING", None))[0] == "unknown"


def test_a_pid_that_was_given_to_another_process_is_not_the_run() -> None:
    start = process_start(os.getpid())
    assert start is not None
    assert is_running(os.getpid(), start)
    assert not is_running(os.getpid(), start - 1)
    local = dataclasses.replace(SLURM, scheduler="local", job_id=None, pid=os.getpid(), pid_start=start - 1)
    assert _decide(submission=local)[0] == "failed"


def test_slurm_text_becomes_values() -> None:
    assert parse_squeue("Welcome to the cluster\n7|PENDING|Resources\n8|RUNNING|None\n") == {
        "7": JobView("PENDING", "Resources"),
        "8": JobView("RUNNING", None),
    }
    # sacct lists a requeued job's earlier lives first, and says who cancelled.
    assert parse_sacct("7|NODE_FAIL|None\n7|CANCELLED by 0|None\n") == {"7": JobView("CANCELLED", None)}


def test_a_resumed_run_is_as_far_as_its_checkpoint_until_its_ranks_are_further(tmp_path: Path) -> None:
    (paths,) = make_pipeline(tmp_path, "sft")
    hand_over(paths, t=1.0, pid=os.getpid())
    Attempt(number=2, started=2.0, nodes=["here"], resumed_from="checkpoints/a01/step-000006").save(paths)
    for beat_step, step in ((None, 6), (0, 6), (7, 7)):
        if beat_step is not None:
            beat(paths, rank=0, attempt=2, step=beat_step, phase="load")
        assert (read_status(paths).state, read_status(paths).step) == ("running", step)


def _beats(**trips: float | None) -> list[Heartbeat]:
    return [
        Heartbeat(t=0.0, rank=rank, node=node, pid=1, attempt=1, step=3, phase="train", round_trip_s=seconds)
        for rank, (node, seconds) in enumerate(trips.items())
    ]


def test_a_node_with_a_slow_network_is_named() -> None:
    assert find_straggler(_beats(n0=1e-4, n1=1e-3, n2=0.4)) == (
        "the network of n2 is slow: a round trip takes 0.4 s, from the others 0.001 s"
    )
    assert find_straggler(_beats(n0=1e-4, n1=0.4, n2=0.5, n3=0.4)) == (
        "the network of n0 is slow: a round trip takes 0.5 s, from every other node"
    )
    # Of two nodes, nobody can say which.
    assert find_straggler(_beats(n0=1e-4, n1=0.4)) == (
        "the network between n0 and n1 is slow: a round trip takes 0.4 s"
    )


def test_no_healthy_node_is_named() -> None:
    assert find_straggler(_beats(n0=1e-4, n1=1e-3, n2=0.04)) is None
    assert find_straggler(_beats(n0=1e-4, n1=0.06, n2=0.09)) is None  # a slow network, but no node stands out
    assert find_straggler(_beats(n0=None, n1=None)) is None
    assert find_straggler([]) is None
