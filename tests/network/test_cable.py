"""Two hosts and a cable that loses and delays packets, goes silent in one direction, or is pulled.

It is cut for FEDBUS_FAULT_SECONDS, by default a few; `make soak` cuts it for a minute.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedbus.config.init import create
from tests.network.cable import HOSTS, Cable
from tests.support import need_program, wait_until

KOJI = "koji.build01"
SECONDS = float(os.environ.get("FEDBUS_FAULT_SECONDS", "3"))
PATIENCE = 120.0
HEARTBEAT = 5.0  # seconds; of ZMTP, see fedbus/transport/sockets.py

# publishes so many messages of so many bytes as each line of stdin says, and prints the last receipt's sequence
PUBLISH = textwrap.dedent("""
    import sys
    import fedbus

    with fedbus.Bus.open() as bus, bus.publisher("koji.build01") as koji:
        number = 0
        for line in sys.stdin:
            count, size = map(int, line.split())
            for _ in range(count):
                number += 1
                koji.publish("build.start", {"n": number, "padding": "x" * size})
            print(number, flush=True)
""")


class Hosts:
    """A publisher on host 0, and readers on host 1, which has a configuration and a disk of its own."""

    def __init__(self, cable: Cable, folder: Path, spawn: Callable[..., Any], settings: str) -> None:
        self.cable = cable
        self.spawn = spawn
        self.config = folder / "bus"
        create(self.config, [KOJI])
        address = f"tcp://{HOSTS[0]}"
        (self.config / "20-endpoints.yaml").write_text(
            f"endpoints:\n  {KOJI}:\n    publish: {address}:3000\n    replay: {address}:3001\n"
        )
        if settings:
            (self.config / "60-quick.yaml").write_text(settings)
        self.far = folder / "far"
        shutil.copytree(self.config, self.far)
        self.publisher = spawn(
            PUBLISH, config=self.config, stdin=subprocess.PIPE, command=(*cable.run_on(0), sys.executable, "-c")
        )

    def publish(self, count: int, size: int = 200) -> int:
        """Return the number of messages published so far, all of them acknowledged."""
        before = self.publisher.out
        self.publisher.process.stdin.write(f"{count} {size}\n".encode())
        self.publisher.process.stdin.flush()
        wait_until(lambda: self.publisher.code is not None or self._newer_than(before), PATIENCE, "the receipts")
        assert self.publisher.code is None, self.publisher.err
        return int(self.publisher.out.split()[-1])

    def _newer_than(self, before: str) -> bool:
        return self.publisher.out != before and self.publisher.out.endswith("\n")

    def tail(self, *arguments: str) -> Any:
        command = (*self.cable.run_on(1), sys.executable, "-m", "fedbus.cli", "-vv", "tail", "--json")
        return self.spawn(*arguments, config=self.far, command=command)


@pytest.fixture
def hosts(tmp_path: Path, spawn: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Hosts]]:
    for program in ("ip", "nsenter", "unshare"):
        need_program(program)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    try:
        cable = Cable(seed)
    except OSError as error:
        pytest.skip(f"this machine lets us make no network namespaces with a TUN device: {error}")
    with cable:
        yield lambda settings="": Hosts(cable, tmp_path, spawn, settings)


def sequences(tail: Any) -> list[int]:
    return [one["body"]["n"] for one in tail.records() if "body" in one]


def wait_for(tail: Any, last: int, timeout: float = PATIENCE) -> None:
    """Wait until *tail* has shown message *last*; then it must have shown all before it, once."""
    wait_until(lambda: sequences(tail)[-1:] == [last], timeout, f"message {last} from the tail; stderr: {tail.err}")
    shown = sequences(tail)
    assert shown == list(range(shown[0], last + 1))


def noticed_after(tail: Any, before: str) -> float:
    """Wait until *tail* has said after *before* that the endpoint is silent; return after how many seconds it did."""
    said = re.compile(r"nothing that verifies has come .* for ([0-9.]+) s")
    found = wait_until(lambda: said.search(tail.err, len(before)), PATIENCE, "word of the silence")
    return float(found[1])


QUICK = "publisher: {beat_interval: 200ms}\nsubscriber: {silence: 1s}\n"


@pytest.mark.fault("F9")
@pytest.mark.parametrize("host", [0, 1], ids=["from the publisher", "to the publisher"])
def test_a_cable_that_swallows_one_direction_is_noticed_and_refilled(hosts: Callable[..., Hosts], host: int) -> None:
    world = hosts(QUICK)
    world.publish(1)
    tail = world.tail("--since", "beginning")
    wait_for(tail, world.publish(5))
    before = tail.err
    world.cable.set(cut=(host,))
    last = world.publish(50)
    assert noticed_after(tail, before) <= 2 * HEARTBEAT
    world.cable.set()
    wait_for(tail, last)
    wait_for(tail, world.publish(5))


@pytest.mark.fault("F9")
def test_a_cable_that_loses_a_third_of_all_packets_loses_no_message(hosts: Callable[..., Hosts]) -> None:
    world = hosts()
    world.publish(30)
    world.cable.set(loss=0.3)
    tail = world.tail("--since", "beginning")
    wait_for(tail, 30)
    last = world.publish(60)
    wait_for(tail, last)


@pytest.mark.fault("F9")
@pytest.mark.timeout(2 * SECONDS + 900)
def test_a_cable_that_is_cut_for_a_while_loses_no_message(hosts: Callable[..., Hosts]) -> None:
    world = hosts(QUICK if SECONDS < 15 else "")
    world.publish(1)
    tail = world.tail("--since", "beginning")
    wait_for(tail, world.publish(5))
    before = tail.err
    world.cable.set(cut=(0, 1))
    until = time.monotonic() + SECONDS
    last = 0
    while last == 0 or time.monotonic() < until:
        last = world.publish(20)
    noticed_after(tail, before)
    world.cable.set()
    wait_for(tail, last, 2 * PATIENCE)
    wait_for(tail, world.publish(5))


@pytest.mark.fault("F9")
def test_a_reader_joins_over_a_cable_of_two_seconds(hosts: Callable[..., Hosts]) -> None:
    world = hosts()
    last = world.publish(30)
    # of the publisher's packets, as netem on its interface does; in the long run both ways, where a handshake takes 8 s
    world.cable.set(delay=2.0, slow=(0,) if SECONDS < 15 else (0, 1))
    tail = world.tail("--since", "beginning")
    wait_for(tail, last, 2 * PATIENCE)
    wait_for(tail, world.publish(30))
    assert "nothing that verifies has come" not in tail.err, "it was given up before it could be heard, or after"


@pytest.mark.fault("F9")
def test_a_cable_that_is_pulled_and_plugged_in_again_is_refilled(hosts: Callable[..., Hosts]) -> None:
    world = hosts(QUICK)
    world.publish(1)
    tail = world.tail("--since", "beginning")
    wait_for(tail, 1)
    for number in (1, 0):
        before = tail.err
        world.cable.plug(number, "down")
        last = world.publish(50)
        if number:
            noticed_after(tail, before)
        world.cable.plug(number, "up")
        wait_for(tail, last)
