"""When an endpoint counts as silent, when it is connected anew, and how long its journal may take."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbus.transport.endpoint import Endpoint
from fedbus.transport.link import Link
from fedbus.transport.reader import StreamReader
from fedbus.transport.state import ReaderStats

SILENCE = 5.0
TICK = 0.5


class Watched:
    """A link whose time passes in ticks; only what a link looks at stands in for its reader."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.reader: Any = SimpleNamespace(heard_at=None, silent_since=None, beat=None, stats=ReaderStats())
        endpoint = Endpoint(name="koji.build01", publish="tcp://127.0.0.1:1", replay="tcp://127.0.0.1:2")
        self.link = Link(endpoint, cast(StreamReader, self.reader), SILENCE, 2**20, self.now)
        self.reopened: list[float] = []

    def run(self, seconds: float, *, heard: bool = False, listened: float = TICK) -> None:
        for _ in range(int(seconds / TICK)):
            self.now += TICK
            if heard:
                self.reader.heard_at = self.now
            if self.link.look(listened, self.now):
                self.reopened.append(self.now)


@pytest.fixture
def watched() -> Watched:
    return Watched()


@pytest.mark.fault("F9")
def test_an_endpoint_that_is_heard_is_left_alone(watched: Watched) -> None:
    watched.run(3600, heard=True)
    assert watched.reopened == []
    assert watched.reader.silent_since is None


@pytest.mark.fault("F9")
@pytest.mark.fault("F10")
@pytest.mark.parametrize("before", [0, 60], ids=["never heard", "heard before"])
def test_an_endpoint_that_is_silent_for_hours_is_connected_anew_at_least_every_minute_and_never_in_a_hurry(
    watched: Watched, before: float, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    watched.run(before, heard=True)
    began = watched.now
    watched.run(10 * 3600)
    pauses = [later - earlier for earlier, later in zip(watched.reopened, watched.reopened[1:], strict=False)]
    assert watched.reopened[0] - began <= (2 * SILENCE if before else 4 * SILENCE)
    assert max(pauses) <= 61
    assert min(pauses) >= 3 * SILENCE
    assert watched.reader.stats.reconnects == len(watched.reopened)
    assert watched.reader.silent_since is not None
    # an alarm, once, for one that was there
    assert [one.levelname for one in caplog.records] == (["WARNING"] if before else [])
    watched.run(TICK, heard=True)
    assert watched.reader.silent_since is None
    watched.run(60, heard=True)
    assert [one.levelname for one in caplog.records] == (["WARNING", "INFO"] if before else [])
    # and the next time it is noticed as soon as the first
    began = watched.now
    watched.run(2 * SILENCE)
    assert watched.reopened[-1] - began <= SILENCE + TICK


def test_a_command_that_comes_and_goes_raises_no_alarm(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(3):
        watched.run(1, heard=True)
        watched.run(60)
    assert watched.reopened
    assert caplog.records == []


@pytest.mark.fault("F7")
def test_the_pauses_of_a_busy_user_are_not_the_silence_of_endpoints(watched: Watched) -> None:
    watched.run(60, heard=True)
    watched.now += 3600
    assert not watched.link.look(1.0, watched.now), "an hour in which nobody listened"
    watched.run(TICK, heard=True)
    assert watched.reopened == []


def test_a_publisher_with_rare_beats_has_more_time(watched: Watched) -> None:
    watched.reader.beat = SimpleNamespace(facts=SimpleNamespace(interval_ms=20_000))
    watched.run(30, heard=True)
    watched.run(59)
    assert watched.reopened == []
    watched.run(3)
    assert len(watched.reopened) == 1


def test_an_endpoint_with_several_addresses_tries_the_next_one_soon(watched: Watched) -> None:
    watched.link.choices = 2
    began = watched.now
    watched.run(2 * SILENCE)
    assert watched.reopened[0] - began <= SILENCE + TICK


# --- requests ------------------------------------------------------------------------------------------------------


@pytest.mark.fault("F9")
def test_a_journal_that_never_answers_while_its_endpoint_is_heard_raises_one_alarm(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    link = watched.link
    watched.run(60, heard=True)
    waited = []
    for number in range(1, 20):
        link.asked(number, watched.now)
        asked = watched.now
        while not link.overdue(watched.now):
            watched.run(TICK, heard=True)
        waited.append(watched.now - asked)
        link.failed(watched.now, overdue=True)
    assert waited == sorted(waited)
    assert waited[0] <= 2.5
    assert waited[-1] <= 31
    assert ["does not answer" in one.getMessage() for one in caplog.records] == [True]
    assert watched.reader.stats.unanswered == 19
    link.asked(20, watched.now)
    link.moved(watched.now + 0.1)
    link.succeeded(watched.now + 0.2)
    link.asked(21, watched.now)
    assert link.overdue(watched.now + 2.5), "it is quick again, so nobody waits for half a minute"


@given(st.lists(st.tuples(st.booleans(), st.floats(0.001, 100.0)), max_size=40))
def test_a_request_asks_for_something_and_waits_for_a_bounded_time(turns: list[tuple[bool, float]]) -> None:
    link = Watched().link
    now = 0.0
    for answered, seconds in turns:
        assert 16 * 2**10 <= link.asked(1, now) <= 2**20
        assert not link.overdue(now)
        assert link.overdue(now + 61.0)
        if answered:
            now += seconds
            link.moved(now)
            assert link.overdue(now + 61.0)
            link.succeeded(now)
        else:
            link.moved(now)
            now += seconds
            link.failed(now, overdue=True)
            assert link.next_try_at - now <= 30.0
