"""What a resumed run may change, seen before anything starts."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.contract.attempt import Attempt, Ending
from launcher.contract.files import write_json, write_text
from launcher.contract.manifest import MANIFEST, publish
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan
from launcher.contract.spec import Script
from launcher.contract.submission import Submission, read_submission
from launcher.contract.values import to_value
from launcher.errors import SpecError, UserError
from launcher.submit.resume import list_followers, plan_resume, see_submissions
from launcher.submit.retry import retry
from tests import pipelines
from tests.conftest import Tuneyard

SPEC = """\
name: ended
stage: sft
model: {base: builtin:tiny, quantization: none, dtype: float32}
data: {train: rows.jsonl, format: messages}
train: {max_steps: 20, micro_batch: 1, global_batch: 8}
resources: {gpus_per_node: 4}
"""


def end(tuneyard: Tuneyard, strategy: str, optimizer: str = "sgd") -> RunPaths:
    """A run on four ranks of this machine that failed after its checkpoints at steps 5 and 10."""
    (tuneyard.folder / "rows.jsonl").write_text('{"messages": []}\n')
    (tuneyard.folder / "ended.yaml").write_text(SPEC)
    changes = (f"parallel.strategy={strategy}", f"train.optimizer={optimizer}")
    planned = tuneyard("plan", "ended.yaml", *changes, "--cluster", "local", "--json")
    assert planned.returncode == 0, planned.stderr
    plan = json.loads(planned.stdout)
    paths = RunPaths(Path(plan["runs"]) / plan["run_id"])
    submission = Submission(
        t=1.0, run_id=paths.root.name, run_dir=str(paths.root), cluster="local", scheduler="local", pid=1, pid_start=0
    )
    write_json(paths.submission, to_value(submission))
    ending = Ending(t=3.0, state="failed", exit_code=1, reason="a rank failed")
    Attempt(number=1, started=2.0, nodes=["here"], ended=ending).save(paths)
    for step in (5, 10):
        folder = paths.checkpoint(1, 0).parent / ".writing"
        folder.mkdir(parents=True)
        (folder / "weights").write_text(str(step))
        publish(folder, paths.checkpoint(1, step), step=step, attempt=1, world_size=4, strategy=strategy, metrics={})
    return paths


def files(paths: RunPaths) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in paths.root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_deepspeed_with_sgd_goes_on_only_with_as_many_ranks_as_wrote_the_checkpoint(
    tuneyard: Tuneyard, strategy: str
) -> None:
    paths = end(tuneyard, strategy)
    before = files(paths)
    refused = tuneyard("resume", "last", "resources.gpus_per_node=2")
    assert refused.returncode == 2
    assert "resources.gpus_per_node=2" in refused.stderr
    assert f"{strategy} goes on only with as many ranks as wrote its newest checkpoint: 4 did" in refused.stderr
    assert "(step 10), and now there would be 2" in refused.stderr
    assert "set resources.nodes=1 resources.gpus_per_node=4" in refused.stderr
    assert "with ddp or fsdp can go on with another number" in refused.stderr
    assert "optimizer: adamw" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert files(paths) == before
    # Four ranks they stay, whatever the micro batch.
    assert plan_resume(paths, ["train.micro_batch=2"], cluster=None).topology.world_size == 4
    assert files(paths) == before


@pytest.mark.parametrize(
    ("strategy", "optimizer"), [("ddp", "sgd"), ("fsdp", "sgd"), ("zero2", "adamw"), ("zero3", "adamw")]
)
def test_the_others_go_on_with_another_number_of_ranks(tuneyard: Tuneyard, strategy: str, optimizer: str) -> None:
    plan = plan_resume(end(tuneyard, strategy, optimizer), ["resources.gpus_per_node=2"], cluster=None)
    assert (plan.topology.world_size, plan.batch.accumulation, plan.batch.global_batch) == (2, 4, 8)


def test_the_newest_checkpoint_is_what_counts_and_none_binds_nothing(tuneyard: Tuneyard) -> None:
    paths = end(tuneyard, "zero3")
    # The supervisor reads past a checkpoint whose manifest is gone or damaged.
    (paths.checkpoint(1, 10) / MANIFEST).write_text("{")
    with pytest.raises(SpecError, match="step 5"):
        plan_resume(paths, ["resources.gpus_per_node=2"], cluster=None)
    (paths.checkpoint(1, 5) / MANIFEST).unlink()
    assert plan_resume(paths, ["resources.gpus_per_node=2"], cluster=None).topology.world_size == 2


def test_a_profile_with_other_nodes_is_refused_too(tuneyard: Tuneyard) -> None:
    """The number of ranks follows from it where the spec names none."""
    paths = end(tuneyard, "zero2")
    profile = tuneyard.folder / "two.yaml"
    profile.write_text("{scheduler: local, accelerator: cpu, gpus_per_node: 2}")
    with pytest.raises(SpecError, match="there would be 2"):
        plan_resume(paths, ["resources.gpus_per_node=null"], cluster=str(profile))


def test_another_strategy_cannot_use_the_checkpoints(tuneyard: Tuneyard) -> None:
    with pytest.raises(SpecError) as caught:
        plan_resume(end(tuneyard, "zero2"), ["parallel.strategy=fsdp"], cluster=None)
    assert "cannot change when a run is resumed: fsdp cannot go on from a checkpoint of zero2" in str(caught.value)
    assert "submit the file as a new run" in str(caught.value)


def test_of_two_commands_that_saw_the_same_end_one_starts_the_run(tuneyard: Tuneyard) -> None:
    """As where one of them asked whether to submit, and was answered after the other."""
    paths = end(tuneyard, "ddp")
    plan = plan_resume(paths, [], cluster=None)
    plan = replace(plan, cluster=replace(plan.cluster, python="/bin/false"))
    seen = see_submissions([paths])
    (submission,) = retry([(plan, paths)], seen)
    before = files(paths)
    with pytest.raises(UserError, match=f"{plan.run_id} was handed over by another command meanwhile"):
        retry([(plan, paths)], seen)
    assert read_submission(paths) == submission
    assert files(paths).keys() == before.keys()


def test_a_retry_that_stops_half_way_says_what_runs(tmp_path: Path) -> None:
    """The script of a stage that was never submitted is gone."""
    first, second = pipelines.make_pipeline(tmp_path, "first", "second")
    pipelines.hand_over_gone(first, t=1.0)
    plan = Plan.load(second.plan)
    spec = replace(plan.spec, stage="script", script=Script(path=str(tmp_path / "gone" / "train.py")))
    stages = [(Plan.load(first.plan), first), (replace(plan, spec=spec), second)]
    with pytest.raises(UserError) as refused:
        retry(stages, see_submissions([first, second]))
    submission = read_submission(first)
    assert submission is not None
    what, hint = str(refused.value).splitlines()
    assert "gone cannot be read: No such file or directory; still submitted: chain-000000/first (process " in what
    assert what.endswith(f"{submission.pid})")
    assert hint == "hint: tuneyard cancel chain-000000, then tuneyard retry chain-000000"


CHAIN = """\
name: chain
stage: script
script: {path: train.py}
resources: {nodes: 1, gpus_per_node: 1, time: 10m}
stages:
  first: {}
  second: {}
  third: {}
  fourth: {script: {args: ["${stages.first.checkpoint}"]}}
