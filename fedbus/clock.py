"""Time, handed over: monotonic for durations and deadlines, wall time for stamps that people read."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What parts of fedbus ask the time of."""

    def monotonic(self) -> float:
        """Seconds that never go back; only differences mean anything."""

    def wall(self) -> float:
        """Seconds since 1970-01-01T00:00:00Z; may jump."""


_TOGETHER_SECONDS = 0.0002  # that two readings may be apart
_READINGS = 20


def both(clock: Clock) -> tuple[float, float]:
    """Return monotonic and wall time of one and the same moment.

    Between two readings another program may have its turn. So they are read again when they lie too far apart; on a
    machine so busy that this does not help, the monotonic time is the later one.
    """
    for _ in range(_READINGS):
        before = clock.monotonic()
        wall = clock.wall()
        after = clock.monotonic()
        if after - before < _TOGETHER_SECONDS:
            break
    return after, wall


class SystemClock:
    """The clock of this machine."""

    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)


class ManualClock:
    """A clock that moves only when told, for tests of what depends on time."""

    def __init__(self, wall: float = 1_800_000_000.0) -> None:
        self._wall = wall
        self._monotonic = 1000.0

    def monotonic(self) -> float:
        return self._monotonic

    def wall(self) -> float:
        return self._wall

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass on both clocks."""
        self._monotonic += seconds
        self._wall += seconds

    def jump(self, seconds: float) -> None:
        """Set the wall clock off by *seconds*, as an operator or a time server does; no time passes."""
        self._wall += seconds
