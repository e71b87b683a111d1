"""Keeps a W&B client mirroring the ledger: the process that the supervisor starts beside the ranks.

    python -m launcher.collect.exporter RUN_DIR [END_SECONDS]

It imports no wandb itself. Its child, ``launcher.collect.wandb_export``, holds the client: whatever happens to that
one (wandb-core killed by the signal that Slurm sends to every process of a step, a server that hangs) is met by
killing it, and starting another that goes on in a new segment.

The supervisor removes ``<run>/wandb/end``, starts this, and creates that file when the run has ended. This process
then ends within END_SECONDS. It also ends when the supervisor is gone.
"""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

from launcher.contract.files import make_folder
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan

from .client import Client
from .compare import compare
from .wandb_export import EXIT_DONE, EXIT_NO_INIT, EXIT_SUPERSEDED
from .wandb_run import ExportPaths, take_ownership

END_SECONDS = 60.0
_CLIENT_SHARE = 0.6
"""Share of the end's seconds for the running client; the rest is for writing offline what it could not send."""
_POLL_SECONDS = 0.2
_FIRST_DELAY_SECONDS, _LONGEST_DELAY_SECONDS = 1.0, 60.0
_ONLINE_DEATHS = 3
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Exporter:
    """Mirrors one run until it has ended, or its supervisor is gone."""

    def __init__(self, paths: RunPaths, plan: Plan, *, end_seconds: float, supervisor: int | None) -> None:
        self._paths, self._plan = paths, plan
        self._export = ExportPaths(paths.wandb)
        self._end_seconds, self._supervisor = end_seconds, supervisor
        self._online = plan.spec.tracking.wandb == "online"
        self._token = take_ownership(self._export)
        self._ended_at: float | None = None

    def run(self) -> bool:
        """Mirror; returns whether all rows and artifacts are on record and, where online was asked, sent."""
        deaths = 0
        while True:
            code = self._run_client(_CLIENT_SHARE)
            if code == EXIT_SUPERSEDED:
                log("a newer exporter has taken over")
                return False
            if code == EXIT_DONE or self._seconds_left(_CLIENT_SHARE) <= 0:
                break
            if self._is_orphaned():
                break
            deaths += 1
            if self._online and (code == EXIT_NO_INIT or deaths >= _ONLINE_DEATHS):
                self._online = False
                log("falling back to offline; `tuneyard sync` uploads later")
                continue
            self._wait(min(_FIRST_DELAY_SECONDS * 2 ** min(deaths - 1, 10), _LONGEST_DELAY_SECONDS))
        return self._complete()

    def _complete(self) -> bool:
        """Write into an offline segment what the clients left out, and say what is left for ``tuneyard sync``."""
        if self._is_orphaned():
            log("the supervisor is gone; the next attempt or `tuneyard sync` goes on")
            return False
        found = compare(self._paths, self._plan)
        if not found.is_complete:
            log(f"not on record: {len(found.missing)} rows, {len(found.artifacts)} artifacts; writing them offline")
            self._online = False
            self._run_client(1.0)
            found = compare(self._paths, self._plan)
        log(
            f"ledger {len(found.ledger)} rows, recorded {len(found.recorded)}, uncertain {len(found.uncertain)}, "
            f"missing {len(found.missing)}"
        )
        return found.is_complete and not found.uncertain

    def _run_client(self, share: float) -> int | None:
        """Run one client to its end; None if it had to be killed."""
        client = Client(
            self._paths, online=self._online, token=self._token, finish_seconds=max(1.0, self._end_seconds * 0.5)
        )
        while (code := client.poll()) is None:
            if self._seconds_left(share) <= 0:
                log("the W&B client did not end in time: killed")
                client.kill()
                return None
            if self._is_orphaned():
                client.let_go()
            time.sleep(_POLL_SECONDS)
        if code not in (EXIT_DONE, EXIT_SUPERSEDED):
            log(f"the W&B client ended with code {code}")
        return code

    def _seconds_left(self, share: float) -> float:
        """Seconds until ``share`` of the end's time is over; infinite while the run goes on."""
        if self._ended_at is None and (self._export.end.exists() or self._is_orphaned()):
            self._ended_at = time.monotonic()
            # The limit holds whatever hangs from here on: the default action of SIGALRM ends this process.
            signal.setitimer(signal.ITIMER_REAL, self._end_seconds)
        if self._ended_at is None:
            return float("inf")
        return self._ended_at + share * self._end_seconds - time.monotonic()

    def _is_orphaned(self) -> bool:
        return self._supervisor is not None and os.getppid() != self._supervisor

    def _wait(self, seconds: float) -> None:
        """Sleep, but not into the end."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self._seconds_left(1.0) == float("inf"):
            time.sleep(_POLL_SECONDS)


def log(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)


def main(arguments: list[str]) -> int:
    """Exit code 0 when all is on record (and sent, where online was asked) or tracking is disabled; else 1."""
    supervisor = os.getppid()
    paths = RunPaths(Path(arguments[0]).absolute())
    plan = Plan.load(paths.plan)
    if plan.spec.tracking.wandb == "disabled":
        return 0
    _leave(ExportPaths(paths.wandb))
    end_seconds = float(arguments[1]) if len(arguments) > 1 else END_SECONDS
    return 0 if Exporter(paths, plan, end_seconds=end_seconds, supervisor=supervisor).run() else 1


def _leave(export: ExportPaths) -> None:
    """Share nothing with the ranks: a session, output and priority of its own, and deaf to Slurm's signals.

    Ignored signals stay ignored in the client. wandb-core is a Go program and installs its own handlers over them,
    a blocked mask included, so it does die of a SIGTERM to the whole step; the next client makes up for it.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(PermissionError):  # a session leader already
        os.setsid()
    os.umask(0o077)
    os.nice(10)
    make_folder(export.root)
    output = os.open(export.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    empty = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((empty, 0), (output, 1), (output, 2)):
        os.dup2(source, target)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
