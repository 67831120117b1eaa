"""A cursor that cannot be written for a while: reading goes on, and nothing is skipped after a restart."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

import pytest

from fedbus import Bus, JournalError, Message
from fedbus.transport.subscriber import Subscriber
from tests.support import wait_until

KOJI = "koji.build01"
PATIENCE = 60.0


def take(subscriber: Subscriber, got: list[Message], last: int) -> None:
    def read() -> bool:
        got.extend(subscriber.receive(0.05))
        return bool(got) and got[-1].sequence >= last

    wait_until(read, PATIENCE)


@pytest.fixture
def quick(bus_folder: Path) -> Path:
    (bus_folder / "60-quick.yaml").write_text("subscriber: {commit_interval: 20ms}\n")
    (bus_folder / "60-quick.yaml").chmod(0o600)
    return bus_folder


@pytest.mark.fault("F18")
def test_a_store_that_others_keep_locked_does_not_end_an_iteration_and_is_written_when_they_let_go(
    quick: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Bus.open(quick) as bus, bus.publisher(KOJI) as koji:
        subscriber = bus.subscribe(since="beginning", cursor="report")
        got: list[Message] = []
        koji.publish("build.start", {"n": 1})
        take(subscriber, got, 1)
        other = sqlite3.connect(bus.settings.cursors, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with caplog.at_level(logging.WARNING):
            number = 1
            while "is not written" not in caplog.text:
                number += 1
                assert number < 2000
                koji.publish("build.start", {"n": number})
                take(subscriber, got, number)
            assert caplog.text.count("is not written") == 1
            other.execute("ROLLBACK")
            other.close()

            def written() -> bool:
                subscriber.receive(0.05)
                place = bus.cursors.load("report").get(KOJI)
                return place is not None and place.sequence == number

            wait_until(written, PATIENCE)
            assert "cursor report is written again" in caplog.text
        assert [one.sequence for one in got] == list(range(1, number + 1))
        subscriber.close()


@pytest.mark.fault("F5")
def test_a_cursor_that_cannot_be_written_is_an_error_when_its_reader_asks_for_it_or_closes(
    quick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Bus.open(quick) as bus, bus.publisher(KOJI) as koji:
        subscriber = bus.subscribe(since="beginning", cursor="report")
        got: list[Message] = []
        koji.publish("build.start", {"n": 1})
        take(subscriber, got, 1)
        subscriber.receive(0.0)

        def refuse(*_: object, **__: object) -> None:
            raise JournalError("no space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("fedbus.journal.cursors.CursorStore.save", refuse)
            koji.publish("build.start", {"n": 2})
            take(subscriber, got, 2)
            subscriber.receive(0.0)
            with pytest.raises(JournalError, match="no space"):
                subscriber.commit()
            with pytest.raises(JournalError, match="no space"):
                subscriber.close()
        with bus.subscribe(since="beginning", cursor="report") as again:
            repeated: list[Message] = []
            take(again, repeated, 2)
            assert repeated[-1].sequence == 2
