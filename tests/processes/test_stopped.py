"""A publisher or a subscriber that is stopped for a while, as by a debugger, a full swap or a machine that is moved.

For FEDBUS_FAULT_SECONDS, by default a few; `make soak` stops them for a minute.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedbus.config.init import create
from tests.support import wait_until

KOJI = "koji.build01"
SECONDS = float(os.environ.get("FEDBUS_FAULT_SECONDS", "3"))
PATIENCE = 120.0

pytestmark = pytest.mark.timeout(2 * SECONDS + 900)

# publishes so many messages of so many bytes as each line of stdin says, and prints how many receipts there are
PUBLISH = textwrap.dedent("""
    import sys
    import fedbus

    with fedbus.Bus.open() as bus, bus.publisher("koji.build01") as koji:
        number = 0
        for line in sys.stdin:
            count, size = map(int, line.split())
            for _ in range(count):
                number += 1
                waiting = koji.enqueue(f"build{number % 7}.start", {"n": number, "padding": "x" * size})
            waiting.result()
            koji.flush()
            print(number, flush=True)
""")


class Bench:
    """A publisher and tails; the tails have a disk of their own, so they must ask the publisher."""

    def __init__(self, folder: Path, spawn: Callable[..., Any]) -> None:
        self.spawn = spawn
        self.config, self.far = folder / "bus", folder / "far"
        create(self.config, [KOJI])
        quick = self.config / "60-quick.yaml"
        quick.write_text(
            f"subscriber: {{silence: {min(5.0, SECONDS / 3):.1f}s, receive_hwm: 10}}\n"
            "publisher: {beat_interval: 200ms, send_hwm: 10}\n"
        )
        quick.chmod(0o600)
        shutil.copytree(self.config, self.far)
        self.publisher = spawn(PUBLISH, config=self.config, stdin=subprocess.PIPE, command=(sys.executable, "-c"))

    def ask(self, count: int, size: int = 100) -> None:
        self.publisher.process.stdin.write(f"{count} {size}\n".encode())
        self.publisher.process.stdin.flush()

    def acknowledged(self) -> int:
        assert self.publisher.code is None, self.publisher.err
        return int((self.publisher.out.split("\n")[:-1] or ["0"])[-1])

    def publish(self, count: int, size: int = 100) -> int:
        """Return how many messages were acknowledged so far, these among them."""
        wanted = self.acknowledged() + count
        self.ask(count, size)
        wait_until(lambda: self.acknowledged() >= wanted, PATIENCE, "the receipts")
        return wanted

    def tail(self) -> Any:
        return self.spawn("--verbose", "tail", "--json", "--since", "beginning", config=self.far)


@pytest.fixture
def bench(tmp_path: Path, spawn: Callable[..., Any]) -> Bench:
    return Bench(tmp_path, spawn)


def shown(tail: Any) -> list[int]:
    return [one["body"]["n"] for one in tail.records()]


def has_all(tail: Any, last: int) -> bool:
    assert tail.code is None, tail.err
    return shown(tail)[-1:] == [last]


def ends(tail: Any) -> str:
    """End *tail* and return its notices."""
    tail.send(signal.SIGINT)
    tail.wait(PATIENCE)
    return str(tail.err)


def stop(running: Any) -> None:
    """Stop a process; on return all its threads stand still."""
    running.send(signal.SIGSTOP)
    tasks = Path(f"/proc/{running.process.pid}/task")

    def stands() -> bool:
        return all((task / "stat").read_text().rpartition(") ")[2][0] == "T" for task in tasks.iterdir())

    wait_until(stands, PATIENCE, "the stop")


def for_the_time(act: Callable[[], object]) -> None:
    """Do something again and again for as long as the fault lasts."""
    until = time.monotonic() + SECONDS

    def step() -> bool:
        act()
        return time.monotonic() > until

    wait_until(step, 2 * SECONDS + PATIENCE)


@pytest.mark.fault("F7")
@pytest.mark.fault("F9")
def test_a_publisher_that_is_stopped_goes_on_where_it_was(bench: Bench) -> None:
    tail = bench.tail()
    last = bench.publish(100)
    wait_until(lambda: has_all(tail, last), PATIENCE, "the tail")
    stop(bench.publisher)
    bench.ask(1000)
    for_the_time(lambda: has_all(tail, last))
    bench.publisher.send(signal.SIGCONT)
    wait_until(lambda: bench.acknowledged() == last + 1000, PATIENCE, "the receipts")
    last = bench.publish(100)
    wait_until(lambda: has_all(tail, last), PATIENCE, "the tail")
    assert shown(tail) == list(range(1, last + 1))
    assert "losses 0" in ends(tail)


@pytest.mark.fault("F7")
def test_a_subscriber_that_is_stopped_sees_the_gap_and_reads_it_while_others_go_on(bench: Bench) -> None:
    stopped, other = bench.tail(), bench.tail()
    last = bench.publish(100)
    wait_until(lambda: has_all(stopped, last) and has_all(other, last), PATIENCE, "the tails")
    stop(stopped)
    # more than the sockets and the kernel hold for one that does not read
    last = bench.publish(3000, 4000)
    wait_until(lambda: has_all(other, last), PATIENCE, "the other tail")

    def traffic() -> None:
        nonlocal last
        last = bench.publish(5)
        wait_until(lambda: has_all(other, last), PATIENCE, "the other tail")

    for_the_time(traffic)
    assert shown(stopped) == list(range(1, 101))
    stopped.send(signal.SIGCONT)
    wait_until(lambda: has_all(stopped, last), PATIENCE, "the tail that was stopped")
    last = bench.publish(10)
    wait_until(lambda: has_all(stopped, last) and has_all(other, last), PATIENCE, "the tails")
    for tail in (stopped, other):
        assert shown(tail) == list(range(1, last + 1))
        notices = ends(tail)
        assert "losses 0" in notices
        assert tail is other or "gaps read again 0" not in notices
