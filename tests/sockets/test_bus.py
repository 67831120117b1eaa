"""Publishers and subscribers of one bus on real sockets: what is promised about order, count, place and filters."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from buses import BODHI, KOJI, PATIENCE, atake, first, join, next_millisecond, numbers, quick, take, take_until
from forger import identity

from fedbus import Bus
from fedbus.clock import SystemClock
from fedbus.config.init import create, free_ports
from fedbus.config.settings import Settings
from fedbus.errors import (
    BindError,
    ConfigError,
    DeadlineExceeded,
    FedbusError,
    ForkedError,
    JournalLocked,
    LossError,
    MessageError,
    PublisherClosed,
    QueueFull,
    Reason,
)
from fedbus.journal.journal import Journal
from fedbus.transport.publisher import Publisher, Receipt
from fedbus.transport.state import Loss
from fedbus.transport.subscriber import Subscriber
from tests.support import wait_until
from tests.unit.transport.streams import ModelPublisher

OpenBus = Callable[..., Bus]
TOPIC = "package.build.complete"


def say(publisher: Publisher, first: int, last: int, *topics: str) -> None:
    """Publish {"n": first} … {"n": last}, under each of *topics* in turn, and return when all are journaled."""
    for number in range(first, last + 1):
        publisher.enqueue((topics or (TOPIC,))[number % len(topics or (TOPIC,))], {"n": number})
    publisher.flush()


# --- there and back ------------------------------------------------------------------------------------------------


def test_a_receipt_says_what_arrives(bus: Bus) -> None:
    subscriber = bus.subscribe(since="now")
    with bus.publisher(KOJI) as koji:
        join(subscriber, KOJI)
        receipts = [koji.publish(TOPIC, {"n": number}, dataschema="urn:build", traceparent="00-1") for number in (1, 2)]
        messages = take(subscriber, 2)
    assert [message.sequence for message in messages] == [1, 2]
    for receipt, message in zip(receipts, messages, strict=True):
        assert isinstance(receipt, Receipt)
        assert receipt == Receipt(
            message.topic, message.endpoint, message.epoch, message.sequence, message.id, message.time
        )
        assert message.topic == "org.example.dev.koji.package.build.complete"
        assert (message.signer, message.endpoint, message.wire) == (KOJI, KOJI, "native")
        assert message.body == {"n": message.sequence}
        assert message.key == (KOJI, koji.epoch, message.sequence)
        assert message.attributes["dataschema"] == "urn:build"
        assert message.attributes["traceparent"] == "00-1"


def test_bodies_arrive_as_they_were(bus: Bus) -> None:
    bodies = [
        {},
        {"text": "žluťoučký kůň \U0001f40e \u2028 \x7f \t\n", "": "empty name"},
        {"least": -(2**63), "most": 2**63 - 1, "half": 0.5, "tiny": 5e-324, "big": 1.7976931348623157e308},
        {"yes": True, "no": False, "nothing": None, "list": [[], {}, [None]]},
        {"deep": json_of_depth(61)},
        {"long": "x" * 900_000},
    ]
    with bus.publisher(KOJI) as koji, bus.subscribe(since="beginning") as subscriber:
        for body in bodies:
            koji.publish(TOPIC, body)
        assert [message.body for message in take(subscriber, len(bodies))] == bodies


def json_of_depth(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


def test_many_topics_in_many_batches_keep_the_order_of_the_publisher(bus: Bus) -> None:
    topics = [f"package.build.state{number}" for number in range(300)]
    with bus.publisher(KOJI) as koji, bus.subscribe(since="now") as live:
        join(live, KOJI)
        say(koji, 1, 5000, *topics)
        messages = take(live, 5000)
        assert [message.sequence for message in messages] == list(range(1, 5001))
        assert numbers(messages) == list(range(1, 5001))
        with bus.subscribe(since="beginning") as late:
            assert numbers(take(late, 5000)) == list(range(1, 5001))


def test_streams_of_several_endpoints_each_keep_their_order(bus: Bus) -> None:
    with bus.publisher(KOJI) as koji, bus.publisher(BODHI) as bodhi, bus.subscribe(since="now") as subscriber:
        join(subscriber, KOJI, BODHI)
        for number in range(1, 201):
            koji.enqueue(TOPIC, {"n": number})
            bodhi.enqueue("update.new", {"n": number})
        messages = take(subscriber, 400)
    for endpoint in (KOJI, BODHI):
        assert numbers([one for one in messages if one.endpoint == endpoint]) == list(range(1, 201))


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        ([], "abcdefg"),
        (["koji"], "abcde"),
        (["org.example.dev.koji"], "abcde"),
        (["koji.package"], "abc"),
        (["koji.package.build"], "ab"),
        (["koji.package.build.start"], "a"),
        (["koji.pack"], ""),
        (["koji.*.build"], "ab"),
        (["koji.#.stop"], "be"),
        (["#.stop"], "beg"),
        (["koji.package", "bodhi"], "abcfg"),
        (["koji.package.tag", "koji.tag"], "cd"),
        (["org.example.production"], ""),
        (["#"], "abcdefg"),
    ],
)
def test_filters_choose_by_whole_fields(bus: Bus, filters: list[str], wanted: str) -> None:
    said = {
        "a": (KOJI, "package.build.start"),
        "b": (KOJI, "package.build.stop"),
        "c": (KOJI, "package.tag"),
        "d": (KOJI, "tag.add"),
        "e": (KOJI, "task.stop"),
        "f": (BODHI, "update.new"),
        "g": (BODHI, "update.stop"),
    }
    with bus.publisher(KOJI) as koji, bus.publisher(BODHI) as bodhi, bus.subscribe(*filters, since="now") as live:
        join(live, KOJI, BODHI)
        for name, (endpoint, topic) in said.items():
            (koji if endpoint == KOJI else bodhi).enqueue(topic, {"name": name})
        koji.flush()
        bodhi.flush()
        with bus.subscribe(*filters, since="beginning") as late:
            for subscriber in (live, late):
                messages = take(subscriber, len(wanted))
                # nothing more comes: everything up to the heads is accounted for
                messages += take_until(subscriber, lambda one=subscriber: accounted(one, koji, bodhi))
                for endpoint in (KOJI, BODHI):
                    got = [one.body["name"] for one in messages if one.endpoint == endpoint]
                    assert got == [name for name in wanted if said[name][0] == endpoint]


def accounted(subscriber: Subscriber, *publishers: Publisher) -> bool:
    heads = {one.endpoint.name: one.head for one in publishers}
    return all(one.accounted == heads[one.endpoint] for one in subscriber.readers() if one.endpoint in heads)


# --- where to begin ------------------------------------------------------------------------------------------------


def test_now_beginning_and_positions(bus: Bus) -> None:
    with bus.publisher(KOJI) as koji:
        say(koji, 1, 10)
        next_millisecond()  # the journal counts in them, and "now" begins with the one that has begun
        now, beginning = bus.subscribe(since="now"), bus.subscribe(since="beginning")
        fifth = first(beginning, 5)[-1]
        behind = bus.subscribe(since=fifth.key)
        behind_text = bus.subscribe(since=str(fifth.key))
        copied = bus.subscribe(since=beginning.positions())
        join(now, KOJI)
        say(koji, 11, 12)
        assert numbers(take(now, 2)) == [11, 12]
        assert numbers(first(beginning, 7)) == list(range(6, 13))
        assert numbers(take(behind, 7)) == list(range(6, 13))
        assert numbers(take(behind_text, 7)) == list(range(6, 13))
        # of the fifth nobody has said that it was worked on
        assert numbers(take(copied, 8)) == list(range(5, 13))


def test_times_and_durations(bus: Bus) -> None:
    with bus.publisher(KOJI) as koji:
        say(koji, 1, 3)
        next_millisecond()
        between = datetime.now(UTC)
        say(koji, 4, 6)
        for since in (between, between.isoformat(), between.isoformat().replace("+00:00", "Z")):
            with bus.subscribe(since=since) as subscriber:
                assert numbers(take(subscriber, 3)) == [4, 5, 6]
        ages: list[Any] = ["1h", timedelta(hours=1), 3600, 3600.0]
        for since in (*ages, "2020-01-01T00:00:00Z", datetime(2020, 1, 1, tzinfo=UTC)):
            with bus.subscribe(since=since) as subscriber:
                assert numbers(take(subscriber, 6)) == [1, 2, 3, 4, 5, 6]


def test_a_time_in_the_future_begins_with_what_comes_next(bus: Bus) -> None:
    with bus.publisher(KOJI) as koji:
        say(koji, 1, 3)
        with bus.subscribe(since=datetime.now(UTC) + timedelta(days=1)) as subscriber:
            join(subscriber, KOJI)
            say(koji, 4, 4)
            assert numbers(take(subscriber, 1)) == [4]


@pytest.mark.parametrize(
    "since",
    [
        *("", "yesterday", "a/b", "2026-13-01T00:00:00Z", "koji.build01//5", "-5m"),
        # a moment as time.time() says it is 56 years when it is taken for an age
        *(None, True, -5, float("nan"), 1795343716.5, [1]),
    ],
)
def test_what_is_no_place_to_begin_is_refused(bus: Bus, since: Any) -> None:
    with pytest.raises(ValueError, match="is not a place to begin"):
        bus.subscribe(since=since)


@pytest.mark.parametrize("name", ["", "\udcff", 5], ids=ascii)
def test_what_cannot_name_a_cursor_is_refused(bus: Bus, name: Any) -> None:
    with pytest.raises(ConfigError, match="is no name of a cursor"):
        bus.subscribe(cursor=name)


def test_one_name_in_place_of_a_list_of_endpoints_is_told(bus: Bus) -> None:
    with pytest.raises(ConfigError, match=r"write endpoints=\['koji.build01'\]"):
        bus.subscribe(endpoints=KOJI)  # type: ignore[arg-type]


def test_what_is_closed_says_so(open_bus: OpenBus) -> None:
    bus = open_bus()
    subscriber = bus.subscribe()
    asynchronous = bus.asubscribe()

    async def receive() -> None:
        await asynchronous.close()
        await asynchronous.receive(PATIENCE)

    subscriber.close()
    for act in (lambda: subscriber.receive(PATIENCE), lambda: next(iter(subscriber)), lambda: asyncio.run(receive())):
        with pytest.raises(FedbusError, match="this subscriber is closed"):
            act()
    bus.close()
    bus.close()
    for act in (lambda: bus.publisher(KOJI), bus.subscribe, bus.asubscribe):
        with pytest.raises(FedbusError, match="this Bus is closed"):
            act()


@pytest.mark.parametrize("text", ["koji..build", "koji.Build", "koji build", "ko*ji", ".koji", "a" * 300])
def test_what_is_no_filter_is_refused(bus: Bus, text: str) -> None:
    with pytest.raises(MessageError) as caught:
        bus.subscribe(text)
    assert caught.value.reason is Reason.TOPIC


# --- cursors -------------------------------------------------------------------------------------------------------


@pytest.mark.fault("F1")
def test_a_cursor_gets_each_message_once_across_restarts_and_late_joins(open_bus: OpenBus) -> None:
    bus = open_bus()
    said = 0
    got: list[int] = []
    with bus.publisher(KOJI) as koji:
        say(koji, 1, 100, "package.build.start", "package.build.stop", "tag.add")
        said = 100
        for worked, chunk in ((50, 100), (333, 700), (1, 1), (1000, 0), (0, 3)):
            reading = open_bus()
            with reading.subscribe("koji", since="beginning", cursor="report") as subscriber:
                seen = 0
                if worked:
                    for message in subscriber:
                        got.append(message.body["n"])
                        seen += 1
                        # a publisher that is busy at the seam of journal and live
                        if said < 2000 and seen % 10 == 0:
                            said += 1
                            koji.enqueue(TOPIC, {"n": said})
                        subscriber.done(message)
                        if seen == worked or message.body["n"] == said:
                            break
            say(koji, said + 1, said + chunk, "package.build.start", "tag.add")
            said += chunk
        with open_bus().subscribe("koji", cursor="report") as subscriber:
            got += numbers(take(subscriber, said - len(got)))
            take_until(subscriber, lambda: accounted(subscriber, koji))
    assert got == list(range(1, said + 1))


def test_since_counts_only_for_a_new_cursor(bus: Bus) -> None:
    with bus.publisher(KOJI) as koji:
        say(koji, 1, 4)
        with bus.subscribe(since="beginning", cursor="one") as subscriber:
            assert numbers(take(subscriber, 4)) == [1, 2, 3, 4]
            assert subscriber.receive(0.0) == []  # asking for more says that these were worked on
        with bus.subscribe(since="beginning", cursor="one") as subscriber:
            join(subscriber, KOJI)
        with bus.subscribe(since="beginning", cursor="another") as subscriber:
            assert numbers(take(subscriber, 4)) == [1, 2, 3, 4]


def test_what_was_not_worked_on_comes_again(bus: Bus) -> None:
    with bus.publisher(KOJI) as koji:
        say(koji, 1, 10)
        with bus.subscribe(since="beginning", cursor="one") as subscriber:
            for message in subscriber:
                if message.body["n"] == 4:
                    break
        with bus.subscribe(since="beginning", cursor="one") as subscriber:
            assert numbers(take(subscriber, 7)) == [4, 5, 6, 7, 8, 9, 10]


def test_an_iteration_that_was_left_goes_on_with_the_next_message(bus: Bus) -> None:
    async def run() -> list[int]:
        async with bus.asubscribe(since="beginning") as subscriber:
            found = []
            for count in (1, 5, 3, 1):
                found += numbers(await asyncio.wait_for(atake(subscriber, count), PATIENCE))
            return found + numbers(await subscriber.receive(PATIENCE))

    # all in one batch: at the end of one, asking on says that its last message was worked on
    before = ModelPublisher(bus.settings.journal_for(KOJI).directory, SystemClock(), identity(bus.settings, KOJI))
    before.publish([f"org.example.dev.koji.{TOPIC}"] * 20)
    before.journal.close()
    with bus.publisher(KOJI):
        with bus.subscribe(since="beginning") as subscriber:
            found = [numbers(first(subscriber, count)) for count in (1, 5, 3, 1)]
            assert found == [[1], [2, 3, 4, 5, 6], [7, 8, 9], [10]]
            assert subscriber.positions()[KOJI].sequence == 8
            assert numbers(take(subscriber, 10)) == list(range(11, 21))
        got = asyncio.run(run())
        assert got == list(range(1, len(got) + 1))
        assert len(got) > 10


# --- asyncio -------------------------------------------------------------------------------------------------------


def test_asyncio_gets_all_in_order_while_other_tasks_have_their_turns(bus: Bus) -> None:
    async def run() -> tuple[list[int], int]:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async with bus.asubscribe("koji", since="beginning") as subscriber:
            task = asyncio.create_task(other())
            first = await asyncio.wait_for(atake(subscriber, 3000), PATIENCE)
            await asyncio.to_thread(say, koji, 3001, 3500)
            more = await asyncio.wait_for(atake(subscriber, 500), PATIENCE)
            task.cancel()
            assert await subscriber.receive(0.0) == []
            return numbers(first + more), turns

    with bus.publisher(KOJI) as koji:
        say(koji, 1, 3000, TOPIC, "tag.add")
        got, turns = asyncio.run(run())
    assert got == list(range(1, 3501))
    assert turns > 20


def test_asyncio_stops_from_another_thread(bus: Bus) -> None:
    async def run() -> list[int]:
        async with bus.asubscribe(since="now") as subscriber:
            asyncio.get_running_loop().call_later(0.05, lambda: threading.Thread(target=subscriber.stop).start())
            return [message.sequence async for message in subscriber]

    assert asyncio.run(run()) == []


# --- loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.fault("F7")
def test_a_slow_subscriber_reads_from_the_journal_what_its_queue_could_not_hold(open_bus: OpenBus) -> None:
    bus = open_bus(publisher={"send_hwm": 2}, subscriber={"receive_hwm": 2, "pending_bytes": 50_000})
    losses: list[Loss] = []
    padding = "x" * 4000
    with bus.publisher(KOJI) as koji, bus.subscribe("koji", since="now", on_loss=losses.append) as subscriber:
        join(subscriber, KOJI)
        for number in range(1, 4001):
            koji.enqueue("package.build.start" if number % 3 else "tag.add", {"n": number, "padding": padding})
        koji.flush()
        assert numbers(take(subscriber, 4000)) == list(range(1, 4001))
        reader = next(one for one in subscriber.readers() if one.endpoint == KOJI)
        assert reader.stats.fetched > 0, "nothing was lost on the way: the test proves nothing"
    assert losses == []


def forgetful(open_bus: OpenBus) -> Bus:
    return open_bus(journal={"segment_bytes": 20_000, "retain_bytes": 60_000})


def test_what_retention_took_is_told_in_its_place_and_raised_when_strict(open_bus: OpenBus) -> None:
    bus = forgetful(open_bus)
    losses: list[Loss] = []
    with bus.publisher(KOJI) as koji:
        first = koji.publish(TOPIC, {"n": 1})
        for number in range(2, 601):
            koji.publish(TOPIC, {"n": number}, wait=False)
            if number % 20 == 0:
                koji.flush()
        key = f"{KOJI}/{first.epoch}/{first.sequence}"
        with bus.subscribe("koji", since=key, on_loss=losses.append) as subscriber:
            messages = take_until(subscriber, lambda: accounted(subscriber, koji))
        (loss,) = losses
        assert (loss.endpoint, loss.epoch, loss.first, loss.cause) == (KOJI, first.epoch, 2, "retention")
        assert numbers(messages) == list(range(loss.last + 1, 601))
        assert "messages 2 to" in str(loss)
        with bus.subscribe("koji", since=key, strict=True) as strict, pytest.raises(LossError, match="retention"):
            take(strict, 1)


# --- addresses -----------------------------------------------------------------------------------------------------


def moved(folder: Path, publish: str, replay: str) -> Settings:
    """The settings of *folder* with KOJI at other addresses."""
    text = f"endpoints:\n  {KOJI}:\n    publish: {publish}\n    replay: {replay}\n"
    (folder / "20-endpoints.yaml").write_text(text)
    return quick(folder)


@pytest.mark.parametrize("form", ["tcp://[::1]:{}", "tcp://localhost:{}", "ipc://{}.socket", "tcp://127.0.0.1:{}"])
def test_every_form_of_address_works(bus_folder: Path, form: str) -> None:
    publish, replay = (form.format(port) for port in free_ports(2))
    with Bus(moved(bus_folder, publish, replay)) as bus, bus.publisher(KOJI) as koji:
        say(koji, 1, 3)
        with bus.subscribe(since="beginning") as subscriber:
            assert numbers(take(subscriber, 3)) == [1, 2, 3]
            join(subscriber)
            say(koji, 4, 5)
            assert numbers(take(subscriber, 2)) == [4, 5]


@pytest.mark.parametrize("which", ["publish", "replay"])
def test_an_address_that_is_taken_is_named(bus: Bus, which: str) -> None:
    address = getattr(bus.settings.endpoint(KOJI), which)
    host, port = address.removeprefix("tcp://").split(":")
    with socket.create_server((host, int(port))), pytest.raises(BindError) as caught:
        bus.publisher(KOJI)
    assert (caught.value.endpoint, caught.value.address, caught.value.in_use) == (KOJI, address, True)
    assert f"cannot bind {address} for endpoint '{KOJI}': Address already in use; stop whatever" in str(caught.value)
    assert "20-endpoints.yaml:" in str(caught.value)
    with bus.publisher(KOJI) as koji:  # the failure has left nothing bound or locked
        assert koji.publish(TOPIC, {"n": 1}).sequence == 1


def test_an_address_of_another_host_is_named(bus_folder: Path) -> None:
    publish, replay = (f"tcp://192.0.2.1:{port}" for port in free_ports(2))
    with Bus(moved(bus_folder, publish, replay)) as bus, pytest.raises(BindError, match="does not have that address"):
        bus.publisher(KOJI)


def test_a_folder_that_an_address_lacks_is_named(bus_folder: Path) -> None:
    with Bus(moved(bus_folder, "ipc://run/publish", "ipc://run/replay")) as bus:
        with pytest.raises(BindError) as caught:
            bus.publisher(KOJI)
        assert f"No such file or directory; make the folder {bus_folder}/run" in str(caught.value)
        assert not caught.value.in_use
        (bus_folder / "run").mkdir()
        with bus.publisher(KOJI) as koji:
            assert koji.publish(TOPIC, {"n": 1}).sequence == 1


def test_a_journal_has_one_publisher(bus: Bus, open_bus: OpenBus) -> None:
    with bus.publisher(KOJI) as koji:
        with pytest.raises(JournalLocked):
            open_bus().publisher(KOJI)
        koji.publish(TOPIC, {"n": 1})
    with open_bus().publisher(KOJI) as koji:
        assert koji.publish(TOPIC, {"n": 2}).sequence == 2


def test_an_unknown_endpoint_is_refused_with_a_guess(bus: Bus) -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'koji\.build01'"):
        bus.publisher("koji.build1")


# --- publishing ----------------------------------------------------------------------------------------------------


def test_eight_threads_publish_without_holes(bus: Bus) -> None:
    receipts: list[Receipt] = []

    def run(number: int) -> None:
        mine = []
        for count in range(250):
            if count % 50 == 0:
                mine.append(koji.publish(TOPIC, {"n": count, "thread": number}))
            else:
                pending.append(koji.enqueue(f"thread.say{number}", {"n": count, "thread": number}))
        receipts.extend(mine)

    pending: list[object] = []
    with bus.publisher(KOJI) as koji:
        threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        receipts += [one.result(PATIENCE) for one in pending]  # type: ignore[attr-defined]
        assert sorted(receipt.sequence for receipt in receipts) == list(range(1, 2001))
        assert len({receipt.id for receipt in receipts}) == 2000
        with bus.subscribe(since="beginning") as subscriber:
            messages = take(subscriber, 2000)
    assert {one.key: one.id for one in messages} == {(KOJI, one.epoch, one.sequence): one.id for one in receipts}
    for number in range(8):
        assert numbers([one for one in messages if one.body["thread"] == number]) == list(range(250))


def test_flush_and_close_return_when_all_is_journaled(bus: Bus) -> None:
    koji = bus.publisher(KOJI)
    say(koji, 1, 500)
    assert koji.head == 500
    for number in range(501, 1001):
        koji.enqueue(TOPIC, {"n": number})
    koji.close()
    koji.close()
    assert koji.head == 1000
    for act in (koji.publish, koji.enqueue):
        with pytest.raises(PublisherClosed, match="is closed"):
            act(TOPIC, {"n": 0})
    with bus.subscribe(since="beginning") as subscriber:
        assert numbers(take(subscriber, 1000)) == list(range(1, 1001))


def test_a_full_queue_and_a_late_receipt_are_told(open_bus: OpenBus, monkeypatch: pytest.MonkeyPatch) -> None:
    append, begun, go_on = Journal.append, threading.Event(), threading.Event()

    def slow(self: Journal, *arguments: Any, **named: Any) -> None:
        begun.set()
        assert go_on.wait(PATIENCE)
        append(self, *arguments, **named)

    monkeypatch.setattr(Journal, "append", slow)
    koji = open_bus(publisher={"queue_messages": 5}).publisher(KOJI)
    try:
        first = koji.enqueue(TOPIC, {"n": 1})
        assert begun.wait(PATIENCE)
        # the disk works on the first message, and the queue is for five
        waiting = [koji.enqueue(TOPIC, {"n": number}) for number in range(2, 7)]
        with pytest.raises(QueueFull, match="messages wait for the journal"):
            koji.enqueue(TOPIC, {"n": 7}, timeout=0.05)
        for one in (first, waiting[0]):
            with pytest.raises(DeadlineExceeded, match="may still be published"):
                one.result(timeout=0.05)
    finally:
        go_on.set()
        koji.close()
    assert koji.head == 6


BAD_BODIES = [
    pytest.param({"a": json_of_depth(100)}, Reason.NESTING, marks=pytest.mark.badinput("B7")),
    pytest.param(
        {"a": json_of_depth(100_000)}, Reason.NESTING, id="a hundred thousand levels", marks=pytest.mark.badinput("B7")
    ),
    pytest.param({"a": float("nan")}, Reason.NUMBER, marks=pytest.mark.badinput("B9")),
    pytest.param({"a": [{"b": float("-inf")}]}, Reason.NUMBER, marks=pytest.mark.badinput("B9")),
    pytest.param({"a": 2**63}, Reason.NUMBER, marks=pytest.mark.badinput("B10")),
    pytest.param({"a": -(2**63) - 1}, Reason.NUMBER, marks=pytest.mark.badinput("B10")),
    pytest.param({"a": 10**5000}, Reason.NUMBER, id="5000 digits", marks=pytest.mark.badinput("B10")),
    pytest.param({"a": "\ud800"}, Reason.TEXT, marks=pytest.mark.badinput("B11")),
    pytest.param({"a\udfff": 1}, Reason.TEXT, marks=pytest.mark.badinput("B11")),
    pytest.param({"a": "x\0y"}, Reason.TEXT, marks=pytest.mark.badinput("B11")),
    pytest.param([1], Reason.JSON, marks=pytest.mark.badinput("B12")),
    pytest.param("text", Reason.JSON, marks=pytest.mark.badinput("B12")),
    pytest.param(None, Reason.JSON, marks=pytest.mark.badinput("B12")),
    pytest.param({"a": object()}, Reason.JSON, marks=pytest.mark.badinput("B13")),
    pytest.param({1: 2}, Reason.JSON, marks=pytest.mark.badinput("B13")),
    pytest.param({"a": b"bytes"}, Reason.JSON, marks=pytest.mark.badinput("B13")),
    pytest.param({"a": datetime(2026, 1, 1, tzinfo=UTC)}, Reason.JSON, marks=pytest.mark.badinput("B13")),
    pytest.param(
        {str(number): 0 for number in range(100_000)},
        Reason.COUNT,
        id="too many members",
        marks=pytest.mark.badinput("B14"),
    ),
    pytest.param({"k" * 5000: 0}, Reason.COUNT, id="a long name", marks=pytest.mark.badinput("B14")),
    pytest.param({"a": "x" * 2**20}, Reason.OVERSIZE, id="too long", marks=pytest.mark.badinput("B2")),
]


@pytest.mark.parametrize(("body", "reason"), BAD_BODIES)
def test_a_body_that_json_cannot_carry_is_refused_and_the_next_is_published(
    bus: Bus, body: object, reason: Reason
) -> None:
    with bus.publisher(KOJI) as koji:
        with pytest.raises(MessageError) as caught:
            koji.publish(TOPIC, body)  # type: ignore[arg-type]
        assert caught.value.reason is reason
        assert koji.publish(TOPIC, {"n": 1}).sequence == 1


@pytest.mark.badinput("B3")
@pytest.mark.parametrize(
    "topic",
    ["", ".", "a..b", "a.", ".a", "a.*", "#", "a b", "A.b", "a\0b", "a\x1bb", "é.b", "x" * 250, "a\n", 5, b"a.b", None],
)
def test_a_topic_that_is_none_is_refused_and_the_next_is_published(bus: Bus, topic: str) -> None:
    with bus.publisher(KOJI) as koji:
        with pytest.raises(MessageError) as caught:
            koji.publish(topic, {"n": 0})
        assert caught.value.reason is Reason.TOPIC
        assert koji.publish(TOPIC, {"n": 1}).sequence == 1


def test_wait_for_subscribers_counts_those_who_come_and_go(bus: Bus) -> None:
    with bus.publisher(KOJI) as koji:
        assert not koji.wait_for_subscribers(1, timeout=0.05)
        first, second = bus.subscribe(since="now"), bus.subscribe("koji", since="now")
        assert koji.wait_for_subscribers(2, timeout=PATIENCE)
        assert not koji.wait_for_subscribers(3, timeout=0.05)
        first.close()
        second.close()
        wait_until(lambda: koji.stats.subscribers == 0, PATIENCE)


# --- publishers that come and go -----------------------------------------------------------------------------------


def test_the_journal_of_a_publisher_that_has_gone_is_read_from_its_files(bus: Bus) -> None:
    with bus.publisher(KOJI) as koji:
        say(koji, 1, 50, "package.build.start", "tag.add")
    with bus.subscribe("koji.tag", since="beginning") as subscriber:
        assert numbers(take(subscriber, 25)) == list(range(1, 51, 2))
        with bus.publisher(KOJI) as koji:  # short-lived, while the subscriber runs
            say(koji, 51, 52, "package.build.start", "tag.add")
        assert numbers(take(subscriber, 1)) == [51]
        with bus.publisher(KOJI) as koji:
            say(koji, 53, 53, "tag.add")
            assert numbers(take(subscriber, 1)) == [53]
            say(koji, 54, 54, "tag.add")
            assert numbers(take(subscriber, 1)) == [54]
        assert subscriber.stats.refused == {}


def test_a_journal_that_cannot_be_read_is_tried_again_and_told_once(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = []

    def refuse(endpoint: str) -> None:
        tried.append(endpoint)
        raise PermissionError(13, "Permission denied", "journal.json")

    monkeypatch.setattr(bus, "_local_journal", refuse)
    with bus.subscribe(since="beginning", endpoints=[KOJI]) as subscriber:

        def is_tried_again() -> bool:
            subscriber.receive(0.01)
            return len(tried) > 3

        wait_until(is_tried_again, PATIENCE)
    assert [record.message for record in caplog.records if "cannot be read" in record.message] == [
        f"endpoint {KOJI}: its journal here cannot be read: [Errno 13] Permission denied: 'journal.json'"
    ]


def test_a_journal_that_this_user_may_not_read_is_as_good_as_none(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    bus.publisher(KOJI).close()
    assert bus._local_journal(KOJI) is not None
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert bus._local_journal(KOJI) is None


def test_a_publisher_that_comes_back_continues_its_stream(bus: Bus) -> None:
    losses: list[Loss] = []
    with bus.subscribe("koji", since="beginning", on_loss=losses.append) as subscriber:
        epochs = set()
        for turn in range(4):
            with bus.publisher(KOJI) as koji:
                epochs.add(koji.epoch)
                say(koji, turn * 10 + 1, turn * 10 + 10)
        messages = take(subscriber, 40)
    assert [one.sequence for one in messages] == numbers(messages) == list(range(1, 41))
    assert (len(epochs), losses) == (1, [])


def test_a_new_journal_is_a_new_epoch_and_is_told(bus: Bus, bus_folder: Path) -> None:
    losses: list[Loss] = []
    with bus.subscribe("koji", since="beginning", on_loss=losses.append) as subscriber:
        with bus.publisher(KOJI) as koji:
            old = koji.epoch
            say(koji, 1, 3)
            assert numbers(take(subscriber, 3)) == [1, 2, 3]
        bus.settings.journal_for(KOJI).directory.rename(bus_folder / "away")
        with bus.publisher(KOJI) as koji:
            say(koji, 4, 5)
            messages = take(subscriber, 2)
            assert [(one.epoch, one.sequence, one.body["n"]) for one in messages] == [
                (koji.epoch, 1, 4),
                (koji.epoch, 2, 5),
            ]
    assert [(loss.epoch, loss.first, loss.cause) for loss in losses] == [(old, 4, "epoch")]


def test_an_endpoint_that_moves_goes_on_where_it_was(bus: Bus, bus_folder: Path, open_bus: OpenBus) -> None:
    with bus.subscribe("koji", since="beginning") as subscriber:
        with bus.publisher(KOJI) as koji:
            say(koji, 1, 500)
            assert numbers(take(subscriber, 1))[0] == 1
            got = 1 + len(subscriber.receive(0.0))  # the rest waits, read but not handed out
        publish, replay = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
        settings = moved(bus_folder, publish, replay)
        with Bus(settings) as other, other.publisher(KOJI) as koji:
            subscriber.update(settings.endpoints.values())
            say(koji, 501, 600)
            rest = take(subscriber, 1)
            while rest[-1].body["n"] < 600:
                more = take(subscriber, 1)
                assert more, rest
                rest += more
    assert numbers(rest) == list(range(numbers(rest)[0], 601))
    assert got


# --- forks ---------------------------------------------------------------------------------------------------------


def test_after_a_fork_everything_opened_before_says_so(bus: Bus, fork: Callable[[Callable[[], None]], str]) -> None:
    with bus.publisher(KOJI) as koji, bus.subscribe(since="beginning") as subscriber:
        koji.publish(TOPIC, {"n": 1})

        def child() -> None:
            for act in (
                lambda: koji.publish(TOPIC, {"n": 0}),
                lambda: koji.enqueue(TOPIC, {"n": 0}),
                lambda: bus.publisher(BODHI),
                lambda: bus.subscribe(),
                lambda: subscriber.receive(0.0),
            ):
                with pytest.raises(ForkedError):
                    act()
            koji.close()
            subscriber.close()
            bus.close()

        assert fork(child) == "done"
        assert koji.publish(TOPIC, {"n": 2}).sequence == 2
        assert numbers(take(subscriber, 2)) == [1, 2]


def test_a_bus_without_a_configuration_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        Bus.open(tmp_path / "nothing")


def test_two_buses_of_one_process_do_not_know_each_other(tmp_path: Path, bus: Bus) -> None:
    create(tmp_path / "other", [KOJI])
    with Bus.open(tmp_path / "other") as other, other.publisher(KOJI) as theirs, bus.publisher(KOJI) as ours:
        theirs.publish(TOPIC, {"n": 0})
        ours.publish(TOPIC, {"n": 1})
        with bus.subscribe(since="beginning") as subscriber:
            assert numbers(take(subscriber, 1)) == [1]
            take_until(subscriber, lambda: accounted(subscriber, ours))


@pytest.mark.fault("F2")
@pytest.mark.parametrize("filters", [(), ("koji.tag",)], ids=["everything", "a topic"])
def test_what_was_journaled_and_never_sent_is_served_after_the_restart(bus: Bus, filters: tuple[str, ...]) -> None:
    """As after a kill between sync and send: the batch is whole in the journal, and nobody has heard of it."""
    with bus.subscribe(*filters, since="beginning") as subscriber:
        with bus.publisher(KOJI) as koji:
            say(koji, 1, 4, "build.start", "tag.add")
            epoch = koji.epoch
            got = take(subscriber, 2 if filters else 4)
        journal = bus.settings.journal_for(KOJI).directory
        killed = ModelPublisher(journal, SystemClock(), identity(bus.settings, KOJI))
        killed.restart()
        killed.publish(["org.example.dev.koji.build.start", "org.example.dev.koji.tag.add"])
        killed.journal.close()
        with bus.publisher(KOJI) as koji:
            assert koji.epoch == epoch
            assert koji.publish("tag.add", {"n": 7}).sequence == 7
            got += take(subscriber, 2 if filters else 3)
    assert [one.sequence for one in got] == ([1, 3, 6, 7] if filters else [1, 2, 3, 4, 5, 6, 7])
