"""Pipelines: each stage starts from what the one before it left, and a failure loses nothing but what follows it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.lineage import await_parent
from launcher.contract.attempt import read_attempts
from launcher.contract.files import write_text
from launcher.contract.lineage import read_lineage
from launcher.contract.manifest import MANIFEST, hash_file
from launcher.contract.paths import PIPELINE, RunPaths
from launcher.contract.plan import Plan
from launcher.contract.spec import Model
from launcher.contract.submission import read_submission
from tests.conftest import ROOT, Tuneyard
from tests.pipelines import end, hand_over, make_pipeline

from .conftest import ROWS, write_profile

SPEC = f"""\
name: chain
stage: sft
model: {{base: builtin:tiny, quantization: none, dtype: float32, adapter: null}}
data: {{train: {ROWS}, format: messages, max_length: 192, eval: 0.02}}
train: {{max_steps: 2, micro_batch: 4, global_batch: 8, save_every_steps: 1, eval_every_steps: 1, learning_rate: 1e-3}}
resources: {{nodes: 1, gpus_per_node: 1, time: 10m}}
tracking: {{wandb: disabled}}
recovery: {{max_attempts: 1}}
stages:
  first: {{}}
  second:
    model: {{base: "${{stages.first.checkpoint}}"}}
    train: {{max_steps: 4, save_every_steps: 2}}
  third:
    model: {{base: "${{stages.second.checkpoint.last}}"}}
