"""Keeps the W&B exporter beside the ranks: starts it, ends it within a limit, never waits on it in between."""

import contextlib
import os
import signal
import subprocess
import sys

from launcher.contract.files import make_folder
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan

END_SECONDS = 60
"""The exporter's own limit for its end; ``tuneyard sync`` finishes what does not fit."""
GRACE_SECONDS = 5


class Exporter:
    """The exporter process of one supervisor; a W&B that is slow, broken or killed never reaches the ranks."""

    def __init__(self, plan: Plan, paths: RunPaths) -> None:
        self._is_wanted = plan.spec.tracking.wandb != "disabled"
        self._python = plan.cluster.python or sys.executable
        self._paths = paths
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, secrets: dict[str, str]) -> None:
        """Start it, unless it runs, with the caller's environment and ``secrets`` (WANDB_API_KEY where tracking is
        online); it follows all attempts."""
        if not self._is_wanted or (self._process is not None and self._process.poll() is None):
            return
        try:
            make_folder(self._paths.wandb)
            self._paths.wandb_end.unlink(missing_ok=True)
            self._process = subprocess.Popen(
                [self._python, "-m", "launcher.collect.exporter", str(self._paths.root), str(END_SECONDS)],
                env={**os.environ, **secrets},
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            print(f"the W&B exporter could not be started: {error}", flush=True)

    def finish(self) -> None:
        """Say that the run has ended and wait for the exporter's end, at most END_SECONDS + GRACE_SECONDS."""
        if self._process is None:
            return
        try:
            self._paths.wandb_end.touch(mode=0o600)
            code = self._process.wait(END_SECONDS + GRACE_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # a session of its own, with its client
            code = 1
        if code != 0:
            print("W&B is behind the ledger; `tuneyard sync` brings it up to date", flush=True)
