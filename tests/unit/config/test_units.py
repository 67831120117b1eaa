from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbus.config.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (0, 0.0),
        (2, 2.0),
        (0.5, 0.5),
        ("30", 30.0),
        ("50ms", 0.05),
        ("1.5h", 5400.0),
        ("7d", 604800.0),
        ("2 w", 1209600.0),
    ],
)
def test_durations_are_seconds_or_text_with_a_unit(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [(0, 0), (7, 7), ("100", 100), ("1kB", 1000), ("512KiB", 2**19), ("64 MiB", 2**26), ("1GiB", 2**30)],
)
def test_sizes_are_bytes_or_text_with_a_unit(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0"), (0.05, "50ms"), (1.5, "1500ms"), (90.0, "90s"), (300.0, "5m"), (604800.0, "7d"), (0.0123, "0.0123")],
)
def test_a_duration_is_shown_in_the_largest_unit_that_is_exact(seconds, text):
    assert format_duration(seconds) == text
    assert parse_duration(text) == seconds


@given(st.integers(0, 10**9).map(lambda number: number / 1000))
def test_a_duration_that_is_shown_reads_as_the_same(seconds):
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.integers(0, 2**20), st.sampled_from([1, 2**10, 2**20, 2**30, 2**40]))
def test_a_size_that_is_shown_reads_as_the_same(count, unit):
    assert parse_size(format_size(count * unit)) == count * unit
    assert format_size(64 * 2**20) == "64MiB"


@pytest.mark.parametrize(
    "value", [True, None, -1, math.nan, math.inf, "", "s", "7 days", "-1s", "1e3", "30s\n", "٣s", "9" * 15 + "w"]
)
def test_what_is_no_duration_is_refused_and_the_error_says_what_is_one(value):
    with pytest.raises(ValueError, match="30s, 5m"):
        parse_duration(value)


@pytest.mark.parametrize(
    "value", [True, None, -1, 1.5, "", "MiB", "1.5MiB", "1mib", "64MiB\n", "9" * 18 + "TiB", 2**63]
)
def test_what_is_no_size_is_refused_and_the_error_says_what_is_one(value):
    with pytest.raises(ValueError, match="64MiB"):
        parse_size(value)


@given(st.one_of(st.text(), st.integers(), st.floats(), st.none(), st.booleans(), st.from_regex(r"[0-9.]+ ?(ms|s|w)")))
def test_any_value_is_a_duration_from_zero_up_or_a_value_error(value):
    try:
        seconds = parse_duration(value)
    except ValueError:
        return
    assert isinstance(seconds, float)
    assert 0.0 <= seconds < 4e9


@given(st.one_of(st.text(), st.integers(), st.floats(), st.none(), st.from_regex(r"[0-9]+ ?(B|KiB|TiB)?")))
def test_any_value_is_a_size_from_zero_up_or_a_value_error(value):
    try:
        size = parse_size(value)
    except ValueError:
        return
    assert isinstance(size, int)
    assert 0 <= size <= 2**62


@given(st.integers(0, 10**9), st.sampled_from([("KiB", 2**10), ("MB", 10**6), ("GiB", 2**30)]))
def test_a_size_with_a_unit_is_the_number_times_the_unit(number, unit):
    assert parse_size(f"{number}{unit[0]}") == number * unit[1]
