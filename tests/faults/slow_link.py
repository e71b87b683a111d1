"""A slow and lossy network for one node, where the kernel has no netem: frames to the node pass through this process.

    python slow_link.py NODE SECONDS LOSS       # until SIGTERM; "ready" on stdout when the link is slow

The host's end of the node's cable leaves the bridge, and a new cable takes its place there.
"""

import contextlib
import ctypes
import fcntl
import heapq
import itertools
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import time

BRIDGE, NEAR, FAR = "ty-br0", "ty-slow", "ty-slow-br"
ETH_P_ALL = 3
SIOCETHTOOL, STXCSUM, STSO, SGSO = 0x8946, 0x17, 0x1F, 0x24


def main(node: str, seconds: float, loss: float) -> None:
    link, dice = f"ty-{node}", random.Random(0)
    _ip(f"link add {NEAR} type veth peer name {FAR}")
    try:
        for name in (NEAR, FAR):
            _write_whole_frames(name)
        subprocess.run(
            ["ip", "netns", "exec", f"tuneyard-{node}", sys.executable, __file__, "--whole-frames", "eth0"], check=True
        )
        to_node, to_bridge = _listen(link), _listen(NEAR)
        _ip(f"link set {FAR} master {BRIDGE} up")
        _ip(f"link set {NEAR} up")
        _ip(f"link set {link} nomaster")
        print("ready", flush=True)
        waiting: list[tuple[float, int, bytes]] = []
        count = itertools.count()
        while True:
            due = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
            ready, _, _ = select.select([to_node, to_bridge], [], [], due)
            for source in ready:
                frame, address = source.recvfrom(65536)
                if address[2] == socket.PACKET_OUTGOING:  # type: ignore[attr-defined]
                    continue
                if source is to_node:
                    _send(to_bridge, frame)
                elif dice.random() >= loss:
                    heapq.heappush(waiting, (time.monotonic() + seconds, next(count), frame))
            while waiting and waiting[0][0] <= time.monotonic():
                _send(to_node, heapq.heappop(waiting)[2])
    finally:
        _ip(f"link set {link} master {BRIDGE}")
        _ip(f"link del {NEAR}")


def _send(link: socket.socket, frame: bytes) -> None:
    with contextlib.suppress(OSError):  # a full queue loses frames, as a network does
        link.send(frame)


def _listen(name: str) -> socket.socket:
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    link.bind((name, 0))
    return link


def _write_whole_frames(name: str) -> None:
    """Let the kernel write checksums and cut segments itself: between two ends of a cable it leaves that undone."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for command in (STXCSUM, STSO, SGSO):
            value = ctypes.create_string_buffer(struct.pack("II", command, 0), 8)  # struct ethtool_value
            request = struct.pack("16sP16x", name.encode(), ctypes.addressof(value))  # struct ifreq
            fcntl.ioctl(control, SIOCETHTOOL, request)


def _ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True)


if __name__ == "__main__":
    if sys.argv[1] == "--whole-frames":
        _write_whole_frames(sys.argv[2])
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))
