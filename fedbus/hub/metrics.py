"""What a hub counts; labels are names from the configuration, so bounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedbus.monitor.discovery import of_discovery
from fedbus.monitor.text import Family, Sample, exposition
from fedbus.schemas.metrics import of_schemas
from fedbus.transport.metrics import of_refusals, of_streams

if TYPE_CHECKING:
    from fedbus.hub.hub import Hub


def of_hub(hub: Hub) -> str:
    """Return the metrics of *hub*; may be called from any thread."""
    now = hub.source.clock.monotonic()
    deliveries = hub.deliveries
    intake = hub.intake
    through = dict(intake.through) if intake is not None else {}
    readers = intake.readers() if intake is not None else []
    reasons = hub.reasons()

    def each(attribute: str) -> list[Sample]:
        return [({"consumer": one.enabled.name}, getattr(one.stats, attribute)) for one in deliveries]

    def lag(places: dict[str, int]) -> int:
        return sum(max(0, head.sequence - places.get(name, 0)) for name, head in through.items() if name in places)

    lags: list[Sample] = []
    for one in deliveries:
        places = {
            name: place.sequence
            for name, place in one.places().items()
            if name in through and through[name].epoch == place.epoch
        }
        lags.append(({"consumer": one.enabled.name}, lag(places)))

    streams = [({"endpoint": one.endpoint}, one) for one in readers]
    discovery = hub.discovery()
    return exposition(
        [
            *(of_discovery(discovery, now) if discovery is not None else ()),
            Family("fedbus_hub_ready", "gauge", "1 when nothing is wrong.", [({}, int(not reasons))]),
            Family("fedbus_hub_reasons", "gauge", "Reasons why it is not ready, see /ready.", [({}, len(reasons))]),
            Family("fedbus_hub_consumers", "gauge", "Consumers that run.", [({}, len(deliveries))]),
            Family(
                "fedbus_consumer_delivered_total",
                "counter",
                "Messages whose call returned.",
                each("delivered"),
            ),
            Family("fedbus_consumer_failed_total", "counter", "Calls that raised an error.", each("failed")),
            Family("fedbus_consumer_retried_total", "counter", "Calls that asked for another try.", each("retried")),
            Family("fedbus_consumer_dropped_total", "counter", "Messages that the consumer gave up.", each("dropped")),
            Family(
                "fedbus_consumer_gave_up_total",
                "counter",
                "Messages made dead letters after the last try.",
                each("gave_up"),
            ),
            Family(
                "fedbus_consumer_requeued_total",
                "counter",
                "Dead letters that were given to it once more.",
                each("requeued"),
            ),
            Family(
                "fedbus_consumer_dead_messages",
                "gauge",
                "Dead letters that it has; at most hub.dead_messages.",
                [({"consumer": one.enabled.name}, one.dead.count) for one in deliveries],
            ),
            Family(
                "fedbus_consumer_dead_bytes",
                "gauge",
                "Their size; at most hub.dead_bytes.",
                [({"consumer": one.enabled.name}, one.dead.size) for one in deliveries],
            ),
            Family(
                "fedbus_consumer_broken_batches_total",
                "counter",
                "Batches that failed and were given message by message.",
                each("broken_batches"),
            ),
            Family(
                "fedbus_consumer_stuck_seconds",
                "gauge",
                "For how long it has been trying its oldest message in vain.",
                [({"consumer": one.enabled.name}, one.trying.vain.seconds) for one in deliveries],
            ),
            Family("fedbus_consumer_lost_total", "counter", "Reports of lost messages.", each("lost")),
            Family(
                "fedbus_consumer_caught_up_total",
                "counter",
                "Times that it came from a journal to the live feed.",
                each("caught_up"),
            ),
            Family(
                "fedbus_consumer_queue_messages",
                "gauge",
                "Messages waiting in memory.",
                [({"consumer": one.enabled.name}, one.feed.waiting) for one in deliveries],
            ),
            Family(
                "fedbus_consumer_in_hand_messages",
                "gauge",
                "Messages from the oldest that a worker is not done with on.",
                [({"consumer": one.enabled.name}, one.in_hand) for one in deliveries],
            ),
            Family(
                "fedbus_consumer_lag_messages",
                "gauge",
                "How far its cursor is behind the live feed, in sequences.",
                lags,
            ),
            *of_streams(streams, now=now, since=hub.started_at),
            of_refusals(dict(hub.source.verifier.rejections)),
            *of_schemas(hub.source.schemas),
        ]
    )
