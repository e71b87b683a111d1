"""The only user of submitit: the text of the job script, and its submission.

submitit 1.5.4 carries the supervisor and nothing else: it pickles a reference to ``jobs.supervisor.run`` with the run
directory's path. Its private text function is used because it is the one that its own submission uses, which makes
the preview exact without a cluster at hand; a golden test holds the text, and :func:`submit_job` compares it again.
"""

import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launcher.cluster.slurm import scheduler_environment
from launcher.contract.files import make_folder
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan
from launcher.errors import ClusterError

from .intent import Intent, SilenceError, UnsettledError, find_job, note_call
from .script import setup_lines

# What sbatch is given is kept in slurmctld's state and shown to admins: only these names, never the caller's whole
# environment (tokens are in it). sbatch itself runs with nothing else: --export=NAMES would make Slurm start a login
# shell on the node before each job, and where that takes longer than 20 s slurmctld counts the job as lost.
EXPORTED = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "SHELL", "SLURM_CONF", "USER")
# The shell function `module` and what it has loaded, which PATH agrees with.
MODULES = ("BASH_ENV", "BASH_FUNC_ml", "BASH_FUNC_module", "BASH_FUNC__module", "LMOD_", "__LMOD", "MODULE", "LOADED")
SIGNAL_SECONDS = 90
PATIENCE_SECONDS = 90.0
PAUSES = (2.0, 4.0, 8.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0)
"""Seconds between two tries while slurmctld is away; a restart of it takes less than a minute."""
PICKLE = "supervisor.pkl"
SHORT_SIGNAL_SECONDS = 15
"""Of each minute of a limit too short for that: Slurm looks every 30 s and would warn such a job as it starts."""


def job_script(plan: Plan, paths: RunPaths, after: str | None = None) -> str:
    """The sbatch file of ``plan``, byte for byte as it will be submitted.

    ``after`` is the job that it waits for. A preview has a word in place of that id, the one thing that nobody can
    know beforehand.
    """
    from submitit.slurm.slurm import _make_sbatch_string

    parameters = _parameters(plan, paths, after)
    return _make_sbatch_string(command=_command(plan, paths), folder=paths.submitit, **parameters)


def submit_job(plan: Plan, paths: RunPaths, intent: Intent, after: str | None = None) -> str:
    """Submit the supervisor of ``plan``, to start when the job ``after`` has ended well, and return Slurm's job id.

    While slurmctld cannot be reached it is tried again for PATIENCE_SECONDS. ``intent``, as it stands in ``paths``,
    has the script's name from before sbatch is called until it is sure that there is no job.

    Raises:
        ClusterError: there is no Slurm here, or sbatch refused; the message is sbatch's own.
        UnsettledError: sbatch failed in a way that leaves open whether there is a job, and so far Slurm has none.
    """
    import submitit
    from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError

    from jobs import supervisor

    script = job_script(plan, paths, after)
    deadline = time.monotonic() + PATIENCE_SECONDS
    with _scheduler_environment(plan):
        try:
            executor = submitit.SlurmExecutor(folder=paths.submitit, python=_python(plan))
        except RuntimeError as error:
            raise ClusterError(f"{error}\nhint: run this on a login node of {plan.cluster.name}") from error
        executor._internal_update_parameters(**_parameters(plan, paths, after))
        text = executor._make_submission_file_text(executor._submitit_command_str, "")
        if text != script:
            raise ClusterError(f"{plan.run_id}: the preview differs from what submitit would submit")
        # submitit gives its pickle the job's name after sbatch's yes; where the launcher dies before, the script does.
        delayed = DelayedSubmission(supervisor.run, str(paths.root))
        delayed.set_timeout(plan.topology.time_minutes, executor.max_num_timeout)
        delayed.dump(make_folder(paths.submitit) / PICKLE)
        call = _Call(paths, intent)
        # The last thing before sbatch.
        executor._make_submission_command = call.make_command  # type: ignore[method-assign, assignment]
        for pause in (*PAUSES, 0.0):
            try:
                return str(executor.submit(supervisor.run, str(paths.root)).job_id)
            except Exception as error:  # after sbatch's yes a full disk can be in the way, too
                if call.intent.script is None:
                    raise
                if isinstance(error, FileNotFoundError) and error.filename == "sbatch":
                    call.take_answer()
                    raise ClusterError(f"sbatch is not on the PATH\n{_hint(plan, error)}") from error
                if isinstance(error, (FailedJobError, FailedSubmissionError)) and is_refusal(str(error)):
                    call.take_answer()
                    if "(connect failure)" not in str(error) or not pause or time.monotonic() + pause > deadline:
                        raise ClusterError(
                            f"sbatch refused {plan.run_id}: {_last_words(error)}\n{_hint(plan, error)}"
                        ) from error
                else:
                    return _ask(paths, call.intent, error, deadline)
            print(f"slurmctld cannot be reached; trying again in {pause:.0f} s", file=sys.stderr)
            _sleep(pause)
    raise AssertionError("the last try returns or raises")


