"""The hub: how many messages it gives to one and to ten trivial consumers, and what five bad ones do to a good one.

The bad ones are a consumer that sleeps ten seconds with each message, one that raises, and three in processes of their
own: one that hangs beyond its timeout, one that segfaults, one that leaks. All other settings are the defaults.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.body import TOPIC, stamped
from bench.fedbus import ENDPOINT, make_bus
from bench.harness import Session
from bench.role import Arrivals, Departures, Line
from bench.rows import percentile

RATE = 200  # messages a second, where latency is measured

BAD = """
import os, signal, time
import fedbus


class Bad(fedbus.Consumer):
    topics = ("koji",)
    since = "beginning"

    def __init__(self, what: str) -> None:
        self.what = what
        self.kept: list[bytes] = []

    def consume(self, message: fedbus.Message) -> None:
        if self.what == "sleeps":
            time.sleep(10.0)
        elif self.what == "raises":
            raise RuntimeError("always")
        elif self.what == "hangs":
            time.sleep(3600.0)
        elif self.what == "segfaults":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif self.what == "leaks":
            self.kept.append(os.urandom(100_000))
"""
WAYS: dict[str, dict[str, Any]] = {
    "sleeps": {},
    "raises": {},
    "hangs": {"isolation": "process", "timeout": "1s"},
    "segfaults": {"isolation": "process"},
    "leaks": {"isolation": "process", "memory_bytes": "100MB"},
}


def measure(session: Session) -> None:
    """Record hub/one, hub/ten, and p50 and p99 of hub/good and hub/good-beside-bad."""
    for row, consumers in (("one", 1), ("ten", 10)):
        with session.scratch("bus") as folder:
            config = folder / "fedbus.d"
            make_bus(config, [ENDPOINT])
            count = session.pick(200_000, 60_000) // (1 if consumers == 1 else 4)
            settings = {"config": str(config), "topics": (TOPIC,), "warm": 5_000, "count": count}
            outcome = session.pair(
                "bench.consumers", {**settings, "consumers": consumers}, produce="produce", consume="consume"
            )
        session.record(f"hub/{row}", outcome.rate, "msg/s")
        session.record(f"cpu/hub-{row}", outcome.cpu_us, "us/msg")
    for row, ways in (("good", {}), ("good-beside-bad", WAYS)):
        with session.scratch("bus") as folder:
            config = folder / "fedbus.d"
            _make_bad(config, ways)
            seconds = session.pick(15, 6)
            outcome = session.pair(
                "bench.consumers",
                {"config": str(config), "rate": RATE, "warm": RATE * 3, "count": RATE * seconds},
                produce="produce_paced",
                consume="consume_good",
            )
        for share in ("p50", "p99"):
            session.record(f"hub/{row}/{share}", outcome.consumer[share], "us")


def _make_bad(config: Path, ways: dict[str, dict[str, Any]]) -> None:
    consumers = {
        f"bad-{what}": {"use": "bad.py", "settings": {"what": what}, **options} for what, options in ways.items()
    }
    # the disk is not what is measured here
    make_bus(config, [ENDPOINT], journal={"sync": "interval"}, hub={"folder": "consumers"}, consumers=consumers)
    folder = config / "consumers"
    folder.mkdir(mode=0o700)
    (folder / "bad.py").write_text(BAD)
    (folder / "bad.py").chmod(0o600)


def produce(line: Line, settings: dict[str, Any]) -> dict[str, Any]:
    """The publishing process."""
    from bench import fedbus as plain

    return plain.produce(line, settings)


def produce_paced(line: Line, settings: dict[str, Any]) -> dict[str, Any]:
    """The publishing process, at an even rate; each publish waits for its receipt."""
    import fedbus

    departures = Departures(line, settings)
    with fedbus.Bus.open(Path(settings["config"])) as bus, bus.publisher(ENDPOINT) as publisher:
        line.say("ready")
        for phase in (departures.warm_up, departures.measured):
            numbers = phase()
            due = time.monotonic_ns()
            for number in numbers:
                time.sleep(max(0.0, (due - time.monotonic_ns()) / 1e9))
                publisher.publish(TOPIC, stamped(number, time.monotonic_ns()))
                due += 1_000_000_000 // settings["rate"]
        return departures.report()


def _run(line: Line, settings: dict[str, Any], calls: Sequence[Callable[[dict[str, Any]], bool]]) -> int:
    """Run a hub with a consumer for each of *calls*, and those that are configured, until all say that it is enough.

    Returns when the last of them did, in nanoseconds of the monotonic clock. One that sleeps may still be in its call.
    """
    import fedbus
    from fedbus.hub import pauses
    from fedbus.hub.registry import find

    def begin() -> None:
        pauses.spare_the_collector()
        line.say("joined")

    pauses.shorten_turns()  # as `fedbus hub` does
    left = set(range(len(calls)))
    ended_ns = 0

    class Trivial(fedbus.Consumer):
        topics = ("koji",)
        since = "beginning"

        def __init__(self, number: int) -> None:
            self.name = f"trivial-{number}"  # type: ignore[misc]
            self.number = number
            self.call = calls[number]

        def consume(self, message: fedbus.Message) -> None:
            nonlocal ended_ns
            if self.call(message.body):
                left.discard(self.number)
                if not left:
                    ended_ns = time.monotonic_ns()
                    raise fedbus.Halt(0)

    with fedbus.Bus.open(Path(settings["config"])) as bus:
        configured = bus.settings.consumers
        bad = find(configured, folder=bus.settings.hub.folder, origins=bus.settings.origins) if configured else None
        if bad is not None and bad.problems:
            raise RuntimeError(f"not loaded: {bad.problems}")
        # those first that are to be slow: the good one must not have a place in the queue that helps it
        hub = bus.hub([*(bad.consumers if bad is not None else ()), *map(Trivial, range(len(calls)))])
        hub.run(on_ready=begin)
    return ended_ns


def consume(line: Line, settings: dict[str, Any]) -> dict[str, Any]:
    """The process of a hub with trivial consumers; each sees that no message is missing."""
    line.wait("ready")
    first = Arrivals(line, settings)
    first.join = lambda: None  # type: ignore[method-assign]
    warm, count = settings["warm"], settings["count"]

    def timed(body: dict[str, Any]) -> bool:
        first(body)
        return first.done

    def counted() -> Callable[[dict[str, Any]], bool]:
        expected = 0

        def call(body: dict[str, Any]) -> bool:
            nonlocal expected
            if body["counter"] != expected:
                raise RuntimeError(f"message {expected} expected, {body['counter']} received")
            expected += 1
            return expected == warm + count

        return call

    ended_ns = _run(line, settings, [timed, *(counted() for _ in range(settings["consumers"] - 1))])
    return {**first.report(), "last_ns": ended_ns}  # of the slowest


def consume_good(line: Line, settings: dict[str, Any]) -> dict[str, Any]:
    """The process of a hub with one good consumer, and those of the configuration."""
    line.wait("ready")
    arrivals = Arrivals(line, settings)
    taken: list[int] = []

    def call(body: dict[str, Any]) -> bool:
        taken.append(time.monotonic_ns() - body["sent_ns"])
        arrivals(body)
        return arrivals.done

    _run(line, settings, [call])
    measured = [each / 1_000 for each in taken[-settings["count"] :]]
    return {**arrivals.report(), "p50": percentile(measured, 0.5), "p99": percentile(measured, 0.99)}
