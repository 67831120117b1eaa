"""Runs one scenario in namespaces of its own, where /etc/hosts and /etc/resolv.conf are ours: `unshare -rmn` starts it.

Arguments: the scenario, a bus folder, a folder for files. Prints "done" at the end, or a traceback.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shutil
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from fedbus import Bus, Publisher, Subscriber

KOJI, BODHI = "koji.build01", "bodhi.web01"
NAME = "build01.example.org"
PATIENCE = 120.0
_MS_BIND = 4096
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1


class World:
    """This host, as the namespaces show it."""

    def __init__(self, folder: Path, place: Path) -> None:
        self.folder = folder
        self.readers = place / "readers"
        self.hosts = place / "hosts"
        self.resolver = place / "resolv.conf"
        self.say("")
        self.resolver.write_text("nameserver 127.0.0.53\noptions timeout:30 attempts:5\n")
        libc = ctypes.CDLL(None, use_errno=True)
        for ours, theirs in ((self.hosts, b"/etc/hosts"), (self.resolver, b"/etc/resolv.conf")):
            if libc.mount(os.fsencode(ours), theirs, None, _MS_BIND, None):
                raise OSError(ctypes.get_errno(), "cannot mount")
        with socket.socket() as any_socket:
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
        text = (folder / "20-endpoints.yaml").read_text()
        self.text = text
        self.readers.mkdir()
        shutil.copy(folder / "10-bus.yaml", self.readers)
        keys = folder / "keys"
        more = (
            f"keys: {{directory: {keys}, ca: {keys / 'ca.crt'}, crl: {keys / 'crl.pem'}}}\nstate: {place / 'state'}\n"
            "subscriber: {silence: 1s}\n"
        )
        self.put(self.readers / "15-more.yaml", more)
        # readers know the first endpoint by the name of its host, and are elsewhere: no journal is at hand
        self.put(self.readers / "20-endpoints.yaml", self.at(KOJI, NAME))

    def put(self, path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o600)

    def at(self, endpoint: str, host: str) -> str:
        """Return the endpoints file with *endpoint* at *host*."""
        begin = self.text.index(f"  {endpoint}:")
        return self.text[:begin] + re.sub(r"127\.0\.0\.1", host, self.text[begin:], count=2)

    def say(self, address: str) -> None:
        """Let the name stand for *address*, or for nothing. In place: it is mounted."""
        self.hosts.write_text("127.0.0.1 localhost\n" + (f"{address} {NAME}\n" if address else ""))

    def publisher(self, stack: ExitStack, endpoint: str = KOJI, host: str = "127.0.0.1") -> Publisher:
        """Open a publisher that binds *host*."""
        self.put(self.folder / "20-endpoints.yaml", self.at(endpoint, host))
        bus = stack.enter_context(Bus.open(self.folder))
        return stack.enter_context(bus.publisher(endpoint))

    def subscribe(self, stack: ExitStack, *filters: str) -> Subscriber:
        bus = stack.enter_context(Bus.open(self.readers))
        return stack.enter_context(bus.subscribe(*filters, since="now"))


def take(subscriber: Subscriber, *wanted: int) -> None:
    found: list[int] = []
    deadline = time.monotonic() + PATIENCE
    while len(found) < len(wanted):
        assert time.monotonic() < deadline, f"{found} of {wanted}"
        found += [message.body["n"] for message in subscriber.receive(0.1)]
    assert found == list(wanted)


def take_until(subscriber: Subscriber, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        assert subscriber.receive(0.05) == []


def unknown_at_first(world: World, stack: ExitStack) -> None:
    subscriber = world.subscribe(stack, "koji")
    koji = world.publisher(stack)
    koji.publish("build.start", {"n": 1})
    reader = next(one for one in subscriber.readers() if one.endpoint == KOJI)
    take_until(subscriber, lambda: reader.stats.unanswered)
    world.say("127.0.0.1")
    koji.publish("build.start", {"n": 2})
    take(subscriber, 1, 2)


def moved(world: World, stack: ExitStack) -> None:
    world.say("127.0.0.2")
    subscriber = world.subscribe(stack, "koji")
    with ExitStack() as first:
        koji = world.publisher(first, host="127.0.0.2")
        koji.publish("build.start", {"n": 1})
        take(subscriber, 1)
        koji.publish("build.start", {"n": 2})
    koji = world.publisher(stack, host="127.0.0.3")
    world.say("127.0.0.3")
    koji.publish("build.start", {"n": 3})
    take(subscriber, 2, 3)


def nobody_answers(world: World, stack: ExitStack) -> None:
    """A name server that takes questions and is silent must not stop endpoints whose addresses are known."""
    server = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    server.bind(("127.0.0.53", 53))
    server.settimeout(PATIENCE)
    subscriber = world.subscribe(stack)
    bodhi = world.publisher(stack, BODHI)
    assert server.recv(512), "the name is being looked up"
    for number in range(1, 51):
        bodhi.publish("update.new", {"n": number})
        take(subscriber, number)
    reader = next(one for one in subscriber.readers() if one.endpoint == KOJI)
    assert reader.heard_at is None


def main(scenario: str, folder: str, place: str) -> None:
    with ExitStack() as stack:
        {one.__name__: one for one in (unknown_at_first, moved, nobody_answers)}[scenario](
            World(Path(folder), Path(place)), stack
        )
        print("done", flush=True)
        os._exit(0)  # a question that nobody answers must not be waited for


if __name__ == "__main__":
    main(*sys.argv[1:])