class _Call:
    """One call of sbatch after the other, each in the intent before it is made."""

    def __init__(self, paths: RunPaths, intent: Intent) -> None:
        self.paths, self.intent = paths, intent

    def make_command(self, script: Path) -> list[str]:
        self.intent = note_call(self.paths, self.intent, script.name)
        return ["sbatch", str(script)]

    def take_answer(self) -> None:
        """sbatch said no: there is no job."""
        self.intent = note_call(self.paths, self.intent, None)


def is_refusal(text: str) -> bool:
    """Whether sbatch, which said ``text`` and failed, is sure to have submitted nothing: it had slurmctld's answer, or
    could not even connect. "Socket timed out" and the like come after slurmctld may have taken the job."""
    if "(connect failure)" in text:
        return True
    silence = r"timed out|Zero Bytes|Unable to contact|receive failure|send failure|ommunication|Connection|make sense"
    return bool(text.strip()) and not re.search(silence, text)


def _ask(paths: RunPaths, intent: Intent, error: Exception, deadline: float) -> str:
    """The job that was submitted in spite of ``error``; Slurm is asked until ``deadline``, or it has none."""
    for pause in (1.0, *PAUSES):
        _sleep(pause)
        try:
            if job_id := find_job(paths, intent):
                return job_id
        except SilenceError:
            pass
        if time.monotonic() > deadline:
            break
    raise UnsettledError(
        f"{intent.run_id}: sbatch failed ({_last_words(error)}), and nobody can say whether there is a job\n"
        f"hint: tuneyard status {intent.run_id} finds it, or sees that there is none; then submit again"
    ) from error


def _sleep(seconds: float) -> None:
    """Wait, and let Ctrl-C through meanwhile."""
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        time.sleep(seconds)
    finally:
        signal.signal(signal.SIGINT, ignored)


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
        "signal_delay_s": min(SIGNAL_SECONDS, SHORT_SIGNAL_SECONDS * topology.time_minutes),
        "stderr_to_stdout": True,
        "wckey": None,  # submitit's default, "submitit", is refused where workload keys are checked
        "setup": [*setup_lines(plan, paths), *_pickle_lines(paths)],
        "use_srun": False,  # the supervisor lives in the batch step and starts srun itself
        # false and null in the profile take an option away; submitit would write --exclusive=False.
        "additional_parameters": {
            name: value for name, value in (more | profile.sbatch).items() if value not in (None, False)
        },
    }


def _pickle_lines(paths: RunPaths) -> list[str]:
    """submitit's runner reads the pickle of the job's id; the lines before have gone to the run directory."""
    own = f"{paths.submitit.name}/${{SLURM_JOB_ID}}_submitted.pkl"
    return [
        "# Where the launcher was cut off after sbatch's yes, the pickle has not been named after the job.",
        f"[ -e {own} ] || ln -s {PICKLE} {own} 2>/dev/null",
    ]


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
    if "(connect failure)" in str(error):
        return f"hint: slurmctld of {cluster} cannot be reached; submit again when `sinfo` answers"
    return f"hint: `tuneyard plan --script` shows what was asked of {cluster}; submit on a login node"


def _last_words(error: Exception) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
