"""NATS JetStream: nats-server from Debian, one stream in files, nats-py at both ends.

Published with acknowledgements, 256 of them in flight; consumed by a durable pull consumer in batches of 256 with an
explicit acknowledgement of each message. The server runs as distributed (it does not sync before it acknowledges).
"""

from __future__ import annotations

import asyncio
from typing import Any

from bench.body import TOPIC, event
from bench.harness import Session, answers, find_program, free_ports
from bench.role import Arrivals, Departures, Line

SUBJECT = f"org.example.dev.koji.{TOPIC}"
IN_FLIGHT = 256


def measure(session: Session) -> None:
    """Record peer/nats-jetstream.

    Raises:
        Skip: There is no nats-server.
    """
    program = find_program(["nats-server"], "nats-server", session)
    (port,) = free_ports(1)
    with session.scratch("nats") as folder:
        command = [program, "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(folder / "store")]
        with session.server(command, environment={}, folder=folder, ready=lambda: answers(port)):
            settings = {"port": port, "warm": 1_000, "count": session.pick(60_000, 15_000)}
            outcome = session.pair("bench.nats_jetstream", settings)
    session.record("peer/nats-jetstream", outcome.rate, "msg/s")
    session.record("cpu/nats-jetstream", outcome.cpu_us, "us/msg")


def produce(line: Line, settings: dict[str, Any]) -> dict[str, Any]:
    """The publishing process."""
    return asyncio.run(_produce(line, settings))


async def _produce(line: Line, settings: dict[str, Any]) -> dict[str, Any]:
    import nats
    import orjson
    from nats.js.api import StorageType

    client = await nats.connect(f"nats://127.0.0.1:{settings['port']}")
    stream = client.jetstream(publish_async_max_pending=IN_FLIGHT)
    await stream.add_stream(name="bench", subjects=["org.example.>"], storage=StorageType.FILE)
    departures = Departures(line, settings)
    line.say("ready")
    for phase in (departures.warm_up, departures.measured):
        numbers = await asyncio.to_thread(phase)
        acknowledgements: set[asyncio.Future[Any]] = set()
        for number in numbers:
            future = await stream.publish_async(SUBJECT, orjson.dumps(event(number)))
            acknowledgements.add(future)
            future.add_done_callback(acknowledgements.discard)
        await stream.publish_async_completed()
        await asyncio.gather(*acknowledgements)
    report = departures.report()
    await client.close()
    return report


def consume(line: Line, settings: dict[str, Any]) -> dict[str, Any]:
    """The receiving process."""
    line.wait("ready")
    return asyncio.run(_consume(line, settings))


async def _consume(line: Line, settings: dict[str, Any]) -> dict[str, Any]:
    import nats
    import orjson

    client = await nats.connect(f"nats://127.0.0.1:{settings['port']}")
    subscription = await client.jetstream().pull_subscribe(SUBJECT, durable="bench")
    arrivals = Arrivals(line, settings)
    arrivals.join()
    while not arrivals.done:
        try:
            messages = await subscription.fetch(256, timeout=1.0)
        except TimeoutError:  # nothing came: the harness has the deadline
            continue
        for message in messages:
            arrivals(orjson.loads(message.data))
            await message.ack()
    await client.flush()
    return arrivals.report()
