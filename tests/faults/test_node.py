"""Nodes that die, are cut off, come back, or are bad."""

import os
import signal
import subprocess
import sys
import time

import pytest

from launcher.contract.ledger import merge_metrics
from tests.conftest import DEVCLUSTER, ROOT
from tests.reliability import record

from .conftest import STEPS, Submit, find_daemon, kill_node, processes_on, slow_link

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(420)]


@pytest.mark.fault_class
def test_an_attempt_that_a_newer_one_has_followed_stops(submit: Submit, weights: bytes) -> None:
    """As after a requeue away from a node that was cut off: the old ranks and their supervisor still run."""
    run = submit(pace=0.5)
    run.wait_for_step(5)
    script = run.paths.root / "again.sh"
    script.write_text(f"#!/bin/bash\ncd {ROOT}\nexec {sys.executable} -m jobs.supervisor {run.paths.root}\n")
    options = [
        "--parsable",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--gpus-per-node=1",
        f"--output={run.paths.root}/again.log",
    ]
    env = {**run.env, "PYTHONPATH": str(ROOT)}
    again = subprocess.check_output(["sbatch", *options, str(script)], env=env, text=True).strip()
    # Its own job fails, so the record is what tells that the other one completes it.
    run.wait_for(run.paths.completion.exists, 240)
    first, second = run.attempts()
    assert first.ended is None  # not a word more
    assert (first.slurm_job_id, second.slurm_job_id) == (run.job, again)
    rows = run.rows()
    old = [row["t"] for row in rows if row["attempt"] == 1]
    new = [row["t"] for row in rows if row["attempt"] == 2]
    assert max(old) < second.started + 6
    overlap = max(0.0, max(old) - min(new))
    assert overlap == 0
    published = run.paths.checkpoints.glob("a01/step-*/manifest.json")  # those that the new attempt has not pruned
    assert all(path.stat().st_mtime < second.started + 6 for path in published)
    run.wait_for(lambda: run.field("JobState") == "FAILED", 30)
    run.check_whole(weights)
    run.check_nobody_left()
    record("7 an attempt that is over", "a second one beside it", "writes nothing more", double_run_s=overlap)


@pytest.mark.faults
def test_a_bad_node_is_left_out_and_no_healthy_one(submit: Submit, weights: bytes) -> None:
    run = submit(fault="n2 train 1 kill", pace=0.3, sbatch="exclude: n0")
    assert run.wait_for_end(300)["state"] == "completed", run.tell()
    *failed, last = run.attempts()
    assert [attempt.ended.node for attempt in failed if attempt.ended] == ["n2"] * 3
    assert [attempt.ended.then for attempt in failed if attempt.ended] == ["restart", "restart", "requeue"]
    # In the third one n2 had other ranks, which is what tells it from the program.
    assert [attempt.nodes for attempt in failed] == [["n1", "n2"], ["n1", "n2"], ["n2", "n1"]]
    assert last.nodes == ["n1", "n3"]
    assert run.field("ExcNodeList") in ("n0,n2", "n[0,2]")
    run.check_whole(weights)
    record("8 a node that kills ranks", "each rank on n2 dies", "n2 is left out after 3, no other", **run.figures(3))


@pytest.mark.faults
def test_a_slow_and_lossy_network_is_named_and_restarts_nothing(submit: Submit) -> None:
    """Not by netem, which not every kernel has."""
    run = submit("recovery.hang_seconds=60", "resources.nodes=3", "train.micro_batch=2", "train.global_batch=12")
    run.wait_for(lambda: run.beats(1))
    node = run.attempts()[0].nodes[1]
    with slow_link(node, seconds=0.2, loss=0.02):
        run.wait_for(lambda: f"the network of {node} is slow" in str(run.status()["reason"]), 120)
        assert run.wait_for_end()["state"] == "completed", run.tell()
    assert len(run.attempts()) == 1
    assert f"the network of {node} is slow" in run.paths.supervisor_log(1).read_text()
    assert [row["step"] for row in merge_metrics(run.rows()) if "loss" in row] == list(range(1, STEPS + 1))
    record(
        "8 200 ms delay, 2 % loss", "on all frames to a node of three", "named, no restart", restarts_of_a_healthy_job=0
    )


