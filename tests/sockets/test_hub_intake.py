"""A hub whose intake hangs, dies or fails: that is told, it is not alive, and nobody misses a message."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from fedbus import Bus, failpoints
from fedbus.failpoints import parse
from fedbus.hub.delivery import Delivery
from fedbus.hub.enabled import Enabled
from fedbus.hub.hub import Hub
from fedbus.hub.intake import Intake
from fedbus.hub.roster import Renewed
from fedbus.hub.source import Source
from fedbus.monitor.notify import Keeper, Notifier
from fedbus.transport.subscriber import Subscriber
from tests.sockets.buses import take
from tests.sockets.test_hub import BODHI, KOJI, Collect, get, publish, running
from tests.support import wait_until
from tests.unit.monitor.test_notify import Manager

PATIENCE = 60.0


@pytest.fixture
def bus(bus_folder: Path) -> Iterator[Bus]:
    with Bus.open(bus_folder) as opened:
        yield opened


@pytest.fixture
def arm(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Arm failpoints in this process, as FEDBUS_FAILPOINTS does at the start of one."""

    def now(text: str) -> None:
        monkeypatch.setattr("fedbus.failpoints._armed", parse(text))
        monkeypatch.setattr("fedbus.hub.intake.ARMED", True)

    return now


@pytest.fixture
def stall(arm: Callable[[str], None], tmp_path: Path) -> Iterator[Path]:
    """The intake hangs with the next messages, until this file exists."""
    until = tmp_path / "go-on"
    arm(f"hub.intake=stall:{until}@1")
    yield until
    until.touch()


def hangs(until: Path) -> bool:
    return until.with_name(until.name + ".reached").exists()


def test_a_hub_whose_intake_hangs_is_not_alive_and_the_watchdog_is_not_fed_until_it_turns_again(
    bus, stall, monkeypatch
):
    monkeypatch.setattr("fedbus.hub.hub._LIVE_SECONDS", 2.0)
    collect, manager = Collect(), Manager(f"@fedbus-{uuid4()}")
    looks = [0]
    with bus.publisher(KOJI) as koji, running(bus, collect, http="127.0.0.1:0") as hub:

        def live() -> bool:
            looks[0] += 1
            return hub.live()

        notifier = Notifier(manager.environment(WATCHDOG_USEC="40000"))
        with Keeper(turned_at=lambda: hub.beat_at, reasons=hub.reasons, live=live, notifier=notifier):
            wait_until(lambda: manager.told("WATCHDOG"), PATIENCE, "a sign of life")
            wait_until(lambda: get(hub, "/live")[0] == 200, PATIENCE, "life")
            publish(koji, 1, 1)
            wait_until(lambda: hangs(stall), PATIENCE, "the intake to hang")
            wait_until(lambda: get(hub, "/live") == (503, '{"live": false}\n'), PATIENCE, "/live to say so")
            wait_until(lambda: any("intake: it hangs" in reason for reason in hub.reasons()), PATIENCE, "the reason")

            def rounds(count: int) -> None:
                asked, beat = looks[0] + count, hub.beat_at
                wait_until(lambda: looks[0] >= asked and hub.beat_at > beat, PATIENCE, "the hub's own thread to turn")

            rounds(2)  # what was being said meanwhile has been said
            before = len(manager.told("WATCHDOG"))
            rounds(5)
            assert len(manager.told("WATCHDOG")) == before, "the hub's own thread turns, and that is not enough"
            stall.touch()
            wait_until(lambda: collect.numbers() == [1], PATIENCE, "the message")
            wait_until(lambda: get(hub, "/live")[0] == 200, PATIENCE, "life")
            wait_until(lambda: len(manager.told("WATCHDOG")) > before, PATIENCE, "a sign of life")
            wait_until(lambda: not hub.reasons(), PATIENCE, "readiness")
    manager.socket.close()


def test_a_hub_whose_intake_is_dead_is_not_alive_and_says_so(bus, monkeypatch):
    monkeypatch.setattr(Intake, "_spread", lambda *_: (_ for _ in ()).throw(SystemExit("gone")))
    with bus.publisher(KOJI) as koji, running(bus, Collect(), http="127.0.0.1:0") as hub:
        assert hub.live()
        publish(koji, 1, 1)
        wait_until(lambda: not hub.live(), PATIENCE, "the end of the intake")
        assert get(hub, "/live")[0] == 503
        assert "intake: its thread has ended: SystemExit: gone" in hub.reasons()
    assert hub.ended


