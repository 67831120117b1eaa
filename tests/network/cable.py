"""A cable that loses, delays or swallows packets as it is told, between two hosts: network namespaces of this machine.

Each host has a TUN device whose other end this program holds, so every packet between them passes through here. What
is done to packets is what `tc netem` does (loss, delay), and needs no kernel module; what happens to the connections is
up to the TCP of the kernel. Needs root, or user namespaces and access to /dev/net/tun.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import json
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from itertools import count
from types import TracebackType
from typing import Any

HOSTS = ("10.99.0.1", "10.99.0.2")
_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_PACKET = 65536


# --- in the process of the cable -----------------------------------------------------------------------------------


def host(number: int, parent: socket.socket) -> None:
    """Become a host: a network namespace with one device; pass the device's other end to *parent*, then only exist."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"cable", _IFF_TUN | _IFF_NO_PI))
    for command in (
        "ip link set lo up",
        f"ip addr add {HOSTS[number]} peer {HOSTS[1 - number]} dev cable",
        "ip link set cable up",
    ):
        subprocess.run(command.split(), check=True, stdin=subprocess.DEVNULL)
    socket.send_fds(parent, [b"ready"], [device])
    signal.pause()


def make_hosts() -> tuple[list[int], list[int]]:
    """Return the ids of the processes that hold the namespaces, and the devices."""
    children, devices = [], []
    for number in range(2):
        ours, theirs = socket.socketpair()
        child = os.fork()
        if not child:
            try:
                # ends with the cable, however that ends
                ctypes.CDLL(None).prctl(1, signal.SIGKILL)
                host(number, theirs)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        theirs.close()
        _, found, _, _ = socket.recv_fds(ours, 16, 1)
        if not found:
            sys.exit(f"host {number} could not be made")
        children.append(child)
        devices += found
    return children, devices


def carry(devices: list[int], seed: int) -> None:
    """Pass packets on until stdin ends, as its lines say."""
    chance = random.Random(seed)
    state: dict[str, Any] = {"loss": 0.0, "delay": 0.0, "slow": [], "cut": []}
    on_the_way: list[tuple[float, int, int, bytes]] = []
    numbers = count()
    while True:
        wait = on_the_way[0][0] - time.monotonic() if on_the_way else None
        ready, _, _ = select.select([0, *devices], [], [], None if wait is None else max(0.0, wait))
        for one in ready:
            if one == 0:
                line = sys.stdin.readline()
                if not line:
                    return
                state = json.loads(line)
                print("{}", flush=True)
                continue
            packet = os.read(one, _PACKET)
            way = devices.index(one)
            if way in state["cut"] or chance.random() < state["loss"]:
                continue
            due = time.monotonic() + (state["delay"] if way in state["slow"] else 0.0)
            heapq.heappush(on_the_way, (due, next(numbers), 1 - way, packet))
        while on_the_way and on_the_way[0][0] <= time.monotonic():
            _, _, to, packet = heapq.heappop(on_the_way)
            try:
                os.write(devices[to], packet)
            except OSError:
                pass  # the device is down


# --- in the test ---------------------------------------------------------------------------------------------------


class Cable:
    """Starts the process; ``run_on`` is what stands before a command that is to run on host 0 or 1."""

    def __init__(self, seed: int) -> None:
        """Raises OSError where this may not be done, with what was said about it."""
        self._as_root = os.geteuid() == 0
        become_root = [] if self._as_root else ["unshare", "--user", "--map-root-user"]
        self._process = subprocess.Popen(
            [*become_root, sys.executable, __file__, str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            self._pids: list[int] = self._hear()["hosts"]
        except OSError:
            self._process.kill()
            raise OSError(self._process.communicate()[1].strip() or "it does not answer") from None

    def run_on(self, number: int) -> tuple[str, ...]:
        user = () if self._as_root else ("--user", "--preserve-credentials")
        return ("nsenter", *user, f"--target={self._pids[number]}", "--net", "--")

    def set(
        self, *, loss: float = 0.0, delay: float = 0.0, slow: tuple[int, ...] = (0, 1), cut: tuple[int, ...] = ()
    ) -> None:
        """Lose this share of packets, delay by so many seconds what the hosts in *slow* send, swallow it for *cut*."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"loss": loss, "delay": delay, "slow": slow, "cut": cut}) + "\n")
        self._process.stdin.flush()
        self._hear()

    def plug(self, number: int, state: str) -> None:
        """Set the device of a host ``up`` or ``down``."""
        subprocess.run([*self.run_on(number), "ip", "link", "set", "cable", state], check=True, timeout=120)

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], 120.0)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise OSError("the cable does not answer")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process, and the hosts with it."""
        self._process.kill()
        self._process.communicate(timeout=120.0)

    def __enter__(self) -> Cable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


if __name__ == "__main__":
    made, ends = make_hosts()
    print(json.dumps({"hosts": made}), flush=True)
    carry(ends, int(sys.argv[1]))
