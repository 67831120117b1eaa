"""Which segments may go: a pure decision over sizes and ages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


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
