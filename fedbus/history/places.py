"""Where a message stands in a history: a number that grows with its time, and the partition of that time.

``place = milliseconds << 20 | slot``: sorted by place, messages are sorted by the time that they state, and those of
one millisecond by their arrival. Both stores use it as the row's number, so that the index of every column is sorted by
time within one value, and a range of time is a range of rows.

The same message always gets into the same partition, whatever the time of its arrival, and that is what makes "each
message once" a question to one partition. Only a message whose own time cannot be right (before 2000, or more than a
day ahead of the clock here) is put by its arrival, into the negative half: apart from the others, and dropped in its
turn, so that nobody can fill the disk with partitions of the year 9999.
"""

from __future__ import annotations

import calendar
import re
import time
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache

PERIODS = ("day", "month", "year")

SLOT_BITS = 20
SLOTS = 1 << SLOT_BITS
DAY_MS = 86_400_000
HOUR_MS = 3_600_000
EARLIEST_MS = 946_684_800_000  # 2000-01-01T00:00:00Z
# subtracted from the arrival of what has no credible time: whole days, in 43 bits of milliseconds, which last till 2248
APART_MS = (1 << 43) // DAY_MS * DAY_MS
APART = "apart-"

_NAME = re.compile(r"(?:apart-)?\d{4}(?:-\d{2}){0,2}")


@lru_cache(maxsize=4096)  # the messages of a batch share their time
def stated_ms(stamp: str) -> int:
    """Return the RFC 3339 time of an envelope in milliseconds since 1970, rounded down."""
    moment = datetime.fromisoformat(stamp)
    return calendar.timegm(moment.utctimetuple()) * 1000 + moment.microsecond // 1000


def placed_ms(stated: int, now_ms: int) -> int:
    """Return by which time a message is placed; negative for one whose stated time is not credible."""
    if EARLIEST_MS <= stated <= now_ms + DAY_MS:
        return stated
    return max(now_ms, 0) - APART_MS


def first_place(ms: int) -> int:
    """Return the lowest place of that millisecond."""
    return ms << SLOT_BITS


def ms_of(place: int) -> int:
    """Return the millisecond of a place; that of its arrival for one that stands apart."""
    ms = place >> SLOT_BITS
    return ms + APART_MS if ms < 0 else ms


def partition_of(ms: int, period: str) -> str:
    """Return the name of the partition for a placed millisecond: ``2026-11``, ``apart-2026-11``, ``2026-11-21``."""
    # whole days are looked up: a batch has one or two
    if ms < 0:
        return APART + _partition((ms + APART_MS) // DAY_MS, period)
    return _partition(ms // DAY_MS, period)


@lru_cache(maxsize=1024)
def _partition(day: int, period: str) -> str:
    text = time.strftime("%Y-%m-%d", time.gmtime(day * 86400))
    return {"day": text, "month": text[:7], "year": text[:4]}[period]


@lru_cache(maxsize=4096)
def bounds(name: str) -> tuple[int, int]:
    """Return the places of a partition: from the first one up to, without, the second.

    Raises:
        ValueError: *name* is not that of a partition.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no partition of a history")
    apart = name.startswith(APART)
    parts = [int(part) for part in name.removeprefix(APART).split("-")]
    year, month, day = [*parts, 1, 1][:3]
    begin = date(year, month, day)
    if len(parts) == 3:
        end = begin + timedelta(days=1)
    elif len(parts) == 2:
        end = (begin + timedelta(days=32)).replace(day=1)
    else:
        end = begin.replace(year=begin.year + 1)
    shift = APART_MS if apart else 0
    low, high = (first_place(_ms(one) - shift) for one in (begin, end))
    return low, high


def _ms(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1000


def is_over(name: str, before_ms: int) -> bool:
    """Say whether all that the partition can hold is older than *before_ms*."""
    _, high = bounds(name)
    return ms_of(high - 1) < before_ms


def kept_from(keep: float, now_ms: int, period: str) -> int:
    """Return from when on messages are kept for *keep* seconds at least, a whole partition at a time; 0: all."""
    if not keep:
        return 0
    edge_ms = max(now_ms - int(keep * 1000), 0)
    return max(0, ms_of(bounds(partition_of(edge_ms, period))[0]))
