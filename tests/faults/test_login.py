"""Faults between the login node and Slurm: never two jobs of one run, and silence is not death."""

import json
import signal
import subprocess
import sys
import time

import pytest

from launcher.contract.attempt import read_attempts
from launcher.contract.paths import RunPaths
from tests.conftest import ROOT, Tuneyard
from tests.reliability import record

from .slurm_commands import ask, controller_down, list_jobs, wrap

pytestmark = [pytest.mark.slurm]

SPEC = """\
name: login
stage: script
script: {path: train.py, args: [%s]}
resources: {nodes: 1, gpus_per_node: 1, time: 10m}
tracking: {wandb: disabled}
"""
SCRIPT = """\
import sys, time
from jobs.run import current_run
for step in range(1, int(sys.argv[1]) + 1):
    time.sleep(1)
    current_run().log(step, loss=1.0)
"""
CUT_OFF = 'out=$("$real" "$@") || exit; kill -9 $PPID; echo "$out"'
"""sbatch says yes, and its launcher does not hear it."""


@pytest.fixture
def arguments(tuneyard: Tuneyard, devcluster: dict[str, str]) -> list[str]:
    """Submits a script of 3 steps, one in a second."""
    (tuneyard.folder / "train.py").write_text(SCRIPT)
    (tuneyard.folder / "login.yaml").write_text(SPEC % 3)
    return ["submit", "login.yaml", "--cluster", "devcluster"]


def _find_run(tuneyard: Tuneyard) -> RunPaths:
    (plan,) = tuneyard.folder.glob("runs/*/plan.json")
    return RunPaths(plan.parent)


def _await_end(tuneyard: Tuneyard, run: str = "last", seconds: float = 90) -> tuple[dict[str, object], list[str]]:
    """The last status and all the states that were seen before it."""
    seen: list[str] = []
    deadline = time.monotonic() + seconds
    while (status := tuneyard.status(run))["state"] in ("pending", "running", "unknown"):
        assert time.monotonic() < deadline, status
        seen.append(str(status["state"]))
        time.sleep(0.5)
    return status, seen


@pytest.mark.fault_class
def test_a_launcher_killed_after_sbatch_said_yes(
    tuneyard: Tuneyard, devcluster: dict[str, str], arguments: list[str]
) -> None:
    killed = tuneyard(*arguments, env=wrap(tuneyard.folder, "sbatch", CUT_OFF))
    assert killed.returncode == -signal.SIGKILL
    paths = _find_run(tuneyard)
    (job,) = list_jobs(devcluster, paths.root.name)
    again = tuneyard(*arguments)
    assert again.returncode == 2
    assert f"was submitted by another command (job {job}); nothing was submitted" in again.stderr
    status, _ = _await_end(tuneyard)
    assert (status["state"], status["job_id"], status["attempt"]) == ("completed", job, 1)
    assert list_jobs(devcluster, paths.root.name) == [job]
    record(
        "13 launcher killed between sbatch and the record",
        "SIGKILL of the launcher when sbatch had said yes; the same file is submitted again at once",
        "the second submit finds the job and starts none; the run completes as if nothing had been",
        steps_lost=0,
        jobs=1,
    )


@pytest.mark.faults
def test_of_many_submits_at_once_one_gets_the_run(
    tuneyard: Tuneyard, devcluster: dict[str, str], arguments: list[str]
) -> None:
    env = {**devcluster, **wrap(tuneyard.folder, "sbatch", 'sleep 5; exec "$real" "$@"'), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "launcher", *arguments]
    options = {"cwd": tuneyard.folder, "env": env, "stderr": subprocess.PIPE, "text": True}
    submits = [subprocess.Popen(command, **options) for _ in range(5)]  # type: ignore[call-overload]
    told = [process.communicate()[1] for process in submits]
    assert sorted(process.returncode for process in submits) == [0, 2, 2, 2, 2], told
    paths = _find_run(tuneyard)
    assert len(list_jobs(devcluster, paths.root.name)) == 1
    status, _ = _await_end(tuneyard)
    assert status["state"] == "completed"
    resumes = [
        subprocess.Popen([*command[:3], "resume", "last", "script.args=[2]"], **options)  # type: ignore[call-overload]
        for _ in range(5)
    ]
    told = [process.communicate()[1] for process in resumes]
    assert sorted(process.returncode for process in resumes) == [0, 2, 2, 2, 2], told
    assert len(list_jobs(devcluster, paths.root.name)) == 2
    assert _await_end(tuneyard)[0]["attempt"] == 2
    record(
        "13 one run launched five times at once",
        "five submits of one file at the same moment, then five resumes of the run",
        "one of each gets the run, four are told so with exit code 2",
        jobs_per_launch=1,
    )


