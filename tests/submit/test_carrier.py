"""submitit carries the supervisor, and its own handlers do nothing beside ours."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import submitit
from submitit.core.utils import DelayedSubmission

from jobs import supervisor
from launcher.contract.files import make_folder
from tests.conftest import ROOT
from tests.pipelines import hand_over, make_pipeline


def test_the_warning_signal_does_not_make_submitit_requeue_the_job(tmp_path: Path) -> None:
    """submitit 1.5.4 would requeue at SIGUSR2, or end the job where its limit is short, and drop SIGTERM."""
    sft, dpo = make_pipeline(tmp_path, "sft", "dpo")
    for paths in (sft, dpo):
        hand_over(paths, t=1.0, pid=os.getpid())  # sft goes on, so dpo's supervisor waits
    calls, scontrol = tmp_path / "calls", tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    scontrol.chmod(stat.S_IRWXU)
    delayed = DelayedSubmission(supervisor.run, str(dpo.root))
    delayed.set_timeout(5, 3)
    make_folder(dpo.submitit)
    delayed.dump(submitit.core.utils.JobPaths(dpo.submitit, "7").submitted_pickle)
    env = {**os.environ, "SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    env |= {"SLURM_NTASKS": "1", "SLURM_NNODES": "1", "SUBMITIT_EXECUTOR": "slurm", "PYTHONPATH": str(ROOT)}
    env |= {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [sys.executable, "-u", "-m", "submitit.core._submit", str(dpo.submitit)]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    assert any("Loading pickle" in line for line in lines)
    time.sleep(3)  # the import of the supervisor
    for _ in range(5):
        process.send_signal(signal.SIGUSR2)
        time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 1
    assert not calls.exists()
