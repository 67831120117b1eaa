"""What notifications say, and how many there are: pure functions of texts and times."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from typing import Any

import jsonschema
import pytest
from fedbus_consumers.desktop import Desktop, Pace, compose, markup, plain, summary_of
from hypothesis import given
from hypothesis import strategies as st

from fedbus import MessageError, Retry, Text, Texts
from fedbus.hub.options import ConsumerSettings
from fedbus.hub.registry import find
from tests.unit.consumers.messages import message

CAPABILITIES = st.frozensets(st.sampled_from(["body", "body-markup", "actions", "body-hyperlinks", "persistence"]))
TEXTS = st.builds(Text, title=st.text(), summary=st.text(), link=st.text() | st.just("https://example.org/?a=1&b=2"))


@pytest.mark.badinput("B41")
@given(st.text())
def test_markup_says_what_the_text_says_and_nothing_else(text):
    shown = plain(text, 400)
    assert ElementTree.fromstring(f"<body>{markup(shown)}</body>").text == (shown or None)


@pytest.mark.badinput("B41")
@given(TEXTS, CAPABILITIES)
def test_any_text_becomes_a_short_notification_of_printable_characters(text, able):
    title, body, link = compose(text, able)
    assert title and title.isprintable() and len(title) <= 500
    assert body.replace("\n", "").isprintable() and len(body) <= 5 * 400 + 1 + 5 * 2000
    assert body.count("\n") <= 1
    if "body" not in able:
        assert body == ""
    if "body-markup" in able:
        assert "<" not in body
    assert not link or (link == text.link and link.startswith(("http://", "https://")) and link.isascii())
    (title + body + link).encode()  # D-Bus takes no lone surrogates


@pytest.mark.badinput("B41")
@pytest.mark.parametrize(
    "link", ["javascript:alert(1)", "file:///etc/passwd", "http://", "https://x y", "--help", "https://x/" + "a" * 2000]
)
def test_what_is_no_web_address_is_not_offered(link):
    assert compose(Text("t", "s", link), frozenset({"body", "actions"})) == ("t", "s", "")


def test_a_link_stands_in_the_body_where_there_are_no_actions():
    text = Text("t", "a & b", "https://example.org/?a&b")
    assert compose(text, frozenset({"body"})) == ("t", "a & b\nhttps://example.org/?a&b", text.link)
    assert compose(text, frozenset({"body", "body-markup"}))[1] == "a &amp; b\nhttps://example.org/?a&amp;b"


@pytest.mark.badinput("B41")
def test_huge_texts_and_control_characters_are_cut_and_left_out():
    assert plain("x" * 10_000_000, 100) == "x" * 99 + "…"
    assert plain("a\x00b\x1b[31mc\u202ed\u200be\ud800f\r\n\tg", 100) == "a b [31mc d e f g"


def test_what_was_held_back_is_counted_by_its_title_the_most_frequent_first():
    text = summary_of({"build": 7, "tag": 2, "a": 1, "b": 1, "c": 1, "d": 1})
    assert (text.title, text.summary) == ("… and 13 more", "7 build, 2 tag, 1 a, 1 b, 2 others")
    assert summary_of({"build": 3}).summary == "3 build"


@given(st.integers(1, 20), st.floats(0.1, 100), st.lists(st.floats(0, 50), max_size=60))
def test_no_more_are_shown_than_the_burst_and_one_for_each_interval(burst, every, pauses):
    pace, now, taken = Pace(burst, every), 1000.0, 0
    for pause in pauses:
        now += pause
        taken += pace.take(now)
        assert taken <= burst + (now - 1000.0) / every + 1e-6
        wait = pace.wait(now)
        assert 0.0 <= wait <= every
        if wait:
            assert not pace.take(now)


@pytest.mark.parametrize(
    "settings",
    [
        {"bus": "tcp:host=example.org"},
        {"icon": "https://example.org/x.png"},
        {"rules": [{"urgency": "low"}]},
        {"rules": [{"topics": ["#"], "urgency": "urgent"}]},
        {"burst": 0},
        {"open": "xdg-open"},
    ],
)
def test_settings_of_another_shape_are_refused_by_the_schema(settings):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(settings, Desktop.schema)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"every": "often"}, ValueError),
        ({"newest": -1}, ValueError),
        ({"rules": [{"topics": ["Not A Topic"]}]}, MessageError),
    ],
)
def test_settings_that_cannot_be_are_told_when_the_consumer_is_made(settings, error):
    jsonschema.validate(settings, Desktop.schema)
    with pytest.raises(error):
        Desktop(**settings)


def test_without_the_library_the_consumer_is_not_loaded_and_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "dbus_fast", None)  # what cannot be imported
    monkeypatch.delitem(sys.modules, "fedbus_consumers.desktop")
    wanted = ConsumerSettings(name="desktop", use="fedbus_consumers.desktop", origin="bus.yaml:7")
    (problem,) = find({"desktop": wanted}).problems
    assert "pip install 'fedbus[desktop]'" in problem


def test_the_first_rule_for_a_topic_counts(monkeypatch):
    rules: list[dict[str, Any]] = [
        {"topics": ["koji.package"], "show": False},
        {"topics": ["org.example.dev.koji"], "urgency": "critical", "icon": "face-sad", "expire": "5s"},
        {"topics": ["*.update.#"], "urgency": "low"},
    ]
    one = Desktop(rules=rules, icon="bus")
    one.texts = Texts(root="org.example.dev")
    one.start()
    try:
        one.consume(message({}, "org.example.dev.koji.package.build"))  # shown nowhere, so no desktop is needed
        koji, update, other = (
            one._rule(f"org.example.dev.{rest}") for rest in ("koji.tag", "bodhi.update.x", "git.push")
        )
        assert (koji.urgency, koji.icon, koji.expire) == (2, "face-sad", 5000)
        assert (update.urgency, update.icon, update.expire) == (0, "bus", -1)
        assert (other.show, other.urgency) == (True, 1)
    finally:
        one.stop()


def test_without_a_session_bus_messages_wait_with_growing_pauses(monkeypatch, tmp_path):
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    one = Desktop()
    one.start()
    try:
        pauses = []
        for _ in range(3):
            with pytest.raises(Retry, match="no session bus") as retry:
                one.consume(message({}))
            pauses.append(retry.value.after)
        assert pauses == [1.0, 2.0, 4.0]
    finally:
        one.stop()