@pytest.mark.faults
def test_the_disk_is_full_when_sbatch_has_said_yes(
    tuneyard: Tuneyard, devcluster: dict[str, str], arguments: list[str]
) -> None:
    disk = tuneyard.folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs", str(disk)], check=True)
    try:
        fill = f'"$real" "$@"; code=$?; dd if=/dev/zero of="{disk}/full" bs=4k 2>/dev/null; exit $code'
        env = wrap(tuneyard.folder, "sbatch", fill)
        done = tuneyard(*arguments, "--runs", str(disk / "runs"), env=env)
        (plan,) = disk.glob("runs/*/plan.json")
        assert done.returncode == 3, done.stderr
        assert "may have been submitted" in done.stderr
        assert "No space left on device" in done.stderr
        assert "nothing was submitted" not in done.stderr
        (job,) = list_jobs(devcluster, plan.parent.name)
        (disk / "full").unlink()
        status = tuneyard.status(str(plan.parent))
        assert status["job_id"] == job
        assert _await_end(tuneyard, str(plan.parent))[0]["state"] in ("completed", "failed")
        assert list_jobs(devcluster, plan.parent.name) == [job]
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
    record(
        "13 the record cannot be written",
        "the disk of the runs is full from the moment when sbatch has said yes",
        "exit code 3 that says what is not known; status finds the job and writes its record when there is room",
        jobs=1,
    )


@pytest.mark.faults
def test_slurmctld_is_away_at_submit(tuneyard: Tuneyard, devcluster: dict[str, str], arguments: list[str]) -> None:
    env = {**devcluster, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "launcher", *arguments]
    with controller_down(devcluster) as killed:
        submit = subprocess.Popen(command, cwd=tuneyard.folder, env=env, stderr=subprocess.PIPE, text=True)
        while time.monotonic() < killed + 45:
            assert submit.poll() is None
            time.sleep(0.5)
    restarted = time.monotonic()
    _, told = submit.communicate(timeout=60)
    assert submit.returncode == 0, told
    assert "slurmctld cannot be reached; trying again" in told
    waited = time.monotonic() - restarted
    paths = _find_run(tuneyard)
    assert len(list_jobs(devcluster, paths.root.name)) == 1
    assert _await_end(tuneyard)[0]["state"] == "completed"
    record(
        "12 slurmctld away at submit",
        "slurmctld is killed, and started again after 45 s; a run is submitted meanwhile",
        "sbatch is called again until slurmctld answers; one job",
        restart_s=waited,
        jobs=1,
    )


