"""Finishes what the exporter could not: writes what is missing in W&B's files, then uploads where there is a login."""

import netrc
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan
from launcher.observe import read_plan

from .client import Client
from .compare import Comparison, compare
from .wandb_run import ExportPaths, make_environment, take_ownership

CLIENT_SECONDS = 120.0
UPLOAD_SECONDS = 900.0
_POLL_SECONDS = 0.2
_DEFAULT_SERVER = "https://api.wandb.ai"

Upload = Literal["none", "no-login", "failed", "claimed"]
"""``claimed``: wandb says that all was uploaded. It is no proof: it says so after an HTTP 404 as well."""


@dataclass(frozen=True, kw_only=True)
class SyncResult:
    """Counts of rows (one per global step), what became of the upload, and what to do next.

    ``uncertain`` rows stand in an online segment that was cut; only the server knows whether they arrived.
    """

    run_id: str
    mode: str
    is_over: bool
    ledger_rows: int
    recorded_rows: int
    duplicate_rows: int
    missing_rows: int
    uncertain_rows: int
    missing_artifacts: list[str]
    upload: Upload
    next_command: str | None
    log: str


def sync(paths: RunPaths, state: str) -> SyncResult:
    """Bring W&B's files of a run that is over to the state of its ledger, then upload them.

    A run that goes on is only counted: its exporter writes. Nothing is done where tracking is disabled.

    Raises:
        FileNotFoundError: ``paths`` is no run directory (no plan.json).
        UserError: its plan.json is damaged.
    """
    plan = read_plan(paths)
    export = ExportPaths(paths.wandb)
    mode = plan.spec.tracking.wandb
    is_over = state not in ("pending", "running", "unknown")
    upload: Upload = "none"
    if mode == "disabled" or not is_over:
        found = compare(paths, plan)
    else:
        token = take_ownership(export)
        export.end.touch(mode=0o600)
        has_login = find_login()
        found = _complete(paths, plan, token, has_login=has_login)
        upload = _upload(export) if has_login else "no-login"
    return make_result(plan, found, is_over=is_over, upload=upload, log=export.log)


def make_result(plan: Plan, found: Comparison, *, is_over: bool, upload: Upload, log: Path) -> SyncResult:
    """The counts and the one command that comes next, if any."""
    is_done = upload in ("none", "claimed") and found.is_complete and not found.uncertain
    return SyncResult(
        run_id=plan.run_id,
        mode=plan.spec.tracking.wandb,
        is_over=is_over,
        ledger_rows=len(found.ledger),
        recorded_rows=len(found.recorded),
        duplicate_rows=len(found.duplicates),
        missing_rows=len(found.missing),
        uncertain_rows=len(found.uncertain),
        missing_artifacts=found.artifacts,
        upload=upload,
        next_command=None if is_done or not is_over else f"tuneyard sync {plan.run_id}",
        log=str(log),
    )


def format_sync(result: SyncResult) -> str:
    """The text of ``tuneyard sync``; the first line is the answer."""
    if result.mode == "disabled":
        return f"{result.run_id}: tracking.wandb is disabled, there is nothing to sync"
    lines = [
        f"{result.run_id}: {result.recorded_rows} of {result.ledger_rows} rows are in W&B's files, "
        f"{result.missing_rows} missing, {result.duplicate_rows} twice",
    ]
    if result.uncertain_rows:
        lines.append(f"{result.uncertain_rows} rows were cut off on their way to the server; maybe they arrived")
    if result.missing_artifacts:
        lines.append(f"artifacts not recorded: {', '.join(result.missing_artifacts)}")
    lines.append(
        "the run goes on; its exporter writes the rest"
        if not result.is_over
        else {
            "none": "no offline segment to upload",
            "no-login": f"not uploaded: no W&B login here. `wandb login` or WANDB_API_KEY, then: {result.next_command}",
            "failed": f"the upload failed, see {result.log}; then: {result.next_command}",
            "claimed": "wandb reports all segments as uploaded (the rows on the server were not counted)",
        }[result.upload]
    )
    return "\n".join(lines)


def find_login() -> bool:
    """Whether a key is in WANDB_API_KEY, or in the netrc file for the server (where ``wandb login`` leaves it)."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", _DEFAULT_SERVER)).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _complete(paths: RunPaths, plan: Plan, token: str, *, has_login: bool) -> Comparison:
    """First ask the server for the rest of a cut online segment, since it can only tell while nothing newer has been
    uploaded; then write offline what is still missing."""
    found = compare(paths, plan)
    if found.uncertain and has_login and plan.spec.tracking.wandb == "online":
        _run_client(paths, token, online=True)
        found = compare(paths, plan)
    if not found.is_complete:
        _run_client(paths, token, online=False)
        found = compare(paths, plan)
    return found


def _run_client(paths: RunPaths, token: str, *, online: bool) -> None:
    with ExportPaths(paths.wandb).log.open("ab") as output:
        client = Client(paths, online=online, token=token, finish_seconds=CLIENT_SECONDS / 2, output=output)
        deadline = time.monotonic() + CLIENT_SECONDS
        while client.poll() is None:
            if time.monotonic() > deadline:
                client.kill()
            time.sleep(_POLL_SECONDS)


def _upload(export: ExportPaths) -> Upload:
    """Hand the offline segments, oldest first, to ``wandb sync``; it skips those that it has marked as synced.

    Its exit code is 0 on a corrupt file and on a failed upload, so the marks are looked for; they, too, are wandb's
    word only.
    """
    segments = [file for file in export.segments() if file.parent.name.startswith("offline-")]
    open_segments = [file for file in segments if not _mark(file).exists()]
    if not open_segments:
        return "claimed" if segments else "none"
    with export.log.open("ab") as output:
        try:
            # One at a time: wandb runs the uploads of several files in parallel.
            subprocess.run(
                [sys.executable, "-m", "wandb", "sync", "-n", "1", *(str(file.parent) for file in open_segments)],
                env=make_environment(export, online=True, base=os.environ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=UPLOAD_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "failed"  # without a server it would try on for ever
    return "claimed" if all(_mark(file).exists() for file in open_segments) else "failed"


def _mark(file: Path) -> Path:
    return file.with_name(file.name + ".synced")