"""
FAULT = "0 evaluate 4 kill"
"""Only the second stage has four steps; it has a checkpoint of step 2 by then."""


def _fail_then_retry(tuneyard: Tuneyard, scheduler: str) -> Path:
    """Submit the pipeline with a second stage that dies, look, retry without the fault; returns its folder."""
    spec = tuneyard.folder / "chain.yaml"
    spec.write_text(SPEC)
    profile = write_profile(tuneyard.folder, scheduler=scheduler, fault=FAULT)
    done = tuneyard("submit", str(spec), "--cluster", str(profile), "--wait", "--json")
    assert done.returncode == 1, done.stderr
    root = Path(json.loads(done.stdout.splitlines()[-1])["run_dir"])
    first, second, third = (RunPaths(root / name) for name in ("first", "second", "third"))

    status = tuneyard.status()
    assert (status["run_id"], status["state"]) == (root.name, "failed")
    stages = {Path(stage["run_dir"]).name: stage for stage in status["stages"]}  # type: ignore[attr-defined]
    assert list(stages) == ["first", "second", "third"]
    assert [stage["state"] for stage in stages.values()] == ["completed", "failed", "cancelled"]
    assert "was killed by SIGKILL" in stages["second"]["reason"]
    assert stages["third"]["reason"] == "never started: the stage second is failed"
    shown = tuneyard("status", "last").stdout
    assert "never started: the stage second is failed" in shown
    assert read_attempts(third) == []
    assert tuneyard("logs", "last").stdout == tuneyard("logs", f"{root.name}/second").stdout
    refused = tuneyard("resume", "last")
    assert refused.returncode == 2
    assert f"tuneyard retry {root.name}" in refused.stderr
    again = tuneyard("status", f"{root.name}/fourth")
    assert again.returncode == 2
    assert "no stage fourth" in again.stderr

    for paths in (second, third):  # the profile is in the plan; without its fault the run would be the same
        plan = json.loads(paths.plan.read_text())
        plan["cluster"]["setup"] = []
        paths.plan.write_text(json.dumps(plan))
    before = first.plan.read_bytes(), read_submission(first)
    retried = tuneyard("retry", "last", "--wait")
    assert retried.returncode == 0, retried.stderr
    assert (first.plan.read_bytes(), read_submission(first)) == before
    assert [len(read_attempts(paths)) for paths in (first, second, third)] == [1, 2, 1]
    assert read_attempts(second)[1].resumed_from == "checkpoints/a01/step-000002"
    assert tuneyard.status()["state"] == "completed"
    complete = tuneyard("retry", "last")
    assert complete.returncode == 2
    assert "is complete" in complete.stderr
    return root


def _check_lineage(root: Path) -> None:
    first, second, third = (RunPaths(root / name) for name in ("first", "second", "third"))
    start = read_lineage(first)
    assert start is not None
    assert start.parents == []
    assert start.data == {str(ROWS): hash_file(ROWS)}
    for paths, parent, step in ((second, first, 2), (third, second, 4)):
        lineage = read_lineage(paths)
        assert lineage is not None
        (made_from,) = lineage.parents
        folder = (paths.root / made_from.path).resolve()
        assert folder.parent.parent == parent.checkpoints.resolve()
        assert made_from.manifest_sha256 == hash_file(folder / MANIFEST)
        assert (made_from.stage, made_from.step) == (parent.root.name, step)
        assert lineage.data == start.data
        assert "tuneyard" in lineage.code
    # The next stage's untrained model is the one before it as it was saved.
    losses = {
        paths.root.name: {row["step"]: row["eval_loss"] for row in _metrics(paths) if "eval_loss" in row}
        for paths in (first, second, third)
    }
    assert losses["second"][0] == pytest.approx(losses["first"][2], abs=1e-6)
    assert losses["third"][0] == pytest.approx(losses["second"][4], abs=1e-6)


def _metrics(paths: RunPaths) -> list[dict[str, float]]:
    from launcher.contract.ledger import merge_metrics, read_run

    return merge_metrics(read_run(paths))


@pytest.mark.ranks
def test_a_failed_stage_locally(tuneyard: Tuneyard) -> None:
    _check_lineage(_fail_then_retry(tuneyard, "local"))


@pytest.mark.slurm
def test_a_failed_stage_on_slurm(tuneyard: Tuneyard, devcluster: dict[str, str]) -> None:
    root = _fail_then_retry(tuneyard, "slurm")
    _check_lineage(root)
    script = (root / "third" / "rendered" / "job.sh").read_text()
    job = json.loads((root / "second" / "submission.json").read_text())["job_id"]
    assert f"#SBATCH --dependency=afterok:{job}\n" in script
    assert "#SBATCH --kill-on-invalid-dep=yes\n" in script


@pytest.mark.parametrize(
    "cluster",
    [pytest.param("local", marks=pytest.mark.ranks), pytest.param("devcluster", marks=pytest.mark.slurm)],
)
def test_cancel_takes_the_whole_chain(tuneyard: Tuneyard, request: pytest.FixtureRequest, cluster: str) -> None:
    if cluster == "devcluster":
        request.getfixturevalue("devcluster")
    spec = tuneyard.folder / "chain.yaml"
    spec.write_text(SPEC)
    submitted = tuneyard("submit", str(spec), "stages.first.train.max_steps=100000", "--cluster", cluster, "--json")
    assert submitted.returncode == 0, submitted.stderr
    states = [stage["state"] for stage in tuneyard.status()["stages"]]  # type: ignore[attr-defined]
    assert states[1:] == ["pending", "pending"]
    done = tuneyard("cancel", "last", "-y")
    assert done.returncode == 0, done.stderr
    status = tuneyard.status()
    assert status["state"] == "cancelled"
    assert [stage["state"] for stage in status["stages"]] == ["cancelled"] * 3  # type: ignore[attr-defined]
    attempts = [len(read_attempts(RunPaths(Path(str(status["run_dir"])) / name))) for name in ("second", "third")]
    assert attempts == [0, 0]


@pytest.mark.slurm
def test_a_refused_stage_takes_the_others_back(tuneyard: Tuneyard, devcluster: dict[str, str]) -> None:
    spec = tuneyard.folder / "chain.yaml"
    spec.write_text(SPEC)
    arguments = ["stages.third.resources.partition=nosuch", "--cluster", "devcluster"]
    done = tuneyard("submit", str(spec), *arguments)
    assert done.returncode == 3
    assert "nothing was submitted" in done.stderr
    assert list(tuneyard.folder.glob("runs/*/*/submission.json")) == []


def test_a_stage_that_was_handed_over_anew_while_it_waited_starts_once(tmp_path: Path) -> None:
    """As by a retry before its first supervisor has seen that its parent has ended."""
    sft, dpo = make_pipeline(tmp_path, "sft", "dpo")
    plan = Plan.load(dpo.plan)
    hand_over(sft, t=1.0, pid=os.getpid())
    hand_over(dpo, t=1.0, pid=os.getpid())

    def retry() -> bool:
        hand_over(dpo, t=2.0, pid=os.getpid())
        end(sft, t=3.0, state="completed")
        return False

    assert not await_parent(dpo, plan, retry)
    assert await_parent(dpo, plan, lambda: False)


def test_a_supervisor_that_fails_says_why(tmp_path: Path) -> None:
    sft, dpo = make_pipeline(tmp_path, "sft", "dpo")
    plan = Plan.load(dpo.plan)
    replace(plan, spec=replace(plan.spec, model=Model(base="${stages.sft.checkpoint}"))).save(dpo.plan)
    end(sft, t=1.0, state="completed")
    sft.plan.write_text("{")
    write_text(dpo.secrets, "HF_TOKEN=secret\n")
    command = [sys.executable, "-m", "jobs.supervisor", str(dpo.root)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60).returncode == 1
    ending = read_attempts(dpo)[0].ended
    assert ending is not None
    assert (ending.state, ending.reason.partition(":")[0]) == ("failed", "DamagedFile")
    assert "Traceback" in dpo.supervisor_log(1).read_text()
    assert not dpo.secrets.exists()


@pytest.mark.parametrize("is_renamed", [True, False])
def test_a_failed_stage_ends_in_order_though_its_pipeline_is_not(tmp_path: Path, is_renamed: bool) -> None:
    """Its folder has another name by now, or the record of the stages is damaged."""
    sft, dpo = make_pipeline(tmp_path, "sft", "dpo")
    plan = Plan.load(sft.plan)
    replace(plan, spec=replace(plan.spec, model=Model(base="${stages.gone.checkpoint}"))).save(sft.plan)
    write_text(dpo.secrets, "HF_TOKEN=secret\n")
    if is_renamed:
        sft = RunPaths(sft.root.rename(sft.root.with_name("old")))
    else:
        (sft.root.parent / PIPELINE).write_text("{")
    command = [sys.executable, "-m", "jobs.supervisor", str(sft.root)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "")
    (attempt,) = read_attempts(sft)
    assert attempt.ended is not None
    assert "the stage gone is not complete" in attempt.ended.reason
    assert dpo.secrets.exists() != is_renamed  # a renamed stage knows those after it by its plan
