"""Mirrors the merged ledger into one segment of the W&B run: the client process, and the only importer of wandb.

    python -m launcher.collect.wandb_export RUN_DIR online|offline OWNER_TOKEN FINISH_SECONDS

``launcher.collect.exporter`` starts it, and starts it again in a new segment when it dies; all that it must know of
earlier segments it reads back from their files. Its stdin is a pipe that stays open as long as the exporter lives.
"""

import os
import select
import signal
import sys
import traceback
from collections.abc import Set
from pathlib import Path
from typing import Any, Literal

from launcher.contract.files import write_text
from launcher.contract.ledger import Row
from launcher.contract.paths import RunPaths
from launcher.contract.plan import Plan

from .artifacts import list_artifacts
from .compare import Comparison, compare
from .follow import LedgerFollower
from .wandb_records import SENT_MARK, SERVER_STEP_MARK, read_records
from .wandb_run import STEP_KEY, ExportPaths, WandbRun, describe_run, is_owner

EXIT_DONE = 0
EXIT_DIED = 1
EXIT_NO_INIT = 3
EXIT_SUPERSEDED = 4

POLL_SECONDS = 0.5
ONLINE_INIT_SECONDS = 30
FLUSH_SECONDS = 0.5
Outcome = Literal["ended", "superseded", "released"]
_NOT_METRICS = ("v", "kind", "t", "step")


def main(run_dir: str, mode: str, token: str, finish_seconds: str) -> int:
    """Mirror until the end mark is there; returns one of the exit codes above."""
    paths, online = RunPaths(Path(run_dir)), mode == "online"
    export = ExportPaths(paths.wandb)
    plan = Plan.load(paths.plan)
    records = read_records(export)
    if export.end.exists() and _is_nothing_left(compare(paths, plan, records), online=online):
        return EXIT_DONE
    try:
        run = _open(describe_run(paths, plan), paths, online=online, finish_seconds=float(finish_seconds))
    except Exception as error:
        # CommError where the server does not answer in time, UsageError where no key is configured.
        print(f"wandb.init ({mode}) failed: {type(error).__name__}: {_first_line(error)}", flush=True)
        return EXIT_NO_INIT
    next_step = run.starting_step
    if online:
        write_text(Path(run.settings.sync_dir) / SERVER_STEP_MARK, str(next_step))
    known = set(records.recorded) | select_proven(records.uncertain, next_step, online=online)
    outcome = _follow(run, paths, token, known, first=next_step if online else 0)
    if outcome == "ended":
        _log_artifacts(run, paths, plan, records.fingerprints)
    run.finish(exit_code=0 if paths.completion.exists() else 1)
    if online:
        (Path(run.settings.sync_dir) / SENT_MARK).touch()
    return EXIT_SUPERSEDED if outcome == "superseded" else EXIT_DONE


def select_proven(uncertain: Set[int], next_step: int, *, online: bool) -> set[int]:
    """Steps of a cut online segment that must not be sent again.

    Online the server has said with which step to go on, so all before it have arrived. Offline nobody knows: they
    are left to ``tuneyard sync``, since sent twice they would stand in W&B twice.
    """
    return {step for step in uncertain if step < next_step} if online else set(uncertain)


def make_entry(row: Row) -> dict[str, Any]:
    """What of a ledger row is logged: its metrics, the global step, and the time at which it happened."""
    metrics = {key: value for key, value in row.items() if key not in _NOT_METRICS}
    return {**metrics, STEP_KEY: row["step"], "_timestamp": row["t"]}


def _open(about: WandbRun, paths: RunPaths, *, online: bool, finish_seconds: float) -> Any:
    import wandb

    settings = wandb.Settings(
        mode="online" if online else "offline",
        root_dir=str(paths.root),  # wandb adds wandb/ to it
        use_dot_wandb=False,
        symlink=False,
        silent=True,
        console="off",
        # Nothing of this process is of interest, and wandb-metadata.json would hold argv, paths and the host (0644).
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
        host="",
        disable_git=True,
        disable_code=True,
        save_code=False,
        disable_job_creation=True,
        init_timeout=ONLINE_INIT_SECONDS,
        finish_timeout=finish_seconds,
        finish_timeout_raises=True,
        # The default of 15 s is what is lost when wandb-core is killed: it does not flush on SIGTERM.
        x_transaction_log_flush_interval=FLUSH_SECONDS,
        # "Stop run" in the web page would raise KeyboardInterrupt here; the run is stopped by `tuneyard cancel`.
        stop_fn=lambda: None,
    )
    run = wandb.init(
        id=about.id,
        name=about.name,
        group=about.group,
        job_type=about.job_type,
        project=about.project,
        entity=about.entity,
        tags=about.tags,
        config=about.config,
        resume="allow",
        settings=settings,
    )
    run.define_metric(STEP_KEY, hidden=True)
    run.define_metric("*", step_metric=STEP_KEY)
    return run


def _follow(run: Any, paths: RunPaths, token: str, known: set[int], *, first: int) -> Outcome:
    """Send the rows from step ``first`` on that are not ``known``, until the run has ended, a newer exporter has taken
    over, or the exporter let go."""
    export, follower = ExportPaths(paths.wandb), LedgerFollower(paths)
    while True:
        # The mark is looked for before the rows are read, so that a row written before it is not missed.
        ended = export.end.exists()
        if not is_owner(export, token):
            return "superseded"
        for row in follower.take(ended=ended):
            # wandb drops a step below the newest of the run; such a row is left to a segment of its own.
            if row["step"] not in known and row["step"] >= first:
                # With a step of ours, wandb holds a row back until the next one unless it is told to commit.
                run.log(make_entry(row), step=row["step"], commit=True)
                first = row["step"] + 1
        if ended:
            return "ended"
        if select.select([sys.stdin], [], [], POLL_SECONDS)[0]:
            # End of file: the exporter is gone or lets go. The newest step may be half a row; a later attempt or
            # `tuneyard sync` writes it. The alarm's default action ends this process should W&B not let it.
            signal.alarm(int(run.settings.finish_timeout) + 5)
            return "released"


def _is_nothing_left(found: Comparison, *, online: bool) -> bool:
    return found.is_complete and not (online and found.uncertain)


def _log_artifacts(run: Any, paths: RunPaths, plan: Plan, known: set[str]) -> None:
    import wandb

    for item in list_artifacts(paths, plan):
        if item.fingerprint in known:
            continue
        artifact = wandb.Artifact(item.name, type=item.type, metadata={"fingerprint": item.fingerprint})
        for name, path in sorted(item.files.items()):
            # "mutable" copies the file into wandb's staging folder.
            artifact.add_file(str(path), name=name, policy="immutable" if item.is_stable else "mutable")
        run.log_artifact(artifact)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


if __name__ == "__main__":
    try:
        code = main(*sys.argv[1:])
    except Exception:
        traceback.print_exc()  # wandb-core died (ConnectionResetError), or finish() ran into its limit
        code = EXIT_DIED
    sys.stdout.flush()
    sys.stderr.flush()
    if code == EXIT_DONE:
        sys.exit(EXIT_DONE)
    # wandb's atexit hook would talk to a wandb-core that is dead or hangs.
    os._exit(code)
