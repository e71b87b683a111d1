"""The only user of submitit: the text of the job script, and its submission.

submitit 1.5.4 carries the supervisor and nothing else: it pickles a reference to ``jobs.supervisor.run`` with the run
directory's path. Its private text function is used because it is the one that its own submission uses, which makes
the preview exact without a cluster at hand; a golden test holds the text, and :func:`submit_job` compares it again.
"""

import os
import shlex
import string
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan
from launcher.data import find_data
from launcher.errors import ClusterError

# What sbatch is given is kept in slurmctld's state and shown to admins: only these names, never the caller's whole
# environment (tokens are in it).
EXPORTED = ("HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "SHELL", "SLURM_CONF", "USER")
SIGNAL_SECONDS = 90


def job_script(plan: Plan, paths: RunPaths) -> str:
    """The sbatch file of ``plan``, byte for byte as it will be submitted."""
    from submitit.slurm.slurm import _make_sbatch_string

    return _make_sbatch_string(command=_command(plan, paths), folder=paths.submitit, **_parameters(plan, paths))


def submit_job(plan: Plan, paths: RunPaths) -> str:
    """Submit the supervisor of ``plan`` and return Slurm's job id.

    Raises:
        ClusterError: there is no Slurm here, or sbatch refused; the message is sbatch's own.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    from jobs import supervisor

    script = job_script(plan, paths)
    with _scheduler_environment(plan):
        try:
            executor = submitit.SlurmExecutor(folder=paths.submitit, python=_python(plan))
        except RuntimeError as error:
            raise ClusterError(f"{error}\nhint: run this on a login node of {plan.cluster.name}") from error
        executor._internal_update_parameters(**_parameters(plan, paths))
        text = executor._make_submission_file_text(executor._submitit_command_str, "")
        if text != script:
            raise ClusterError("the preview differs from what submitit would submit: nothing was submitted")
        try:
            return str(executor.submit(supervisor.run, str(paths.root)).job_id)
        except (FailedJobError, FailedSubmissionError) as error:
            hint = (
                f"\nhint: `tuneyard plan --script` shows what was asked of {plan.cluster.name}; run it on a login node"
            )
            raise ClusterError(f"sbatch refused, nothing was submitted: {_last_words(error)}{hint}") from error


def scheduler_environment(slurm_conf: str | None) -> dict[str, str]:
    """The caller's environment for Slurm's commands, without the variables of a job that it may be running in.

    Inside a job an inherited SLURM_* makes the child's srun fail ("Step requested GRES but job doesn't have GRES"),
    and SBATCH_* would outrank the script's own lines, so that the preview would lie. SLURM_CONF stays.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_", "SUBMITIT_"))}
    conf = slurm_conf or os.environ.get("SLURM_CONF")
    return env | ({"SLURM_CONF": conf} if conf else {})


@contextmanager
def _scheduler_environment(plan: Plan) -> Iterator[None]:
    saved = dict(os.environ)
    os.environ.clear()
    os.environ.update(scheduler_environment(plan.cluster.slurm_conf))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(saved)


def _parameters(plan: Plan, paths: RunPaths) -> dict[str, Any]:
    asked, profile, topology = plan.spec.resources, plan.cluster, plan.topology
    template = string.Template((find_data("slurm") / "job_setup.sh").read_text(encoding="utf-8"))
    setup = template.substitute(code=shlex.quote(str(paths.code)), root=shlex.quote(str(paths.root)))
    more: dict[str, Any] = {
        "export": ",".join(EXPORTED),
        "requeue": True,
        "output": str(paths.root / "logs" / "batch-%j.log").replace("%", "%%").replace("%%j", "%j"),
    }
    if asked.mem_gb is not None:
        more["mem"] = f"{round(asked.mem_gb * 1024)}M"
    return {
        "job_name": plan.run_id,
        "time": topology.time_minutes,
        "nodes": topology.nodes,
        "ntasks_per_node": topology.ranks_per_node,
        "cpus_per_task": topology.cpus_per_rank,
        "gpus_per_node": topology.ranks_per_node if profile.gres_devices else None,
        "partition": asked.partition or profile.partition,
        "account": asked.account or profile.account,
        "qos": asked.qos,
        "constraint": asked.constraint,
        "signal_delay_s": SIGNAL_SECONDS,
        "stderr_to_stdout": True,
        "wckey": None,  # submitit's default, "submitit", is refused where workload keys are checked
        "setup": [*setup.rstrip("\n").split("\n"), *profile.setup],
        "use_srun": False,  # the supervisor lives in the batch step and starts srun itself
        "additional_parameters": more | profile.sbatch,
    }


def _python(plan: Plan) -> str:
    return shlex.quote(str(plan.cluster.python))


def _command(plan: Plan, paths: RunPaths) -> str:
    # As SlurmExecutor._submitit_command_str writes it.
    return f"{_python(plan)} -u -m submitit.core._submit {shlex.quote(str(paths.submitit))}"


def _last_words(error: Exception) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


def local_script(plan: Plan, paths: RunPaths) -> str:
    """The bash script that starts the supervisor on this machine."""
    template = string.Template((find_data("slurm") / "job_setup.sh").read_text(encoding="utf-8"))
    setup = template.substitute(code=shlex.quote(str(paths.code)), root=shlex.quote(str(paths.root)))
    lines = ["#!/bin/bash", setup.rstrip("\n"), *plan.cluster.setup]
    return "\n".join([*lines, f"exec {_python(plan)} -m jobs.supervisor {shlex.quote(str(paths.root))}", ""])


def cancel_job(job_id: str, plan: Plan) -> None:
    """``scancel`` the job.

    Raises:
        ClusterError: scancel could not be asked, or refused.
    """
    arguments = ["scancel", job_id]
    try:
        done = subprocess.run(
            arguments, env=scheduler_environment(plan.cluster.slurm_conf), capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ClusterError(f"scancel {job_id}: {error}; the job may still run") from error
    if done.returncode != 0:
        raise ClusterError(f"scancel {job_id}: {done.stderr.strip()}; the job may still run")