def test_a_hub_that_gives_its_consumers_time_to_finish_is_alive_meanwhile(bus, monkeypatch):
    monkeypatch.setattr("fedbus.hub.hub._BEAT_SECONDS", 0.02)
    gate, slow = threading.Event(), Collect("slow")
    slow.consume = lambda message: gate.wait(PATIENCE) and None  # type: ignore[method-assign]
    try:
        with bus.publisher(KOJI) as koji, running(bus, slow, drain_timeout=3600.0) as hub:
            publish(koji, 1, 1)
            wait_until(lambda: hub.deliveries[0].currents[0], PATIENCE, "a message in hand")
            hub.stop()
            wait_until(lambda: hub._closed, PATIENCE, "the end to begin")
            for _ in range(3):
                wait_until(lambda beat=hub.beat_at: hub.beat_at > beat, PATIENCE, "a sign of life")
            assert hub.live() and hub.unfinished()
            gate.set()
    finally:
        gate.set()
    assert hub.ended


@pytest.mark.parametrize("time", [1, 2, 3])
@pytest.mark.parametrize("tail", [True, False])
def test_what_an_intake_had_taken_in_when_it_failed_is_not_skipped(bus, arm, time, tail):
    """Neither where something follows, nor where nothing does; neither the first of a stream nor later ones."""
    arm(f"hub.intake=error:EIO@{time}")
    point = failpoints._armed["hub.intake"]
    collect = Collect()
    with bus.publisher(KOJI) as koji, running(bus, collect) as hub:
        for number in range(1, 5):
            publish(koji, number, number)
            failed = number == time
            if failed and not tail:
                wait_until(lambda: point.reached == time, PATIENCE, "the failure")
            else:
                wait_until(lambda number=number: len(collect.seen) == number, PATIENCE, f"message {number}")
        wait_until(lambda: not hub.reasons(), PATIENCE, "readiness")
    assert collect.numbers() == [1, 2, 3, 4]
    assert collect.losses == []


def test_what_was_put_for_one_consumer_when_the_intake_failed_is_not_missed_by_the_next(bus, monkeypatch):
    first, second = Collect("a"), Collect("b")
    with bus.publisher(KOJI) as koji, running(bus, first, second) as hub:
        publish(koji, 1, 1)
        wait_until(lambda: first.numbers() == second.numbers() == [1], PATIENCE, "the first message")
        put, failures = hub.deliveries[1].feed.put, [MemoryError()]

        def fail_once(item: Any) -> None:
            if failures and item.messages:
                raise failures.pop()
            put(item)

        monkeypatch.setattr(hub.deliveries[1].feed, "put", fail_once)
        publish(koji, 2, 2)
        wait_until(lambda: first.numbers() == second.numbers() == [1, 2], PATIENCE, "the second message")
        assert not failures
    assert second.losses == []


# --- descriptors that have run out -----------------------------------------------------------------------------


@pytest.fixture
def scarce(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """While it is set, no subscriber can be opened."""
    event, subscribe = threading.Event(), Source.subscribe

    def refuse(source: Source, *arguments: Any, **named: Any) -> Any:
        if event.is_set():
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return subscribe(source, *arguments, **named)

    monkeypatch.setattr(Source, "subscribe", refuse)
    return event


def test_a_consumer_that_cannot_read_journals_for_want_of_descriptors_says_so_and_goes_on_when_there_are_some(
    bus, scarce
):
    old = Collect("old")
    old.since = "beginning"
    with bus.publisher(KOJI) as koji:
        publish(koji, 1, 20)
        # its intake is opened, and then there are none left
        make = Intake.__init__

        def then_scarce(*arguments: Any, **named: Any) -> None:
            make(*arguments, **named)
            scarce.set()

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Intake, "__init__", then_scarce)
            with running(bus, old) as hub:
                (reason,) = wait_until(
                    lambda: [one for one in hub.reasons() if "journals cannot be read" in one], PATIENCE, "the reason"
                )
                assert "Too many open files" in reason and reason.startswith("consumer old: ")
                scarce.clear()
                wait_until(lambda: len(old.seen) == 20, PATIENCE, "what is in the journal")
                wait_until(lambda: not hub.reasons(), PATIENCE, "readiness")
                publish(koji, 21, 22)
                wait_until(lambda: len(old.seen) == 22, PATIENCE, "what is new")
    assert old.numbers() == list(range(1, 23))


def test_an_endpoint_that_is_removed_while_its_journal_is_read_does_not_stop_the_consumer(bus, monkeypatch):
    """The list of endpoints is there a moment before its version says so."""
    old = Collect("old")
    old.since = "beginning"
    every: list[Any] = []
    read = Delivery._read_journals

    def removed_meanwhile(delivery: Delivery, *, wait: bool) -> None:
        if not every:
            if not {KOJI, BODHI} <= delivery._behind.keys():
                delivery.feed.wait(0.02)
                return
            source = delivery._source
            every.append(source.endpoints)
            source.endpoints = {name: one for name, one in source.endpoints.items() if name != BODHI}
            delivery._open_own()
        read(delivery, wait=wait)

    monkeypatch.setattr(Delivery, "_read_journals", removed_meanwhile)
    with bus.publisher(KOJI) as koji, bus.publisher(BODHI) as bodhi:
        publish(koji, 1, 3)
        publish(bodhi, 1, 3, "update.create")
        with running(bus, old) as hub:
            wait_until(lambda: old.numbers() == [1, 2, 3], PATIENCE, "the other journal")
            assert old.numbers(BODHI) == []
            assert hub.deliveries[0].failure == ""
            hub.source.endpoints = every[0]
            hub.source.version += 1
            wait_until(lambda: len(old.seen) == 6, PATIENCE, "the journal of the one that came back")
    assert old.numbers() == old.numbers(BODHI) == [1, 2, 3]


