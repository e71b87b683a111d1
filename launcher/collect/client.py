"""Starts, ends and if need be kills one W&B client process."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

from launcher.contract.paths import RunPaths

from .wandb_run import ExportPaths, make_environment


class Client:
    """One client process and the segment that it writes."""

    def __init__(
        self, paths: RunPaths, *, online: bool, token: str, finish_seconds: float, output: IO[bytes] | None = None
    ) -> None:
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "launcher.collect.wandb_export"),
                *(str(paths.root), "online" if online else "offline", token, str(finish_seconds)),
            ],
            env=make_environment(ExportPaths(paths.wandb), online=online, base=os.environ),
            stdout=output,
            stderr=output,
            stdin=subprocess.PIPE,  # the client sees its end when this process is gone, however it went
        )

    def poll(self) -> int | None:
        return self._process.poll()

    def let_go(self) -> None:
        """Tell the client that no end mark will come."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def kill(self) -> None:
        """Kill the client, and before it its wandb-core: that one follows by itself, but not while it is stopped."""
        for child in _list_children(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self._process.kill()
        self._process.wait()


def _list_children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
