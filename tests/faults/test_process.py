"""Ranks that die, hang, or never leave: seen in time, started again where they were, and the result is the same."""

import json
import os
import signal
import time

import pytest

from launcher.contract.ledger import events
from tests.conftest import Tuneyard
from tests.reliability import record

from .conftest import STEPS, Submit

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(420)]

DIED = (
    "the other ranks stop within 10 s, new ones start in the same allocation within 60 s, adapter as of an unhurt run"
)


@pytest.mark.parametrize(
    ("case", "fault", "reason"),
    [
        pytest.param("1 a rank dies", "1 train 6 kill 1", "was killed by SIGKILL", marks=pytest.mark.fault_class),
        pytest.param("1 rank 0 dies", "0 train 6 kill 1", "was killed by SIGKILL", marks=pytest.mark.faults),
        pytest.param("3 SIGSEGV", "1 train 6 SIGSEGV 1", "was killed by SIGSEGV", marks=pytest.mark.faults),
        pytest.param("3 abort", "0 train 6 SIGABRT 1", "was killed by SIGABRT", marks=pytest.mark.faults),
        pytest.param("3 exit 0 too early", "1 train 6 leave 1", "", marks=pytest.mark.faults),
    ],
)
def test_a_rank_that_dies(submit: Submit, weights: bytes, case: str, fault: str, reason: str) -> None:
    run = submit(fault=fault, pace=0.3)
    status = run.wait_for_end()
    assert status["state"] == "completed", run.tell()
    first, second = run.attempts()
    assert first.ended is not None
    assert (first.ended.state, first.ended.cause, first.ended.then) == ("failed", "crash", "restart")
    assert reason in first.ended.reason
    if reason:
        assert first.ended.rank == int(fault[0])
    # In the same allocation, without the scheduler.
    assert (second.slurm_job_id, second.slurm_restart_count) == (first.slurm_job_id, 0)
    figures = run.figures()
    assert float(figures["detect_s"]) < 10
    assert float(figures["restart_s"]) + float(figures["load_s"]) < 60
    run.check_whole(weights)
    run.check_nobody_left()
    record(case, fault.split()[3], DIED, **figures)


@pytest.mark.faults
@pytest.mark.parametrize(("what", "sign"), [("the supervisor", "submitit.core._submit"), ("srun", "srun --")])
def test_what_holds_the_ranks_dies(submit: Submit, weights: bytes, what: str, sign: str) -> None:
    run = submit(pace=0.5)
    run.wait_for_step(6)
    (pid, *_) = run.find_pids(sign)
    os.kill(pid, signal.SIGKILL)
    killed = time.time()
    run.wait_for(lambda: len(run.attempts()) > 1, 60)
    assert run.wait_for_end()["state"] == "completed", run.tell()
    first, second = run.attempts()
    # In the same allocation, without the scheduler.
    assert (second.slurm_job_id, second.slurm_restart_count) == (first.slurm_job_id, 0)
    steps = {row["t"]: row["attempt"] for row in run.rows() if "loss" in row}
    assert [steps[t] for t in sorted(steps)] == sorted(steps.values())  # never both at once
    figures = run.figures()
    figures["restart_s"] = second.started - killed
    assert float(figures["restart_s"]) + float(figures["load_s"]) < 60
    run.check_whole(weights)
    run.check_nobody_left()
    record(f"1 {what} dies", "kill -9", DIED, **figures)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("case", "fault", "word"),
    [
        ("2 a rank is stopped (SIGSTOP)", "1 train 6 freeze 1", "does not answer"),
        ("2 a rank holds the interpreter", "0 train 6 hold 1", "does not answer"),
        ("2 a rank waits for ever", "1 train 6 sleep 1", "the others wait"),
    ],
)
def test_a_hang(submit: Submit, weights: bytes, case: str, fault: str, word: str) -> None:
    run = submit("recovery.hang_seconds=30", fault=fault, pace=0.3)
    assert run.wait_for_end()["state"] == "completed", run.tell()
    first, _ = run.attempts()
    assert first.ended is not None
    assert (first.ended.cause, first.ended.rank, first.ended.node) == (
        "hang",
        int(fault[0]),
        first.nodes[int(fault[0])],
    )
    assert word in first.ended.reason
    figures = run.figures()
    assert 25 < float(figures["detect_s"]) < 45
    run.check_whole(weights)
    run.check_nobody_left()
    record(case, fault.split()[3], "seen within 30 s (the limit) + 10, the rank is named, adapter as unhurt", **figures)


@pytest.mark.faults
@pytest.mark.parametrize("phase", ["save", "load", "data"])
def test_slow_is_not_hung(submit: Submit, weights: bytes, phase: str) -> None:
    run = submit("recovery.hang_seconds=15", fault=f"1 {phase} 0 pause 1")
    assert run.wait_for_end()["state"] == "completed", run.tell()
    assert len(run.attempts()) == 1
    run.check_whole(weights)
    record(f"2 slow, in {phase}", "a pause of 40 s, limit 15 s", "no restart", restarts_of_a_healthy_job=0)


@pytest.mark.faults
def test_a_bug_that_comes_back_stops_the_run(submit: Submit) -> None:
    """At step 6, behind the checkpoint of step 4: the first attempt got on, the three after it did not."""
    run = submit(fault="1 train 6 raise", pace=0.3)
    status = run.wait_for_end()
    assert status["state"] == "failed"
    reason = str(status["reason"])
    assert "ValueError: injected on purpose; stopped: 3 attempts in a row failed without a newer checkpoint" in reason
    attempts = run.attempts()
    assert [attempt.first_step for attempt in attempts] == [0, 4, 4, 4]
    assert [attempt.ended.then for attempt in attempts if attempt.ended] == ["restart"] * 3 + ["stop"]
    run.wait_for(lambda: "4:0" in run.slurm("sacct", "-n", "-P", "-X", "-j", run.job, "--format=ExitCode"))
    assert run.field("Restarts") == "0"
    record("4 a bug at step 6", "an exception in each attempt", "stops with exit code 4", attempts=len(attempts))


@pytest.mark.faults
def test_a_bug_before_step_1_ends_with_exit_code_4(tuneyard: Tuneyard, submit: Submit) -> None:
    run = submit(fault="1 import 0 raise")
    assert run.wait_for_end()["state"] == "failed"
    assert [attempt.first_step for attempt in run.attempts()] == [0, 0, 0]
    done = tuneyard("resume", str(run.paths.root), "recovery.max_attempts=2", "--wait", "--json")
    assert done.returncode == 4, done.stderr
    assert "stopped: 2 attempts in a row" in done.stderr
    assert len(run.attempts()) == 5  # a new submission has a budget of its own
    assert json.loads(done.stdout.splitlines()[-1])["run_dir"] == str(run.paths.root)
    record("4 an import error", "an exception before step 1", "stops after 3 attempts with exit code 4", attempts=3)


@pytest.mark.faults
def test_a_rank_that_never_leaves_is_ended(submit: Submit, weights: bytes) -> None:
    run = submit(fault="1 done 0 freeze")
    assert run.wait_for_end()["state"] == "completed"
    seconds = run.wait_for(lambda: run.field("JobState") == "COMPLETED", 30)
    run.check_whole(weights)
    run.check_nobody_left()
    assert len(run.attempts()) == 1
    assert [row["step"] for row in events(run.rows(), "finished")] == [STEPS]
    record("5 stuck in teardown", "SIGSTOP after the final save", "ended within 30 s, COMPLETED", given_back_s=seconds)
