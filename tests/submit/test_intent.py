"""A hand-over that is cut off anywhere leaves one job or none, and the next command knows which."""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.contract.files import write_text
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan
from launcher.contract.process import is_running
from launcher.contract.submission import Submission, read_submission
from launcher.errors import ClusterError, TuneyardError, UserError
from launcher.observe import read_status
from launcher.submit import prepare, submit_stages
from launcher.submit.cancel import cancel_run
from launcher.submit.intent import UnsettledError, claim, make_intent, read_intent, settle
from launcher.submit.resume import plan_resume, see_submissions
from launcher.submit.retry import retry
from launcher.submit.slurm import is_refusal
from tests import pipelines
from tests.conftest import Tuneyard
from tests.plans import LOCAL, plan_on

SPEC = "{name: once, stage: script, script: {path: code/train.py}, resources: {nodes: 1, gpus_per_node: 1, time: 10m}}"
STEPS = ("replace", "rename", "link", "unlink", "symlink")
"""What a launcher does to the disk, step by step; starting a process is one more."""

# A queue in a file: a line `ID|SCRIPT` per job that sbatch took.
SBATCH = 'id=$(($(wc -l <{0}/queue) + 1)); echo "$id|$1" >>{0}/queue; echo "Submitted batch job $id"'


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a spec, a profile, and commands that stand for Slurm's: sbatch that can be cut off many times in a
    few seconds. tests/faults has the same on a real Slurm."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").write_text("")
    (tmp_path / "once.yaml").write_text(SPEC)
    (tmp_path / "profile.yaml").write_text("{scheduler: slurm, accelerator: cpu, gpus_per_node: 1}")
    (tmp_path / "queue").write_text("")
    answer(tmp_path, sbatch=SBATCH.format(tmp_path), squeue=f"cat {tmp_path}/queue", srun="exit 1", scancel="exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def answer(folder: Path, **commands: str) -> None:
    for command, line in commands.items():
        write_text(folder / "bin" / command, f"#!/bin/sh\n{line}\n", mode=0o700)


def submit(folder: Path, runs: Path) -> list[Submission]:
    profile = str(folder / "profile.yaml")
    return submit_stages(prepare(folder / "once.yaml", [], cluster=profile, runs=runs), folder / "once.yaml")


def cut_off(work: Callable[[], object], step: int) -> bool:
    """Do ``work`` in a child that dies by SIGKILL before its change number ``step``; whether it died of that."""
    child = os.fork()
    if child == 0:
        left = step

        def count(real: Callable) -> Callable:
            def call(*arguments: object, **options: object) -> object:
                nonlocal left
                if "dir_fd" not in options:  # else a file of the code's old snapshot, one of hundreds
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    left -= 1
                return real(*arguments, **options)

            return call

        for name in STEPS:
            setattr(os, name, count(getattr(os, name)))
        subprocess.Popen.__init__ = count(subprocess.Popen.__init__)  # type: ignore[method-assign]
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    return code != 0


def let_time_pass(paths: RunPaths) -> None:
    """As if the launcher had been cut off a while ago."""
    value = json.loads(paths.intent.read_text())
    paths.intent.write_text(json.dumps({**value, "t": value["t"] - 600, "called": (value["called"] or 600.0) - 600}))
    if (submission := json.loads(paths.submission.read_text() or "null")) and submission["t"] == value["t"]:
        paths.submission.write_text(json.dumps({**submission, "t": value["t"] - 600}))


def jobs(folder: Path) -> list[str]:
    return [line.split("|")[0] for line in (folder / "queue").read_text().splitlines()]


def test_a_submit_cut_off_at_any_step_is_one_job_in_the_end(slurm: Path, capfd: pytest.CaptureFixture[str]) -> None:
    step, outcomes = 0, set()
    while True:
        runs = slurm / f"runs{step}"
        (slurm / "queue").write_text("")
        if not cut_off(lambda runs=runs: submit(slurm, runs), step):
            break
        before = len(jobs(slurm))
        outcome = told = ""
        try:
            outcome = "again" if submit(slurm, runs) else ""
        except UserError as error:
            outcome, told = "found", str(error)
        except UnsettledError as error:  # sbatch was about to be called: for a while it may be at work
            outcome, told = "later", str(error)
        assert ("was submitted by another command (job 1)" in told) is (outcome == "found")
        if outcome == "later":
            assert "Slurm has no job of it so far" in told
            (paths,) = (RunPaths(file.parent) for file in runs.glob("*/plan.json"))
            assert read_status(paths).state == "unknown"
            let_time_pass(paths)
            submit(slurm, runs)
        assert (before, outcome) in ((0, "again"), (0, "later"), (1, "found"))
        outcomes.add(outcome)
        (paths,) = (RunPaths(file.parent) for file in runs.glob("*/plan.json"))
        assert jobs(slurm) == ["1"]
        assert read_status(paths).job_id == "1"
        assert not paths.intent.exists()
        step += 1
    assert step > 15
    assert outcomes == {"again", "found", "later"}


def test_a_resume_cut_off_at_any_step_goes_on_once_or_leaves_the_run_as_it_was(slurm: Path) -> None:
    step, outcomes = 0, set()
    while True:
        runs = slurm / f"runs{step}"
        (slurm / "queue").write_text("")
        (submission,) = submit(slurm, runs)
        paths = RunPaths(Path(submission.run_dir))
        pipelines.end(paths, t=2.0, state="completed")
        kept = {file: file.read_bytes() for file in (paths.plan, paths.spec, paths.submission, paths.completion)}

        def work(paths: RunPaths = paths) -> None:
            seen = see_submissions([paths])
            retry([(plan_resume(paths, ["script.args=[more]"], cluster=None), paths)], seen)

        if not cut_off(work, step):
            break
        with_job = len(jobs(slurm)) == 2
        if paths.intent.exists() and not with_job and read_status(paths).state == "unknown":
            let_time_pass(paths)
        status = read_status(paths)
        assert not paths.intent.exists()
        assert status.job_id == ("2" if with_job else "1")
        if not with_job:
            assert {file: file.read_bytes() for file in kept} == kept
            assert status.state == "completed"
            work()
        assert jobs(slurm) == ["1", "2"]
        assert json.loads(paths.spec.read_text())["script"]["args"] == ["more"]
        assert not paths.completion.exists()
        outcomes.add(with_job)
        step += 1
    assert step > 15
    assert outcomes == {False, True}


def test_silence_of_slurm_about_a_cut_off_submit_is_exit_code_3_and_no_second_job(slurm: Path) -> None:
    tuneyard = Tuneyard(slurm)
    arguments = ["submit", "once.yaml", "--cluster", "profile.yaml"]
    answer(slurm, sbatch=f"{SBATCH.format(slurm)}; kill -9 $PPID")
    assert tuneyard(*arguments).returncode == -signal.SIGKILL
    answer(slurm, sbatch=SBATCH.format(slurm), squeue="echo slurm_load_jobs error >&2; exit 1")
    (paths,) = (RunPaths(file.parent) for file in slurm.glob("runs/*/plan.json"))
    for verb in (arguments, ["resume", paths.root.name], ["retry", paths.root.name], ["cancel", "-y", paths.root.name]):
        done = tuneyard(*verb)
        assert (done.returncode, done.stdout) == (3, "")
        assert "Slurm does not say whether there is a job of it: squeue: slurm_load_jobs error" in done.stderr
    status = tuneyard.status(paths.root.name)
    assert (status["state"], status["job_id"]) == ("unknown", None)
    assert not paths.cancelled.exists()
    assert jobs(slurm) == ["1"]
    answer(slurm, squeue=f"cat {slurm}/queue")
    again = tuneyard(*arguments)
    assert again.returncode == 2
    assert "was submitted by another command (job 1); nothing was submitted" in again.stderr
    assert jobs(slurm) == ["1"]
    cancel_run(paths)


def test_a_command_that_is_at_it_is_left_alone(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "sft-demo-000000")
    plan_on(LOCAL).save(paths.plan)
    claim(paths, make_intent(plan_on(LOCAL)))
    script = "import sys; from pathlib import Path; from launcher.submit.intent import *;"
    script += "from launcher.contract.paths import RunPaths; settle(RunPaths(Path(sys.argv[1])))"
    done = subprocess.run([sys.executable, "-c", script, str(paths.root)], capture_output=True, text=True)
    assert f"is being submitted by another command (process {os.getpid()})" in done.stderr
    paths.intent.write_text(paths.intent.read_text().replace(os.uname().nodename, "elsewhere"))
    with pytest.raises(UnsettledError, match="by a command on elsewhere"):
        settle(paths)
    paths.intent.write_text("{")
    with pytest.raises(UserError, match=r"intent\.json cannot be read"):
        settle(paths)


def test_the_refusal_of_a_resumed_run_does_not_find_its_older_job(slurm: Path) -> None:
    """Slurm shows a job for some minutes after its end, and both have the run's name."""
    (submission,) = submit(slurm, slurm / "runs")
    paths = RunPaths(Path(submission.run_dir))
    pipelines.end(paths, t=2.0)
    answer(slurm, sbatch="echo 'sbatch: error: Batch job submission failed: Invalid qos' >&2; exit 1")
    seen = see_submissions([paths])
    with pytest.raises(ClusterError, match=r"sbatch refused once-.*: Invalid qos; nothing was submitted"):
        retry([(plan_resume(paths, [], cluster=None), paths)], seen)
    assert read_submission(paths) == submission
    assert read_intent(paths) is None


@pytest.mark.parametrize("is_taken", [True, False])
def test_a_time_out_of_sbatch_asks_before_it_says_no(
    slurm: Path, monkeypatch: pytest.MonkeyPatch, is_taken: bool
) -> None:
    monkeypatch.setattr("launcher.submit.slurm.PATIENCE_SECONDS", 0.0)
    error = "echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1"
    answer(slurm, sbatch=(f"{SBATCH.format(slurm)};" if is_taken else "") + error)
    if is_taken:
        assert submit(slurm, slurm / "runs")[0].job_id == "1"
        return
    with pytest.raises(UnsettledError, match=r"sbatch failed \(.*timed out.*\), and nobody can say"):
        submit(slurm, slurm / "runs")
    (paths,) = (RunPaths(file.parent) for file in slurm.glob("runs/*/plan.json"))
    assert read_status(paths).state == "unknown"
    let_time_pass(paths)
    assert read_status(paths).reason == "planned, not submitted"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sbatch: error: Batch job submission failed: Invalid account", True),
        ("sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)", True),
        ("sbatch: error: Batch job submission failed: Unable to contact slurm controller (receive failure)", False),
        ("sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received", False),
        ("Could not make sense of sbatch output", False),
        ("", False),
    ],
)
def test_what_of_sbatchs_words_is_a_refusal(text: str, expected: bool) -> None:
    assert is_refusal(text) is expected


