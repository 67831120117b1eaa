"""What becomes of messages that a consumer cannot take: attempts that survive a restart, dead letters, requeueing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedbus import Bus, Consumer, Drop, Message, Publisher, Retry
from fedbus.errors import JournalError
from fedbus.hub.dead import DeadLetters
from fedbus.hub.enabled import Enabled
from fedbus.hub.hub import Hub
from fedbus.trust.proof import verify_parcel
from fedbus.wire import parcel as parcels
from tests.support import wait_until

KOJI = "koji.build01"


class Failing(Consumer):
    """Fails with the messages whose number is in ``bad``."""

    name = "failing"
    topics = ("#",)

    def __init__(self, *bad: int) -> None:
        self.bad = set(bad)
        self.calls: list[int] = []
        self.seen: list[int] = []

    def consume(self, message: Message) -> None:
        number = message.body["i"]
        self.calls.append(number)
        if number in self.bad:
            raise RuntimeError(f"boom {number}")
        self.seen.append(number)


@pytest.fixture
def bus(bus_folder: Path) -> Iterator[Bus]:
    with Bus.open(bus_folder) as opened:
        yield opened


@contextmanager
def running(bus: Bus, consumer: Consumer, attempts: int = 4, workers: int = 1, **changes: Any) -> Iterator[Hub]:
    enabled = Enabled(
        name="failing", consumer=consumer, topics=("#",), since="beginning", attempts=attempts, workers=workers
    )
    options = replace(
        bus.settings.hub, **{"retry_pause": 0.01, "commit_interval": 0.05, "drain_timeout": 60.0, **changes}
    )
    hub = bus.hub([enabled], options=options)
    thread = threading.Thread(target=hub.run)
    thread.start()
    try:
        wait_until(lambda: hub.intake is not None and hub.intake.is_alive(), what="the hub's start")
        yield hub
    finally:
        hub.stop()
        thread.join(90)
        assert not thread.is_alive()


def publish(publisher: Publisher, first: int, last: int) -> None:
    for number in range(first, last + 1):
        publisher.enqueue("package.build.start", {"i": number})
    publisher.flush()


def test_a_message_that_fails_every_time_becomes_a_dead_letter_with_its_signed_bytes(bus):
    failing = Failing(2)
    with bus.publisher(KOJI) as koji, running(bus, failing) as hub:
        publish(koji, 1, 3)
        wait_until(lambda: failing.seen == [1, 3])
        wait_until(lambda: hub.deliveries[0].dead.count == 1, what="the hub's own look")
    assert failing.calls == [1, 2, 2, 2, 2, 3]
    (letter,) = bus.dead.list()
    assert (letter.consumer, letter.key.sequence, letter.attempts, letter.requeued) == ("failing", 2, 4, False)
    assert "RuntimeError: boom 2" in letter.reason
    _, body = bus.dead.get(letter.id)
    assert "test_dead_letters.py" in body.traceback
    parcel = parcels.decode(body.parcel, parcel_bytes=len(body.parcel))
    assert verify_parcel(bus.verifier, parcel).name == KOJI
    assert b'"i":2' in parcel.envelopes[0]
    assert len(parcel.envelopes) == 1
    assert bus.dead.attempts("failing", {}) == {}, "the cursor has passed it"


def test_a_requeued_dead_letter_comes_back_exactly_once(bus):
    failing = Failing(2)
    with bus.publisher(KOJI) as koji:
        with running(bus, failing) as hub:
            publish(koji, 1, 3)
            wait_until(lambda: failing.seen == [1, 3])
            failing.bad.clear()
            (letter,) = bus.dead.list()
            with DeadLetters.open(bus.settings.dead) as other:  # as the command does, from elsewhere
                other.requeue(letter.id)
            wait_until(lambda: not bus.dead.list(), what="the letter's end")
            publish(koji, 4, 4)
            wait_until(lambda: failing.seen == [1, 3, 2, 4])
            assert hub.deliveries[0].stats.requeued == 1
        again = Failing()
        with running(bus, again):
            publish(koji, 5, 5)
            wait_until(lambda: again.seen)
    assert again.seen == [5]


def test_a_letter_requeued_while_no_hub_runs_is_given_at_its_start_and_may_die_again(bus):
    failing = Failing(2)
    with bus.publisher(KOJI) as koji:
        with running(bus, failing):
            publish(koji, 1, 3)
            wait_until(lambda: failing.seen == [1, 3])
        (letter,) = bus.dead.list()
        bus.dead.requeue(letter.id)
        with running(bus, failing):
            wait_until(lambda: bus.dead.list()[0].attempts == 8, what="the second death")
        assert failing.calls.count(2) == 8
        bus.dead.requeue(letter.id)

        class Picky(Failing):
            def consume(self, message: Message) -> None:
                self.calls.append(message.body["i"])
                raise Drop("no use")

        picky = Picky()
        with running(bus, picky):
            wait_until(lambda: not bus.dead.list(), what="the letter's end")
        assert picky.calls == [2]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_letter_that_is_dropped_while_it_is_tried_once_more_stays_dropped(bus, last, workers):
    class Dropping(Failing):
        requeued = False

        def consume(self, message: Message) -> None:
            if self.requeued and message.body["i"] == 2 and self.calls.count(2) == (5 if not last else 7):
                (letter,) = bus.dead.list()
                bus.dead.drop(letter.id)
            super().consume(message)

    failing = Dropping(2)
    with bus.publisher(KOJI) as koji, running(bus, failing, workers=workers) as hub:
        publish(koji, 1, 2)
        wait_until(bus.dead.list, 30, "the letter")
        failing.requeued = True
        assert bus.dead.requeue(bus.dead.list()[0].id)
        wait_until(lambda: not bus.dead.list(), 30, "its end")
        crew = hub.deliveries[0].crew
        wait_until(lambda: hub.deliveries[0].stats.failed == (6 if not last else 8), 30, "the failure behind it")
        wait_until(lambda: crew and not any(crew.currents) and not hub.deliveries[0].trying.vain.seconds, 30, "a rest")
        publish(koji, 3, 3)
        wait_until(lambda: failing.seen == [1, 3], 30, "the next message")
        assert bus.dead.list() == []
    assert failing.calls.count(2) == (6 if not last else 8)


@pytest.mark.fault("F8")
def test_attempts_survive_a_restart_and_retries_do_not_count(bus):
    class Counting(Failing):
        def consume(self, message: Message) -> None:
            if not self.calls:
                self.calls.append(message.body["i"])
                raise Retry(after=0.0)
            super().consume(message)

    with bus.publisher(KOJI) as koji:
        publish(koji, 1, 2)
        first = Counting(1)
        # the pause behind the first failure is too long to wait for: the stop comes first
        with running(bus, first, retry_pause=60.0):
            wait_until(lambda: bus.dead.attempts("failing", {}))
        assert first.calls == [1, 1]
        assert [one.count for one in bus.dead.attempts("failing", {}).values()] == [1]
        second = Failing(1)
        with running(bus, second):
            wait_until(lambda: second.seen == [2])
    assert second.calls == [1, 1, 1, 2]
    (letter,) = bus.dead.list()
    assert letter.attempts == 4


def test_where_no_dead_letter_fits_the_consumer_waits_and_says_so(bus):
    failing = Failing(1, 2)
    with bus.publisher(KOJI) as koji, running(bus, failing, attempts=1, dead_messages=1) as hub:
        publish(koji, 1, 3)
        wait_until(lambda: any("cannot be made a dead letter" in reason for reason in hub.reasons()))
        assert failing.seen == []
        (letter,) = bus.dead.list()
        bus.dead.drop(letter.id)
        wait_until(lambda: failing.seen == [3])
        wait_until(lambda: not hub.reasons())
    assert [one.key.sequence for one in bus.dead.list()] == [2]


def test_a_store_that_refuses_makes_the_consumer_wait_and_nothing_is_lost(bus, monkeypatch):
    failing = Failing(1)
    refuse = True
    bury = DeadLetters.bury

    def refusing(*arguments: Any, **named: Any) -> bool:
        if refuse:
            raise JournalError("no space left on device")
        return bury(*arguments, **named)

    monkeypatch.setattr(DeadLetters, "bury", refusing)
    with bus.publisher(KOJI) as koji, running(bus, failing, attempts=1) as hub:
        publish(koji, 1, 2)
        wait_until(lambda: any("no space left" in reason for reason in hub.reasons()))
        refuse = False
        wait_until(lambda: failing.seen == [2])
    assert len(bus.dead.list()) == 1
    assert failing.calls == [1, 2], "it is the letter that is tried again, not the message"


def test_a_dead_letter_whose_bytes_were_changed_is_not_delivered(bus):
    failing = Failing(1)
    with bus.publisher(KOJI) as koji, running(bus, failing, attempts=1):
        publish(koji, 1, 1)
        wait_until(bus.dead.list)
        (letter,) = bus.dead.list()
        _, body = bus.dead.get(letter.id)
        changed = body.parcel.replace(b'"i":1', b'"i":7')
        assert changed != body.parcel
        assert bus.dead._connection is not None
        bus.dead._connection.execute("UPDATE letter SET parcel = ?", (changed,))
        bus.dead.requeue(letter.id)
        wait_until(lambda: "it does not verify" in bus.dead.list()[0].reason)
        assert not bus.dead.list()[0].requeued
    assert failing.calls == [1]
