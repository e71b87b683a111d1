"""The only user of submitit: the text of the job script, and its submission.

submitit 1.5.4 carries the supervisor and nothing else: it pickles a reference to ``jobs.supervisor.run`` with the run
directory's path. Its private text function is used because it is the one that its own submission uses, which makes
the preview exact without a cluster at hand; a golden test holds the text, and :func:`submit_job` compares it again.
"""

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from launcher.cluster.slurm import run_command, scheduler_environment
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan
from launcher.errors import ClusterError

from .script import setup_lines

# What sbatch is given is kept in slurmctld's state and shown to admins: only these names, never the caller's whole
# environment (tokens are in it). sbatch itself runs with nothing else: --export=NAMES would make Slurm start a login
# shell on the node before each job, and where that takes longer than 20 s slurmctld counts the job as lost.
EXPORTED = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "SHELL", "SLURM_CONF", "USER")
# The shell function `module` and what it has loaded, which PATH agrees with.
MODULES = ("BASH_ENV", "BASH_FUNC_ml", "BASH_FUNC_module", "BASH_FUNC__module_raw", "LMOD_", "__LMOD_", "MODULE")
MODULES += ("LOADEDMODULES", "_LMFILES_")
SIGNAL_SECONDS = 90


def job_script(plan: Plan, paths: RunPaths, after: str | None = None) -> str:
    """The sbatch file of ``plan``, byte for byte as it will be submitted.

    ``after`` is the job that it waits for. A preview has a word in place of that id, the one thing that nobody can
    know beforehand.
    """
    from submitit.slurm.slurm import _make_sbatch_string

    parameters = _parameters(plan, paths, after)
    return _make_sbatch_string(command=_command(plan, paths), folder=paths.submitit, **parameters)


def submit_job(plan: Plan, paths: RunPaths, after: str | None = None) -> str:
    """Submit the supervisor of ``plan``, to start when the job ``after`` has ended well, and return Slurm's job id.

    Raises:
        ClusterError: there is no Slurm here, or sbatch refused; the message is sbatch's own.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    from jobs import supervisor

    script = job_script(plan, paths, after)
    with _scheduler_environment(plan):
        try:
            executor = submitit.SlurmExecutor(folder=paths.submitit, python=_python(plan))
        except RuntimeError as error:
            raise ClusterError(f"{error}\nhint: run this on a login node of {plan.cluster.name}") from error
        executor._internal_update_parameters(**_parameters(plan, paths, after))
        text = executor._make_submission_file_text(executor._submitit_command_str, "")
        if text != script:
            raise ClusterError(f"{plan.run_id}: the preview differs from what submitit would submit")
        try:
            return str(executor.submit(supervisor.run, str(paths.root)).job_id)
        except (FailedJobError, FailedSubmissionError) as error:
            # "Socket timed out" and the like come after slurmctld may have taken the job: ask before saying no.
            if job_id := _find_job(plan):
                return job_id
            raise ClusterError(f"sbatch refused {plan.run_id}: {_last_words(error)}\n{_hint(plan, error)}") from error


def _find_job(plan: Plan) -> str | None:
    """The id of a job of this run's name, if Slurm has one."""
    try:
        found = run_command(
            ["squeue", "--me", "--noheader", f"--name={plan.job_name}", "--format=%i"], plan.cluster.slurm_conf
        ).split()
    except ClusterError:
        return None
    return found[0] if found else None


@contextmanager
def _scheduler_environment(plan: Plan) -> Iterator[None]:
    saved = dict(os.environ)
    env = scheduler_environment(plan.cluster.slurm_conf)  # made of the environment that is cleared next
    os.environ.clear()
    os.environ.update({name: value for name, value in env.items() if name in EXPORTED or name.startswith(MODULES)})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(saved)


def _parameters(plan: Plan, paths: RunPaths, after: str | None) -> dict[str, Any]:
    asked, profile, topology = plan.spec.resources, plan.cluster, plan.topology
    # A literal % in the run's path would be read as a pattern of sbatch's.
    logs = str(paths.root / "logs").replace("%", "%%")
    more: dict[str, Any] = {
        "export": "ALL",
        "requeue": True,
        "output": f"{logs}/batch-%j.log",
    }
    if after is not None:
        more["dependency"] = f"afterok:{after}"
        # Else the job would wait for ever once its parent has failed.
        more["kill-on-invalid-dep"] = "yes"
    if asked.mem_gb is not None:
        more["mem"] = f"{round(asked.mem_gb * 1024)}M"
    return {
        "job_name": plan.job_name,
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
        "setup": setup_lines(plan, paths),
        "use_srun": False,  # the supervisor lives in the batch step and starts srun itself
        # false and null in the profile take an option away; submitit would write --exclusive=False.
        "additional_parameters": {
            name: value for name, value in (more | profile.sbatch).items() if value not in (None, False)
        },
    }


def _python(plan: Plan) -> str:
    return shlex.quote(str(plan.cluster.python))


def _command(plan: Plan, paths: RunPaths) -> str:
    # As SlurmExecutor._submitit_command_str writes it.
    return f"{_python(plan)} -u -m submitit.core._submit {shlex.quote(str(paths.submitit))}"


def _hint(plan: Plan, error: Exception) -> str:
    cluster, nodes = plan.cluster.name, plan.topology.nodes
    if "Node count specification invalid" in str(error):  # more than the partition has, or lets one job have
        return (
            f"hint: set resources.nodes below {nodes}; `sinfo` shows the nodes of each partition, and with nodes: N in "
            f"the profile {cluster} `tuneyard plan` knows the limit"
        )
    return f"hint: `tuneyard plan --script` shows what was asked of {cluster}; submit on a login node"


def _last_words(error: Exception) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
