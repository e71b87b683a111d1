"""What Slurm does to a job: preemption, time limits, scancel, a requeue; each is told from the others."""

import time

import pytest

from launcher.contract.ledger import events, merge_metrics
from tests.reliability import record

from .conftest import STEPS, Hurt, Submit, preempt

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(420)]


def _check_one_requeue(run: Hurt, cause: str) -> None:
    first, *others = run.attempts()
    assert first.ended is not None
    assert (first.ended.state, first.ended.cause) == ("interrupted", cause), run.tell()
    assert [attempt.slurm_restart_count for attempt in others] == [1]
    assert run.field("Restarts") == "1"


@pytest.mark.fault_class
def test_a_preemption_with_grace(submit: Submit, weights: bytes) -> None:
    run = submit("resources.partition=low", pace=0.5)
    run.wait_for_step(5)
    preempt(run)
    assert run.wait_for_end()["state"] == "completed", run.tell()
    _check_one_requeue(run, "preempted")
    stopped = events(run.rows(), "stop_requested")
    assert [row["attempt"] for row in stopped] == [1]
    figures = run.figures()
    assert int(figures["steps_lost"]) <= 1
    run.check_whole(weights)
    run.check_nobody_left()
    record(
        "9 preempted, 30 s of grace", "a job of higher priority", "one save, one requeue, adapter as unhurt", **figures
    )


@pytest.mark.faults
def test_a_preemption_without_grace(submit: Submit, weights: bytes) -> None:
    run = submit("resources.partition=spot", pace=0.5)
    run.wait_for_step(6)
    preempt(run)
    assert run.wait_for_end()["state"] == "completed", run.tell()
    first, second = run.attempts()
    assert second.slurm_restart_count == 1
    # Slurm ends such a job by SIGTERM, then SIGKILL after KillWait, 5 s here: that may be enough for a last save.
    assert second.first_step >= 4
    assert first.ended is None or first.ended.cause == "requeued"
    run.check_whole(weights)
    record(
        "9 preempted, no grace", "a job of higher priority", "from the periodic checkpoint at least", **run.figures()
    )


@pytest.mark.faults
@pytest.mark.parametrize("partition", ["low", "spot"])
def test_a_preemption_during_the_imports(submit: Submit, weights: bytes, partition: str) -> None:
    run = submit(f"resources.partition={partition}", "recovery.max_attempts=1")
    run.wait_for(lambda: [beat for beat in run.beats(1) if beat.phase == "import"])
    preempt(run)
    assert run.wait_for_end()["state"] == "completed", run.tell()
    _, second = run.attempts()
    assert (second.first_step, second.slurm_restart_count) == (0, 1)
    run.check_whole(weights)
    record(
        f"9 preempted at import, {partition}", "a job of higher priority", "requeued, no attempt spent", **run.figures()
    )


@pytest.mark.faults
def test_a_preemption_while_a_checkpoint_is_loaded(submit: Submit, weights: bytes) -> None:
    run = submit("resources.partition=low", "recovery.max_attempts=2", fault="0 train 6 kill 1", pace=0.3)
    run.wait_for(lambda: [beat for beat in run.beats(2) if beat.phase == "load"])
    preempt(run)
    assert run.wait_for_end()["state"] == "completed", run.tell()
    _, second, third = run.attempts()
    assert second.ended is None or second.ended.state == "interrupted"
    assert (second.first_step, third.first_step, third.slurm_restart_count) == (4, 4, 1)
    run.check_whole(weights)
    record("9 preempted at checkpoint load", "a job of higher priority", "requeued, no attempt spent", **run.figures(2))


@pytest.mark.faults
def test_a_complete_run_that_is_requeued_leaves_at_once(submit: Submit, weights: bytes) -> None:
    run = submit()
    assert run.wait_for_end()["state"] == "completed"
    run.wait_for(lambda: run.field("JobState") == "COMPLETED")
    run.slurm("scontrol", "requeue", run.job)
    assert run.status()["state"] == "completed"
    run.wait_for(lambda: run.field("Restarts") == "1" and run.field("JobState") == "COMPLETED")
    seconds = int(run.field("RunTime").rpartition(":")[2])
    assert run.field("ExitCode") == "0:0"
    assert len(run.attempts()) == 1
    run.check_whole(weights)
    record("10 complete, and requeued", "scontrol requeue", "exits 0, nothing is written", seconds=float(seconds))


