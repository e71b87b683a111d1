"""What was started, as state.json in the state folder records it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from devcluster_config import Layout
from devcluster_process import Process, is_alive


class Refused(Exception):
    """It cannot be done here and nothing was started; the text says what to do."""


class StartFailed(Exception):
    """A daemon did not come up; `daemon` names the log that knows why."""

    def __init__(self, daemon: str, message: str) -> None:
        super().__init__(message)
        self.daemon = daemon


@dataclass(frozen=True)
class State:
    """What was started, as state.json holds it."""

    num_nodes: int
    boot_id: str
    processes: tuple[Process, ...]

    def list_alive(self) -> list[Process]:
        # Start times count from boot: after another boot, equal ones mean nothing.
        return [p for p in self.processes if is_alive(p)] if self.boot_id == read_boot_id() else []


def read_boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def read_state(layout: Layout) -> State | None:
    try:
        data = json.loads(layout.state_file.read_text(encoding="utf-8"))
        processes = tuple(Process(**entry) for entry in data["processes"])
        return State(data["num_nodes"], data["boot_id"], processes)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"{layout.state_file} is damaged ({error!r}): remove it, end what is left by hand") from None


def write_state(layout: Layout, state: State) -> None:
    temporary = layout.state_file.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(state), indent=1) + "\n", encoding="utf-8")
    temporary.replace(layout.state_file)
