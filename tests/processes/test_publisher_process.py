"""Publishers as processes of their own: killed at any moment, or ended without a word of good-bye."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from fedbus import Bus, Message
from fedbus.transport.state import Loss
from fedbus.transport.subscriber import Subscriber
from tests.support import wait_until

KOJI = "koji.build01"
PATIENCE = 120.0
ROOT = Path(__file__).resolve().parents[2]

# prints "TURN-NUMBER SEQUENCE ID" for each receipt that it was given
SAY = textwrap.dedent("""
    import os, sys
    import fedbus

    config, turn = sys.argv[1:]
    koji = fedbus.Bus.open(config).publisher("koji.build01")
    number = 0
    while True:
        waiting = []
        for _ in range(30):
            number += 1
            topic = "build.start" if number % 3 else "tag.add"
            waiting.append((number, koji.enqueue(topic, {"n": f"{turn}-{number}"})))
        for one, pending in waiting:
            receipt = pending.result()
            os.write(1, f"{turn}-{one} {receipt.sequence} {receipt.id}\\n".encode())
""")


def python(script: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.fault("F2")
@pytest.mark.parametrize("filters", [(), ("koji.tag",)], ids=["everything", "a topic"])
def test_every_receipt_of_a_publisher_that_is_killed_again_and_again_is_served(
    bus_folder: Path, filters: tuple[str, ...]
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    receipts: dict[int, tuple[str, str]] = {}
    losses: list[Loss] = []
    with Bus.open(bus_folder) as bus, bus.subscribe(*filters, since="beginning", on_loss=losses.append) as live:
        got: list[Message] = []
        for turn in range(4):
            child = python(SAY, bus_folder, str(turn))
            assert child.stdout is not None
            try:
                for _ in range(chance.randrange(1, 400)):
                    note(receipts, child.stdout.readline())
                    got += live.receive(0.0)
            finally:
                child.send_signal(signal.SIGKILL)
                for line in child.stdout.read().splitlines(keepends=True):
                    if line.endswith(b"\n"):
                        note(receipts, line)
                child.wait(PATIENCE)
                child.stdout.close()
        with bus.publisher(KOJI) as koji:
            last = koji.publish("tag.add", {"n": "last"})
            epoch = koji.epoch
            wait_until(lambda: collect(live, got) and got[-1].sequence == last.sequence, PATIENCE)
            with bus.subscribe(*filters, since="beginning", on_loss=losses.append) as late:
                again: list[Message] = []
                wait_until(lambda: collect(late, again) and again[-1].sequence == last.sequence, PATIENCE)
    assert losses == []
    assert [one.key for one in got] == [one.key for one in again]
    assert {one.epoch for one in got} == {epoch}
    if not filters:
        assert [one.sequence for one in got] == list(range(1, last.sequence + 1))
    served = {one.sequence: (one.body["n"], one.id) for one in got}
    wanted = {at: one for at, one in receipts.items() if not filters or int(one[0].split("-")[1]) % 3 == 0}
    assert wanted
    assert {at: served.get(at) for at in wanted} == wanted


def note(receipts: dict[int, tuple[str, str]], line: bytes) -> None:
    number, sequence, identifier = line.decode().split()
    assert int(sequence) not in receipts, "a sequence was given twice"
    receipts[int(sequence)] = (number, identifier)


def collect(subscriber: Subscriber, messages: list[Message]) -> bool:
    messages += subscriber.receive(0.05)
    return bool(messages)


LEAVE = textwrap.dedent("""
    import sys
    import fedbus

    bus = fedbus.Bus.open(sys.argv[1])
    koji = bus.publisher("koji.build01")
    for number in range(1, 2001):
        koji.publish("build.start", {"n": number}, wait=False)
    if sys.argv[2] == "raise":
        raise RuntimeError("on purpose")
    if sys.argv[2] == "thread":
        import threading
        threading.Thread(target=lambda: koji.publish("build.stop", {"n": 2001})).start()
    if sys.argv[2] == "exit":
        sys.exit(7)
""")


@pytest.mark.parametrize(
    ("how", "code", "count"), [("end", 0, 2000), ("raise", 1, 2000), ("exit", 7, 2000), ("thread", 0, 2001)]
)
def test_an_exit_without_close_flushes(bus_folder: Path, how: str, code: int, count: int) -> None:
    child = subprocess.run(
        [sys.executable, "-c", LEAVE, str(bus_folder), how],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=PATIENCE,
    )
    assert child.returncode == code
    assert (b"on purpose" in child.stderr) == (how == "raise")
    with Bus.open(bus_folder) as bus, bus.subscribe(since="beginning") as subscriber:
        got: list[Message] = []
        wait_until(lambda: collect(subscriber, got) and len(got) >= count, PATIENCE)
    assert sorted(one.body["n"] for one in got) == list(range(1, count + 1))


@pytest.mark.fault("F7")
def test_a_frozen_subscriber_catches_up_when_it_wakes(bus_folder: Path, spawn) -> None:
    tail = spawn("tail", "--json", "--since", "beginning", "--count", "3000", config=bus_folder)
    with Bus.open(bus_folder) as bus, bus.publisher(KOJI) as koji:
        koji.publish("build.start", {"n": 1})
        wait_until(lambda: tail.records(), PATIENCE)
        tail.send(signal.SIGSTOP)
        padding = "x" * 2000
        for number in range(2, 3001):
            koji.enqueue("build.start", {"n": number, "padding": padding})
        koji.flush()
        tail.send(signal.SIGCONT)
        assert tail.wait(PATIENCE) == 0
    assert [one["body"]["n"] for one in tail.records()] == list(range(1, 3001))
