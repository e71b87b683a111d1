"""Whether a development cluster can run here, with the remedy where it cannot."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import devcluster_network as network
from devcluster_config import NETWORK, Layout, list_nodes
from devcluster_process import CommandFailed, find_program
from devcluster_state import Refused, read_state

INSTALL = "apt-get install slurm-wlm slurmdbd mariadb-server munge iproute2"
# program -> the Debian package that brings it
PROGRAMS = {
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "srun": "slurm-wlm",
    "sinfo": "slurm-wlm",
    "sacctmgr": "slurm-wlm",
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server",
    "mariadb-install-db": "mariadb-server",
    "munged": "munge",
    "ip": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "umount": "mount",
    "hostname": "hostname",
}


def list_obstacles() -> list[str]:
    """Everything that keeps a development cluster from running here, each with its remedy."""
    if sys.platform != "linux":
        return [f"this is {sys.platform}: the nodes are Linux namespaces; use a Linux machine or virtual machine"]
    obstacles = []
    if os.geteuid() != 0:
        obstacles.append("not root: namespaces, device files and slurmd need it; use sudo, or a container as root")
    missing = sorted({package for program, package in PROGRAMS.items() if find_program(program) is None})
    if missing:
        obstacles.append(f"not installed: {', '.join(missing)}; on Debian or Ubuntu: {INSTALL}")
    if obstacles:
        return obstacles
    try:
        network.check_namespaces()
    except CommandFailed as error:
        obstacles.append(
            f"no network namespaces here ({error}); every node is one. In a container: run it with --privileged, "
            "or with --cap-add SYS_ADMIN,NET_ADMIN,MKNOD"
        )
    return obstacles


def check_folder(folder: Path) -> None:
    # Slurm's configuration has no quoting, and a Unix socket's path ends at 107 bytes.
    if not re.fullmatch(r"/[A-Za-z0-9._/-]{1,70}", str(folder)):
        raise Refused(
            f"TUNEYARD_DEVCLUSTER_DIR={folder}: needs an absolute path of at most 71 letters, digits, . _ - and /"
        )
    if folder.exists() and any(folder.iterdir()) and not (folder / "state.json").exists():
        raise Refused(f"{folder} has files that are not a development cluster's; name another TUNEYARD_DEVCLUSTER_DIR")


def check_owner(layout: Layout) -> None:
    """Refuse while a cluster of another folder is up: names and addresses are the machine's, there is one of each."""
    owner = network.find_owner()
    if owner is not None and owner != layout.folder:
        other = read_state(Layout(owner))
        if other is not None and other.list_alive():
            raise Refused(
                f"another development cluster is up in {owner}; to end that one: "
                f"TUNEYARD_DEVCLUSTER_DIR={owner} tuneyard devcluster down"
            )


def check_place(num_nodes: int) -> None:
    """Refuse what would disturb something that is here already."""
    if route := network.find_address_conflict():
        raise Refused(f"the nodes' addresses {NETWORK} are in use here: {route}")
    if line := network.find_name_conflict(list_nodes(num_nodes)):
        raise Refused(f"/etc/hosts gives a node's name to another machine: {line}")
