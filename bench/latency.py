"""Latency from just before publish() to the callback, in two processes on one machine (CLOCK_MONOTONIC is shared).

One message a millisecond, then an even five, ten and twenty thousand a second. The producer sleeps until each message
is due (never spins: it would take the processor from what is measured); what became due while it slept leaves at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import disk
from bench.body import TOPIC, stamped
from bench.fedbus import ENDPOINT, make_bus
from bench.harness import Session, free_ports
from bench.raw import FULL_TOPIC
from bench.role import Arrivals, Departures, Line
from bench.rows import percentile

LOADS = {"": 1_000, "5k/": 5_000, "10k/": 10_000, "20k/": 20_000}  # part of the row's name -> messages a second
POLICIES = {"fedbus": "interval", "fedbus-synced": "always"}


def measure(session: Session) -> None:
    """Record latency/raw, latency/fedbus (interval policy) and latency/fedbus-synced (the default), p50 and p99."""
    if session.figure("disk/fdatasync/p50") is None:
        disk.measure(session)
    _measure_all(session, "raw", lambda _load: {"address": f"tcp://127.0.0.1:{free_ports(1)[0]}"})
    synced = session.figure("disk/fdatasync/p50")
    raw = session.figure("latency/raw/p50")
    if synced is not None and raw is not None:
        session.record("latency/raw+fdatasync/p50", raw + synced, "us")
    for subject, policy in POLICIES.items():
        with session.scratch("bus") as folder:

            def make(load: str, folder: Path = folder, policy: str = policy) -> dict[str, Any]:
                config = folder / f"at-{load.strip('/') or '1k'}"
                make_bus(config, [ENDPOINT], journal={"sync": policy})
                # At one a millisecond each publish() returns when journaled; faster, one thread cannot wait for each.
                return {"config": str(config), "wait": not load}

            _measure_all(session, subject, make)


def _measure_all(session: Session, subject: str, make: Callable[[str], dict[str, Any]]) -> None:
    kind = "raw" if subject == "raw" else "fedbus"
    for load, rate in LOADS.items():
        if session.quick and load and subject == "raw":
            continue  # for comparison only
        tenths = session.pick(40, 10)
        settings = {**make(load), "rate": rate, "warm": rate * session.pick(5, 3) // 10, "count": rate * tenths // 10}
        outcome = session.pair("bench.latency", settings, produce=f"produce_{kind}", consume=f"consume_{kind}")
        if load:
            session.record(f"latency/{subject}/{load}reached", outcome.producer["rate"], "msg/s")
        for share in ("p50", "p99"):
            session.record(f"latency/{subject}/{load}{share}", outcome.consumer[share], "us")


def _pace(departures: Departures, rate: int, publish: Callable[[int], None]) -> dict[str, Any]:
    """Publish warm-up and measured messages at *rate* a second; the report has the rate that was reached."""
    reached = 0.0
    for phase in (departures.warm_up, departures.measured):
        numbers = phase()
        begin = due = time.monotonic_ns()
        for number in numbers:
            ahead = due - time.monotonic_ns()
            if ahead > 0:
                time.sleep(ahead / 1e9)
            publish(number)
            due += 1_000_000_000 // rate
        reached = len(numbers) * 1e9 / max(1, time.monotonic_ns() - begin)
    return {**departures.report(), "rate": reached}


class _Stopwatch:
    """The callback: notes how long each message took."""

    def __init__(self, line: Line, settings: dict[str, Any]) -> None:
        self.arrivals = Arrivals(line, settings)
        self._count: int = settings["count"]
        self._taken: list[int] = []

    def __call__(self, body: dict[str, Any]) -> bool:
        self._taken.append(time.monotonic_ns() - body["sent_ns"])
        self.arrivals(body)
        return self.arrivals.done

    def report(self) -> dict[str, Any]:
        """p50 and p99 of the measured messages in microseconds."""
        taken = [each / 1_000 for each in self._taken[-self._count :]]
        return {**self.arrivals.report(), "p50": percentile(taken, 0.5), "p99": percentile(taken, 0.99)}


def produce_raw(line: Line, settings: dict[str, Any]) -> dict[str, Any]:
    """The publishing process: raw pyzmq."""
    import orjson
    import zmq

    departures = Departures(line, settings)
    with zmq.Context() as context, context.socket(zmq.PUB) as socket:
        socket.setsockopt(zmq.XPUB_NODROP, 1)
        socket.bind(settings["address"])
        line.say("ready")

        def publish(number: int) -> None:
            socket.send_multipart([FULL_TOPIC, orjson.dumps(stamped(number, time.monotonic_ns()))])

        departures.greet(publish)
        return _pace(departures, settings["rate"], publish)


def consume_raw(line: Line, settings: dict[str, Any]) -> dict[str, Any]:
    """The receiving process: raw pyzmq."""
    import orjson
    import zmq

    line.wait("ready")
    stopwatch = _Stopwatch(line, settings)
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.setsockopt(zmq.SUBSCRIBE, FULL_TOPIC)
        socket.connect(settings["address"])
        done = False
        while not done:
            _, payload = socket.recv_multipart()
            done = stopwatch(orjson.loads(payload))
    return stopwatch.report()


def produce_fedbus(line: Line, settings: dict[str, Any]) -> dict[str, Any]:
    """The publishing process: fedbus."""
    import fedbus

    departures = Departures(line, settings)
    with fedbus.Bus.open(Path(settings["config"])) as bus, bus.publisher(ENDPOINT) as publisher:
        line.say("ready")
        send: Callable[[str, dict[str, Any]], object] = publisher.publish if settings["wait"] else publisher.enqueue

        def publish(number: int) -> None:
            send(TOPIC, stamped(number, time.monotonic_ns()))

        return _pace(departures, settings["rate"], publish)


def consume_fedbus(line: Line, settings: dict[str, Any]) -> dict[str, Any]:
    """The receiving process: fedbus."""
    import fedbus

    line.wait("ready")
    stopwatch = _Stopwatch(line, settings)
    with fedbus.Bus.open(Path(settings["config"])) as bus:
        messages = bus.subscribe("koji", since="beginning")
        stopwatch.arrivals.join()
        for message in messages:
            if stopwatch(message.body):
                break
        return stopwatch.report()
