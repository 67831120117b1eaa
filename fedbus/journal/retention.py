"""Which segments may go: a pure decision over sizes and ages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedbus.clock import Clock

_JUMP_SECONDS = 60.0  # what time servers correct without a jump stays below it
_BELIEF_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """A segment as retention sees it; ``closed_at`` is the wall time in seconds when the next one was begun."""

    base: int
    size_bytes: int
    closed_at: float


def removable(segments: Sequence[SegmentInfo], retain_bytes: int, retain_age: float, now: float) -> int:
    """How many of *segments*, counted from the oldest, may be removed; the last one is active and always stays.

    A segment goes while all together are larger than *retain_bytes*, or when it was closed more than *retain_age*
    seconds before *now*; 0 switches either limit off. Only whole segments from the old end go, so what is kept has no
    hole: a young segment also keeps all that follow it, whatever the clock said about those.
    """
    kept = sum(segment.size_bytes for segment in segments)
    count = 0
    for segment in segments[:-1]:
        too_much = bool(retain_bytes) and kept > retain_bytes
        too_old = bool(retain_age) and now - segment.closed_at > retain_age
        if not too_much and not too_old:
            break
        kept -= segment.size_bytes
        count += 1
    return count


class DoubtedClock:
    """The wall clock for what cannot be undone: when it jumps forward, that is believed after a day.

    A clock that is set forth by mistake, and back when somebody notices, would else make all messages too old.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ahead = 0.0  # seconds that it has jumped and that are not believed yet
        self._believe_at = 0.0
        self._wall, self._monotonic = clock.wall(), clock.monotonic()

    def wall(self) -> float:
        """Seconds since 1970-01-01T00:00:00Z, without jumps of the last day that went forward."""
        wall, monotonic = self._clock.wall(), self._clock.monotonic()
        jump = (wall - self._wall) - (monotonic - self._monotonic)
        self._wall, self._monotonic = wall, monotonic
        if jump > _JUMP_SECONDS:
            self._ahead += jump
            self._believe_at = monotonic + _BELIEF_SECONDS
        elif jump < -_JUMP_SECONDS:
            self._ahead = max(0.0, self._ahead + jump)
        if monotonic >= self._believe_at:
            self._ahead = 0.0
        return wall - self._ahead
