"""The text of metrics, and which hosts the port answers to."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbus.monitor.http import host_allowed, is_loopback
from fedbus.monitor.text import Family, bounded_label, exposition

LINE = re.compile(r'[a-z_]+(?:\{(?:[a-z]+="(?:[^"\\\n]|\\["\\n])*",?)*\})? \S+')


def test_families_of_one_name_stand_together_and_text_is_escaped() -> None:
    text = exposition(
        [
            Family("a_total", "counter", "One\nline \\ here.", [({"x": 'q"\n\\'}, 1)]),
            Family("b", "gauge", "B.", [({}, 0.5)]),
            Family("a_total", "counter", "", [({"x": "y"}, 2)]),
        ]
    )
    assert text == (
        "# HELP a_total One\\nline \\\\ here.\n# TYPE a_total counter\n"
        'a_total{x="q\\"\\n\\\\"} 1\na_total{x="y"} 2\n# HELP b B.\n# TYPE b gauge\nb 0.5\n'
    )


@pytest.mark.badinput("B42")
@given(st.text(max_size=50), st.floats(allow_nan=False) | st.integers())
def test_no_label_breaks_out_of_its_line(label: str, value: float) -> None:
    lines = exposition([Family("a", "gauge", "A.", [({"x": label}, value)])]).split("\n")
    assert len(lines) == 4 and LINE.fullmatch(lines[2])


@pytest.mark.badinput("B42")
def test_names_that_programs_choose_become_other_when_there_are_too_many() -> None:
    known: set[str] = set()
    for number in range(1000):
        known.add(bounded_label(f"cursor{number}", known, 10))
    assert len(known) == 11 and "other" in known


@pytest.mark.badinput("B49")
@pytest.mark.parametrize(
    ("header", "configured", "allowed"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1:9140", "127.0.0.1", True),
        ("[::1]:9140", "127.0.0.1", True),
        ("localhost:9140", "127.0.0.1", True),
        ("LOCALHOST.", "127.0.0.1", True),
        ("10.1.2.3:9140", "0.0.0.0", True),
        ("hub.example.org:9140", "hub.example.org", True),
        ("hub.example.org:9140", "127.0.0.1", False),
        ("evil.example:9140", "127.0.0.1", False),
        ("127.0.0.1.evil.example", "127.0.0.1", False),
        ("localhost.evil.example", "127.0.0.1", False),
        ("localhost:9140:80", "127.0.0.1", False),
        ("localhost@evil.example", "127.0.0.1", False),
        ("evil.example, localhost", "127.0.0.1", False),
        ("localhost:", "127.0.0.1", False),
        ("[::1", "127.0.0.1", False),
        ("[::1]x", "127.0.0.1", False),
        ("0x7f000001", "127.0.0.1", False),
        ("2130706433", "127.0.0.1", False),
        ("", "127.0.0.1", False),
    ],
)
def test_a_host_that_the_port_was_not_configured_with_is_refused(header: str, configured: str, allowed: bool) -> None:
    assert host_allowed(header, configured) is allowed


@pytest.mark.badinput("B49")
@given(st.text(max_size=80))
def test_any_host_is_judged_without_an_error(header: str) -> None:
    assert host_allowed(header, "127.0.0.1") in (True, False)


def test_the_loopback_is_told_from_the_rest() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "::1%lo")))
    assert not any(map(is_loopback, ("10.0.0.1", "0.0.0.0", "::", "::ffff:10.0.0.1", "", "localhost")))
