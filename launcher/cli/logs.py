"""tuneyard logs: what the supervisor or a rank wrote."""

from typing import Annotated

import typer

from .options import RUNS, RunName, RunsFolder


def logs(
    run: RunName,
    rank: Annotated[int | None, typer.Option("--rank", help="Global rank; without it the failing rank's.")] = None,
    attempt: Annotated[int | None, typer.Option("--attempt", help="Attempt; default the last.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    runs: RunsFolder = RUNS,
) -> None:
    """Print a log: the given rank's, else the first failing rank's, else the supervisor's."""
    import sys
    import time

    from launcher.contract.attempt import read_attempts
    from launcher.errors import UserError
    from launcher.observe import read_plan, read_status

    from .named import find_named

    paths = find_named(run, runs).current
    attempts = {item.number: item for item in read_attempts(paths)}
    if not attempts:
        # What went wrong before the supervisor could start is in the job's own log.
        batch = sorted((paths.root / "logs").glob("batch-*.log"), key=lambda file: file.stat().st_mtime)
        if not batch:
            run_id = read_status(paths).run_id
            raise UserError(f"{run_id} has not started: no logs yet\nhint: tuneyard status {run_id}")
        print(f"==> {batch[-1]}", file=sys.stderr)
        sys.stdout.write(batch[-1].read_text(encoding="utf-8", errors="replace"))
        return
    number = attempt or max(attempts)
    if number not in attempts:
        raise UserError(f"no attempt {number}; there are {sorted(attempts)}")
    ended = attempts[number].ended
    wanted = rank if rank is not None else (ended.rank if ended else None)
    folder = paths.logs(number)
    found = [paths.supervisor_log(number)] if wanted is None else sorted(folder.glob(f"node*.rank{wanted}.log"))
    if not found or not found[0].exists():
        known = sorted(int(file.stem.rpartition("rank")[2]) for file in folder.glob("node*.rank*.log"))
        raise UserError(f"no log of rank {wanted} in attempt {number}; there are ranks {known}")
    print(f"==> {found[0]}", file=sys.stderr)
    poll_seconds = read_plan(paths).cluster.poll_seconds if follow else 0
    asked_at = 0.0
    with found[0].open(encoding="utf-8", errors="replace") as stream:
        while True:
            sys.stdout.write(stream.read())
            sys.stdout.flush()
            if not follow:
                return
            if time.monotonic() - asked_at >= poll_seconds:
                asked_at = time.monotonic()
                if read_status(paths).state not in ("pending", "running", "unknown"):
                    sys.stdout.write(stream.read())
                    return
            time.sleep(1)