@pytest.mark.faults
def test_slurmctld_is_away_while_a_run_goes_on(
    tuneyard: Tuneyard, devcluster: dict[str, str], arguments: list[str]
) -> None:
    (tuneyard.folder / "login.yaml").write_text(SPEC % 80)
    assert tuneyard(*arguments).returncode == 0
    deadline = time.monotonic() + 60
    while tuneyard.status()["step"] == 0 and time.monotonic() < deadline:
        time.sleep(0.5)
    silent = wrap(tuneyard.folder, "sacct", "exit 1")
    states = set()
    with controller_down(devcluster) as killed:
        while time.monotonic() < killed + 25:
            states.add(tuneyard.status()["state"])  # accounting may still answer
            done = tuneyard("status", "last", "--json", env=silent)
            assert json.loads(done.stdout)["state"] == "unknown"
            assert "Slurm has no answer about job" in json.loads(done.stdout)["reason"]
            refused = tuneyard("resume", "last", env=silent)
            assert refused.returncode == 2
            assert "is unknown" in refused.stderr
    assert states <= {"running", "unknown"}
    status, seen = _await_end(tuneyard)
    assert set(seen) <= {"running", "unknown"}
    assert (status["state"], status["step"], status["attempt"]) == ("completed", 80, 1)
    record(
        "12 slurmctld and sacct away while a run goes on",
        "slurmctld is killed for 25 s, sacct fails",
        "the state is unknown, never failed or completed, and nothing can be resumed; the run goes on and completes",
        steps_lost=0,
        restarts=0,
    )


@pytest.mark.faults
def test_a_job_that_is_held_is_named_with_its_remedy(
    tuneyard: Tuneyard, devcluster: dict[str, str], arguments: list[str]
) -> None:
    (tuneyard.folder / "login.yaml").write_text(SPEC % 600)
    assert tuneyard(*arguments).returncode == 0
    job = str(tuneyard.status()["job_id"])
    while tuneyard.status()["step"] == 0:
        time.sleep(0.5)
    ask(devcluster, "scontrol", "requeuehold", job)
    deadline = time.monotonic() + 30
    while (status := tuneyard.status())["state"] != "pending" and time.monotonic() < deadline:
        time.sleep(0.5)
    assert status["state"] == "pending"
    assert "held" in str(status["reason"])
    assert f"scontrol release {job}" in str(status["reason"])
    assert tuneyard("cancel", "-y", "last").returncode == 0
    record(
        "13 a job requeued and held",
        "scontrol requeuehold while it runs",
        "status names the hold and the command that ends it; Slurm itself says PENDING for ever",
    )


@pytest.mark.faults
@pytest.mark.parametrize("stage", ["first", "second"])
def test_scancel_of_a_stage_is_final_and_told(
    tuneyard: Tuneyard, devcluster: dict[str, str], arguments: list[str], stage: str
) -> None:
    (tuneyard.folder / "login.yaml").write_text(
        SPEC % (600 if stage == "first" else 8) + "stages: {first: {}, second: {}}\n"
    )
    assert tuneyard(*arguments).returncode == 0
    (root,) = (file.parent for file in tuneyard.folder.glob("runs/*/pipeline.json"))
    deadline = time.monotonic() + 60
    while tuneyard.status()["step"] == 0 and time.monotonic() < deadline:
        time.sleep(0.5)
    job = str(tuneyard.status(f"{root.name}/{stage}")["job_id"])
    ask(devcluster, "scancel", job)
    started = time.monotonic()
    status, _ = _await_end(tuneyard, root.name)
    seconds = time.monotonic() - started
    first, second = status["stages"]  # type: ignore[misc]
    if stage == "first":
        assert (first["state"], first["reason"]) == ("cancelled", "cancelled in Slurm")
        assert (second["state"], second["reason"]) == ("cancelled", "never started: the stage first is cancelled")
    else:
        assert first["state"] == "completed"
        assert (second["state"], second["reason"]) == ("cancelled", "cancelled in Slurm")
    assert status["state"] == "cancelled"
    time.sleep(15)  # a requeued job would be in the queue again by now
    jobs = [
        ask(devcluster, "squeue", "-h", f"--name={root.name}.{name}", "--format=%i") for name in ("first", "second")
    ]
    assert jobs == ["", ""]
    starts = [len(read_attempts(RunPaths(root / name))) for name in ("first", "second")]
    assert starts == [1, 0]
    record(
        f"13 scancel of the {'running' if stage == 'first' else 'waiting'} stage of a pipeline",
        "scancel by hand, without tuneyard",
        "no job of it or after it ever starts again; status says cancelled of it and why of what follows",
        detect_s=seconds,
        restarts=0,
    )
