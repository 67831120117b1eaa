"""Where endpoints come from, and whether that is as it should be, as metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedbus.monitor.text import Family


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsFigures:
    """How the last questions to the DNS went."""

    failing: bool  # the last one brought no list; the list before it is in force
    answers: int
    failures: int
    refused: Mapping[str, int]  # records, by reason
    answered_at: float  # monotonic time of the last list, or of the first question where none has come yet


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoveryFigures:
    """Whether what is in force is what the files say, and how many endpoints come from where."""

    refused: bool  # the files on disk are not in force
    refusals: int
    taken: int
    endpoints: Mapping[str, int]  # by source: file, dns
    dns: DnsFigures | None


def of_discovery(figures: DiscoveryFigures, now: float) -> list[Family]:
    """Return the metrics of *figures* at the monotonic time *now*."""
    sources = [({"source": source}, count) for source, count in figures.endpoints.items()]
    found = [
        Family(
            "fedbus_config_refused",
            "gauge",
            "1 when the files cannot be used and older settings are in force.",
            [({}, int(figures.refused))],
        ),
        Family("fedbus_config_refusals_total", "counter", "Changed files that were refused.", [({}, figures.refusals)]),
        Family("fedbus_config_taken_total", "counter", "Changed files that were taken up.", [({}, figures.taken)]),
        Family("fedbus_discovery_endpoints", "gauge", "Endpoints known, by where they come from.", [*sources]),
    ]
    dns = figures.dns
    if dns is None:
        return found
    reasons = [({"reason": reason}, count) for reason, count in sorted(dns.refused.items())]
    found += [
        Family(
            "fedbus_discovery_dns_failing",
            "gauge",
            "1 when the last look-up brought no list; the one before it is in force.",
            [({}, int(dns.failing))],
        ),
        Family("fedbus_discovery_dns_answers_total", "counter", "Look-ups that brought a list.", [({}, dns.answers)]),
        Family("fedbus_discovery_dns_failures_total", "counter", "Look-ups that brought none.", [({}, dns.failures)]),
        Family("fedbus_discovery_dns_refused_total", "counter", "Records refused, by reason.", [*reasons]),
        Family(
            "fedbus_discovery_dns_age_seconds",
            "gauge",
            "Since the last list, or since the first question where none has come yet.",
            [({}, now - dns.answered_at)],
        ),
    ]
    return found
