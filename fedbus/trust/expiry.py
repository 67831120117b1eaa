"""Alarms before something of ours expires: 30, 7 and 1 days ahead, each once."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime

DAY = 86_400.0  # seconds

CERTIFICATE_ALARM_DAYS = (30, 7, 1)
CRL_ALARM_DAYS = (7, 1)  # a revocation list is renewed every few weeks, so 30 days ahead would always be an alarm


@dataclass(frozen=True, slots=True, kw_only=True)
class Expiry:
    """When one certificate or revocation list ends, in seconds of wall time."""

    what: str  # for people: "certificate koji.build01"
    advice: str  # what renews it
    expires_at: float
    alarm_days: tuple[int, ...] = CERTIFICATE_ALARM_DAYS

    def stage(self, now: float) -> int:
        """How many alarms have gone off: 0 none, 1 the first, …; one more than there are alarms when it has ended."""
        left = self.expires_at - now
        if left <= 0:
            return len(self.alarm_days) + 1
        return sum(left <= days * DAY for days in self.alarm_days)

    def text(self, now: float) -> str:
        """One sentence for people: when it ends, and what renews it."""
        end = stamp(self.expires_at)
        if now >= self.expires_at:
            return f"{self.what} has expired at {end}; {self.advice}"
        return f"{self.what} expires in {(self.expires_at - now) / DAY:.1f} days, at {end}; {self.advice}"


class ExpiryAlarms:
    """Logs each expiry once for each alarm that it passes."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._stages: dict[str, tuple[float, int]] = {}

    def check(self, expiries: list[Expiry], now: float) -> None:
        """Log those of *expiries* that have passed an alarm since they were last checked."""
        stages: dict[str, tuple[float, int]] = {}
        for expiry in expiries:
            stage = expiry.stage(now)
            stages[expiry.what] = (expiry.expires_at, stage)
            known_end, known_stage = self._stages.get(expiry.what, (expiry.expires_at, 0))
            if stage > (known_stage if known_end == expiry.expires_at else 0):
                level = logging.ERROR if stage >= len(expiry.alarm_days) else logging.WARNING
                self._log.log(level, "%s", expiry.text(now))
        self._stages = stages


def stamp(seconds: float) -> str:
    """*seconds* of wall time as RFC 3339 text in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
