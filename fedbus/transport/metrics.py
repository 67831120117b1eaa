"""What publishers and subscribers count, as metrics; labels are endpoints of the configuration, so bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from fedbus.errors import Reason
from fedbus.monitor.text import Family, Sample, bounded_label
from fedbus.transport.reader import StreamReader
from fedbus.transport.state import Mode

if TYPE_CHECKING:
    from fedbus.transport.publisher import Publisher
    from fedbus.transport.subscriber import Subscriber
    from fedbus.transport.zap import LinkStats

_CURSORS = 100  # names that become labels; programs choose them


def of_publishers(publishers: Iterable[Publisher]) -> list[Family]:
    """Return the metrics of *publishers*; may be called from any thread."""
    found = [(publisher, publisher.facts()) for publisher in publishers]

    def each(name: str, kind: str, text: str, value: Callable[[Publisher], float]) -> Family:
        samples: list[Sample] = [({"endpoint": one.endpoint.name}, value(one)) for one, _ in found]
        return Family(f"fedbus_publisher_{name}", kind, text, samples)

    def facts(name: str, kind: str, text: str) -> Family:
        key = name.removesuffix("_total")
        samples: list[Sample] = [({"endpoint": one.endpoint.name}, values[key]) for one, values in found]
        return Family(f"fedbus_publisher_{name}", kind, text, samples)

    return [
        each("published_total", "counter", "Messages journaled and sent.", lambda one: one.stats.published),
        each("bytes_total", "counter", "Bytes of the parcels of these.", lambda one: one.stats.bytes),
        each("batches_total", "counter", "Batches, each one signature.", lambda one: one.stats.batches),
        each("parcels_total", "counter", "Parcels, each one frame.", lambda one: one.stats.parcels),
        each("beats_total", "counter", "Beats sent.", lambda one: one.stats.beats),
        each("failures_total", "counter", "Messages that the journal refused.", lambda one: one.stats.failures),
        each("unsent_total", "counter", "Parcels journaled but not sent live.", lambda one: one.stats.unsent),
        facts("queued_messages", "gauge", "Messages waiting to be journaled."),
        facts("queue_messages_limit", "gauge", "How many may wait."),
        each("subscribers", "gauge", "Subscribers that are connected.", lambda one: one.stats.subscribers),
        facts("replay_readers", "gauge", "Readers that are behind and being sent the journal now."),
        facts("replay_requests_total", "counter", "Requests of readers that missed something."),
        facts("replay_refused_total", "counter", "Such requests that were refused."),
        facts("replay_bytes_total", "counter", "Bytes of the journal sent to them."),
        facts("journal_start", "gauge", "First sequence that is kept."),
        facts("journal_head", "gauge", "Last sequence."),
        facts("journal_bytes", "gauge", "Bytes of the journal's segments."),
        facts("journal_limit_bytes", "gauge", "What retention keeps them at; 0: no limit."),
        facts("journal_topics", "gauge", "Topics that the journal knows."),
        facts("syncs_total", "counter", "Syncs of the journal."),
        facts("sync_seconds_total", "counter", "Seconds that these took."),
        facts("sync_longest_seconds", "gauge", "The longest of the last ten to twenty seconds' syncs."),
        facts("certificate_expires_seconds", "gauge", "Seconds until the certificate expires."),
    ]


def reasons_of(publishers: Iterable[Publisher], subscribers: Iterable[Subscriber]) -> list[str]:
    """Return what is wrong with *publishers*, of which the last of an endpoint counts, and open *subscribers*."""
    found = []
    for name, one in {one.endpoint.name: one for one in publishers}.items():
        if one.failure is not None:
            found.append(f"endpoint {name}: its publisher has failed: {one.failure}")
        elif not one.closed and one.facts()["certificate_expires_seconds"] <= 0:
            found.append(f"endpoint {name}: its certificate has expired, and readers refuse what it says")
    quarantined = {
        reader.endpoint: reader.quarantined
        for subscriber in subscribers
        if not subscriber.closed
        for reader in subscriber.readers()
        if reader.quarantined
    }
    return found + [f"endpoint {name} is quarantined: {why}" for name, why in quarantined.items()]


def of_links(stats: LinkStats) -> list[Family]:
    """Return the metrics of who may connect to the publishers of this process."""
    refused, bans = dict(stats.refused), dict(stats.bans)
    return [
        Family("fedbus_link_connections", "gauge", "Connections to the publishers here.", [({}, stats.connections)]),
        Family("fedbus_link_admitted_total", "counter", "Connections let in.", [({}, stats.admitted)]),
        Family(
            "fedbus_link_refused_total",
            "counter",
            "Connections refused or ended, by fault.",
            [({"fault": fault.value}, count) for fault, count in sorted(refused.items())],
        ),
        Family(
            "fedbus_link_bans_total",
            "counter",
            "Addresses banned, by fault.",
            [({"fault": fault.value}, count) for fault, count in sorted(bans.items())],
        ),
        Family("fedbus_link_banned", "gauge", "Addresses banned now.", [({}, stats.banned)]),
    ]


def of_subscribers(subscribers: Iterable[Subscriber], *, now: float, since: float) -> list[Family]:
    """Return the metrics of *subscribers*, at the monotonic time *now*; *since* is when the program began to listen."""
    streams: list[tuple[dict[str, str], StreamReader]] = []
    cursors: set[str] = set()
    for subscriber in subscribers:
        cursor = bounded_label(subscriber.cursor or "", cursors, _CURSORS)
        cursors.add(cursor)
        streams += [({"endpoint": one.endpoint, "cursor": cursor}, one) for one in subscriber.readers()]
    return of_streams(streams, now=now, since=since)


def of_streams(streams: Sequence[tuple[dict[str, str], StreamReader]], *, now: float, since: float) -> list[Family]:
    """Return the metrics of streams that are read, each with its labels; those of equal labels are joined to one.

    Of counters the sum is taken, of gauges what is worst.
    """

    def joined(
        name: str,
        kind: str,
        text: str,
        value: Callable[[StreamReader], float],
        worst: Callable[[float, float], float] = max,
    ) -> Family:
        found: dict[tuple[str, ...], tuple[dict[str, str], float]] = {}
        for labels, reader in streams:
            key, one = tuple(labels.values()), value(reader)
            known = found.get(key)
            if known is not None:
                one = known[1] + one if kind == "counter" else worst(known[1], one)
            found[key] = (labels, one)
        return Family(f"fedbus_endpoint_{name}", kind, text, list(found.values()))

    def counted(name: str, text: str, attribute: str) -> Family:
        return joined(name, "counter", text, lambda reader: getattr(reader.stats, attribute))

    def by(name: str, text: str, label: str, value: Callable[[StreamReader], dict[str, int]]) -> Family:
        found: dict[tuple[str, ...], tuple[dict[str, str], float]] = {}
        for labels, reader in streams:
            for word, count in value(reader).copy().items():
                key = (*labels.values(), word)
                found[key] = ({**labels, label: word}, found[key][1] + count if key in found else count)
        return Family(f"fedbus_endpoint_{name}", "counter", text, [found[key] for key in sorted(found)])

    def age(at: float | None) -> float:
        # an endpoint that is down from the beginning must raise the same alarm as one that falls silent
        return now - (since if at is None else at)

    def behind(reader: StreamReader) -> float:
        if reader.mode is Mode.LIVE or reader.behind_since is None:
            return 0.0
        return now - reader.behind_since

    def farther(one: float, other: float) -> float:
        return max(one, other, key=abs)

    return [
        counted("messages_total", "Messages received, verified.", "messages"),
        counted("duplicates_total", "Parcels that came twice.", "duplicates"),
        counted("gaps_total", "Holes in live traffic; refilled unless lost.", "gaps"),
        counted("fetched_total", "Records read from journals.", "fetched"),
        counted("reconnects_total", "Times that it was connected anew since it was silent.", "reconnects"),
        by("link_faults_total", "Handshakes that failed, by fault.", "fault", lambda reader: reader.stats.link_faults),
        counted("unanswered_total", "Requests to its journal without a whole answer.", "unanswered"),
        counted("lost_total", "Reports of loss.", "lost"),
        counted("lost_messages_total", "Messages in these reports, where their number is known.", "lost_messages"),
        by("losses_total", "Reports of loss by cause.", "cause", lambda reader: reader.stats.losses),
        counted("refused_total", "Parcels and messages refused.", "refused"),
        by("refusals_total", "The same by reason.", "reason", lambda reader: reader.stats.refusals),
        joined("lag_messages", "gauge", "Sequences between what was worked on and the head.", lambda one: one.lag),
        joined("behind_seconds", "gauge", "Since it fell behind the live feed; 0 when it is not.", behind),
        joined(
            "clock_skew_seconds",
            "gauge",
            "How far the publisher's clock is ahead of ours.",
            lambda reader: reader.stats.skew,
            farther,
        ),
        joined("beat_age_seconds", "gauge", "Since the last beat, or the start.", lambda one: age(one.beat_at)),
        joined(
            "heard_age_seconds", "gauge", "Since the last beat or parcel, or the start.", lambda one: age(one.heard_at)
        ),
        joined("live", "gauge", "1 when read up to its head.", lambda one: int(one.mode is Mode.LIVE), min),
        joined("quarantined", "gauge", "1 when its stream contradicts itself.", lambda one: int(bool(one.quarantined))),
    ]


def of_refusals(rejections: dict[Reason, int]) -> Family:
    """Return what was refused, by reason."""
    samples: list[Sample] = [({"reason": reason.value}, count) for reason, count in sorted(rejections.items())]
    return Family("fedbus_refused_total", "counter", "Input refused, by reason.", samples)
