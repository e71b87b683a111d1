"""Runs on a real multi-node Slurm: what is submitted, what comes of it, and that failures are told as they are."""

import json
import stat
import subprocess
import time
from pathlib import Path

import pytest

from launcher.contract.attempt import read_attempts
from launcher.contract.ledger import events, merge_metrics, read_run
from launcher.contract.manifest import find_problems
from launcher.contract.paths import RunPaths
from tests.conftest import Tuneyard

from .conftest import write_profile

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("devcluster")]

CANARY = "canary-5f1c9a7e2b"


def _slurm(devcluster: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=devcluster, capture_output=True, text=True, check=True, timeout=60).stdout


def _sacct(devcluster: dict[str, str], job: str) -> list[str]:
    """State and exit code of the job by accounting, once it has arrived there."""
    command = ("sacct", "-n", "-P", "-X", "-j", job, "--format=State,ExitCode,NNodes")
    for _ in range(40):
        fields = _slurm(devcluster, *command).strip().split("|")
        if fields[0].split()[0:1] not in ([], ["RUNNING"], ["PENDING"], ["COMPLETING"]):
            return fields
        time.sleep(0.5)
    raise AssertionError(fields)


def _run_dir(done: "subprocess.CompletedProcess[str]") -> RunPaths:
    return RunPaths(Path(json.loads(done.stdout.splitlines()[-1])["run_dir"]))


def _files_with(text: str, folder: Path) -> list[Path]:
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            try:
                if text.encode() in path.read_bytes():
                    found.append(path)
            except OSError:
                continue
    return found


def test_a_run_on_two_nodes(tuneyard: Tuneyard, spec: Path, devcluster: dict[str, str]) -> None:
    """The whole path, from a hostile folder, out of somebody else's job, with secrets about."""
    runs = tuneyard.folder / "it's a $(run) dir"
    env = {
        # As inside another job: without scrubbing, srun of the new job fails, or another partition is taken.
        "SLURM_JOB_ID": "999999",
        "SLURM_NTASKS": "1",
        "SLURM_GPUS_PER_NODE": "1",
        "SBATCH_PARTITION": "no-such-partition",
        # The server does not answer: online falls back to offline.
        "WANDB_API_KEY": CANARY + "a" * 30,
        "HF_TOKEN": "hf_" + CANARY,
        "WANDB_BASE_URL": "http://127.0.0.1:9",
    }
    profile = write_profile(tuneyard.folder, scheduler="slurm")
    arguments = [str(spec), "tracking.wandb=online", "--cluster", str(profile), "--runs", str(runs)]
    preview = tuneyard("plan", *arguments, "--script", env=env)
    assert preview.returncode == 0, preview.stderr
    done = tuneyard("submit", *arguments, "--wait", "--json", env=env)
    assert done.returncode == 0, done.stderr
    paths = _run_dir(done)
    job = json.loads(paths.submission.read_text())["job_id"]

    # The preview is what Slurm got, to the byte, and the run is the previewed one.
    assert paths.job_script.read_text() == preview.stdout
    assert (paths.submitit / f"{job}_submission.sh").read_text() == preview.stdout
    assert _slurm(devcluster, "scontrol", "write", "batch_script", job, "-").rstrip("\n\0") == preview.stdout.rstrip(
        "\n"
    )
    assert _sacct(devcluster, job) == ["COMPLETED", "0:0", "2"]

    # Two nodes of two ranks each, as the ranks themselves saw it.
    nodes = json.loads(paths.attempt(1).read_text())["nodes"]
    assert len(set(nodes)) == 2
    assert set(nodes) <= {"n0", "n1", "n2", "n3"}
    assert sorted(file.name for file in paths.logs(1).glob("node*")) == [
        "node0.rank0.log",
        "node0.rank1.log",
        "node1.rank2.log",
        "node1.rank3.log",
    ]
    rows = read_run(paths)
    check = events(rows, "strategy_check")[0]
    assert (check["asked"], check["got"], check["world_size"]) == ("ddp", "ddp", 4)
    metrics = merge_metrics(rows)
    assert [row["step"] for row in metrics] == [0, 1, 2, 3, 4]
    assert all("loss" in row for row in metrics[1:])
    assert metrics[-1]["eval_loss"] < metrics[0]["eval_loss"]
    assert find_problems(paths.checkpoint(1, 4)) == []
    assert paths.completion.exists()
    status = json.loads(tuneyard("status", str(paths.root), "--json").stdout)
    assert (status["state"], status["step"], status["attempt"]) == ("completed", 4, 1)

    # Nobody else reads the run, and no secret is in it, nor in the scheduler's own state.
    assert stat.S_IMODE(paths.root.stat().st_mode) == 0o700
    assert _files_with(CANARY, runs) == []
    assert _files_with(CANARY, Path(devcluster["SLURM_CONF"]).parent) == []
    (kept,) = Path(devcluster["SLURM_CONF"]).parent.glob(f"spool/slurmctld/hash.*/job.{job}/environment")
    assert b"PATH=" in kept.read_bytes()  # it is the job's environment that was looked at


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("1 import 0 raise", "ValueError: injected on purpose"),
        ("1 import 0 kill", "was killed by SIGKILL"),
    ],
)
def test_a_bad_rank_fails_the_run(
    tuneyard: Tuneyard, spec: Path, devcluster: dict[str, str], fault: str, reason: str
) -> None:
    profile = write_profile(tuneyard.folder, scheduler="slurm", fault=fault)
    small = ["resources.gpus_per_node=1", "train.micro_batch=4", "tracking.wandb=disabled", "recovery.max_attempts=1"]
    done = tuneyard("submit", str(spec), *small, "--cluster", str(profile), "--wait", "--json")
    paths = _run_dir(done)
    assert done.returncode == 1, done.stderr
    node = read_attempts(paths)[0].nodes[1]
    reason = f"rank 1 on {node}: {reason}"
    assert reason in done.stderr
    status = json.loads(tuneyard("status", "last", "--json").stdout)
    assert status["state"] == "failed"
    assert status["reason"].startswith(reason)
    job = json.loads(paths.submission.read_text())["job_id"]
    assert _sacct(devcluster, job)[:2] == ["FAILED", "1:0"]
    ending = read_attempts(paths)[0].ended
    assert ending is not None
    assert (ending.rank, ending.node) == (1, node)
    assert not paths.completion.exists()


