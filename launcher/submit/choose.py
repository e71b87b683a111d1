"""Decides which cluster a run goes to; nobody trains on a login node by accident."""

import os
import shutil

from launcher.cluster import list_clusters, load_cluster
from launcher.contract.cluster import Cluster
from launcher.errors import UserError


def choose_cluster(option: str | None, in_spec: str | None) -> Cluster:
    """--cluster, then TUNEYARD_CLUSTER, then the spec's key; without any of them the local machine.

    Raises:
        UserError: none is named where sbatch is on the PATH, or no such profile exists.
    """
    name = option or os.environ.get("TUNEYARD_CLUSTER") or in_spec
    if name is None and shutil.which("sbatch"):
        known = "\n".join(f"  {entry.name:<14} {entry.scheduler or 'broken'}" for entry in list_clusters())
        raise UserError(
            "this machine has sbatch, so it may be a login node, and no cluster profile is named; nothing was run\n"
            f"profiles here:\n{known}\n"
            "hint: add --cluster NAME (local trains on this very machine), set TUNEYARD_CLUSTER, "
            "or write `cluster: NAME` in the spec"
        )
    return load_cluster(name or "local")
