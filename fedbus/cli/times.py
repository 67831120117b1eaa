"""Times as people write them: ``10m``, ``2 hours ago``, ``yesterday 14:00``, ``monday``, ``2026-11-21T10:00:00Z``."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

WHEN_FORM = (
    "write now, today, yesterday 14:00, monday, 14:30, how long ago (10m, 2h 30m, 3 days ago), a date or a time "
    "(2026-11-21, 2026-11-21 10:00, 2026-11-21T10:00:00Z), or @ and seconds since 1970"
)
_MOST_LETTERS = 64
_CENTURY = timedelta(days=100 * 365)  # a longer time ago is a slip of the keyboard

_UNITS: dict[str, timedelta] = {
    **dict.fromkeys(("ms", "msec", "millisecond", "milliseconds"), timedelta(milliseconds=1)),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), timedelta(seconds=1)),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), timedelta(minutes=1)),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), timedelta(hours=1)),
    **dict.fromkeys(("d", "day", "days"), timedelta(days=1)),
    **dict.fromkeys(("w", "week", "weeks"), timedelta(weeks=1)),
}
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_AMOUNT = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?) ?([a-z]{1,12})(?: ?(?:,|and) ?| |(?=[0-9])|$)")
_CLOCK = re.compile(r"([0-9]{1,2}):([0-9]{2})(?::([0-9]{2})(\.[0-9]{1,6})?)?")
_EPOCH = re.compile(r"@([0-9]{1,12}(?:\.[0-9]{1,6})?)")


def parse_ago(text: str) -> timedelta:
    """Return how long ago *text* says: ``10m``, ``1h30m``, ``2 hours ago``, ``an hour ago``, ``-2h``, or bare seconds.

    Raises:
        ValueError: It is no such text, or more than a century.
    """
    rest = " ".join(text.lower().split())
    if len(rest) <= _MOST_LETTERS:
        rest = re.sub(r"^an? (?=[a-z])", "1 ", rest.removeprefix("-").removesuffix(" ago"))
        if re.fullmatch(r"[0-9]{1,12}(?:\.[0-9]{1,9})?", rest):
            rest += "s"
        total, place = timedelta(), 0
        try:
            while match := _AMOUNT.match(rest, place):
                total += float(match[1]) * _UNITS[match[2]]
                place = match.end()
        except (KeyError, OverflowError):
            place = 0
        if 0 < place == len(rest) and total <= _CENTURY:
            return total
    raise ValueError(f"{text!r} is not how long ago something was; write 10m, 1h30m, 7d or 2 hours ago")


def parse_time(text: str, *, now: datetime | None = None, future: bool = False) -> datetime:
    """Return the moment that *text* names, with a time zone; see `WHEN_FORM`.

    Times without a zone are those of the zone here (``TZ``); behind ``UTC`` or ``Z`` they are in UTC. A day without a
    time is its beginning. A weekday is the last such day, today included. A time of day that is not reached yet is that
    of yesterday, or with *future* that of today. *now*, an aware datetime, is what it is told against.

    Raises:
        ValueError: It is none of these; the text says what was expected.
    """
    wanted = " ".join(text.split())
    if wanted and len(wanted) <= _MOST_LETTERS:
        present = now or datetime.now(UTC)
        for form in (_named_day, _time_of_day, _seconds, _calendar):
            try:
                found = form(wanted, present, future)
            except (ValueError, OverflowError, OSError):
                continue
            if found is not None:
                return found
        try:
            return present - parse_ago(wanted)
        except ValueError:
            pass
    shown = text if len(text) <= _MOST_LETTERS else text[:_MOST_LETTERS] + "…"
    raise ValueError(f"{shown!r} is not a time; {WHEN_FORM}")


def _zone(wanted: str) -> tuple[str, Callable[[datetime], datetime]]:
    """Split off what says UTC; return the rest, and what gives a naive time its zone."""
    for ending in (" UTC", " utc", " Z", "Z", " z"):
        if wanted.endswith(ending):
            return wanted.removesuffix(ending).rstrip(), lambda naive: naive.replace(tzinfo=UTC)
    # local: astimezone() of a naive time knows of daylight saving at that time, a fixed offset of now would not
    return wanted, datetime.astimezone


def _named_day(wanted: str, now: datetime, future: bool) -> datetime | None:
    words, zoned = _zone(wanted)
    day, _, rest = words.lower().partition(" ")
    if day == "last":
        day, _, rest = rest.partition(" ")
    if day == "now" and not rest:
        return now
    here = now.astimezone(UTC) if zoned is not datetime.astimezone else now.astimezone()
    today = here.replace(tzinfo=None, hour=0, minute=0, second=0, microsecond=0)
    if day in ("today", "yesterday", "tomorrow"):
        chosen = today + timedelta(days=("yesterday", "today", "tomorrow").index(day) - 1)
    else:
        found = [number for number, name in enumerate(_WEEKDAYS) if day in (name, name[:3])]
        if not found:
            return None
        chosen = today - timedelta(days=(today.weekday() - found[0]) % 7)
    if not rest or rest == "at":
        return zoned(chosen)
    clock = _of_clock(rest.removeprefix("at "))
    return None if clock is None else zoned(chosen + clock)


def _time_of_day(wanted: str, now: datetime, future: bool) -> datetime | None:
    words, zoned = _zone(wanted)
    clock = _of_clock(words)
    if clock is None:
        return None
    here = now.astimezone(UTC) if zoned is not datetime.astimezone else now.astimezone()
    today = here.replace(tzinfo=None, hour=0, minute=0, second=0, microsecond=0)
    moment = zoned(today + clock)
    if moment > now and not future:
        moment = zoned(today - timedelta(days=1) + clock)
    return moment


def _of_clock(text: str) -> timedelta | None:
    if text in ("midnight", "noon"):
        return timedelta(hours=12 if text == "noon" else 0)
    match = _CLOCK.fullmatch(text)
    if match is None:
        return None
    hours, minutes, seconds = int(match[1]), int(match[2]), int(match[3] or 0)
    if hours > 23 or minutes > 59 or seconds > 59:
        return None
    return timedelta(hours=hours, minutes=minutes, seconds=seconds + float(match[4] or 0))


def _seconds(wanted: str, now: datetime, future: bool) -> datetime | None:
    match = _EPOCH.fullmatch(wanted)
    return None if match is None else datetime.fromtimestamp(float(match[1]), UTC)


def _calendar(wanted: str, now: datetime, future: bool) -> datetime | None:
    if not re.match(r"[0-9]{4}-?[0-9W]", wanted) or wanted.isdigit():
        return None  # "20261121" could be a number of seconds too
    words, zoned = _zone(wanted)
    moment = datetime.fromisoformat(words)
    return zoned(moment) if moment.tzinfo is None else moment
