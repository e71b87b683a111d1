"""Lists what of a run becomes a W&B artifact: the final adapter, the checkpoints' manifests."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from launcher.contract.checkpoints import list_checkpoints
from launcher.contract.manifest import MANIFEST, hash_file
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan

from .wandb_run import ExportPaths, keep_id


@dataclass(frozen=True, kw_only=True)
class ArtifactFiles:
    """An artifact to be: name inside it -> file; ``fingerprint`` (SHA-256) changes with any name or content.

    ``is_stable`` files stay where they are, so wandb need not copy them; retention may delete the others.
    """

    name: str
    type: str
    files: dict[str, Path]
    fingerprint: str
    is_stable: bool


def list_artifacts(paths: RunPaths, plan: Plan) -> list[ArtifactFiles]:
    """The artifacts that the run directory can give now. The final one only once the completion record is there, and
    only of an adapter: a full model's weights are not uploaded."""
    head = keep_id(ExportPaths(paths.wandb), plan.run_id)
    found = []
    model = plan.spec.model
    if paths.completion.exists() and model is not None and model.adapter is not None:
        final = {path.relative_to(paths.final).as_posix(): path for path in paths.final.rglob("*") if path.is_file()}
        found.append(_fingerprint(f"{head}-final", "model", final, is_stable=True))
    manifests = {
        f"{folder.parent.name}/{folder.name}/{MANIFEST}": folder / MANIFEST
        for folder in list_checkpoints(paths)
        if (folder / MANIFEST).is_file()
    }
    if manifests:
        found.append(_fingerprint(f"{head}-manifests", "checkpoint-manifests", manifests, is_stable=False))
    return found


def _fingerprint(name: str, kind: str, files: dict[str, Path], *, is_stable: bool) -> ArtifactFiles:
    hashes = {key: hash_file(files[key]) for key in sorted(files)}
    fingerprint = hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
    return ArtifactFiles(name=name, type=kind, files=files, fingerprint=fingerprint, is_stable=is_stable)
