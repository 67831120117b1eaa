"""What is shown of messages: nothing in it can move a terminal, hide, or turn text around."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbus.cli import render
from fedbus.cli.escaping import escape
from fedbus.cli.render import Look, Renderer, colour_of, look_up, parse_template, summary, to_json
from fedbus.model.message import Message

# C0, C1, ESC, CSI, OSC 8 and 52, bidi, zero width, BOM, line separators, fillers, variation selectors, tags
NASTY = (
    "\x1b[2J\x1b]8;;http://x\x07link\x1b]52;c;aGk=\x07\x9b31m\x9d0;t\x9c\x00\x07\x08\x7f\x85\r\n\t\v\f"
    "\u202e\u2066\u2069\u200b\u200d\u200e\u061c\ufeff\u2028\u2029\u00ad\u034f\u115f\u3164\uffa0\ufe0f\u2800\u180e"
    "\U000e0041\U000e0100\ue000\ufff9"
)
INVISIBLE = set("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\u180b\u180c\u180d\u180f\U0001d159")
INVISIBLE |= {chr(code) for code in (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))}
TEXT = st.text(st.one_of(st.sampled_from(NASTY), st.characters(codec="utf-8")))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
BODIES = st.dictionaries(TEXT, JSON, max_size=5)


class _Parcel:
    """What a parcel tells its messages, whatever came in."""

    def __init__(self, topic: str, endpoint: str) -> None:
        self.topic = topic
        self.endpoint = endpoint
        self.epoch = "01a20047-5519-727c-ab2f-f3b7b4389c4f"
        self.envelopes = [b""]

    def single(self, index: int) -> bytes:
        return b""


def message(body: dict[str, Any], *, topic: str = "org.example.dev.koji.build.start", text: str = "x") -> Message:
    attributes = {"data": body, "id": text, "time": "2026-11-21T10:00:00.123456Z"}
    return Message(body, 7, text, _Parcel(topic, text), 0, text, _attributes=attributes)


def assert_harmless(shown: str) -> None:
    for letter in shown:
        category = unicodedata.category(letter)
        assert category not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"), f"{letter!r} ({category}) in {shown!r}"
        assert letter not in INVISIBLE, f"{letter!r} in {shown!r}"


@pytest.mark.badinput("B37")
@given(TEXT)
def test_no_character_that_a_terminal_obeys_or_hides_comes_out_of_escape(text):
    assert_harmless(escape(text))


@given(st.text(st.characters(categories=["L", "N", "P", "S"]).filter(lambda one: one not in INVISIBLE)))
def test_text_that_shows_as_itself_stays_as_it_is(text):
    assert escape(text) == text


@pytest.mark.badinput("B37")
@given(BODIES, TEXT, st.sampled_from(["short", "wide", "pretty", "json", "{body} {topic} {endpoint} {signer} {id}"]))
def test_every_format_shows_any_message_without_a_control_bidi_or_invisible_character(body, text, form):
    shown = Renderer(Look(form=form, root="org.example.dev")).render(message(body, topic=f"org.{text}", text=text))
    if form == "pretty":
        shown = shown.replace("\n", "")
    assert_harmless(shown)


@pytest.mark.badinput("B37")
@given(BODIES, TEXT, st.sampled_from(["short", "wide", "pretty"]), st.sampled_from([0, 20, 80]))
def test_colours_are_the_only_codes_that_come_out(body, text, form, columns):
    look = Look(form=form, colour=True, columns=columns, fields=("a", text), root="org.example.dev")
    shown = Renderer(look).render(message({**body, "a": body}, text=text))
    assert_harmless(re.sub(r"\x1b\[[0-9;]*m", "", shown).replace("\n", ""))


@pytest.mark.badinput("B37")
@given(JSON)
def test_json_output_is_harmless_and_means_the_same(value):
    shown = to_json(value)
    assert_harmless(shown)
    assert json.loads(shown) == value


def test_a_message_of_osc_52_and_bidi_is_readable_as_escapes():
    shown = Renderer(Look(root="org.example.dev")).render(message({"owner": "\x1b]52;c;aGk=\x07\u202eabc"}))
    assert r"\x1b]52;c;aGk=\x07\u202eabc" in shown


def test_the_short_form_names_service_event_and_members():
    shown = Renderer(Look(root="org.example.dev", utc=True)).render(
        message({"tags": ["a"], "package": "bash", "text": "two words"}, text="native")
    )
    assert shown == '10:00:00 koji build.start  package=bash text="two words" tags=["a"]'


def test_a_short_line_keeps_to_the_columns_of_the_terminal():
    shown = Renderer(Look(columns=60, root="org.example.dev")).render(message({"a": "x" * 10_000}, text="native"))
    assert len(shown) <= 60 and shown.endswith("…")


def test_json_holds_at_least_what_scripts_were_promised():
    shown = json.loads(Renderer(Look(form="json")).render(message({"a": 1}, text="native")))
    assert set(shown) >= {"topic", "endpoint", "epoch", "sequence", "id", "time", "signer", "wire", "body"}
    assert shown["body"] == {"a": 1}
    assert shown["sequence"] == 7


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("package", "bash"),
        ("build.status", "ok"),
        ("tags.1", "b"),
        ("tags.9", None),
        ("a.b", 5),
        ("topic", "t"),
        ("body.topic", "inner"),
        ("nothing.there", None),
    ],
)
def test_a_path_leads_into_the_body_or_to_what_stands_beside_it(path, value):
    body = {"package": "bash", "build": {"status": "ok"}, "tags": ["a", "b"], "a.b": 5, "topic": "inner"}
    assert look_up({"topic": "t", "body": body}, path) == value


def test_chosen_fields_are_all_that_is_shown():
    shown = Renderer(Look(form="json", fields=("a", "b.c", "topic"))).render(message({"a": 1, "b": {"c": 2}, "d": 3}))
    assert json.loads(shown) == {"a": 1, "b.c": 2, "topic": "org.example.dev.koji.build.start"}


def test_a_template_is_filled():
    render_one = Renderer(Look(form=r"{sequence}\t{{{body.a}}} {body.none}|")).render
    assert render_one(message({"a": "x"})) == "7\t{x} |"


@pytest.mark.parametrize("template", ["no field", "{", "{a} }", "{a b}", ""])
def test_a_template_that_is_none_is_refused(template):
    with pytest.raises(ValueError):
        parse_template(template)


def test_a_service_has_one_colour_and_most_services_differ():
    assert colour_of("koji") == colour_of("koji") == "\x1b[94m"
    assert len({colour_of(name) for name in ("koji", "bodhi", "git", "fas", "wiki", "irc")}) >= 4


def test_a_huge_body_is_summed_up_without_being_worked_through():
    assert len(summary({f"key{n}": "v" * 1000 for n in range(10_000)}, 200)) < 500
    assert len(summary({"deep": [[["x" * 10**6] * 1000] * 1000]}, 200)) < 500


def test_deep_nesting_is_shown_as_deep_and_not_as_empty():
    assert "…" in summary({"a": {"b": {"c": {"d": {"e": 1}}}}}, 200)
    assert "{}" not in summary({"a": {"b": {"c": {"d": {"e": 1}}}}}, 200)


def test_wide_characters_count_two_columns():
    assert render.cut("漢字漢字", 8) == "漢字漢字"
    assert render.cut("漢字漢字", 6) == "漢字…"
    assert render.cut("abcdef", 4) == "abc…"