@pytest.mark.faults
def test_a_program_that_fails_on_one_rank_is_no_bad_node(submit: Submit) -> None:
    run = submit(fault="1 train 1 kill", pace=0.3)
    status = run.wait_for_end(300)
    assert status["state"] == "failed"
    attempts = run.attempts()
    assert attempts[-1].nodes == attempts[0].nodes[::-1]
    assert [attempt.ended.node for attempt in attempts if attempt.ended][-1] == attempts[0].nodes[0]
    assert all(attempt.ended.excluded == [] for attempt in attempts if attempt.ended)
    record("8 a rank that dies everywhere", "rank 1 dies", "no node is left out", healthy_nodes_left_out=0)


@pytest.mark.faults
def test_slurmd_dies_and_comes_back(submit: Submit, weights: bytes, mended: None) -> None:
    run = submit(pace=0.5)
    run.wait_for_step(3)
    node = run.attempts()[0].nodes[1]
    os.kill(find_daemon(node), signal.SIGKILL)
    time.sleep(3)
    subprocess.run([*DEVCLUSTER, "up", "--nodes", "4"], capture_output=True, check=True, timeout=120)
    assert run.wait_for_end()["state"] == "completed", run.tell()
    assert len(run.attempts()) == 1
    run.check_whole(weights)
    record("6 slurmd dies and comes back", "kill -9 of slurmd", "the job runs on", restarts_of_a_healthy_job=0)


@pytest.mark.faults
@pytest.mark.parametrize("index", [0, 1])
def test_a_node_dies(submit: Submit, weights: bytes, mended: None, index: int) -> None:
    """Of two; the first has the batch script, rank 0 and the rendezvous."""
    run = submit(pace=0.5)
    run.wait_for_step(6)
    first = run.attempts()[0]
    died = kill_node(run, first.nodes[index])
    run.wait_for(lambda: run.attempts()[-1].slurm_restart_count == 1, 120)
    assert run.wait_for_end()["state"] == "completed", run.tell()
    last = run.attempts()[-1]
    assert first.nodes[index] not in last.nodes
    assert last.first_step >= 4
    run.check_whole(weights)
    steps = [row for row in run.rows() if "loss" in row]
    figures = {
        "steps_lost": max(row["step"] for row in steps if row["attempt"] == 1) - last.first_step,
        "restart_s": last.started - died,
        "first_step_s": next(row["t"] for row in steps if row["attempt"] == last.number) - last.started,
    }
    name = ("the head node", "a worker node")[index]
    record(f"6 {name} dies", "all its processes killed", "requeued elsewhere, adapter as unhurt", **figures)


@pytest.mark.faults
def test_a_node_that_was_cut_off_comes_back(submit: Submit, weights: bytes, mended: None) -> None:
    run = submit(pace=0.5)
    run.wait_for_step(6)
    first = run.attempts()[0]
    node = first.nodes[0]  # rank 0, which writes, and the supervisor
    pids = processes_on(run, node)
    link = ("ip", "link", "set", f"ty-{node}")
    subprocess.run([*link, "down"], check=True)
    try:
        run.wait_for(lambda: run.attempts()[-1].number > 1, 120)
        last = run.attempts()[-1]
        time.sleep(2)
    finally:
        subprocess.run([*link, "up"], check=True)
    assert run.wait_for_end()["state"] == "completed", run.tell()
    rows = run.rows()
    old = max(row["t"] for row in rows if row["attempt"] == 1)
    new = min(row["t"] for row in rows if row["attempt"] == last.number)
    assert old < new
    run.check_whole(weights)
    run.wait_for(lambda: not [pid for pid in pids if pid in processes_on(run, node)], 60)
    record("7 a node is cut off and comes back", "ip link set down, then up", "its ranks write nothing and are gone",
           double_run_s=0, restart_s=last.started - old)  # fmt: skip
