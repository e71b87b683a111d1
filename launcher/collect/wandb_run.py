"""Says what a run is called in W&B: its one id, its names, its configuration, and the files of the exporter."""

import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.contract.files import make_folder, read_json, write_json
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan
from launcher.contract.values import to_value

STEP_KEY = "global_step"
_KEPT = ("WANDB_BASE_URL", "WANDB_APP_URL", "WANDB_CONFIG_DIR", "WANDB_INSECURE_DISABLE_SSL")
_CREDENTIALS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
_OTHER_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


@dataclass(frozen=True)
class ExportPaths:
    """The files below ``<run>/wandb``; the segments (``run-*`` and ``offline-run-*``) are named by wandb itself."""

    root: Path

    @property
    def identity(self) -> Path:
        return self.root / "run.json"

    @property
    def end(self) -> Path:
        """The end mark. Whoever owns the run creates it to say: the run has ended, finish. A file and no signal,
        because Slurm sends signals to every process of a step."""
        return RunPaths(self.root.parent).wandb_end

    @property
    def owner(self) -> Path:
        """Token of the exporter that may write; a newer one replaces it, and the older one stops."""
        return self.root / "owner"

    @property
    def log(self) -> Path:
        return self.root / "exporter.log"

    def segments(self) -> list[Path]:
        """The ``.wandb`` files of all segments, oldest first."""
        return sorted(self.root.glob("*run-*/run-*.wandb"), key=lambda file: file.parent.name.removeprefix("offline-"))


@dataclass(frozen=True, kw_only=True)
class WandbRun:
    """What ``wandb.init`` is told of a run."""

    id: str
    name: str
    group: str
    job_type: str
    project: str
    entity: str | None
    tags: list[str]
    config: dict[str, Any]


def describe_run(paths: RunPaths, plan: Plan) -> WandbRun:
    """The run as W&B shall know it; its id is made at the first call and kept from then on."""
    tracking = plan.spec.tracking
    return WandbRun(
        id=keep_id(ExportPaths(paths.wandb), plan.run_id),
        name=plan.run_id,
        group=plan.group,
        job_type=plan.spec.stage,
        project=tracking.project,
        entity=tracking.entity,
        tags=list(tracking.tags),
        config=make_config(plan, read_json(paths.git)),
    )


def keep_id(paths: ExportPaths, run_id: str) -> str:
    """The run's id in W&B: the run id's head and 8 random characters, made once.

    Random, because two people of one team may launch the same spec, and ``resume="allow"`` would join their runs.
    """
    if not paths.identity.exists():
        head = re.sub(r"[^A-Za-z0-9_-]+", "-", run_id)[:40].strip("-")
        draft = paths.root / f".run.{secrets.token_hex(4)}.json"
        write_json(draft, {"id": f"{head}-{secrets.token_hex(4)}".lstrip("-"), "run_id": run_id})
        try:
            os.link(draft, paths.identity)  # unlike a rename it fails where another process was first
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return str(read_json(paths.identity)["id"])


def make_config(plan: Plan, git: Mapping[str, Any] | None) -> dict[str, Any]:
    """Plan and code state as the run's configuration, without what may hold secrets or names this machine: the
    environment, the set-up lines and the folder of the runs."""
    value = to_value(plan)
    for key in ("v", "runs", "warnings"):
        value.pop(key, None)
    for key in ("env", "setup", "container", "sbatch", "srun_args", "slurm_conf"):
        value["cluster"].pop(key, None)
    return {**value, "git": dict(git) if git else None}


def make_environment(paths: ExportPaths, *, online: bool, base: Mapping[str, str]) -> dict[str, str]:
    """``base`` for a process that uses wandb: nothing of the caller's own W&B run, no secret that is not needed, and
    every cache inside the run directory.

    WANDB_CONFIG_DIR stays the user's: wandb writes nothing there, but reads the address of a server of one's own
    from it (``wandb login --host``). WANDB_SERVICE above all must go: it would attach to someone else's wandb-core.
    """
    kept = _KEPT + (_CREDENTIALS if online else ())
    env = {
        name: value
        for name, value in base.items()
        if name in kept or not (name.startswith("WANDB_") or name in _OTHER_SECRETS)
    }
    return {
        **env,
        "WANDB_MODE": "online" if online else "offline",
        "WANDB_DIR": str(paths.root.parent),
        "WANDB_CACHE_DIR": str(paths.root / "cache"),
        "WANDB_DATA_DIR": str(paths.root / "data"),
        "WANDB_ARTIFACT_DIR": str(paths.root / "artifacts"),
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_SILENT": "true",
    }


def take_ownership(paths: ExportPaths) -> str:
    """Become the one exporter of the run: an older one that still runs sees another's token, and stops."""
    token = secrets.token_hex(8)
    make_folder(paths.root)
    write_json(paths.owner, {"token": token})
    return token


def is_owner(paths: ExportPaths, token: str) -> bool:
    """Whether no newer exporter has taken over."""
    try:
        return json.loads(paths.owner.read_text())["token"] == token
    except (OSError, ValueError):
        return True  # storage that stalls takes nothing over