"""
ASKS = "{scheduler: local, accelerator: cpu, gpus_per_node: 1, confirm_gpu_hours: 0.01}"
"""A profile under which nothing is started without a word."""


def test_a_complete_stage_stays_as_it_is_until_what_starts_from_it_has_ended(tuneyard: Tuneyard) -> None:
    for name, text in (("train.py", ""), ("chain.yaml", CHAIN), ("asks.yaml", ASKS)):
        (tuneyard.folder / name).write_text(text)
    planned = tuneyard("plan", "chain.yaml", "--cluster", "asks.yaml", "--json")
    assert planned.returncode == 0, planned.stderr
    plans = json.loads(planned.stdout)
    first, second, third, fourth = (RunPaths(Path(plan["runs"]) / plan["run_id"]) for plan in plans)
    group = first.root.parent.name
    for command in ("squeue", "sacct"):
        write_text(tuneyard.folder / "bin" / command, "#!/bin/sh\nexit 1\n", mode=0o700)

    def extend() -> str:
        path = f"{tuneyard.folder / 'bin'}:{os.environ['PATH']}"
        refused = tuneyard("resume", f"{group}/first", "script.args=[more]", env={"PATH": path})
        assert refused.returncode == 2
        assert "nothing was submitted" in refused.stderr
        return refused.stderr

    for paths in (first, second):
        pipelines.hand_over_gone(paths, t=1.0)
        pipelines.end(paths, t=2.0, state="completed")
    pipelines.hand_over(third, t=1.0, pid=os.getpid())
    assert list_followers(first) == []
    assert list_followers(second) == [third]
    pipelines.hand_over(fourth, t=1.0, pid=os.getpid())
    before = files(first)
    told = extend()
    assert f"{group}/first: what starts from it has not ended: {group}/fourth is pending (waits for" in told
    assert f"tuneyard cancel {group}/fourth; tuneyard retry {group}" in told
    pipelines.end(third, t=2.0, state="completed")
    assert f"{group}/fourth is running;" in extend()
    pipelines.hand_over(fourth, t=1.0, job_id="4711")
    assert f"{group}/fourth is unknown (Slurm has no answer about job 4711)" in extend()
    assert files(first) == before
    pipelines.hand_over_gone(fourth, t=1.0)
    assert "GPU-hours" in extend()  # nothing is in the way but the question
