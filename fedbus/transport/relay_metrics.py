"""What the relay counts, as metrics; labels are endpoints of the configuration and words of ours, so bounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fedbus.errors import JournalError
from fedbus.monitor.text import Family, Sample

if TYPE_CHECKING:
    from fedbus.transport.relay import Relay
    from fedbus.transport.relay_outlet import Outlet


def of_relay(relay: Relay) -> list[Family]:
    """Return the metrics of *relay*; may be called from any thread."""
    outlets = list(relay.outlets.values())

    def each(name: str, kind: str, text: str, value: Callable[[Outlet], float]) -> Family:
        samples: list[Sample] = [({"endpoint": one.name}, value(one)) for one in outlets]
        return Family(f"fedbus_relay_{name}", kind, text, samples)

    def words(name: str, text: str, label: str, counts: dict[str, int]) -> Family:
        samples: list[Sample] = [({label: word}, count) for word, count in sorted(dict(counts).items())]
        return Family(f"fedbus_relay_{name}", "counter", text, samples)

    def spooled(outlet: Outlet) -> int:
        try:
            return outlet.spool_bytes()
        except JournalError:
            return -1

    reasons = relay.reasons()
    options, stats = relay.options, relay.stats
    return [
        Family("fedbus_relay_ready", "gauge", "1 when nothing is wrong.", [({}, int(not reasons))]),
        Family("fedbus_relay_connections", "gauge", "Clients connected now.", [({}, len(relay.connections))]),
        Family("fedbus_relay_connections_limit", "gauge", "How many may be.", [({}, options.connections)]),
        Family("fedbus_relay_connections_total", "counter", "Clients that came.", [({}, stats.connections)]),
        words("dropped_total", "Connections closed by the relay, by reason.", "reason", stats.dropped),
        words("refused_total", "Requests refused, by the word of the answer.", "reason", stats.refused),
        each("endpoint_up", "gauge", "1 when it takes messages.", lambda one: int(one.publisher is not None)),
        each("accepted_total", "counter", "Messages journaled and acknowledged.", lambda one: one.stats.accepted),
        each("repeated_total", "counter", "Messages that came again.", lambda one: one.stats.repeated),
        each("failed_total", "counter", "Messages turned down by checks or the disk.", lambda one: one.stats.refused),
        each("waiting_messages", "gauge", "Messages taken and not journaled yet.", lambda one: one.waiting),
        each("remembered_messages", "gauge", "Submissions known again.", lambda one: len(one.submissions)),
        each("spool_bytes", "gauge", "Waiting in the spool; -1: unreadable.", spooled),
        each("spool_sent_total", "counter", "Messages sent from the spool.", lambda one: one.stats.spooled),
        each(
            "spool_refused_total",
            "counter",
            "Spooled messages that can never be published.",
            lambda one: one.stats.spool_refused,
        ),
    ]
