"""Finds out which nodes an attempt has, then where its ranks meet."""

import os
import socket
import subprocess
import zlib
from dataclasses import dataclass

from jobs.errors import JobError
from launcher.contract.plan import Plan

# Below the ephemeral range (32768-60999 on Linux), so that no outgoing connection takes the port between the probe
# and rank 0's bind, and above the well-known services.
FIRST_PORT, NUM_PORTS = 20000, 12000


@dataclass(frozen=True)
class Allocation:
    """Node names in rank order; the rendezvous is on the first."""

    nodes: list[str]
    port: int


def find_allocation(plan: Plan, attempt: int) -> Allocation:
    """The nodes of this job, or this machine alone for a local run.

    Raises:
        JobError: the nodes are not those that the plan asked for. There is no fallback to localhost: N nodes that
            each meet themselves would train N models.
    """
    if plan.cluster.scheduler == "local":
        return Allocation(nodes=[socket.gethostname()], port=find_port(f"{os.getpid()}.{attempt}", "127.0.0.1"))
    node_list = os.environ.get("SLURM_JOB_NODELIST")
    if not node_list:
        raise JobError("SLURM_JOB_NODELIST is not set: the supervisor of a Slurm run must be inside an allocation")
    try:
        # Slurm's own expansion knows every form of a node list, and needs no controller for it.
        done = subprocess.run(["scontrol", "show", "hostnames", node_list], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise JobError(f"scontrol could not expand the node list {node_list!r}: {error}") from error
    if done.returncode != 0:
        raise JobError(f"scontrol could not expand the node list {node_list!r}: {done.stderr.strip()}")
    nodes = done.stdout.split()
    if len(nodes) != plan.topology.nodes:
        raise JobError(
            f"the plan asks for {plan.topology.nodes} nodes, the allocation {node_list!r} has {len(nodes)}: "
            "submit the run again instead of starting it in another allocation"
        )
    key = f"{os.environ.get('SLURM_JOB_ID')}.{scheduler_restart_count()}.{attempt}"
    return Allocation(nodes=nodes, port=find_port(key, ""))


def find_port(key: str, host: str) -> int:
    """A free port for ``key`` (job, restart, attempt), tried by binding it on this node, which is the first.

    Raises:
        JobError: none of 50 candidates is free.
    """
    start = zlib.crc32(key.encode())
    for offset in range(50):
        port = FIRST_PORT + (start + 61 * offset) % NUM_PORTS
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise JobError("no free port for the rendezvous on this node (50 tried)")


def scheduler_restart_count() -> int:
    """How often Slurm has requeued this job."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))
