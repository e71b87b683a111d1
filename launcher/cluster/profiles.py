"""Finds and loads cluster profiles, one YAML file per cluster."""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.contract.cluster import Cluster
from launcher.data import find_data
from launcher.errors import SpecError, UserError, make_printable
from launcher.spec.durations import parse_minutes
from launcher.spec.environment import substitute
from launcher.spec.load import make_problem, sort_problems
from launcher.spec.text import parse_text, read_text
from launcher.spec.validate import validate

from .accelerator import detect_accelerator

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SBATCH_NAME = re.compile(r"[a-z][a-z0-9-]*")
_SLURM_ONLY = ("partition", "account", "slurm_conf", "sbatch", "srun_args")
_CHAIN_OPTIONS = ("dependency", "kill-on-invalid-dep")


@dataclass(frozen=True, kw_only=True)
class ClusterEntry:
    """A profile that was found; ``scheduler`` is None where the file is broken."""

    name: str
    scheduler: str | None
    path: Path


def load_cluster(name_or_path: str, cwd: Path = Path(), environ: Mapping[str, str] | None = None) -> Cluster:
    """The profile called so, or in the file named so (with a ``/`` or a YAML suffix); ``accelerator`` is never auto.

    Raises:
        UserError: there is no such profile; the message lists those that there are.
        SpecError: with everything that is wrong in it.
    """
    path = _find(name_or_path, cwd)
    root, problems = parse_text(read_text(path), str(path))
    problems += substitute(root, Cluster, os.environ if environ is None else environ)
    cluster, found, bad = validate(Cluster, root, problems)
    problems += found
    if cluster:
        complaints = [item for item in _find_complaints(cluster) if item[0].split(".")[0] not in bad]
        problems += [make_problem(root, *complaint) for complaint in complaints]
    if problems or not cluster:
        raise SpecError(sort_problems(problems))
    return _resolve_accelerator(dataclasses.replace(cluster, name=path.stem))


def list_clusters(cwd: Path = Path()) -> list[ClusterEntry]:
    """The profiles on the search path by name; of two with one name, the one that would be taken."""
    found: dict[str, ClusterEntry] = {}
    for folder in _search_path(cwd):
        for path in sorted(folder.glob("*.yaml")):
            if path.stem not in found:
                found[path.stem] = ClusterEntry(name=path.stem, scheduler=_read_scheduler(path), path=path)
    return [found[name] for name in sorted(found)]


def _find(name_or_path: str, cwd: Path) -> Path:
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        return cwd / os.path.expanduser(name_or_path)
    for folder in _search_path(cwd):
        path = folder / f"{name_or_path}.yaml"
        if os.path.isfile(path):  # false, not an error, for names that no file can have
            return path
    known = ", ".join(entry.name for entry in list_clusters(cwd))
    raise UserError(
        f"no cluster profile is called {make_printable(name_or_path)!r}\n"
        f"  hint: the profiles found are {known}; or name a file, such as ./my-cluster.yaml"
    )


def _search_path(cwd: Path) -> Iterator[Path]:
    yield cwd / "cluster_configs"
    yield Path(os.path.expanduser("~/.config/tuneyard/clusters"))
    yield find_data("cluster_configs")


def _read_scheduler(path: Path) -> str | None:
    try:
        root, _ = parse_text(read_text(path), str(path))
    except SpecError:
        return None
    node = root.value.get("scheduler") if isinstance(root.value, dict) else None
    value = node.value if node else "slurm"
    return value if value in ("slurm", "local") else None


def _find_complaints(cluster: Cluster) -> Iterator[tuple[str, str, str]]:
    if cluster.name:
        yield "name", "a profile is called what its file is called", "remove the key, or rename the file"
    if cluster.accelerator == "auto" and cluster.scheduler != "local":
        yield "accelerator", "auto looks at this machine, and the ranks run on others", "write cuda or cpu"
    if cluster.accelerator == "cpu" and cluster.gpu:
        yield "gpu", "stands beside accelerator: cpu", "remove one of them"
    if cluster.scheduler == "local":
        for key in _SLURM_ONLY:
            if getattr(cluster, key):
                yield key, "means nothing to scheduler: local", "remove the key"
        if cluster.nodes not in (None, 1):
            yield "nodes", "scheduler: local has one node", "remove the key"
    if cluster.max_time is not None:
        try:
            parse_minutes(cluster.max_time)
        except ValueError as error:
            yield "max_time", str(error), "write 30m, 4h or 2-12:00:00"
    for name, value in cluster.env.items():
        if not _ENV_NAME.fullmatch(name):
            yield f"env.{name}", "no environment variable can be called so", "letters, digits and _, no digit first"
        elif "\n" in value:
            yield f"env.{name}", "a value has one line", "remove the line break"
    for name, value in cluster.sbatch.items():
        if not _SBATCH_NAME.fullmatch(name):
            yield f"sbatch.{name}", "no long sbatch option is called so", "its name without dashes in front: exclusive"
        elif name in _CHAIN_OPTIONS:
            yield f"sbatch.{name}", "chains the stages of a pipeline", "remove the key"
        elif not isinstance(value, str | int | float | None) or "\n" in str(value):
            yield f"sbatch.{name}", "an option takes one line of text, a number, true or false", "write one value"


def _resolve_accelerator(cluster: Cluster) -> Cluster:
    if cluster.accelerator != "auto":
        return cluster
    accelerator, count = detect_accelerator()
    return dataclasses.replace(cluster, accelerator=accelerator, gpus_per_node=cluster.gpus_per_node or count)
