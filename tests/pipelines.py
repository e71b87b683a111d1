"""Run directories of pipelines made by hand, as a launcher and its supervisors leave them."""

import os
from dataclasses import replace
from pathlib import Path

from launcher.contract.attempt import Attempt, Ending
from launcher.contract.cluster import Cluster
from launcher.contract.files import read_json, write_json
from launcher.contract.paths import RunPaths
from launcher.contract.pipeline import Pipeline
from launcher.contract.plan import Plan
from launcher.contract.process import process_start
from launcher.contract.submission import Submission
from launcher.contract.values import to_value
from launcher.submit.intent import make_intent

from .plans import LOCAL, plan_on


def make_pipeline(runs: Path, *names: str, run_id: str = "chain-000000", cluster: Cluster = LOCAL) -> list[RunPaths]:
    """A planned pipeline, each stage after the one before it."""
    root = runs / run_id
    Pipeline(run_id=run_id, name=run_id.rpartition("-")[0], stages=list(names)).save(root)
    stages = [RunPaths(root / name) for name in names]
    for paths, after in zip(stages, (None, *names), strict=False):
        plan = plan_on(replace(cluster, poll_seconds=1), nodes=1, ranks_per_node=1)
        plan = replace(plan, run_id=f"{run_id}/{paths.root.name}", runs=str(runs), after=after)
        plan.save(paths.plan)
        write_json(paths.spec, to_value(plan.spec))
    return stages


def hand_over(
    paths: RunPaths, *, t: float, job_id: str | None = None, pid: int | None = None, scheduler: str = "local"
) -> None:
    """The record of a submission; without job and process a claim that its launcher did not outlive."""
    submission = Submission(
        t=t,
        run_id=f"{paths.root.parent.name}/{paths.root.name}",
        run_dir=str(paths.root),
        cluster="here",
        scheduler="slurm" if job_id else scheduler,
        job_id=job_id,
        pid=pid,
        pid_start=process_start(pid) if pid else None,
    )
    write_json(paths.submission, to_value(submission))
    if job_id is None and pid is None:
        intent = make_intent(Plan.load(paths.plan))
        script = f"script_of_{paths.root.name}.sh" if scheduler == "slurm" else None
        write_json(paths.intent, to_value(replace(intent, t=t, pid_start=0, script=script, called=t)))


def hand_over_gone(paths: RunPaths, *, t: float) -> None:
    """A submission whose supervisor is gone: its pid is another process's by now."""
    hand_over(paths, t=t, pid=os.getpid())
    write_json(paths.submission, {**read_json(paths.submission), "pid_start": 0})


def end(paths: RunPaths, *, t: float, state: str = "failed") -> None:
    """An attempt that began at ``t`` and ended a second later; ``completed`` leaves the completion record too."""
    ending = Ending(t=t + 1, state=state, exit_code=int(state != "completed"), reason=state)  # type: ignore[arg-type]
    Attempt(number=1, started=t, nodes=["here"], ended=ending).save(paths)
    if state == "completed":
        write_json(paths.completion, {})
