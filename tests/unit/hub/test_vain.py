"""When a consumer that tries again is no longer one that is merely trying again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fedbus.clock import ManualClock
from fedbus.hub.options import HubOptions
from fedbus.hub.vain import Vain
from fedbus.model.message import Message

EPOCH = "0192f0c0-0000-7000-8000-000000000001"
OPTIONS = HubOptions(stuck_after=60.0, stuck_failures=5)


def message(sequence: int) -> Message:
    parcel: Any = SimpleNamespace(endpoint="koji.build01", epoch=EPOCH, topic="org.example.dev.koji.build.start")
    return Message({}, sequence, "koji.build01", parcel, 0)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(wall=1_700_000_000.0)


def test_one_retry_that_was_asked_for_is_nothing_to_speak_of(clock):
    vain = Vain(clock)
    assert not vain.any
    vain.tried(message(1), "the server asks for a second", 1.0)
    assert vain.any
    assert vain.reasons(OPTIONS, dead=0) == []
    clock.advance(1.0)
    assert vain.seconds == 1.0
    vain.taken(message(1).key)
    assert not vain.any and vain.seconds == 0.0
    clock.advance(3600.0)
    assert vain.reasons(OPTIONS, dead=0) == []


def test_a_message_that_is_tried_for_too_long_is_told_with_its_key_since_when_how_often_and_when_again(clock):
    vain = Vain(clock)
    for _ in range(7):
        vain.tried(message(17), "no server", 10.0)
        clock.advance(10.0)
    vain.tried(message(17), "no server", 10.0)
    (reason,) = vain.reasons(OPTIONS, dead=0)
    assert reason == (
        f"has tried koji.build01/{EPOCH}/17 (org.example.dev.koji.build.start) in vain since 2023-11-14T22:13:20Z, "
        "8 times, next try at 2023-11-14T22:14:40Z: no server"
    )
    clock.advance(10.0)
    assert "8 times, it has it now: no server" in vain.reasons(OPTIONS, dead=0)[0]
    vain.taken(message(17).key)
    assert vain.reasons(OPTIONS, dead=0) == []


@pytest.mark.parametrize("after", [3600.0, 1e300])
def test_a_single_retry_for_longer_than_that_is_told_too_once_it_has_lasted(clock, after):
    vain = Vain(clock)
    vain.tried(message(1), "", after)
    clock.advance(60.0)
    assert vain.reasons(OPTIONS, dead=0) == []
    clock.advance(0.1)
    (reason,) = vain.reasons(OPTIONS, dead=0)
    assert "1 time, next try at" in reason and "no reason given" in reason


def test_of_several_messages_the_oldest_is_named_and_the_others_are_counted(clock):
    vain = Vain(clock)
    vain.tried(message(9), "a", 1.0)
    clock.advance(1.0)
    for number in (3, 4):
        vain.tried(message(number), "b", 1.0)
    clock.advance(60.5)
    (reason,) = vain.reasons(OPTIONS, dead=0)
    assert f"{EPOCH}/9 " in reason and reason.endswith(", and 2 messages more: a")
    vain.over(message(9).key)
    assert f"{EPOCH}/3 " in vain.reasons(OPTIONS, dead=0)[0]


def test_one_poison_message_is_no_row_and_a_consumer_that_fails_with_all_is(clock):
    vain = Vain(clock)
    for number in (1, 2):
        for _ in range(3):
            vain.failed(f"boom {number}")
            vain.tried(message(number), f"boom {number}", 0.1)
            clock.advance(0.1)
        vain.over(message(number).key)
        assert len(vain.reasons(OPTIONS, dead=number)) == (number == 2)
    (reason,) = vain.reasons(OPTIONS, dead=2)
    assert reason == "its last 6 calls failed, since 2023-11-14T22:13:20Z, the last one with boom 2"
    assert vain.reasons(OPTIONS, dead=0) == [], "its dead letters were dealt with, and there is nothing to try"
    vain.tried(message(3), "boom 3", 0.1)
    assert len(vain.reasons(OPTIONS, dead=0)) == 1
    vain.taken(message(3).key)
    assert vain.reasons(OPTIONS, dead=2) == []
