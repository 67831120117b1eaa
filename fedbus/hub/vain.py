"""What a consumer has tried in vain: which message, since when, how often, and when again. ``/ready`` tells it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import UTC, datetime

from fedbus.clock import Clock
from fedbus.hub.options import HubOptions
from fedbus.model.message import Message, MessageKey

_TEXT = 200  # characters of a reason that are shown


@dataclass(slots=True)
class _Tried:
    """A message that its consumer has not taken yet, or the first one of a batch. Times are monotonic, then Unix."""

    topic: str
    since: float
    since_wall: float
    again_at: float
    again_wall: float
    times: int
    reason: str


class Vain:
    """The messages that one consumer tries again, and how many calls have failed in a row. Any thread may use it.

    ``any`` is False where there is nothing to forget when a message was taken, which is nearly always.
    """

    def __init__(self, clock: Clock) -> None:
        self.any = False
        self._clock = clock
        self._lock = threading.Lock()
        self._tried: dict[MessageKey, _Tried] = {}
        self._failures = 0  # calls that raised an error since the last one that did not
        self._failures_since = 0.0  # Unix time of the first of them
        self._failure = ""

    def tried(self, message: Message, reason: str, after: float) -> None:
        """The consumer was given *message*, which it gets again in *after* seconds, for this *reason*."""
        now, wall = self._clock.monotonic(), self._clock.wall()
        with self._lock:
            known = self._tried.get(message.key)
            if known is None:
                known = self._tried[message.key] = _Tried(message.topic, now, wall, 0.0, 0.0, 0, "")
            known.times += 1
            known.reason = reason
            known.again_at, known.again_wall = now + after, wall + after
            self.any = True

    def failed(self, reason: str) -> None:
        """A call has raised an error, whatever becomes of its message."""
        with self._lock:
            if not self._failures:
                self._failures_since = self._clock.wall()
            self._failures += 1
            self._failure = reason
            self.any = True

    def over(self, key: MessageKey) -> None:
        """The message is not tried again: it was given up."""
        with self._lock:
            self._tried.pop(key, None)

    def taken(self, *keys: MessageKey) -> None:
        """The consumer has done with messages; what failed before is no row any more."""
        with self._lock:
            for key in keys:
                self._tried.pop(key, None)
            self._failures = 0
            self.any = bool(self._tried)

    @property
    def seconds(self) -> float:
        """For how long the oldest message has been tried in vain; 0.0 where there is none."""
        with self._lock:
            oldest = min((one.since for one in self._tried.values()), default=None)
        return 0.0 if oldest is None else max(0.0, self._clock.monotonic() - oldest)

    def reasons(self, options: HubOptions, *, dead: int) -> list[str]:
        """Return why this consumer is no longer one that is merely trying again; *dead* letters of it are kept."""
        now = self._clock.monotonic()
        with self._lock:
            stuck = [(key, one) for key, one in self._tried.items() if now - one.since > options.stuck_after]
            # a consumer that has failed with all it was given, and has nothing left to try: its letters still tell
            in_row = self._failures if self._tried or dead else 0
            since, failure = self._failures_since, self._failure
        found = []
        if stuck:
            key, one = min(stuck, key=lambda pair: pair[1].since)
            more = f", and {len(stuck) - 1} messages more" if len(stuck) > 1 else ""
            again = f"next try at {_time(one.again_wall)}" if one.again_at > now else "it has it now"
            found.append(
                f"has tried {key} ({one.topic}) in vain since {_time(one.since_wall)}, {one.times} "
                f"time{'s' * (one.times > 1)}, {again}"
                f"{more}: {_short(one.reason)}"
            )
        if in_row >= options.stuck_failures:
            found.append(f"its last {in_row} calls failed, since {_time(since)}, the last one with {_short(failure)}")
        return found


def _time(wall: float) -> str:
    try:
        return datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return "the end of days"  # Retry takes any number of seconds


def _short(text: str) -> str:
    return (text if len(text) <= _TEXT else text[:_TEXT] + "…") or "no reason given"
