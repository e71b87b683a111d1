"""Start, show and end a real multi-node Slurm on this one machine.

    python slurm/devcluster.py up --nodes 4
    export SLURM_CONF=/var/lib/tuneyard-devcluster/slurm.conf
    srun --nodes 4 hostname
    python slurm/devcluster.py down

Each node has its own network namespace, address, hostname and slurmd, and two make-believe GPUs. For development
and tests, as root, on Linux. Everything lies in one folder (TUNEYARD_DEVCLUSTER_DIR, by default
/var/lib/tuneyard-devcluster); /etc/slurm and a Slurm that is there already are left alone.
Exit codes: 0 ok, 2 cannot be done here (nothing was started), 3 a daemon failed or the cluster is not up.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import devcluster_network as network
from devcluster_checks import check_folder, check_owner, check_place, list_obstacles
from devcluster_config import MAX_NODES, Layout, list_nodes
from devcluster_daemons import USABLE_STATES, create_folder, list_daemons, node_states, slurm_env, start_missing
from devcluster_process import CommandFailed, kill_processes, list_namespace_processes, run_command
from devcluster_state import Refused, StartFailed, State, read_boot_id, read_state

DEFAULT_FOLDER = "/var/lib/tuneyard-devcluster"
LOCK = Path("/run/tuneyard-devcluster.lock")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def hold_lock() -> Iterator[None]:
    """One up or down at a time on this machine; a second one waits for the first."""
    import fcntl  # not on Windows, where list_obstacles has something better to say than ImportError

    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another devcluster up or down is running; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def tear_down(layout: Layout) -> None:
    """End what is ours, remove what is ours; works on any remains of a cluster."""
    state = read_state(layout)
    # SIGKILL, not SIGTERM: what the daemons would save is removed in the next moment.
    left = kill_processes(state.list_alive() if state else [])
    for _ in range(20):  # a process may fork between the look and the kill
        inside = list_namespace_processes(network.list_namespaces())
        if not inside:
            break
        left = kill_processes(inside, timeout=1)
    if left:
        raise StartFailed(left[0].name, f"still running after SIGKILL: {', '.join(str(p.pid) for p in left)}")
    network.remove_network(layout)
    if state is not None:
        remove_folder(layout)


def remove_folder(layout: Layout) -> None:
    """Remove the state folder, its state file last: interrupted half-way, it can still be told for ours."""
    deadline = time.monotonic() + 5
    for path in layout.folder.iterdir():
        while path.is_dir():
            try:
                shutil.rmtree(path)
            except OSError:  # an `up` killed while it made the database left its helper writing for a moment
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        if path != layout.state_file:
            path.unlink(missing_ok=True)
    layout.state_file.unlink()
    layout.folder.rmdir()


def run_up(layout: Layout, num_nodes: int) -> int:
    begin = time.monotonic()
    state = read_state(layout)
    if state is not None and state.list_alive():
        if state.num_nodes != num_nodes:
            raise Refused(
                f"a cluster of {state.num_nodes} nodes is up; to have {num_nodes}: tuneyard devcluster down, then up"
            )
        names = {process.name for process in state.list_alive()}
        dead = [d.name for d in list_daemons(layout, num_nodes) if d.name not in names]
        start_missing(layout, state)
        say(f"already up with {num_nodes} nodes" + (f"; started again: {', '.join(dead)}" if dead else ""))
        print_usage(layout)
        return 0
    check_place(num_nodes)
    tear_down(layout)  # what an unclean end (a restarted machine) left behind
    try:
        create_folder(layout, num_nodes)
        network.create_network(list_nodes(num_nodes), layout)
        start_missing(layout, State(num_nodes, read_boot_id(), ()))
        # The proof: credentials, every slurmd, and the way back to a client on this host.
        run_command(["srun", f"--nodes={num_nodes}", "--job-name=devcluster-up", "true"], env=slurm_env(layout))
    except BaseException as error:
        if isinstance(error, (StartFailed, CommandFailed)):
            show_log(layout, getattr(error, "daemon", "slurmctld"))
        tear_down(layout)
        raise
    say(f"up: {num_nodes} nodes in {time.monotonic() - begin:.1f} s")
    print_usage(layout)
    return 0


def print_usage(layout: Layout) -> None:
    print(f"export SLURM_CONF={layout.slurm_conf}\ntuneyard submit X --cluster devcluster", flush=True)


def show_log(layout: Layout, daemon: str) -> None:
    """The last lines of what the daemon wrote; its standard error where it never opened its log."""
    for path in (layout.logs / f"{daemon}.log", layout.logs / f"{daemon}.out"):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        if lines:
            say("\n".join([f"{path.name} ends:", *(f"  {line}" for line in lines[-15:])]))
            return


def run_down(layout: Layout) -> int:
    was_there = read_state(layout) is not None or network.find_owner() == layout.folder
    tear_down(layout)
    say("down" if was_there else "no development cluster is up")
    return 0


def run_status(layout: Layout, as_json: bool) -> int:
    state = read_state(layout)
    if state is None:
        say("no development cluster is up; start one: tuneyard devcluster up")
        if as_json:
            print(json.dumps({"up": False, "folder": str(layout.folder), "daemons": [], "nodes": []}))
        return 3
    alive = {process.name: process.pid for process in state.list_alive()}
    states = node_states(layout) if "slurmctld" in alive else {}
    names = [daemon.name for daemon in list_daemons(layout, state.num_nodes)]
    daemons = [{"name": name, "running": name in alive, "pid": alive.get(name)} for name in names]
    nodes = [
        {
            "name": node.name,
            "state": states.get(node.name, "unknown"),
            "address": node.address,
            "namespace": node.namespace,
            "host_link": node.host_link,
        }
        for node in list_nodes(state.num_nodes)
    ]
    is_up = all(name in alive for name in names) and all(node["state"] in USABLE_STATES for node in nodes)
    if as_json:
        paths = {"folder": str(layout.folder), "slurm_conf": str(layout.slurm_conf)}
        print(json.dumps({"up": is_up, **paths, "daemons": daemons, "nodes": nodes}, indent=1))
    else:
        details = {node["name"]: f"{node['state']:12} {node['address']}" for node in nodes}
        for name in names:
            running = f"running, pid {alive[name]}" if name in alive else "not running"
            print(f"{name:10} {running:20} {details.get(name, '')}".rstrip())
    return 0 if is_up else 3


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tuneyard devcluster", description=(__doc__ or "").partition("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="start it, or start again those of its daemons that died")
    up.add_argument("--nodes", type=int, default=4, metavar="N", help=f"number of nodes, 1 to {MAX_NODES} (default 4)")
    verbs.add_parser("down", help="end its processes and jobs, remove everything it made")
    status = verbs.add_parser("status", help="one line per daemon and node; exit code 0 when all are up, else 3")
    status.add_argument("--json", action="store_true", help="the same, for programs")
    return parser


def main(argv: list[str]) -> int:
    parser = build_parser()
    arguments = parser.parse_args(argv)
    layout = Layout(Path(os.environ.get("TUNEYARD_DEVCLUSTER_DIR") or DEFAULT_FOLDER))
    # So that a start that is terminated cleans up after itself as one that fails does.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        if arguments.verb == "status":
            return run_status(layout, arguments.json)
        if arguments.verb == "up" and not 1 <= arguments.nodes <= MAX_NODES:
            parser.error(f"--nodes {arguments.nodes}: 1 to {MAX_NODES}")
        if obstacles := list_obstacles():
            raise Refused("\n".join(obstacles))
        check_folder(layout.folder)
        with hold_lock():
            check_owner(layout)
            return run_up(layout, arguments.nodes) if arguments.verb == "up" else run_down(layout)
    except Refused as error:
        say(f"devcluster: {error}\nnothing was started" if arguments.verb == "up" else f"devcluster: {error}")
        return 2
    except (StartFailed, CommandFailed, OSError) as error:
        say(f"devcluster: {error}")
        return 3


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
