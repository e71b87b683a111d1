"""Makes the run directory: plan and submit share this path, so the preview is what is submitted."""

import dataclasses
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import launcher
from launcher.contract.cluster import Cluster
from launcher.contract.files import make_folder, write_json, write_text
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan
from launcher.contract.values import to_value
from launcher.errors import UserError
from launcher.plan import digest_request, make_plan, name_run
from launcher.render import render
from launcher.spec import load_spec
from launcher.spec.deepspeed import read_base

from .choose import choose_cluster
from .script import local_script
from .slurm import job_script


@dataclass(frozen=True)
class Prepared:
    """A planned run: its plan, its paths, the text that will be handed over."""

    plan: Plan
    paths: RunPaths
    script: str


def prepare(spec_path: Path, overrides: Sequence[str], *, cluster: str | None, runs: Path) -> Prepared:
    """Load, plan and render ``spec_path``, and write all of it to the run directory.

    Raises:
        UserError: the spec, an override or the profile is wrong; nothing is written then.
    """
    loaded = load_spec(spec_path, overrides)
    profile = resolve_cluster(choose_cluster(cluster, loaded.spec.cluster))
    runs = runs.resolve()
    # A newline would be a line of its own in the job script; submitit expands %j and its like in its folder's name.
    if not str(runs).isprintable() or re.search("%[A-Za-z]", str(runs)):
        raise UserError(f"--runs: {str(runs)!r} has characters that cannot stand in a job script; nothing was written")
    ds_base = read_base(loaded.spec)
    digest = digest_request(loaded.spec, profile, launcher.__version__, ds_base)
    run_id = name_run(loaded.spec.name, digest, lambda name: _is_taken(RunPaths(runs / name)))
    plan = make_plan(loaded, profile, run_id=run_id, runs=runs, version=launcher.__version__, ds_base=ds_base)
    prepared = render_all(plan)
    write_text(prepared.paths.spec_source, loaded.source)
    return prepared


def _is_taken(paths: RunPaths) -> bool:
    return paths.submission.exists() or paths.attempts.exists()


def render_all(plan: Plan) -> Prepared:
    """Render ``plan`` and write it, with what was rendered, to its run directory."""
    paths = RunPaths(Path(plan.runs) / plan.run_id)
    rendered = render(plan, paths)
    script = job_script(plan, paths) if plan.cluster.scheduler == "slurm" else local_script(plan, paths)
    make_folder(paths.root)
    paths.root.chmod(0o700)  # even where the folder existed: logs and data paths are nobody else's business
    shutil.rmtree(paths.rendered, ignore_errors=True)
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
