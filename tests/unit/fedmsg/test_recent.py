"""Ids that come once more, and counts that leave something out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from fedbus.errors import Reason, TrustError
from fedbus.fedmsg.codec import Envelope, canonical
from fedbus.fedmsg.recent import Counter, Counters, Recent


def message(identifier: str, number: int = 0) -> Envelope:
    fields = {"topic": "a.b", "msg": {"n": number}, "msg_id": identifier}
    return Envelope("a.b", fields, canonical(fields), "", "", b"")


@pytest.mark.badinput("B29")
def test_a_message_is_taken_once_and_another_with_its_id_is_a_conflict() -> None:
    recent = Recent(10)
    assert recent.known(message("x")) == ""
    assert recent.take(message("x"), "koji")
    assert recent.known(message("x")) == "koji"
    assert not recent.take(message("x"), "koji")
    assert recent.known(message("x", 1)) == ""
    with pytest.raises(TrustError) as caught:
        recent.take(message("x", 1), "koji")
    assert caught.value.reason is Reason.CONFLICT


def test_an_id_that_is_known_from_a_journal_is_not_taken_again() -> None:
    recent = Recent(10)
    recent.remember("x")
    assert not recent.take(message("x"), "koji")
    assert recent.known(message("x")) == "koji"


@given(some.lists(some.integers(0, 30), max_size=200), some.integers(1, 10))
def test_no_more_ids_are_kept_than_allowed_and_the_last_ones_are(ids: list[int], most: int) -> None:
    recent = Recent(most)
    for number in ids:
        recent.take(message(str(number)), "koji")
        assert len(recent) <= most
        assert recent.known(message(str(number)))


def follow(*counts: int) -> int:
    counter = Counter()
    return sum(counter.follow(count) for count in counts)


def test_a_hole_counts_once_messages_follow_on_each_other_behind_it() -> None:
    assert follow(1, 2, 3, 4) == 0
    assert follow(5, 6, 9, 10, 11) == 2
    assert follow(5, 6, 9, 10) == 0
    assert follow(5, 9, 10, 12, 13, 14) == 4


def test_a_publisher_that_begins_anew_has_lost_nothing() -> None:
    assert follow(7, 8, 1, 2, 3, 4) == 0


def test_of_counts_that_are_mixed_nothing_can_be_told() -> None:
    assert follow(1, 100, 2, 101, 3, 102, 4, 500, 501, 502, 503) == 0


def test_a_replayed_message_does_not_hide_later_holes() -> None:
    counters = Counters()
    for count in (1, 2, 3):
        counters.follow("koji", count)
    counters.follow("koji", 1, again=True)
    assert sum(counters.follow("koji", count) for count in (6, 7, 8)) == 2


@given(some.lists(some.integers(-5, 2**40)))
def test_whatever_is_counted_holes_are_never_negative(counts: list[int]) -> None:
    counter = Counter()
    for count in counts:
        assert counter.follow(count) >= 0
