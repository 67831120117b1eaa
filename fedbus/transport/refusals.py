"""Says what was refused, without letting whoever sends rubbish fill the log."""

from __future__ import annotations

import logging
from enum import StrEnum

_EVERY = 10.0  # seconds between two lines about one source and reason


class RefusalLog:
    """Logs the first refusal of each (source, reason) at once, then at most one line in ten seconds with a count."""

    def __init__(self, log: logging.Logger, what: str = "refused from") -> None:
        self._log = log
        self._what = what
        self._seen: dict[tuple[str, StrEnum], tuple[float, int]] = {}

    def refused(self, source: str, reason: StrEnum, text: str, now: float, *, level: int = logging.WARNING) -> None:
        """Note one refusal at the monotonic time *now*."""
        key = (source, reason)
        at, held = self._seen.get(key, (float("-inf"), 0))
        if now - at < _EVERY:
            self._seen[key] = (at, held + 1)
            return
        if len(self._seen) > 1000:
            self._seen.clear()
        self._seen[key] = (now, 0)
        more = f" (and {held} more like it)" if held else ""
        self._log.log(level, "%s %s: %s: %s%s", self._what, source, reason.value, text, more)
