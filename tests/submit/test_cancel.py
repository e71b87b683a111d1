"""cancel ends what can be ended, whatever stands in the way of the rest."""

import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.contract.files import write_json, write_text
from launcher.contract.paths import RunPaths
from launcher.contract.process import is_running, process_start
from launcher.contract.submission import read_submission
from launcher.contract.values import to_value
from launcher.errors import ClusterError
from launcher.observe import read_status
from launcher.submit.cancel import cancel_run
from launcher.submit.intent import read_intent
from tests.conftest import Tuneyard
from tests.pipelines import hand_over, make_pipeline
from tests.plans import DEVCLUSTER


def _answer(folder: Path, monkeypatch: pytest.MonkeyPatch, **commands: str) -> None:
    """Slurm commands that note how they were called, then run a line of shell."""
    for command, line in commands.items():
        script = f'#!/bin/sh\necho {command} "$@" >> {folder}/asked\n{line}\n'
        write_text(folder / "bin" / command, script, mode=0o700)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")


def _claim(runs: Path, t: float = 1.0) -> RunPaths:
    _, dpo = make_pipeline(runs, "sft", "dpo", cluster=DEVCLUSTER)
    hand_over(dpo, t=t, scheduler="slurm")
    return dpo


def test_a_cut_off_submission_without_a_job_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dpo = _claim(tmp_path / "runs")
    _answer(tmp_path, monkeypatch, squeue="exit 0")
    cancel_run(dpo)
    assert (read_status(dpo).state, read_status(dpo).reason) == ("cancelled", "cancelled by the user")
    assert (tmp_path / "asked").read_text().splitlines() == ["squeue --me --noheader --states=all --format=%i|%o"]


def test_the_job_of_a_cut_off_submission_is_found_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dpo = _claim(tmp_path / "runs")
    _answer(tmp_path, monkeypatch, squeue="echo '17|/x/y.sh'; echo '4711|/x/script_of_dpo.sh'", scancel="exit 0")
    cancel_run(dpo)
    assert (tmp_path / "asked").read_text().splitlines()[-1] == "scancel 4711"
    submission = read_submission(dpo)
    assert submission is not None
    assert submission.job_id == "4711"


def test_silence_of_slurm_clears_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dpo = _claim(tmp_path / "runs")
    _answer(tmp_path, monkeypatch, squeue="exit 1")
    with pytest.raises(ClusterError, match=r"chain-000000/dpo.*may still run"):
        cancel_run(dpo)
    assert not dpo.cancelled.exists()
    assert read_status(dpo).state == "unknown"


def test_a_submission_that_is_under_way_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim of a moment ago may yet become a job."""
    dpo = _claim(tmp_path / "runs", t=time.time())
    _answer(tmp_path, monkeypatch, squeue="exit 1", scancel="exit 0")
    later = dpo.submission.read_text().replace('"job_id": null', '"job_id": "12"')
    (tmp_path / "later").write_text(later)
    launcher = subprocess.Popen(["sh", "-c", f"sleep 1; mv {tmp_path}/later {dpo.submission}; sleep 600"])
    start = process_start(launcher.pid)
    intent = read_intent(dpo)
    assert intent is not None
    write_json(dpo.intent, to_value(replace(intent, pid=launcher.pid, pid_start=start)))
    cancel_run(dpo)
    launcher.kill()
    launcher.wait()
    assert (tmp_path / "asked").read_text().splitlines() == ["scancel 12"]


def test_a_stage_that_cannot_be_ended_does_not_save_the_others(tuneyard: Tuneyard) -> None:
    """Only sft can be: of ``stuck`` nothing was started, Slurm does not answer, a plan is damaged, a folder is gone."""
    runs = tuneyard.folder / "runs"
    sft, gone, stuck, damaged, dpo = make_pipeline(runs, "sft", "gone", "stuck", "damaged", "dpo")
    make_pipeline(runs, "dpo", run_id="other-000000", cluster=DEVCLUSTER)
    dpo.plan.write_text((runs / "other-000000" / "dpo" / "plan.json").read_text().replace("other-", "chain-"))
    supervisor = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        hand_over(sft, t=1.0, pid=supervisor.pid)
        hand_over(stuck, t=1.0)
        hand_over(damaged, t=1.0, job_id="4712")
        damaged.plan.write_text("{")
        hand_over(dpo, t=1.0, job_id="4711")
        gone.plan.unlink()
        for command in ("squeue", "sacct", "scancel"):
            write_text(tuneyard.folder / "bin" / command, "#!/bin/sh\necho down >&2; exit 1\n", mode=0o700)
        start = process_start(supervisor.pid)
        done = tuneyard("cancel", "chain", "-y", env={"PATH": f"{tuneyard.folder}/bin:{os.environ['PATH']}"})
        assert done.returncode == 3, done.stderr
        assert "Traceback" not in done.stderr
        assert "chain-000000/gone: its run directory is gone" in done.stderr
        assert "chain-000000/dpo: scancel: down; the job may still run" in done.stderr
        assert "chain-000000/damaged: its files cannot be read" in done.stderr
        assert "chain-000000/stuck is never submitted; nothing to end" in done.stderr
        assert done.stdout.splitlines() == ["cancelled chain-000000/sft"]
        assert not is_running(supervisor.pid, start)
    finally:
        supervisor.kill()
        supervisor.wait()
