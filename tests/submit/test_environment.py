"""What sbatch is run with, and what a refusal leaves behind."""

import os

import pytest

from launcher.contract.submission import Submission
from launcher.errors import ClusterError
from launcher.submit.slurm import _scheduler_environment
from launcher.submit.submit import refuse
from tests.plans import DEVCLUSTER, plan_on


def test_sbatch_has_named_variables_and_nothing_of_a_job_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/opt/slurm/bin:/usr/bin")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/here.conf")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SBATCH_PARTITION", "elsewhere")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    function = "BASH_FUNC_module%%"
    monkeypatch.setenv(function, "() { :; }")
    monkeypatch.setenv("MODULEPATH", "/opt/modules")
    before = dict(os.environ)
    with _scheduler_environment(plan_on(DEVCLUSTER)):
        assert os.environ["PATH"] == "/opt/slurm/bin:/usr/bin"
        assert os.environ["HOME"] == before["HOME"]
        assert os.environ["SLURM_CONF"] == (DEVCLUSTER.slurm_conf or "/etc/slurm/here.conf")
        assert "SLURM_JOB_ID" not in os.environ
        assert "SBATCH_PARTITION" not in os.environ
        assert "WANDB_API_KEY" not in os.environ
        assert os.environ[function] == "() { :; }"
        assert os.environ["MODULEPATH"] == "/opt/modules"
    assert dict(os.environ) == before


def test_a_refusal_says_what_is_submitted_all_the_same() -> None:
    error = ClusterError("sbatch refused p-1/dpo: invalid partition\nhint: look at --script")
    assert str(refuse(error, [])) == (
        "sbatch refused p-1/dpo: invalid partition; nothing was submitted\nhint: look at --script"
    )
    first = Submission(t=0.0, run_id="p-1/sft", run_dir="/p-1/sft", cluster="c", scheduler="slurm", job_id="12")
    assert str(refuse(error, [first])) == (
        "sbatch refused p-1/dpo: invalid partition; still submitted: p-1/sft (job 12)\n"
        "hint: tuneyard cancel p-1, then tuneyard retry p-1"
    )
