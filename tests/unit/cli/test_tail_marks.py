"""What `fedbus tail` tells of streams on stderr, and how its table and its marks look."""

from __future__ import annotations

import json
import re
import unicodedata
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbus.cli import logs
from fedbus.cli.patterns import Patterns
from fedbus.cli.render import Look, Renderer
from fedbus.cli.tail_loop import Marks
from fedbus.cli.top import OTHER, Top
from fedbus.model.message import Message
from fedbus.texts.texts import Texts
from fedbus.transport.state import ReaderStats

NASTY = "\x1b[2J\x1b]8;;http://x\x07\x1b]52;c;aGk=\x07\x9b31m\u202e\u2066\u200b\ufeff\u2028\x7f\x85\r\n"
TEXT = st.text(st.sampled_from(NASTY + "ab .=é"), max_size=20)


class _Stream:
    """A stream at a subscriber, as far as marks look at it."""

    def __init__(self) -> None:
        self.stats = ReaderStats()
        self.endpoint = "koji.build01"

    def readers(self):
        return [self]


class _Parcel:
    """What a parcel tells its messages, whatever came in."""

    def __init__(self, topic: str, endpoint: str) -> None:
        self.topic = topic
        self.endpoint = endpoint
        self.epoch = "01a20047-5519-727c-ab2f-f3b7b4389c4f"
        self.envelopes = [b""]

    def single(self, index: int) -> bytes:
        return b""


def message(body, topic="org.example.dev.koji.build.start", time="2026-11-21T10:00:00.000000Z"):
    attributes = {"data": body, "id": "x", "time": time}
    return Message(body, 1, "x", _Parcel(topic, topic), 0, "native", _attributes=attributes)


@pytest.fixture
def marks(capsys):
    """Marks, and what they told since that was asked before."""
    told = []
    found = Marks(quiet=False, as_json=False, told=lambda: told.append(1))
    return SimpleNamespace(marks=found, lines=lambda: capsys.readouterr().err.splitlines(), told=told)


def test_a_gap_and_copies_outside_of_a_replay_are_told_once_and_refusals_at_the_end(marks):
    stream = _Stream()
    marks.marks.look(stream, 1.0)
    assert marks.lines() == []
    stream.stats.duplicates, stream.stats.fetched = 7, 100  # a replay, in which copies are by design
    marks.marks.look(stream, 2.0)
    assert marks.lines() == []
    stream.stats.duplicates, stream.stats.gaps = 8, 1
    marks.marks.look(stream, 2.5)  # too soon
    assert marks.lines() == []
    marks.marks.look(stream, 3.0)
    assert marks.lines() == ["gap: koji.build01: live traffic had 1 hole; its journal is read for the rest"]
    stream.stats.duplicates = 10
    marks.marks.look(stream, 4.0)
    assert marks.lines() == ["duplicate: koji.build01: 2 copies came, not shown"]
    stream.stats.refused, stream.stats.refusals = 3, {"signature": 2, "revoked": 1}
    marks.marks.end(stream)
    assert marks.lines() == ["refused: koji.build01: 3 in all (revoked 1, signature 2)"]
    assert len(marks.told) == 3


@pytest.mark.badinput("B37")
def test_marks_show_no_character_that_a_terminal_obeys(marks):
    marks.marks.mark("lost", NASTY)
    (line,) = marks.lines()
    assert line.startswith(r"lost: \x1b[2J\x1b]8;;") and line.isprintable()


def test_marks_are_objects_where_notices_are(capsys):
    logs.set_up(level="warning", form="json")
    Marks(quiet=True, as_json=True).mark("lost", "koji.build01: messages 1 to 2")
    told = json.loads(capsys.readouterr().err)
    assert (told["mark"], told["message"]) == ("lost", "lost: koji.build01: messages 1 to 2")


@pytest.mark.badinput("B37")
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5), st.sampled_from(["owner", "topic", "service", "id"]))
def test_no_table_shows_a_character_that_a_terminal_obeys(said, by):
    top = Top(by, texts=Texts(), root="org.example.dev", columns=80)
    top.add([message({"owner": owner}, topic=f"org.{topic}") for owner, topic in said])
    for line in (*top.table(1.0), top.json(2.0, final=True)):
        assert not {one for one in line if unicodedata.category(one) in ("Cc", "Cf", "Zl", "Zp")}, line
    assert json.loads(top.json(3.0))["count"] == len(said)


@pytest.mark.badinput("B37")
@given(TEXT, st.sampled_from(["short", "wide", "pretty", "{delta} {body.a} {text.summary}"]))
def test_what_is_marked_and_timed_shows_nothing_but_our_own_codes(text, form):
    look = Look(form=form, colour=True, delta=True, marked=Patterns(["a", "x1b", r"\\"]), fields=("a", "delta"))
    render = Renderer(look, Texts()).render
    for time in ("2026-11-21T10:00:00.000000Z", "2026-11-21T10:00:01.500000Z"):
        shown = re.sub(r"\x1b\[[0-9;]*m", "", render(message({"a": text, text: text}, time=time))).replace("\n", "")
        assert not {one for one in shown if unicodedata.category(one) in ("Cc", "Cf", "Zl", "Zp")}, shown
    assert "1.5" in shown


def test_a_table_has_rates_and_counts_what_is_too_much_together():
    top = Top("n", texts=Texts(), rows=3)
    top.add([message({"n": "a"}, time=f"2026-11-21T10:00:{second:02}.000000Z") for second in range(11)])
    top.table(100.0)
    top.add([message({"n": "a"}, time="2026-11-21T10:00:10.000000Z"), message({"n": "b"})])
    shown = json.loads(top.json(102.0))
    assert [(row["n"], row["count"], row["now_per_second"]) for row in shown["rows"]] == [("a", 12, 0.5), ("b", 1, 0.5)]
    assert shown["rate_per_second"] == 1.3
    top.add([message({"n": number}) for number in range(11_000)])
    shown = json.loads(top.json(103.0))
    assert shown["different"] == 10_001 and shown["rows"][0] == {**shown["rows"][0], "n": OTHER, "count": 1002}
    assert top.table(104.0)[4].startswith("… and 9998 more")
