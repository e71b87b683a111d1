"""The simulated machines' namespaces: addresses, hostnames, and their lines in /etc/hosts."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

from devcluster_config import (
    HEAD,
    HOST_ADDRESS,
    NETWORK,
    Layout,
    Node,
    read_hosts_owner,
    remove_hosts_block,
    render_hosts_block,
)
from devcluster_process import run_command

HOSTS = Path("/etc/hosts")
NETNS = Path("/run/netns")
BRIDGE = "ty-br0"
NAMESPACE_PATTERN = "tuneyard-n*"


def list_namespaces() -> list[Path]:
    """Our network namespaces, those of a cluster that was not taken down included."""
    return sorted(NETNS.glob(NAMESPACE_PATTERN))


def check_namespaces() -> None:
    """Raises CommandFailed where this kernel or container gives no namespaces; leaves nothing behind."""
    run_command(["unshare", "--net", "--uts", "ip", "link", "add", BRIDGE, "type", "bridge"])
    run_command(["unshare", "--net", "ip", "link", "add", "ty-a", "type", "veth", "peer", "name", "ty-b"])


def find_address_conflict() -> str | None:
    """The route of this machine that our range would hide, if any."""
    wanted = ipaddress.ip_network(NETWORK)
    for route in json.loads(run_command(["ip", "-json", "-4", "route", "show"])):
        if route["dst"] == "default" or route.get("dev") == BRIDGE:
            continue
        if wanted.overlaps(ipaddress.ip_network(route["dst"], strict=False)):
            return f"{route['dst']} dev {route.get('dev', '?')}"
    return None


def find_name_conflict(nodes: list[Node]) -> str | None:
    """The line of /etc/hosts that already gives one of our names to another machine."""
    names = {HEAD, *(node.name for node in nodes)}
    for line in remove_hosts_block(HOSTS.read_text(encoding="utf-8")).splitlines():
        if names & set(line.partition("#")[0].split()[1:]):
            return line
    return None


def create_network(nodes: list[Node], layout: Layout) -> None:
    """Bridge on the host; per node a network namespace with eth0; for all a UTS namespace and a hosts line."""
    prefix_length = NETWORK.partition("/")[2]
    host = [
        f"link add {BRIDGE} type bridge",
        f"addr add {HOST_ADDRESS}/{prefix_length} dev {BRIDGE}",
        f"link set {BRIDGE} up",
    ]
    for node in nodes:
        host += [
            f"netns add {node.namespace}",
            f"link add {node.host_link} type veth peer name eth0 netns {node.namespace}",
            f"link set {node.host_link} master {BRIDGE} up",
        ]
    run_command(["ip", "-batch", "-"], stdin="\n".join(host) + "\n")
    for node in nodes:
        inside = f"link set lo up\naddr add {node.address}/{prefix_length} dev eth0\nlink set eth0 up\n"
        run_command(["ip", "-netns", node.namespace, "-batch", "-"], stdin=inside)
    for name in (HEAD, *(node.name for node in nodes)):
        # A file that holds the namespace, as `ip netns` does for networks: slurmd can die and come back into it.
        holder = layout.hostnames / name
        holder.touch()
        run_command(["unshare", f"--uts={holder}", "hostname", name])
    clean = remove_hosts_block(HOSTS.read_text(encoding="utf-8"))
    if clean and not clean.endswith("\n"):
        clean += "\n"
    write_hosts(clean + render_hosts_block(nodes, layout.folder))


def remove_network(layout: Layout) -> None:
    """Take away what create_network made, however much of it there is."""
    for holder in layout.hostnames.glob("*"):
        while is_namespace_mount(holder):
            run_command(["umount", str(holder)])
    for namespace in list_namespaces():
        run_command(["ip", "netns", "delete", namespace.name])
    if Path("/sys/class/net", BRIDGE).exists():
        run_command(["ip", "link", "delete", BRIDGE])
    text = HOSTS.read_text(encoding="utf-8")
    if remove_hosts_block(text) != text:
        write_hosts(remove_hosts_block(text))


def is_namespace_mount(path: Path) -> bool:
    """A bind-mounted namespace is a file on nsfs: on another device than its folder."""
    return path.stat().st_dev != path.parent.stat().st_dev


def write_hosts(text: str) -> None:
    # In place, not by rename: containers bind-mount this file, and renaming over a mount fails (EBUSY).
    HOSTS.write_text(text, encoding="utf-8")


def find_owner() -> Path | None:
    """The state folder of the development cluster that /etc/hosts speaks of."""
    try:
        return read_hosts_owner(HOSTS.read_text(encoding="utf-8"))
    except OSError:
        return None
