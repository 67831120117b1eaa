"""Raw pyzmq, the yardstick: the loop that people write, dict to dict, two frames, unsigned, no journal.

PUB with XPUB_NODROP, so nothing is dropped and the consumer's count is the honest rate.
"""

from __future__ import annotations

from typing import Any

import orjson
import zmq

from bench.body import TOPIC, event
from bench.harness import Session, free_ports
from bench.role import Arrivals, Departures, Line

FULL_TOPIC = f"org.example.dev.koji.{TOPIC}".encode()


def measure(session: Session) -> None:
    """Record e2e/raw."""
    settings = {
        "address": f"tcp://127.0.0.1:{free_ports(1)[0]}",
        "warm": 5_000,
        "count": session.pick(300_000, 100_000),
    }
    outcome = session.pair("bench.raw", settings)
    session.record("e2e/raw", outcome.rate, "msg/s")
    session.record("cpu/raw", outcome.cpu_us, "us/msg")


def produce(line: Line, settings: dict[str, Any]) -> dict[str, Any]:
    """The publishing process."""
    departures = Departures(line, settings)
    with zmq.Context() as context, context.socket(zmq.PUB) as socket:
        socket.setsockopt(zmq.XPUB_NODROP, 1)
        socket.bind(settings["address"])
        line.say("ready")

        def publish(number: int) -> None:
            socket.send_multipart([FULL_TOPIC, orjson.dumps(event(number))])

        departures.greet(publish)
        for number in departures.warm_up():
            publish(number)
        for number in departures.measured():
            publish(number)
        return departures.report()


def consume(line: Line, settings: dict[str, Any]) -> dict[str, Any]:
    """The receiving process."""
    line.wait("ready")
    arrivals = Arrivals(line, settings)
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.setsockopt(zmq.SUBSCRIBE, FULL_TOPIC)
        socket.connect(settings["address"])
        while not arrivals.done:
            _, payload = socket.recv_multipart()
            arrivals(orjson.loads(payload))
    return arrivals.report()