def test_a_wrong_number_of_ranks_fails_the_run(tuneyard: Tuneyard, spec: Path, devcluster: dict[str, str]) -> None:
    """The step gets other flags than the plan's; without the check two worlds, or a wrong batch, would train."""
    profile = write_profile(tuneyard.folder, scheduler="slurm", more="srun_args: [--ntasks=3]")
    done = tuneyard("submit", str(spec), "tracking.wandb=disabled", "--cluster", str(profile), "--wait", "--json")
    assert done.returncode == 1
    assert "the plan has 4 ranks, 3 were started" in done.stderr
    job = json.loads(_run_dir(done).submission.read_text())["job_id"]
    assert _sacct(devcluster, job)[:2] == ["FAILED", "1:0"]


def test_a_supervisor_in_the_wrong_allocation_refuses(
    tuneyard: Tuneyard, spec: Path, devcluster: dict[str, str]
) -> None:
    profile = write_profile(tuneyard.folder, scheduler="slurm")
    planned = tuneyard("plan", str(spec), "--cluster", str(profile), "--json")
    run_dir = Path(json.loads(planned.stdout)["runs"]) / json.loads(planned.stdout)["run_id"]
    script = run_dir / "by_hand.sh"
    python = json.loads(planned.stdout)["cluster"]["python"]
    root = Path(__file__).parent.parent.parent
    script.write_text(f"#!/bin/bash\ncd {root}\nexec {python} -m jobs.supervisor {run_dir}\n")
    done = subprocess.run(
        ["sbatch", "--wait", "--nodes=1", f"--output={run_dir}/by_hand.log", str(script)],
        env=devcluster,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    ending = read_attempts(RunPaths(run_dir))[0].ended
    assert ending is not None
    assert "the plan asks for 2 nodes, the allocation 'n" in ending.reason
    assert "has 1" in ending.reason


def test_cancel_ends_the_job_and_says_so(tuneyard: Tuneyard, spec: Path, devcluster: dict[str, str]) -> None:
    done = tuneyard(
        "submit", str(spec), "train.max_steps=4000", "tracking.wandb=disabled", "--cluster", "devcluster", "--json"
    )
    assert done.returncode == 0, done.stderr
    paths = _run_dir(done)
    job = json.loads(paths.submission.read_text())["job_id"]
    deadline = time.monotonic() + 60
    while tuneyard.status()["state"] == "pending" and time.monotonic() < deadline:
        time.sleep(0.5)
    assert tuneyard.status()["state"] == "running"
    assert tuneyard("cancel", "last").returncode == 0
    assert tuneyard.status()["state"] == "cancelled"
    assert _sacct(devcluster, job)[0].startswith("CANCELLED")


def test_a_refusal_of_sbatch_is_told_and_leaves_nothing_submitted(tuneyard: Tuneyard, spec: Path) -> None:
    done = tuneyard("submit", str(spec), "resources.partition=nosuch", "--cluster", "devcluster")
    assert done.returncode == 3
    assert "invalid partition" in done.stderr
    assert "nothing was submitted" in done.stderr
    assert tuneyard("status", "last").returncode == 2
    assert list(tuneyard.folder.glob("runs/*/submission.json")) == []
    done = tuneyard("submit", str(spec), "resources.nodes=5", "train.global_batch=20", "--cluster", "devcluster")
    assert done.returncode == 3
    assert "hint: set resources.nodes below 5" in done.stderr
