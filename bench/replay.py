"""Verified replay: a subscriber reads a publisher's whole journal, a million messages, from the beginning.

The journal is filled once a run, by the publisher itself at full speed; each round starts the publisher anew (it
serves what it has) and a fresh subscriber. Rate: messages / (last received - last of the warm-up received).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from bench.body import TOPIC, event
from bench.fedbus import ENDPOINT, MEGABYTE, make_bus
from bench.harness import Session
from bench.role import Line, resident_bytes, usage

WARM = 5_000
SAMPLES = 20  # of the subscriber's memory


def measure(session: Session) -> None:
    """Record replay/fedbus, the subscriber's memory, and by how much that grew after the first fifth."""
    count = session.pick(1_000_000, 100_000)

    def fill(folder: Path) -> None:
        make_bus(folder / "fedbus.d", [ENDPOINT], journal={"retain_bytes": 0})
        with session.worker(
            "bench.replay", "fill", {"config": str(folder / "fedbus.d"), "count": WARM + count}
        ) as each:
            each.expect("report", timeout=300.0)

    config = session.kept("replay", fill) / "fedbus.d"
    settings = {"config": str(config), "count": count}
    with session.worker("bench.replay", "serve", settings) as server:
        server.expect("ready")
        with session.worker("bench.replay", "read", settings) as reader:
            report = reader.expect("report", timeout=300.0)
    session.record("replay/fedbus", report["rate"], "msg/s")
    session.record("replay/fedbus/memory", report["rss_peak"] / MEGABYTE, "MB")
    session.record("replay/fedbus/growth", report["growth"] / MEGABYTE, "MB")


def fill(_line: Line, settings: dict[str, Any]) -> dict[str, Any]:
    """Journal "count" messages."""
    import fedbus

    with fedbus.Bus.open(Path(settings["config"])) as bus, bus.publisher(ENDPOINT) as publisher:
        for number in range(settings["count"]):
            publisher.enqueue(TOPIC, event(number))
        publisher.flush(timeout=240.0)
    return usage()


def serve(line: Line, settings: dict[str, Any]) -> dict[str, Any]:
    """Open the publisher and leave it to its replay socket until the harness ends this process."""
    import fedbus

    with fedbus.Bus.open(Path(settings["config"])) as bus, bus.publisher(ENDPOINT):
        line.say("ready")
        line.wait("stop", timeout=600.0)
    return usage()


def read(_line: Line, settings: dict[str, Any]) -> dict[str, Any]:
    """Receive everything from the beginning; none may be missing."""
    import fedbus

    count: int = settings["count"]
    step = count // SAMPLES
    memory: list[int] = []
    begin = time.monotonic_ns()
    bus = fedbus.Bus.open(Path(settings["config"]))  # closed by the end of the process
    messages = bus.subscribe("koji", since="beginning")
    for expected, message in enumerate(messages):
        number = message.body["counter"]
        if number != expected:
            raise RuntimeError(f"message {expected} expected, {number} received")
        if number == WARM:
            begin = time.monotonic_ns()
        if number % step == 0:
            memory.append(resident_bytes())
        if number == WARM + count - 1:
            break
    taken = time.monotonic_ns() - begin
    return {**usage(), "rate": count * 1e9 / taken, "growth": max(memory) - memory[SAMPLES // 5]}
