"""What a hub counts, in the text format of Prometheus 0.0.4; labels are names from the configuration, so bounded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fedbus.transport.reader import Mode

if TYPE_CHECKING:
    from fedbus.hub.hub import Hub

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[dict[str, str], float]


def exposition(families: Iterable[tuple[str, str, str, list[Sample]]]) -> str:
    """Return families of (name, type, help, samples) as text."""
    lines: list[str] = []
    for name, kind, text, samples in families:
        lines.append(f"# HELP {name} {_escaped(text)}")
        lines.append(f"# TYPE {name} {kind}")
        for labels, value in samples:
            shown = ",".join(f'{key}="{_escaped(label, quote=True)}"' for key, label in labels.items())
            number = repr(float(value)) if isinstance(value, float) else str(value)
            lines.append(f"{name}{{{shown}}} {number}" if shown else f"{name} {number}")
    return "\n".join(lines) + "\n"


def _escaped(text: str, *, quote: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quote else text


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

    def stream(attribute: str) -> list[Sample]:
        return [({"endpoint": one.endpoint}, getattr(one.stats, attribute)) for one in readers]

    def since(heard_at: float | None) -> float:
        # an endpoint that is down from the beginning must raise the same alarm as one that falls silent
        return hub.started_at if heard_at is None else heard_at

    refusals = hub.source.verifier.rejections
    return exposition(
        [
            ("fedbus_hub_ready", "gauge", "1 when nothing is wrong.", [({}, int(not reasons))]),
            ("fedbus_hub_reasons", "gauge", "Reasons why it is not ready, see /ready.", [({}, len(reasons))]),
            ("fedbus_hub_consumers", "gauge", "Consumers that run.", [({}, len(deliveries))]),
            (
                "fedbus_consumer_delivered_total",
                "counter",
                "Messages whose call returned.",
                each("delivered"),
            ),
            ("fedbus_consumer_failed_total", "counter", "Calls that raised an error.", each("failed")),
            ("fedbus_consumer_retried_total", "counter", "Calls that asked for another try.", each("retried")),
            ("fedbus_consumer_dropped_total", "counter", "Messages that the consumer gave up.", each("dropped")),
            (
                "fedbus_consumer_gave_up_total",
                "counter",
                "Messages skipped after the last try.",
                each("gave_up"),
            ),
            ("fedbus_consumer_lost_total", "counter", "Reports of lost messages.", each("lost")),
            (
                "fedbus_consumer_caught_up_total",
                "counter",
                "Times that it came from a journal to the live feed.",
                each("caught_up"),
            ),
            (
                "fedbus_consumer_queue_messages",
                "gauge",
                "Messages waiting in memory.",
                [({"consumer": one.enabled.name}, one.feed.waiting) for one in deliveries],
            ),
            (
                "fedbus_consumer_lag_messages",
                "gauge",
                "How far its cursor is behind the live feed, in sequences.",
                lags,
            ),
            ("fedbus_endpoint_messages_total", "counter", "Messages received, verified.", stream("messages")),
            ("fedbus_endpoint_duplicates_total", "counter", "Parcels that came twice.", stream("duplicates")),
            ("fedbus_endpoint_gaps_total", "counter", "Holes in live traffic; refilled unless lost.", stream("gaps")),
            ("fedbus_endpoint_lost_total", "counter", "Reports of loss.", stream("lost")),
            ("fedbus_endpoint_refused_total", "counter", "Parcels and messages refused.", stream("refused")),
            (
                "fedbus_endpoint_clock_skew_seconds",
                "gauge",
                "How far the publisher's clock is ahead of ours.",
                stream("skew"),
            ),
            (
                "fedbus_endpoint_heard_age_seconds",
                "gauge",
                "Since the last beat or parcel, or since the hub's start where none has come yet.",
                [({"endpoint": one.endpoint}, now - since(one.heard_at)) for one in readers],
            ),
            (
                "fedbus_endpoint_live",
                "gauge",
                "1 when read up to its head.",
                [({"endpoint": one.endpoint}, int(one.mode is Mode.LIVE)) for one in readers],
            ),
            (
                "fedbus_endpoint_quarantined",
                "gauge",
                "1 when its stream contradicts itself.",
                [({"endpoint": one.endpoint}, int(bool(one.quarantined))) for one in readers],
            ),
            (
                "fedbus_refused_total",
                "counter",
                "Input refused, by reason.",
                [({"reason": reason.value}, count) for reason, count in sorted(dict(refusals).items())],
            ),
        ]
    )
