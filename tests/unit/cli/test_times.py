"""Times as people write them."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbus.cli.times import parse_ago, parse_time

NOW = datetime(2026, 11, 18, 10, 30, 15, tzinfo=UTC)  # a Wednesday


@pytest.fixture(params=["UTC", "Europe/Prague", "America/New_York"])
def zone(request, monkeypatch):
    """The time zone of this process."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield ZoneInfo(request.param)
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("10m", timedelta(minutes=10)),
        ("90", timedelta(seconds=90)),
        ("50ms", timedelta(milliseconds=50)),
        ("1h30m", timedelta(minutes=90)),
        ("2 hours ago", timedelta(hours=2)),
        ("2 hours, 5 minutes ago", timedelta(minutes=125)),
        ("1 day and 2 hours ago", timedelta(hours=26)),
        ("An Hour ago", timedelta(hours=1)),
        ("a week ago", timedelta(weeks=1)),
        ("1.5 days", timedelta(hours=36)),
        ("-2h", timedelta(hours=2)),
        (" 7d ", timedelta(days=7)),
    ],
)
def test_how_long_ago_is_understood(text, ago):
    assert parse_ago(text) == ago
    assert parse_time(text, now=NOW) == NOW - ago


@pytest.mark.parametrize(
    ("text", "local"),
    [
        ("yesterday 14:00", (2026, 11, 17, 14)),
        ("yesterday at 14:00", (2026, 11, 17, 14)),
        ("yesterday noon", (2026, 11, 17, 12)),
        ("Yesterday", (2026, 11, 17)),
        ("today", (2026, 11, 18)),
        ("tomorrow 01:30", (2026, 11, 19, 1, 30)),
        ("monday 08:00:30.5", (2026, 11, 16, 8, 0, 30, 500000)),
        ("last thu", (2026, 11, 12)),
        ("wednesday", (2026, 11, 18)),
        ("02:15", (2026, 11, 18, 2, 15)),
        ("23:00", (2026, 11, 17, 23)),  # not reached today
        ("2026-11-01", (2026, 11, 1)),
        ("2026-07-01 10:00", (2026, 7, 1, 10)),  # in summer time
        ("2026-07-01T10:00:00.25", (2026, 7, 1, 10, 0, 0, 250000)),
    ],
)
def test_times_without_a_zone_are_those_of_the_zone_here(zone, text, local):
    assert parse_time(text, now=NOW) == datetime(*local, tzinfo=zone)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("now", NOW),
        ("2026-11-01T10:00:00Z", datetime(2026, 11, 1, 10, tzinfo=UTC)),
        ("2026-11-01 10:00 UTC", datetime(2026, 11, 1, 10, tzinfo=UTC)),
        ("2026-11-01T10:00:00+02:00", datetime(2026, 11, 1, 8, tzinfo=UTC)),
        ("yesterday 14:00 UTC", datetime(2026, 11, 17, 14, tzinfo=UTC)),
        ("09:00Z", datetime(2026, 11, 18, 9, tzinfo=UTC)),
        ("@1700000000", datetime.fromtimestamp(1_700_000_000, UTC)),
    ],
)
def test_times_with_a_zone_are_the_same_everywhere(zone, text, moment):
    assert parse_time(text, now=NOW) == moment


def test_an_end_in_the_future_can_be_named():
    assert parse_time("23:00Z", now=NOW, future=True) == datetime(2026, 11, 18, 23, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "whenever", "yesterday 25:00", "14:60", "10 parsecs ago", "2 hours agoo", "1h2", "2026-13-01",
        "monday x", "99999999999 weeks", "101w 5300w", "@99999999999999", "0000-00-00", "x" * 10_000, "2h" * 100,
        "\u0661\u0660m", "now now",
    ],
)  # fmt: skip
def test_what_is_no_time_is_told_with_what_would_be(text):
    with pytest.raises(ValueError, match="is not a time; write now, "):
        parse_time(text, now=NOW)


@given(st.text(max_size=40) | st.text("0123456789 :-@.TZhms agoyesterday", max_size=40))
def test_any_text_is_a_time_or_a_value_error(text):
    try:
        assert parse_time(text, now=NOW).tzinfo is not None
    except ValueError:
        pass