@pytest.mark.faults
@pytest.mark.timeout(1000)
def test_five_time_limits_in_a_row(submit: Submit, weights: bytes) -> None:
    # --time is in minutes and the warning comes up to 30 s early: some 25 s are left of each.
    run = submit("resources.time=1m", pace=5.0, sbatch='signal: "USR2@5"')
    assert run.wait_for_end(900)["state"] == "completed", run.tell()
    *limits, last = run.attempts()
    assert len(limits) >= 5
    assert {attempt.ended.cause for attempt in limits if attempt.ended} == {"time_limit"}
    assert [attempt.slurm_restart_count for attempt in (*limits, last)] == list(range(len(limits) + 1))
    # Each went on where the one before it stopped, and none lost a step.
    assert [attempt.first_step for attempt in (*limits, last)] == [
        0, *(attempt.ended.checkpoint_step for attempt in limits if attempt.ended)
    ]  # fmt: skip
    run.check_whole(weights)
    record("11 time limits in a row", f"{len(limits)} limits of 1 min", f"{STEPS} steps, none lost", **run.figures())


@pytest.mark.faults
def test_a_signal_twice_also_during_the_save(submit: Submit, weights: bytes) -> None:
    run = submit(fault="0 save 0 pause_short 1", pace=0.5)
    run.wait_for_step(5)
    run.slurm("scancel", "--signal=USR2", run.job)
    run.wait_for(lambda: [beat for beat in run.beats(1) if beat.phase == "save" and beat.step > 4])
    run.slurm("scancel", "--signal=USR2", run.job)
    run.slurm("scancel", "--signal=TERM", run.job)
    assert run.wait_for_end()["state"] == "completed", run.tell()
    _check_one_requeue(run, "stopped")
    assert int(run.figures()["steps_lost"]) <= 1
    run.check_whole(weights)
    record("9 a second signal during the save", "USR2, then USR2 and TERM", "one save, one requeue", **run.figures())


WORKERS = """
import time
import torch, torch.distributed
from torch.utils.data import DataLoader
from jobs.run import current_run

run = current_run()
torch.distributed.init_process_group("gloo")
first = int((run.resume_from / "step").read_text()) if run.resume_from else 0
rows = iter(DataLoader(range(1000), num_workers=8))
for step in range(first + 1, 25):
    next(rows)
    torch.distributed.all_reduce(torch.ones(1))
    time.sleep(0.4)
    run.log(step, loss=1 / step)
    if step % 2 == 0:
        with run.checkpoint(step) as folder:
            (folder / "step").write_text(str(step))
"""


@pytest.mark.faults
def test_a_preemption_of_a_script_with_data_loader_workers(submit: Submit) -> None:
    run = submit("resources.partition=low", script=WORKERS)
    run.wait_for_step(5)
    run.slurm("scancel", "--signal=TERM", run.job)  # what a site without preempt_send_user_signal sends
    preempt(run)
    assert run.wait_for_end()["state"] == "completed", run.tell()
    first, second = run.attempts()
    assert first.ended is not None
    assert (first.ended.state, second.slurm_restart_count, run.field("Restarts")) == ("interrupted", 1, "1")
    figures = run.figures()
    assert int(figures["steps_lost"]) == 0
    assert [row["step"] for row in merge_metrics(run.rows())] == list(range(1, 25))
    run.check_nobody_left()
    record(
        "9 preempted, 8 data-loader workers a rank", "USR2 and TERM to each process", "one save, one requeue", **figures
    )


@pytest.mark.faults
def test_scancel_is_final(submit: Submit) -> None:
    run = submit(pace=0.5)
    run.wait_for_step(2)
    run.slurm("scancel", run.job)
    status = run.wait_for_end(60)
    assert (status["state"], status["reason"]) == ("cancelled", "cancelled in Slurm")
    time.sleep(15)  # longer than a requeued job waits here
    assert run.field("JobState") == "CANCELLED"
    assert run.field("Restarts") == "0"
    assert len(run.attempts()) == 1
    run.check_nobody_left()
    record("13 scancel", "scancel JOB", "cancelled, never started again")
