"""fedbus itself: dict -> publish -> seal -> journal -> PUB -> SUB -> verify -> decode -> dict, all with its defaults.

The journal syncs each batch before it is sent (the default policy). The producer publishes without waiting for each
receipt, as the peers with several acknowledgements in flight do, and flushes before it reports; the queue is bounded
and pushes back. The subscriber loses nothing: what its socket drops it fetches from the journal.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.body import TOPIC, event
from bench.harness import Session
from bench.role import Arrivals, Departures, Line
from fedbus.config.init import create

ENDPOINT = "koji.bench"
MEGABYTE = 1_000_000
EIGHT_TOPICS = (
    TOPIC,
    "package.build.open",
    "package.build.fail",
    "package.build.cancel",
    "task.open",
    "task.close",
    "task.fail",
    "tag.add",
)


def make_bus(folder: Path, endpoints: Sequence[str], **sections: Any) -> None:
    """Write a private bus into *folder*, as `fedbus init` does, and add configuration *sections* to it."""
    create(folder, endpoints)
    if sections:
        (folder / "90-bench.yaml").write_text(json.dumps(sections, indent=1) + "\n")  # JSON is YAML


def measure(session: Session) -> None:
    """Record e2e/fedbus, e2e/fedbus-8-topics, memory/publisher and memory/subscriber."""
    for row, topics in (("fedbus", (TOPIC,)), ("fedbus-8-topics", EIGHT_TOPICS)):
        with session.scratch("bus") as folder:
            config = folder / "fedbus.d"
            make_bus(config, [ENDPOINT])
            settings = {
                "config": str(config),
                "topics": topics,
                "warm": 5_000,
                "count": session.pick(300_000, 100_000),
            }
            outcome = session.pair("bench.fedbus", settings)
        session.record(f"e2e/{row}", outcome.rate, "msg/s")
        if row == "fedbus":
            session.record("cpu/fedbus", outcome.cpu_us, "us/msg")
            session.record("memory/publisher", outcome.producer["rss_peak"] / MEGABYTE, "MB")
            session.record("memory/subscriber", outcome.consumer["rss_peak"] / MEGABYTE, "MB")


def produce(line: Line, settings: dict[str, Any]) -> dict[str, Any]:
    """The publishing process."""
    import fedbus

    departures = Departures(line, settings)
    topics = settings["topics"]
    with fedbus.Bus.open(Path(settings["config"])) as bus, bus.publisher(ENDPOINT) as publisher:
        line.say("ready")
        for phase in (departures.warm_up, departures.measured):
            for number in phase():
                publisher.enqueue(topics[number % len(topics)], event(number))
            publisher.flush()
        return departures.report()


def consume(line: Line, settings: dict[str, Any]) -> dict[str, Any]:
    """The receiving process."""
    import fedbus

    line.wait("ready")
    arrivals = Arrivals(line, settings)
    with fedbus.Bus.open(Path(settings["config"])) as bus:
        messages = bus.subscribe("koji", since="beginning")
        arrivals.join()
        for message in messages:
            arrivals(message.body)
            if arrivals.done:
                break
        return arrivals.report()
