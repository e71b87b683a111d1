"""Bring the daemons of the development cluster up, in order, each waited for until it does its work."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path

from devcluster_config import (
    CLUSTER_NAME,
    GPUS_PER_NODE,
    HEAD,
    HOST_ADDRESS,
    SLURMDBD_PORT,
    Layout,
    list_nodes,
    render_gres_conf,
    render_slurm_conf,
    render_slurmdbd_conf,
)
from devcluster_network import NETNS
from devcluster_process import SEARCH_PATH, CommandFailed, Daemon, Process, is_alive, run_command, start_daemon
from devcluster_state import Refused, StartFailed, State, read_boot_id, write_state

USABLE_STATES = {"idle", "mixed", "allocated", "completing"}
START_SECONDS = 60


def slurm_env(layout: Layout) -> dict[str, str]:
    """A clean environment: inherited SLURM_* variables of an outer job would steer our own commands."""
    return {
        "PATH": SEARCH_PATH,
        "LC_ALL": "C.UTF-8",
        "HOME": "/root",
        "SLURM_CONF": str(layout.slurm_conf),
        # The client library's own variable; slurmdbd.conf has no setting for a socket.
        "MYSQL_UNIX_PORT": str(layout.database_socket),
    }


def list_daemons(layout: Layout, num_nodes: int) -> list[Daemon]:
    """Every daemon, in the order in which they need each other."""
    munged = (
        "munged", "--foreground", "--num-threads=2", f"--socket={layout.munge_socket}",
        f"--key-file={layout.munge}/munge.key", f"--seed-file={layout.munge}/munge.seed",
        f"--pid-file={layout.munge}/munged.pid",
    )  # fmt: skip
    mariadbd = (
        "mariadbd", "--no-defaults", "--skip-networking", f"--socket={layout.database_socket}",
        f"--datadir={layout.database}/data", f"--pid-file={layout.database}/mariadbd.pid",
        # slurmdbd warns of a short lock wait; the last option saves a sync per commit.
        "--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900", "--innodb-flush-log-at-trx-commit=0",
    )  # fmt: skip
    head = ("nsenter", f"--uts={layout.hostnames / HEAD}")
    daemons = [
        # munged refuses to run on a key or in a folder of another user.
        Daemon("munged", munged, user="munge"),
        Daemon("mariadbd", mariadbd, user="mysql"),
        Daemon("slurmdbd", (*head, "slurmdbd", "-D")),
        Daemon("slurmctld", (*head, "slurmctld", "-D")),
    ]
    for node in list_nodes(num_nodes):
        # Not `ip netns exec`: it mounts a new /sys, in which slurmd finds no cgroup mounts.
        enter = ("nsenter", f"--net={NETNS / node.namespace}", f"--uts={layout.hostnames / node.name}")
        daemons.append(Daemon(node.name, (*enter, "slurmd", "-D", "-N", node.name)))
    return daemons


def create_folder(layout: Layout, num_nodes: int) -> None:
    """State folder, configuration, munge key, GPU devices, empty database."""
    layout.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    layout.folder.chmod(0o755)
    # First of all: what has a state file may be removed again by `down`, nothing else may.
    write_state(layout, State(num_nodes, read_boot_id(), ()))
    for folder in (layout.logs, layout.hostnames, layout.devices, layout.spool, layout.spool / "slurmctld"):
        folder.mkdir()
    memory_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    write_file(layout.slurm_conf, render_slurm_conf(layout, num_nodes, max(memory_mb // num_nodes, 1024)), 0o644)
    write_file(layout.folder / "gres.conf", render_gres_conf(layout), 0o644)
    # slurmdbd refuses a configuration that others can read.
    write_file(layout.folder / "slurmdbd.conf", render_slurmdbd_conf(layout), 0o600)
    for i in range(GPUS_PER_NODE):
        device = layout.devices / f"gpu{i}"
        try:
            os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))  # /dev/null's numbers
        except PermissionError as error:
            raise Refused(f"no device files here ({error}), Slurm's GPUs are such; a container needs MKNOD") from None
        device.chmod(0o666)
    # Clients reach munge's socket through its folder, so it is open; the database is slurmdbd's (root) alone.
    layout.munge.mkdir(mode=0o755)
    key = layout.munge / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    for path in (layout.munge, key):
        shutil.chown(path, "munge", "munge")
    layout.database.mkdir(mode=0o700)
    shutil.chown(layout.database, "mysql", "mysql")
    install = (
        "mariadb-install-db", "--no-defaults", "--user=mysql", f"--datadir={layout.database}/data",
        "--auth-root-authentication-method=socket", "--skip-test-db", "--skip-name-resolve",
    )  # fmt: skip
    try:
        run_command(install, env=slurm_env(layout))
    except CommandFailed as error:
        raise StartFailed("mariadbd", str(error)) from None


def write_file(path: Path, text: str, mode: int) -> None:
    path.touch(mode=mode)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)


def start_missing(layout: Layout, state: State) -> State:
    """Start each daemon that is not alive, wait until all of them do their work; returns the new state."""
    env = slurm_env(layout)
    alive = {process.name: process for process in state.list_alive()}
    deadline = time.monotonic() + START_SECONDS
    ready: dict[str, Callable[[], bool]] = {
        "munged": layout.munge_socket.is_socket,
        "mariadbd": lambda: answers_on(layout.database_socket),
        "slurmdbd": lambda: has_cluster(env),
        "slurmctld": lambda: succeeds(["scontrol", "ping"], env),
    }
    for daemon in list_daemons(layout, state.num_nodes):
        if daemon.name not in alive:
            process = start_daemon(daemon, env, layout.logs / f"{daemon.name}.out")
            alive[daemon.name] = process
            state = State(state.num_nodes, read_boot_id(), tuple(alive.values()))
            write_state(layout, state)
        if daemon.name in ready:
            wait_until(ready[daemon.name], alive[daemon.name], deadline)
    drained = [name for name, word in node_states(layout).items() if "drain" in word]
    if drained:  # a job that would not die drains its node; only a person, or `up`, undoes that
        run_command(["scontrol", "update", f"nodename={','.join(drained)}", "state=resume"], env=env)
    for node in list_nodes(state.num_nodes):
        wait_until(lambda: node_states(layout).get(node.name) in USABLE_STATES, alive[node.name], deadline)  # noqa: B023
    wait_until(lambda: is_registered(env), alive["slurmctld"], deadline)
    return state


def wait_until(is_ready: Callable[[], bool], process: Process, deadline: float) -> None:
    while not is_ready():
        if not is_alive(process):
            raise StartFailed(process.name, f"{process.name} ended while starting")
        if time.monotonic() > deadline:
            raise StartFailed(process.name, f"{process.name} is not ready after {START_SECONDS} s")
        time.sleep(0.05)


def answers_on(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def succeeds(argv: list[str], env: dict[str, str]) -> bool:
    try:
        run_command(argv, env=env)
    except CommandFailed:
        return False
    return True


def has_cluster(env: dict[str, str]) -> bool:
    """Make our cluster known to slurmdbd: slurmctld ends at once when its name is not."""
    with socket.socket() as client:
        if client.connect_ex((HOST_ADDRESS, SLURMDBD_PORT)) != 0:
            return False
    # sacctmgr fails with "already exists" on a second run, so ask first.
    show = ["sacctmgr", "--noheader", "--parsable2", "show", "cluster", "format=cluster"]
    try:
        return CLUSTER_NAME in run_command(show, env=env).split() or succeeds(
            ["sacctmgr", "--immediate", "add", "cluster", CLUSTER_NAME], env
        )
    except CommandFailed:
        return False


def is_registered(env: dict[str, str]) -> bool:
    """Whether slurmctld has told slurmdbd its port: until then jobs are missing from sacct."""
    show = ["sacctmgr", "--noheader", "--parsable2", "show", "cluster", "format=cluster,controlport"]
    try:
        rows = [line.split("|") for line in run_command(show, env=env).splitlines()]
    except CommandFailed:
        return False
    return any(row[0] == CLUSTER_NAME and row[1] not in ("", "0") for row in rows)


def node_states(layout: Layout) -> dict[str, str]:
    """Slurm's own word for each node (idle, mixed, down*, ...); empty when slurmctld does not answer."""
    argv = ["sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T"]
    try:
        text = run_command(argv, env=slurm_env(layout), timeout=5)
    except CommandFailed:
        return {}
    return dict(line.split() for line in text.splitlines())
