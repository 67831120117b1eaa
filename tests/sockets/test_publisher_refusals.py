"""What a publisher does when its disk refuses: nobody is told a lie, and the stream has no hole."""

from __future__ import annotations

import gc
import logging
import weakref
from pathlib import Path

import pytest

import fedbus
from fedbus.journal.journal import Journal
from tests.support import wait_until


@pytest.mark.fault("F5")
def test_batches_that_the_disk_refuses_are_told_of_and_leave_no_hole(
    bus_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Journal.append
    calls = 0

    def sometimes(self: Journal, *arguments: object, **named: object) -> None:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise fedbus.JournalWriteError("no space left on device")
        append(self, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Journal, "append", sometimes)
    (bus_folder / "90-small.yaml").write_text("publisher: {batch_messages: 7}\n")
    (bus_folder / "90-small.yaml").chmod(0o600)
    with fedbus.Bus.open(bus_folder) as bus:
        publisher = bus.publisher("koji.build01")
        subscriber = bus.subscribe(strict=True, since="beginning")
        waiting = [
            publisher.publish("a.row.add" if number % 5 else "b.row.add", {"number": number}, wait=False)
            for number in range(500)
        ]
        accepted = {}
        refused = 0
        for number, pending in enumerate(waiting):
            try:
                accepted[pending.result().sequence] = number
            except fedbus.JournalWriteError:
                refused += 1
        assert refused and len(accepted) + refused == 500
        assert sorted(accepted) == list(range(1, len(accepted) + 1))
        received: list[fedbus.Message] = []
        wait_until(lambda: received.extend(subscriber.receive(0.1)) or len(received) >= len(accepted))
        assert {message.sequence: message.body["number"] for message in received} == accepted
        assert [message.sequence for message in received] == sorted(accepted)
        publisher.close()  # every refusal was told of by a receipt


def test_a_refusal_that_nobody_was_told_of_is_raised_when_the_publisher_closes(
    bus_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(self: Journal, *arguments: object, **named: object) -> None:
        raise fedbus.JournalWriteError("no space left on device")

    with fedbus.Bus.open(bus_folder) as bus:
        publisher = bus.publisher("koji.build01")
        monkeypatch.setattr(Journal, "append", never)
        publisher.publish("a.row.add", {}, wait=False)
        with pytest.raises(fedbus.JournalWriteError, match="1 messages were not published"):
            publisher.close()
        publisher.close()


@pytest.mark.fault("F5")
def test_what_was_refused_leaves_nothing_in_memory(
    bus_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def never(self: Journal, *arguments: object, **named: object) -> None:
        try:
            raise OSError("File too large")
        except OSError as error:
            raise fedbus.JournalWriteError("no space left on device") from error

    caplog.set_level(logging.CRITICAL, "fedbus.transport.publisher")  # records that are kept hold the errors
    refusals = []
    with fedbus.Bus.open(bus_folder) as bus, bus.publisher("koji.build01") as publisher:
        monkeypatch.setattr(Journal, "append", never)
        for _ in range(20):
            pending = publisher.publish("a.row.add", {}, wait=False)
            with pytest.raises(fedbus.JournalWriteError, match="no space"):
                pending.result()
            assert pending.error is not None
            refusals.append(weakref.ref(pending.error))
            with pytest.raises(fedbus.JournalWriteError, match="no space") as again:
                pending.result()
            assert again.value is not pending.error
            del pending, again
        publisher.flush()
        gc.collect()
        # the one of the latest batch may still be in hand
        assert sum(one() is not None for one in refusals) <= 1


def test_a_topic_too_many_is_refused_before_it_is_queued(bus_folder: Path) -> None:
    (bus_folder / "90-few.yaml").write_text("journal: {topics: 2}\n")
    (bus_folder / "90-few.yaml").chmod(0o600)
    with fedbus.Bus.open(bus_folder) as bus, bus.publisher("koji.build01") as publisher:
        publisher.publish("a.row.add", {})
        publisher.publish("b.row.add", {})
        with pytest.raises(fedbus.MessageError, match="one topic too many"):
            publisher.publish("c.row.add", {})
        assert publisher.publish("a.row.add", {}).sequence == 3
