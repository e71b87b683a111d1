"""Makes the run directory: plan and submit share this path, so the preview is what is submitted."""

import dataclasses
import os
import re
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import launcher
from launcher.contract.cluster import Cluster
from launcher.contract.files import DAMAGE, make_folder, write_json, write_text
from launcher.contract.paths import RunPaths
from launcher.contract.pipeline import Pipeline, list_stages
from launcher.contract.plan import Plan
from launcher.contract.values import to_value
from launcher.errors import Problem, SpecError, UserError
from launcher.plan import digest_request, make_plan, name_run
from launcher.render import render
from launcher.spec import LoadedSpec, load_stages
from launcher.spec.deepspeed import read_base
from launcher.spec.weights import read_shapes

from .choose import choose_cluster
from .intent import read_intent
from .script import local_script
from .slurm import job_script
from .sources import find_sources


@dataclass(frozen=True)
class Prepared:
    """A planned run: its plan, its paths, the text that will be handed over."""

    plan: Plan
    paths: RunPaths
    script: str


def prepare(spec_path: Path, overrides: Sequence[str], *, cluster: str | None, runs: Path) -> list[Prepared]:
    """Load, plan and render ``spec_path``, and write all of it: a run directory for each stage, in their order.

    A file without ``stages`` is one run, ``runs/<run id>``; the stages of a pipeline are ``runs/<run id>/<stage>``.

    Raises:
        UserError: the spec, an override or the profile is wrong, or the folder's record of an earlier plan is damaged;
            nothing is written then.
    """
    stages = load_stages(spec_path, overrides)
    name, in_spec = next((loaded.spec.name, loaded.spec.cluster) for loaded in stages.values())
    profile = resolve_cluster(choose_cluster(cluster, in_spec))
    runs = runs.resolve()
    # A newline would be a line of its own in the job script; submitit expands %j and its like in its folder's name.
    if not str(runs).isprintable() or re.search("%[A-Za-z]", str(runs)):
        raise UserError(f"--runs: {str(runs)!r} has characters that cannot stand in a job script; nothing was written")
    for loaded in stages.values():
        if loaded.spec.script is not None:
            find_sources(loaded.spec.script, runs)  # refused now, not when it is submitted
    bases = {stage: read_base(loaded.spec) for stage, loaded in stages.items()}
    asked = {stage: (loaded.spec, bases[stage]) for stage, loaded in stages.items()}
    digest = digest_request(asked, profile, launcher.__version__)
    run_id = name_run(name, digest, lambda candidate: _is_taken(runs / candidate))
    plans = _plan_stages(stages, profile, run_id, runs, bases)
    root = runs / run_id
    for folder in (root, runs / ".secrets", *(root / stage for stage in stages)):
        refuse_foreign(folder, run_id)
    if list(stages) != [""]:
        make_folder(root)
        root.chmod(0o700)
        Pipeline(run_id=run_id, name=name, stages=list(stages)).save(root)
    prepared = [render_all(plan) for plan in plans]
    for item, loaded in zip(prepared, stages.values(), strict=True):
        write_text(item.paths.spec_source, loaded.source)
    return prepared


def _plan_stages(
    stages: dict[str, LoadedSpec], profile: Cluster, run_id: str, runs: Path, bases: dict[str, dict[str, Any] | None]
) -> list[Plan]:
    """One plan per stage, each after the one before it; the problems of all of them at once."""
    plans: list[Plan] = []
    problems: list[Problem] = []
    before = None
    specs = {stage: loaded.spec for stage, loaded in stages.items()}
    for stage, loaded in stages.items():
        try:
            plans.append(
                make_plan(
                    loaded,
                    profile,
                    run_id=f"{run_id}/{stage}" if stage else run_id,
                    runs=runs,
                    version=launcher.__version__,
                    ds_base=bases[stage],
                    shapes=read_shapes(loaded.spec, specs),
                    after=before,
                )
            )
        except SpecError as error:
            # What all stages share is told once; its key has the first one's name.
            told = {(problem.line, problem.col, problem.message) for problem in problems}
            problems += [item for item in error.problems if (item.line, item.col, item.message) not in told]
        before = stage
    if problems:
        raise SpecError(problems)
    return plans


def _is_taken(folder: Path) -> bool:
    """Whether something was submitted from it; a first hand-over that was cut off is the submission's to settle.

    Raises:
        UserError: nobody can say, for the record of its stages is damaged.
    """
    try:
        stages = list_stages(folder)
    except DAMAGE as error:
        raise UserError(
            f"{error}; nothing was written\n"
            f"hint: an earlier plan of this file is there; move {folder} away, or choose another name or --runs"
        ) from error
    intents = [intent for paths in stages if (intent := read_intent(paths))]
    if any(intent.resumed is None for intent in intents):
        return False
    return any(paths.submission.exists() or paths.attempts.exists() for paths in stages)


def refuse_foreign(folder: Path, name: str) -> None:
    """What lies in a run directory is run, a pickle among it, and tokens lie beside it: all must be the user's own.

    Raises:
        UserError: ``folder``, which ``name`` stands for, is there and is another user's, or a link.
    """
    try:
        found = folder.lstat()
    except OSError:
        return  # nothing is there yet
    if stat.S_ISLNK(found.st_mode):
        why = "is a link"
    elif found.st_uid != os.geteuid():
        why = f"belongs to another user (uid {found.st_uid})"
    else:
        return
    raise UserError(f"{name}: {folder} {why}; nothing was submitted\nhint: use a folder of your own, with --runs")


def render_all(plan: Plan) -> Prepared:
    """Render ``plan`` and write it, with what was rendered, to its run directory."""
    paths = RunPaths(Path(plan.runs) / plan.run_id)
    rendered = render(plan, paths)
    if plan.cluster.scheduler == "slurm":
        script = job_script(plan, paths, None if plan.after is None else f"<job of {plan.after}>")
    else:
        script = local_script(plan, paths)
    make_folder(paths.root)
    paths.root.chmod(0o700)  # even where the folder existed: logs and data paths are nobody else's business
    wanted = {*(paths.root / relative for relative in rendered), paths.job_script}
    for old in paths.rendered.rglob("*"):  # what stays is replaced by rename: a job that starts may read it
        if old.is_file() and old not in wanted:
            old.unlink()
    write_json(paths.spec, to_value(plan.spec))
    plan.save(paths.plan)
    for relative, text in rendered.items():
        write_text(paths.root / relative, text)
    write_text(paths.job_script, script)
    return Prepared(plan=plan, paths=paths, script=script)


def resolve_cluster(profile: Cluster) -> Cluster:
    """Fill in what the machine at hand decides: the interpreter, and for a local run the cores."""
    profile = dataclasses.replace(profile, python=profile.python or sys.executable)
    if profile.scheduler == "local":
        profile = dataclasses.replace(profile, cpus_per_node=profile.cpus_per_node or len(os.sched_getaffinity(0)))
    return profile