# --- another intake, while the hub runs ------------------------------------------------------------------------


def renewing(bus: Bus, first: Collect, second: Collect) -> Hub:
    """A hub with *first* only, which has *second* too when it is told to reload; that one has other filters."""

    def renew(running: Any) -> Renewed:
        added = [] if "second" in running else [Enabled(name="second", consumer=second, topics=("bodhi",))]
        return Renewed(kept=frozenset(running), consumers=added, problems=(), options=hub.options)

    options = replace(bus.settings.hub, drain_timeout=5.0)
    one = Enabled(name="first", consumer=first, topics=("koji",), made_of="first")
    hub = bus.hub([one], options=options, watch=lambda forced: None, renew=renew)
    return hub


def test_a_reload_while_the_intake_hangs_waits_for_it_and_no_two_ever_feed_the_consumers(bus, stall, monkeypatch):
    monkeypatch.setattr("fedbus.hub.roster._INTAKE_SECONDS", 0.05)
    monkeypatch.setattr("fedbus.hub.roster._INTAKE_AGAIN", 0.05)
    first, second = Collect("first"), Collect("second")
    hub = renewing(bus, first, second)
    thread = threading.Thread(target=hub.run)
    thread.start()
    try:
        with bus.publisher(KOJI) as koji, bus.publisher(BODHI) as bodhi:
            wait_until(lambda: hub.joined, PATIENCE, "the streams")
            before = hub.intake
            publish(koji, 1, 1)
            wait_until(lambda: hangs(stall), PATIENCE, "the intake to hang")
            for _ in range(50):  # a storm
                hub.reload()
            wait_until(lambda: any("has not ended" in one for one in hub.reasons()), PATIENCE, "the reason")
            assert hub.intake is before
            publish(koji, 2, 2)
            publish(bodhi, 1, 1, "update.create")
            stall.touch()
            wait_until(lambda: hub.intake is not before, PATIENCE, "another intake")
            publish(koji, 3, 3)
            publish(bodhi, 2, 2, "update.create")
            wait_until(lambda: len(first.seen) == 3 and len(second.seen) >= 1, PATIENCE, "the messages")
            wait_until(lambda: second.numbers(BODHI)[-1] == 2, PATIENCE, "the new consumer")
            wait_until(lambda: not hub.reasons(), PATIENCE, "readiness")
    finally:
        stall.touch()
        hub.stop()
        thread.join(PATIENCE)
    assert not thread.is_alive()
    assert first.numbers() == [1, 2, 3]


def test_a_reload_for_which_there_are_no_descriptors_is_made_good_when_there_are_some(bus, scarce, monkeypatch):
    monkeypatch.setattr("fedbus.hub.roster._INTAKE_AGAIN", 0.05)
    first, second = Collect("first"), Collect("second")
    hub = renewing(bus, first, second)
    thread = threading.Thread(target=hub.run)
    thread.start()
    try:
        with bus.publisher(KOJI) as koji, bus.publisher(BODHI) as bodhi:
            wait_until(lambda: hub.joined, PATIENCE, "the streams")
            scarce.set()
            hub.reload()
            wait_until(lambda: any("intake: cannot be opened: OSError" in one for one in hub.reasons()), PATIENCE)
            assert hub.live(), "it is the operator's to mend, and a restart would mend nothing"
            publish(koji, 1, 2)
            scarce.clear()
            wait_until(lambda: not hub.reasons(), PATIENCE, "readiness")
            publish(koji, 3, 3)
            publish(bodhi, 1, 1, "update.create")
            wait_until(lambda: len(first.seen) == 3 and len(second.seen) == 1, PATIENCE, "the messages")
    finally:
        hub.stop()
        thread.join(PATIENCE)
    assert not thread.is_alive()
    assert first.numbers() == [1, 2, 3]


def test_a_flood_of_what_is_refused_holds_up_nobody_beyond_his_time(bus, monkeypatch):
    monkeypatch.setattr("fedbus.transport.subscriber._OVERTIME", 0.01)
    drain = Subscriber._drain_live
    monkeypatch.setattr(Subscriber, "_drain_live", lambda one, now: drain(one, now) or True)
    with bus.publisher(KOJI) as koji, bus.subscribe("koji", since="beginning") as subscriber:
        assert subscriber.receive(0.01) == []
        publish(koji, 1, 1)
        assert [message.body["i"] for message in take(subscriber, 1, PATIENCE)] == [1]
