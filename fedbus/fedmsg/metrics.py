"""What the fedmsg side counts, as metrics; labels are endpoints of the configuration and words of ours, so bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fedbus.fedmsg.bridge import Bridge
from fedbus.fedmsg.feed import FedmsgFeed, FedmsgStats
from fedbus.fedmsg.publisher import FedmsgPublisher
from fedbus.monitor.text import Family, Sample


def of_feeds(feeds: Iterable[FedmsgFeed], *, now: float, since: float) -> list[Family]:
    """Return the metrics of what is read, at the monotonic time *now*; *since* is when the program began to listen."""
    found = [(stream.endpoint, stream.stats) for feed in feeds for stream in list(feed.streams.values())]

    def each(name: str, kind: str, text: str, value: Callable[[FedmsgStats], float]) -> Family:
        joined: dict[str, float] = {}
        for endpoint, stats in found:
            one = value(stats)
            known = joined.get(endpoint)
            joined[endpoint] = one if known is None else known + one if kind == "counter" else max(known, one)
        return Family(f"fedbus_fedmsg_{name}", kind, text, [({"endpoint": key}, one) for key, one in joined.items()])

    def by(name: str, text: str, label: str, value: Callable[[FedmsgStats], dict[str, int]]) -> Family:
        joined: dict[tuple[str, str], int] = {}
        for endpoint, stats in found:
            for word, count in value(stats).copy().items():
                joined[endpoint, word] = joined.get((endpoint, word), 0) + count
        samples: list[Sample] = [
            ({"endpoint": endpoint, label: word}, count) for (endpoint, word), count in sorted(joined.items())
        ]
        return Family(f"fedbus_fedmsg_{name}", "counter", text, samples)

    return [
        each("messages_total", "counter", "Messages taken, validated.", lambda stats: stats.messages),
        each("duplicates_total", "counter", "Messages that were taken before.", lambda stats: stats.duplicates),
        each("missing_total", "counter", "Messages that did not come, by `i`.", lambda stats: stats.missing),
        each("reconnects_total", "counter", "Times that it was connected anew.", lambda stats: stats.reconnects),
        by("refusals_total", "Messages refused, by reason.", "reason", lambda stats: stats.refused),
        by("link_faults_total", "Handshakes that failed, by fault.", "fault", lambda stats: stats.faults),
        each(
            "heard_age_seconds",
            "gauge",
            "Since the last message, or the start.",
            lambda stats: now - (since if stats.heard_at is None else stats.heard_at),
        ),
    ]


def of_fedmsg_publishers(publishers: Iterable[FedmsgPublisher]) -> list[Family]:
    """Return the metrics of what is published in the format of fedmsg."""
    found = list(publishers)

    def each(name: str, kind: str, text: str, value: Callable[[FedmsgPublisher], float]) -> Family:
        samples: list[Sample] = [({"endpoint": one.endpoint.name}, value(one)) for one in found]
        return Family(f"fedbus_fedmsg_{name}", kind, text, samples)

    return [
        each("published_total", "counter", "Messages sent.", lambda one: one.stats.published),
        each("bytes_total", "counter", "Bytes of these.", lambda one: one.stats.bytes),
        each("subscriptions", "gauge", "Subscriptions that readers hold.", lambda one: one.stats.subscribers),
    ]


def of_bridge(bridge: Bridge) -> list[Family]:
    """Return the metrics of *bridge*; may be called from any thread."""
    carried: list[Sample] = []
    dropped: list[Sample] = []
    for word, half in (("in", bridge.inward), ("out", bridge.outward)):
        if half is not None:
            carried.append(({"direction": word}, half.carried))
            dropped += [({"direction": word, "reason": key}, one) for key, one in sorted(half.dropped.copy().items())]
    echoes: list[Sample] = [] if bridge.inward is None else [({}, bridge.inward.echoes)]
    return [
        Family("fedbus_bridge_ready", "gauge", "1 when nothing is wrong.", [({}, int(not bridge.reasons()))]),
        Family("fedbus_bridge_carried_total", "counter", "Messages carried, by direction.", carried),
        Family("fedbus_bridge_dropped_total", "counter", "Messages that could not be, by reason.", dropped),
        Family("fedbus_bridge_echoes_total", "counter", "Messages of ours that came back, and were left.", echoes),
    ]
