"""Runs Slurm's commands: the one seam between tuneyard and the scheduler, but for submitit's sbatch."""

import os
import subprocess

from launcher.errors import ClusterError

TIMEOUT_SECONDS = 30


def scheduler_environment(slurm_conf: str | None) -> dict[str, str]:
    """The caller's environment for Slurm's commands, without the variables of a job that it may be running in.

    Inside a job an inherited SLURM_* makes the child's srun fail ("Step requested GRES but job doesn't have GRES"),
    and SBATCH_* would outrank the script's own lines, so that the preview would lie. SLURM_CONF stays.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_", "SUBMITIT_"))}
    conf = slurm_conf or os.environ.get("SLURM_CONF")
    return env | ({"SLURM_CONF": conf} if conf else {})


def run_command(arguments: list[str], slurm_conf: str | None) -> str:
    """stdout of a Slurm command.

    Raises:
        ClusterError: it is missing, silent for 30 s, or failed; silence means unknown, never gone.
    """
    try:
        done = subprocess.run(
            arguments,
            env=scheduler_environment(slurm_conf),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise ClusterError(f"{arguments[0]} is not on the PATH: run this on a login node of the cluster") from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{arguments[0]} did not answer within {TIMEOUT_SECONDS} s") from None
    if done.returncode != 0:
        raise ClusterError(f"{arguments[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout
