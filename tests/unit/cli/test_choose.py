"""Field filters and regular expressions: which messages they choose, and in which time."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbus.cli.begin import CursorFile, parse_begin
from fedbus.cli.choose import Where
from fedbus.cli.patterns import PatternError, Patterns
from fedbus.cli.render import RESET, marked
from fedbus.model.position import Position

EPOCH = "01a20047-5519-727c-ab2f-f3b7b4389c4f"
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize(
    ("text", "fits", "does_not"),
    [
        ("a=5", [5, "5", 5.0, [1, 5]], [6, "5.0", None, True, [], {"a": 5}]),
        ("a==x", ["x", ["x"]], ["X", "=x", None]),
        ("a=true", [True, "true"], [1, False, None]),
        ("a=null", [None], ["", 0, False]),
        ("a=", [""], [None, "x", 0]),
        ("a!=5", [6, "x", None, [], [1]], [5, "5", [5]]),
        ("a<10", [9, 9.5, "9", -1, [20, 1]], [10, "x", None, True, "10", [20]]),
        ("a >= 1e3", [1000, "1001.5"], [999, None]),
        ("a>2026-01-01", ["2026-02-01T00:00:00Z"], ["2025-12-31", 3000, None]),
        ("a~^b.*h$", ["bash", ["x", "bush"]], ["bashful", None]),
        ("a~7", [17], [18, None]),
        ("a!~bash", ["zsh", None, []], ["bash", ["bash", "zsh"]]),
        ("a", [0, "", False, ["x"]], [None, []]),
        ("!a", [None, []], [0, "", ["x"]]),
        ("a=b=c", ["b=c"], ["b"]),
    ],
)
def test_a_field_filter_fits_what_it_says(text, fits, does_not):
    where = Where(text)
    assert where.path == "a"
    assert [value for value in fits if not where.fits(value)] == []
    assert [value for value in does_not if where.fits(value)] == []


@pytest.mark.parametrize("text", ["", "=5", "!a=5", " =x", "~x", "<3", "a>", "a<= ", "a~(", "a~" + "x" * 2000])
def test_what_is_no_field_filter_is_told(text):
    with pytest.raises(ValueError, match=r"is not a|shorter"):
        Where(text)


@given(st.text("ab!=<>~(0 5.", max_size=12) | st.text(max_size=12), VALUES)
def test_any_text_is_a_filter_for_any_value_or_a_value_error(text, value):
    try:
        where = Where(text)
    except ValueError:
        return
    assert where.fits(value) in (True, False)


@pytest.mark.badinput("B16")
@pytest.mark.parametrize("text", ["(a+)+$", "(a|a)*b", "^(([a-z])+.)+[A-Z]([a-z])+$", "(.*a){20}$", "(x+x+)+y"])
def test_an_expression_that_python_would_never_be_done_with_ends(text):
    patterns = Patterns([text])
    # the letters for which the time of a backtracking engine doubles with each; pytest-timeout is the deadline
    assert patterns.found("a" * 5_000 + "!") is False
    assert patterns.found("x" * 5_000) is False
    assert list(patterns.spans("a" * 5_000 + "!")) == []


@pytest.mark.badinput("B16")
@pytest.mark.parametrize("text", ["(", "a{100000}", "x" * 1001, "(?=a)", r"(a)\1", r"(\pL{100}){10}", "\ud800"])
def test_expressions_that_are_none_or_too_large_are_refused_before_anything_is_read(text):
    with pytest.raises(PatternError):
        Patterns([text])


def test_an_expression_that_is_refused_is_shown_as_it_was_written() -> None:
    for pattern, shown in ((r"^\d+\.(el9", r"'^\d+\.(el9'"), ("(\x1b[31m", r"'(\x1b[31m'")):
        with pytest.raises(PatternError) as caught:
            Patterns([pattern])
        assert str(caught.value).startswith(f"{shown} is not a regular expression of RE2: ")


@given(st.lists(st.sampled_from(["a", "b+", "[0-9]", "é", "x|y"]), min_size=1), st.text("ab1éxz ", max_size=30))
def test_expressions_find_what_those_of_python_do(texts, text):
    patterns = Patterns(texts)
    assert patterns.found(text) is any(re.search(one, text) for one in texts)
    joined = "|".join(f"(?:{one})" for one in texts)
    assert list(patterns.spans(text)) == [match.span() for match in re.finditer(joined, text)]


def test_what_is_marked_keeps_the_colours_around_it():
    shown = marked("\x1b[2mabc\x1b[0m abc", Patterns(["b"]))
    assert shown == f"\x1b[2ma\x1b[1;7mb{RESET}\x1b[2mc\x1b[0m a\x1b[1;7mb{RESET}c"


@pytest.mark.parametrize("text", ["now", "beginning", f"koji.build01/{EPOCH}/7"])
def test_places_that_the_bus_knows_are_left_to_it(text):
    assert parse_begin(text) == text


def test_a_cursor_file_is_read_back_and_keeps_streams_that_are_not_read_now(tmp_path):
    path = tmp_path / "cursor"
    assert CursorFile(path).load() == {}
    CursorFile(path).save({"a.b": Position(EPOCH, 1), "c.d": Position(EPOCH, 2)}, 0.0)
    again = CursorFile(path)
    assert again.load() == {"a.b": Position(EPOCH, 1), "c.d": Position(EPOCH, 2)}
    again.save({"c.d": Position(EPOCH, 5)}, 1.0)
    again.save({"c.d": Position(EPOCH, 6)}, 1.5)  # too soon
    assert CursorFile(path).load() == {"a.b": Position(EPOCH, 1), "c.d": Position(EPOCH, 5)}
    again.save({"c.d": Position(EPOCH, 6)}, 1.6, at_once=True)
    assert CursorFile(path).load()["c.d"].sequence == 6
    assert list(tmp_path.iterdir()) == [path]


@given(st.binary(max_size=80))
def test_any_file_is_a_cursor_or_a_value_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("cursor") / "file"
    path.write_bytes(data)
    try:
        CursorFile(path).load()
    except ValueError as error:
        assert str(path) in str(error)
