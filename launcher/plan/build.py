"""Builds the plan: topology, batch, upper bound of GPU-hours, warnings; reports all that does not fit."""

import dataclasses
from pathlib import Path
from typing import Any

from launcher.contract.cluster import Cluster
from launcher.contract.plan import Note, Plan, Topology
from launcher.contract.spec import Spec, Train
from launcher.errors import Problem, SpecError
from launcher.spec import LoadedSpec
from launcher.spec.durations import parse_minutes
from launcher.spec.weights import Shapes

from .batch import BatchError, derive_batch
from .combine import find_complaints
from .rollout import note_rollout

SCRIPT_KEYS = ("micro_batch", "global_batch", "max_grad_norm", "max_steps", "keep_last", "keep_best")
"""What of ``train`` reaches a script: by its environment, by ds.json, or when a checkpoint is published."""


def make_plan(
    loaded: LoadedSpec,
    cluster: Cluster,
    *,
    run_id: str,
    runs: Path,
    version: str,
    ds_base: dict[str, Any] | None = None,
    shapes: Shapes | None = None,
    after: str | None = None,
) -> Plan:
    """Plan ``loaded`` on ``cluster``; ``ds_base`` is what :func:`launcher.spec.deepspeed.read_base` gives for its spec,
    ``shapes`` what :func:`launcher.spec.weights.read_shapes` gives, ``after`` the stage before it in a pipeline.

    Raises:
        SpecError: with every key that does not fit the cluster or its other keys.
    """
    spec = loaded.spec
    problems: list[Problem] = []
    ranks_per_node = spec.resources.gpus_per_node or cluster.gpus_per_node or 1
    topology = Topology(
        nodes=spec.resources.nodes,
        ranks_per_node=ranks_per_node,
        world_size=spec.resources.nodes * ranks_per_node,
        cpus_per_rank=_cpus_per_rank(spec, cluster, ranks_per_node),
        time_minutes=parse_minutes(spec.resources.time),
    )
    problems += _cluster_problems(loaded, cluster, topology)
    problems += [loaded.problem(*complaint) for complaint in find_complaints(spec, cluster, ds_base)]
    try:
        batch = derive_batch(
            micro=spec.train.micro_batch, global_batch=spec.train.global_batch, world_size=topology.world_size
        )
    except BatchError as error:
        problems.append(loaded.problem("train.global_batch", str(error), error.hint))
    if problems:
        raise SpecError(problems)
    return Plan(
        tuneyard=version,
        run_id=run_id,
        runs=str(runs),
        spec=spec,
        cluster=cluster,
        topology=topology,
        batch=batch,
        ds_base=ds_base,
        after=after,
        gpu_hours=round(topology.world_size * topology.time_minutes / 60, 2),
        warnings=_warnings(spec, cluster, topology) + note_rollout(spec, shapes),
    )


def _cpus_per_rank(spec: Spec, cluster: Cluster, ranks_per_node: int) -> int | None:
    if spec.resources.cpus_per_gpu is not None:
        return spec.resources.cpus_per_gpu
    if cluster.cpus_per_node is None:
        return None  # Slurm's own default is one core per task
    # On a shared node a run takes the cores of the GPUs it takes, not the whole node's.
    return max(1, cluster.cpus_per_node // max(ranks_per_node, cluster.gpus_per_node or 1))


def _cluster_problems(loaded: LoadedSpec, cluster: Cluster, topology: Topology) -> list[Problem]:
    found: list[Problem] = []

    def report(key: str, message: str, hint: str) -> None:
        found.append(loaded.problem(key, message, hint))

    if cluster.scheduler == "local" and topology.nodes > 1:
        report(
            "resources.nodes",
            f"the profile {cluster.name} runs on this machine alone, {topology.nodes} nodes were asked for",
            "add resources.nodes=1, or name a Slurm profile with --cluster",
        )
    elif cluster.nodes is not None and topology.nodes > cluster.nodes:
        report(
            "resources.nodes",
            f"{topology.nodes} nodes were asked for, {cluster.name} has {cluster.nodes}",
            f"set resources.nodes to at most {cluster.nodes}",
        )
    if cluster.accelerator == "cuda" and cluster.gpus_per_node and topology.ranks_per_node > cluster.gpus_per_node:
        report(
            "resources.gpus_per_node",
            f"{topology.ranks_per_node} GPUs per node were asked for, a node of {cluster.name} has "
            f"{cluster.gpus_per_node}",
            f"set resources.gpus_per_node to at most {cluster.gpus_per_node}",
        )
    if cluster.max_time is not None and topology.time_minutes > parse_minutes(cluster.max_time):
        report(
            "resources.time",
            f"{loaded.spec.resources.time} is over the limit of {cluster.name}, {cluster.max_time}",
            f"set resources.time={cluster.max_time} or less",
        )
    return found


def _warnings(spec: Spec, cluster: Cluster, topology: Topology) -> list[Note]:
    notes: list[Note] = []
    cores = cluster.cpus_per_node
    if cluster.accelerator == "cpu" and cores is not None and topology.ranks_per_node > cores:
        notes.append(
            Note(
                key="resources.gpus_per_node",
                message=f"{topology.ranks_per_node} ranks share the {cores} cores of a node",
                remedy=f"set resources.gpus_per_node={cores} or less for full speed",
            )
        )
    if cluster.scheduler == "slurm" and cluster.accelerator == "cuda" and topology.cpus_per_rank is None:
        notes.append(
            Note(
                key="resources.cpus_per_gpu",
                message="Slurm gives a rank one core where none is asked for",
                remedy="set resources.cpus_per_gpu, or cpus_per_node in the cluster profile",
            )
        )
    if spec.model and not cluster.internet and not spec.model.base.startswith(("/", "builtin:", "${")):
        notes.append(
            Note(
                key="model.base",
                message=f"the nodes of {cluster.name} have no internet, so {spec.model.base} must be in their cache",
                remedy=f"`hf download {spec.model.base}` on the login node, and HF_HOME in the profile's env "
                "where the cache is not the default one",
            )
        )
    if spec.stage == "script":
        notes += _script_notes(spec)
    elif spec.train.save_every_steps is None:
        notes.append(
            Note(
                key="train.save_every_steps",
                message="no checkpoint is written before the end",
                remedy="set train.save_every_steps so that a failure costs less than you can bear",
            )
        )
    return notes


def _script_notes(spec: Spec) -> list[Note]:
    """What was set and nothing hands to a script: a model, data, and keys of ``train``."""
    unset = Train()
    names = [field.name for field in dataclasses.fields(Train) if field.name not in SCRIPT_KEYS]
    notes = [
        Note(
            key=key,
            message="does not reach a script",
            remedy=f"hand it over in script.args and leave this out; in a stage, {key}: null clears what all share",
        )
        for key, section in (("model", spec.model), ("data", spec.data))
        if section is not None
    ]
    return notes + [
        Note(
            key=f"train.{name}",
            message="has no effect on a script",
            remedy="hand it over in script.args",
        )
        for name in names
        if getattr(spec.train, name) != getattr(unset, name)
    ]