def test_a_local_supervisor_starts_only_when_its_record_is_there(tmp_path: Path) -> None:
    """A launcher that is killed at any step leaves none that nobody knows of."""
    step = 0
    while True:
        runs = tmp_path / f"runs{step}"
        plan = replace(plan_on(LOCAL, nodes=1), runs=str(runs))
        paths = RunPaths(runs / plan.run_id)
        started = paths.root / "started"
        write_text(paths.job_script, f"touch '{started}'\nsleep 600\n")
        plan.save(paths.plan)

        def work(plan: Plan = plan, paths: RunPaths = paths) -> None:
            from launcher.submit.submit import submit

            submit(plan, paths, None)

        is_cut = cut_off(work, step)
        deadline = time.monotonic() + (0.3 if is_cut else 10)
        while not started.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        record = read_submission(paths)
        is_known = record is not None and record.pid is not None and is_running(record.pid, record.pid_start)
        assert started.exists() <= is_known
        status = read_status(paths)
        assert status.state in ("pending", "running", "failed")
        assert not paths.intent.exists()
        if record is not None and record.pid is not None:
            cancel_run(paths)
        if not is_cut:
            assert started.exists()
            break
        step += 1
    assert step > 5


def test_of_a_pipeline_that_is_refused_half_way_all_that_runs_is_named(
    slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the end of the first stage fails with an error that is not Slurm's."""
    (slurm / "once.yaml").write_text(SPEC[:-1] + ", stages: {a: {}, b: {}}}")
    refuse = "echo 'sbatch: error: Batch job submission failed: Invalid qos' >&2; exit 1"
    answer(slurm, sbatch=f"[ -s {slurm}/queue ] && {{ {refuse}; }}; {SBATCH.format(slurm)}")

    def fail(paths: RunPaths) -> None:
        raise PermissionError(13, "Permission denied", str(paths.cancelled))

    monkeypatch.setattr("launcher.submit.submit.cancel_run", fail)
    with pytest.raises(TuneyardError, match=r"Invalid qos; still submitted: once-\w+/a \(job 1\)"):
        submit(slurm, slurm / "runs")
