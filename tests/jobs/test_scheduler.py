"""Slurm's words about a job and its nodes, and what they mean; the texts are those of Slurm 22.05."""

from datetime import datetime, timedelta

import pytest

from jobs.scheduler import name_cause, parse_sick, parse_state

NOW = datetime(2026, 11, 23, 3, 40, 0)


def line(state: str, *, reason: str = "None", restarts: int = 0, left: int = 3000, preempted: str = "None") -> str:
    end = (NOW + timedelta(seconds=left)).isoformat()
    return (
        f"JobId=7 JobName=wrap UserId=root(0) JobState={state} Reason={reason} Dependency=(null) Requeue=1 "
        f"Restarts={restarts} BatchFlag=1 ExitCode=0:0 RunTime=00:00:02 EndTime={end} "
        f"PreemptEligibleTime=2026-11-23T03:00:14 PreemptTime={preempted} SuspendTime=None Partition=low\n"
    )


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (line("RUNNING", left=30, preempted="2026-11-23T03:39:58"), "preempted"),
        # Of an earlier attempt.
        (line("RUNNING", preempted="2026-11-23T02:00:00"), "stopped"),
        (line("RUNNING", left=90), "time_limit"),
        (line("RUNNING"), "stopped"),
        (line("COMPLETING", restarts=1), "requeued"),
        # It runs again, elsewhere: this node was cut off.
        (line("RUNNING", restarts=1), "requeued"),
        (line("PENDING", reason="BeginTime", restarts=1), "requeued"),
        (line("COMPLETING", reason="TimeLimit", left=0), "time_limit"),
        (line("TIMEOUT", reason="TimeLimit", left=0), "time_limit"),
        (line("NODE_FAIL", reason="NodeDown", left=0), "node"),
        (line("COMPLETING", left=0), None),
        (line("CANCELLED", left=0), None),
    ],
)
def test_why_a_job_is_told_to_stop(text: str, cause: str | None) -> None:
    state = parse_state(text, NOW.timestamp())
    assert name_cause(state, started=NOW.timestamp() - 60, restarts=0) == cause


def test_silence_is_no_verdict() -> None:
    assert parse_state("slurm_load_jobs error: Unable to contact slurm controller\n", 0.0) is None
    assert name_cause(None, started=0.0, restarts=0) == "stopped"
    assert parse_sick("") == []


def test_nodes_that_new_ranks_should_not_start_on() -> None:
    assert parse_sick("n0 mixed\nn1 mixed*\nn2 down\nn2 down\nn3 allocated\nn4 draining\nn5 down*\n") == [
        "n1",
        "n2",
        "n5",
    ]
