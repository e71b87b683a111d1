"""The shell lines at the head of a job script, and the script of a run on this machine."""

import shlex
import string

from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan
from launcher.data import find_data


def setup_lines(plan: Plan, paths: RunPaths) -> list[str]:
    """``slurm/job_setup.sh`` for this run, then the profile's own lines."""
    template = string.Template((find_data("slurm") / "job_setup.sh").read_text(encoding="utf-8"))
    text = template.substitute(code=shlex.quote(str(paths.code)), root=shlex.quote(str(paths.root)))
    return [*text.rstrip("\n").split("\n"), *plan.cluster.setup]


def local_script(plan: Plan, paths: RunPaths) -> str:
    """The bash script that starts the supervisor on this machine."""
    command = f"exec {shlex.quote(str(plan.cluster.python))} -m jobs.supervisor {shlex.quote(str(paths.root))}"
    return "\n".join(["#!/bin/bash", *setup_lines(plan, paths), command, ""])
