"""A hub in this process, on real sockets: what each consumer gets, and that none gets in the way of another."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from buses import next_millisecond

from fedbus import Batch, Bus, ConfigError, Consumer, Drop, Halt, Message, Publisher, Retry, consumer
from fedbus.hub.enabled import Enabled
from fedbus.hub.hub import Hub
from fedbus.model.position import Position
from tests.support import wait_until

KOJI, BODHI = "koji.build01", "bodhi.web01"


class Collect(Consumer):
    """Keeps what it gets, and whether order and count were as promised."""

    topics = ("#",)

    def __init__(self, name: str = "collect", topics: tuple[str, ...] = ("#",)) -> None:
        self.name = name  # type: ignore[misc]
        self.topics = topics  # type: ignore[misc]
        self.seen: list[Message] = []
        self.losses: list[Any] = []
        self.events: list[str] = []

    def start(self) -> None:
        self.events.append("start")

    def consume(self, message: Message) -> None:
        self.seen.append(message)

    def lost(self, loss: Any) -> None:
        self.losses.append(loss)

    def stop(self) -> None:
        self.events.append("stop")

    def numbers(self, endpoint: str = KOJI) -> list[int]:
        return [message.body["i"] for message in self.seen if message.endpoint == endpoint]


@pytest.fixture
def bus(bus_folder: Path) -> Iterator[Bus]:
    with Bus.open(bus_folder) as opened:
        yield opened


@contextmanager
def running(bus: Bus, *consumers: Any, **changes: Any) -> Iterator[Hub]:
    # a slow machine takes its time to end; only what hangs is not there at the deadline
    options = replace(bus.settings.hub, **{"retry_pause": 0.01, "drain_timeout": 60.0, **changes})
    hub = bus.hub(consumers, options=options)
    outcome: list[int] = []
    thread = threading.Thread(target=lambda: outcome.append(hub.run()))
    thread.start()
    try:
        wait_until(lambda: hub.intake is not None and hub.intake.is_alive(), what="the hub's start")
        yield hub
    finally:
        hub.stop()
        thread.join(90)
        assert not thread.is_alive()


def publish(publisher: Publisher, first: int, last: int, topic: str = "package.build.start") -> None:
    for number in range(first, last + 1):
        publisher.enqueue(topic, {"i": number})
    publisher.flush()


def cursor(bus: Bus, name: str) -> dict[str, Position]:
    return bus.cursors.load(f"hub.{name}")


def test_every_consumer_gets_what_its_filter_chooses_in_order(bus):
    everything, builds, nothing = Collect("a"), Collect("b", ("koji.package.build",)), Collect("c", ("git",))
    with bus.publisher(KOJI) as koji, bus.publisher(BODHI) as bodhi, running(bus, everything, builds, nothing) as hub:
        for number in range(1, 401):
            koji.enqueue("package.build.start" if number % 2 else "tag.add", {"i": number})
            bodhi.enqueue("update.create", {"i": number})
        wait_until(lambda: len(everything.seen) >= 800 and len(builds.seen) >= 200)
        wait_until(lambda: not hub.reasons(), what="readiness")
    assert everything.numbers(KOJI) == everything.numbers(BODHI) == list(range(1, 401))
    assert builds.numbers() == list(range(1, 401, 2))
    assert nothing.seen == []
    assert {message.signer for message in everything.seen} == {KOJI, BODHI}
    assert everything.events == ["start", "stop"]
    assert [one.stats.delivered for one in hub.deliveries] == [800, 200, 0]


def test_a_batch_whose_topics_are_mixed_is_sorted_out_for_each_filter(bus):
    builds, tags = Collect("builds", ("koji.package",)), Collect("tags", ("koji.tag",))
    with bus.publisher(KOJI) as koji, running(bus, builds, tags):
        for round_ in range(50):
            # begins and ends with the same topic, and has the other one in between
            for number in range(7):
                koji.enqueue("tag.add" if number % 3 == 1 else "package.build.start", {"i": round_ * 7 + number})
            koji.flush()
        wait_until(lambda: len(builds.seen) >= 250 and len(tags.seen) >= 100)
    assert builds.numbers() == [number for number in range(350) if number % 7 % 3 != 1]
    assert tags.numbers() == [number for number in range(350) if number % 7 % 3 == 1]


def test_live_traffic_is_verified_once_for_all_consumers(bus):
    consumers = [Collect(f"c{number}") for number in range(5)]
    with bus.publisher(KOJI) as koji, running(bus, *consumers):
        publish(koji, 1, 50)
        wait_until(lambda: all(len(one.seen) == 50 for one in consumers))
    first = consumers[0].seen
    assert all(one.seen[place] is first[place] for one in consumers for place in range(50))


@pytest.mark.fault("F1")
def test_messages_missed_while_the_hub_was_down_come_at_the_next_start_each_once(bus):
    collect = Collect()
    with bus.publisher(KOJI) as koji:
        with running(bus, collect):
            publish(koji, 1, 100)
            wait_until(lambda: len(collect.seen) == 100)
        assert cursor(bus, "collect")[KOJI].sequence == 100
        publish(koji, 101, 3000)
        with running(bus, collect) as hub:
            publish(koji, 3001, 3500)
            wait_until(lambda: len(collect.seen) >= 3500)
            wait_until(lambda: not hub.deliveries[0]._behind, what="joining the feed")
            publish(koji, 3501, 3600)
            wait_until(lambda: len(collect.seen) >= 3600)
    assert collect.numbers() == list(range(1, 3601))
    assert collect.losses == []


@pytest.mark.fault("F1")
def test_a_late_consumer_catches_up_while_traffic_goes_on_and_misses_and_repeats_nothing(bus):
    late, there = Collect("late"), Collect("there")
    with bus.publisher(KOJI) as koji:
        publish(koji, 1, 2000)
        stop = threading.Event()

        def traffic() -> None:
            number = 2001
            while not stop.is_set():
                publish(koji, number, number + 9)
                number += 10
            publish(koji, number, number)
            last.append(number)

        last: list[int] = []
        writer = threading.Thread(target=traffic)
        writer.start()
        late.since = "beginning"
        with running(bus, there, late) as hub:
            wait_until(lambda: hub.deliveries[1].stats.caught_up, 90, "the late consumer to reach the live feed")
            stop.set()
            writer.join(60)
            assert last
            wait_until(lambda: {one.seen[-1].body["i"] if one.seen else 0 for one in (late, there)} == set(last))
    assert late.numbers() == list(range(1, last[0] + 1))
    assert there.numbers() == list(range(there.numbers()[0], last[0] + 1))


def test_a_new_consumer_has_a_cursor_before_its_first_message(bus):
    collect = Collect()
    with running(bus, collect):
        assert cursor(bus, "collect")
    with bus.publisher(KOJI) as koji:
        publish(koji, 1, 10)
        with running(bus, collect):
            wait_until(lambda: len(collect.seen) == 10, what="what was published while it was down")


def test_a_new_consumer_begins_with_the_start_of_the_hub(bus):
    collect = Collect()
    with bus.publisher(KOJI) as koji:
        publish(koji, 1, 10)
        next_millisecond()  # the hub begins with the one that has begun
        with running(bus, collect):
            publish(koji, 11, 12)
            wait_until(lambda: len(collect.seen) >= 2)
    assert collect.numbers() == [11, 12]


def test_a_queue_that_overflows_is_refilled_from_the_journal(bus):
    slow, quick = Collect("slow"), Collect("quick")
    gate = threading.Event()
    slow.consume = lambda message: (gate.wait(100), slow.seen.append(message))[0] and None  # type: ignore[method-assign]
    with bus.publisher(KOJI) as koji, running(bus, slow, quick, queue_messages=600) as hub:
        publish(koji, 1, 2000)
        wait_until(lambda: len(quick.seen) == 2000)
        assert slow.seen == []
        assert hub.deliveries[0].feed.waiting <= 600
        gate.set()
        wait_until(lambda: len(slow.seen) >= 2000)
        wait_until(lambda: hub.deliveries[0].stats.caught_up, what="the slow one on the feed again")
        publish(koji, 2001, 2100)
        wait_until(lambda: len(slow.seen) >= 2100 and len(quick.seen) >= 2100)
    assert slow.numbers() == quick.numbers() == list(range(1, 2101))


@pytest.mark.parametrize("trouble", ["hangs", "raises", "retries", "start raises"])
def test_a_consumer_in_trouble_does_not_keep_another_from_its_messages(bus, trouble):
    well, gate = Collect("well"), threading.Event()
    calls: list[str] = []

    class Trouble(Collect):
        def start(self) -> None:
            if trouble == "start raises":
                calls.append("start")
                raise OSError("no server")

        def consume(self, message: Message) -> None:
            calls.append("consume")
            if trouble == "hangs":
                gate.wait(100)
            elif trouble == "raises":
                raise RuntimeError("boom")
            elif trouble == "retries":
                raise Retry(after=3600.0)

    try:
        # only the one that hangs is not there at the deadline, however busy the machine
        drain_timeout = 1.0 if trouble == "hangs" else 60.0
        with bus.publisher(KOJI) as koji, running(bus, Trouble("trouble"), well, drain_timeout=drain_timeout) as hub:
            wait_until(lambda: calls or trouble != "start raises")
            publish(koji, 1, 300)
            wait_until(lambda: len(well.seen) == 300)
            if trouble == "start raises":
                assert any("start() raised OSError: no server" in reason for reason in hub.reasons())
            if trouble in ("hangs", "retries"):
                wait_until(lambda: calls)
                assert calls == ["consume"]
        assert well.numbers() == list(range(1, 301))
        # what it did not finish is not behind its cursor
        place = cursor(bus, "trouble").get(KOJI)
        if trouble in ("hangs", "retries"):
            assert place is None or place.sequence == 0
            # the others may need a moment more than it had, since the deadline is one for all
            left = ["trouble"] if trouble == "hangs" else []
            wait_until(lambda: [one.enabled.name for one in hub.unfinished()] == left)
    finally:
        gate.set()
        wait_until(lambda: not hub.unfinished())


class Unwilling(Collect):
    """Raises *error* until it is told to be ``willing``; counts its calls."""

    def __init__(self, error: BaseException) -> None:
        super().__init__("unwilling")
        self.error = error
        self.calls = 0
        self.willing = threading.Event()

    def consume(self, message: Message) -> None:
        self.calls += 1
        if not self.willing.is_set():
            raise self.error
        super().consume(message)


class UnwillingBatches(Unwilling):
    def consume_batch(self, messages: Sequence[Message]) -> None:
        for message in messages:
            self.consume(message)


SHAPES = {
    "alone": {},
    "workers": {"workers": 2, "ordered_by": "none"},
    "batches": {"batch": Batch(10, 0.01)},
}


def unwilling(shape: str, error: BaseException, **changes: Any) -> tuple[Unwilling, Enabled]:
    made = UnwillingBatches(error) if shape == "batches" else Unwilling(error)
    return made, Enabled(name="unwilling", consumer=made, topics=("#",), **{**SHAPES[shape], **changes})


@pytest.mark.parametrize("shape", SHAPES)
def test_a_consumer_that_waits_for_too_long_makes_the_hub_not_ready_and_says_why_until_it_goes_on(bus, shape):
    well = Collect("well")
    waits, enabled = unwilling(shape, Retry(after=0.01, reason="no server"))
    with bus.publisher(KOJI) as koji, running(bus, enabled, well, stuck_after=0.05, http="127.0.0.1:0") as hub:
        wait_until(lambda: not hub.reasons(), 60, "readiness")
        publish(koji, 1, 3)
        status, text = wait_until(
            lambda: (found := get(hub, "/ready"))[0] == 503 and "in vain" in found[1] and found, 60, "/ready to say so"
        )
        (reason,) = [one for one in json.loads(text)["reasons"] if "in vain" in one]
        assert status == 503
        assert reason.startswith(f"consumer unwilling: has tried {KOJI}/")
        assert "koji.package.build.start) in vain since 2" in reason and reason.endswith(": no server")
        wait_until(lambda: well.numbers() == [1, 2, 3], 60, "the other consumer")
        assert samples(get(hub, "/metrics")[1])['fedbus_consumer_stuck_seconds{consumer="unwilling"}'] > 0
        waits.willing.set()
        wait_until(lambda: sorted(waits.numbers()) == [1, 2, 3], 60, "its messages")
        wait_until(lambda: get(hub, "/ready")[0] == 200, 60, "readiness")
        assert samples(get(hub, "/metrics")[1])['fedbus_consumer_stuck_seconds{consumer="unwilling"}'] == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_a_retry_now_and_then_does_not_make_the_hub_less_ready(bus, shape):
    waits, enabled = unwilling(shape, Retry(after=0.01))
    with bus.publisher(KOJI) as koji, running(bus, enabled, stuck_after=3600.0, stuck_failures=3) as hub:
        wait_until(lambda: not hub.reasons(), 60, "readiness")
        publish(koji, 1, 1)
        wait_until(lambda: waits.calls >= 10, 60, "ten calls")
        assert not any("in vain" in one or "calls failed" in one for one in hub.reasons())
        waits.willing.set()
        wait_until(lambda: waits.numbers() == [1], 60, "the message")


@pytest.mark.parametrize("shape", SHAPES)
def test_a_consumer_whose_calls_all_fail_makes_the_hub_not_ready_until_one_does_not(bus, shape):
    fails, enabled = unwilling(shape, RuntimeError("boom"), attempts=2)
    with bus.publisher(KOJI) as koji, running(bus, enabled, stuck_failures=5) as hub:
        wait_until(lambda: not hub.reasons(), 60, "readiness")
        publish(koji, 1, 2)
        wait_until(lambda: hub.deliveries[0].stats.gave_up == 2, 60, "two dead letters")
        assert not any("calls failed" in one for one in hub.reasons()), "four are not five"
        publish(koji, 3, 3)
        wait_until(lambda: hub.deliveries[0].stats.gave_up == 3, 60, "the third")
        (reason,) = wait_until(lambda: [one for one in hub.reasons() if "calls failed" in one], 60, "the reason")
        assert reason.startswith("consumer unwilling: its last 6 calls failed, since 2")
        assert "RuntimeError: boom" in reason
        fails.willing.set()
        publish(koji, 4, 4)
        wait_until(lambda: fails.numbers() == [4] and not hub.reasons(), 60, "readiness")


def test_retry_brings_the_same_message_again_and_then_the_next(bus):
    calls: list[int] = []

    @consumer("koji")
    def flaky(message: Message) -> None:
        calls.append(message.body["i"])
        if calls.count(2) in (1, 2) and message.body["i"] == 2:
            raise Retry(after=0.01)

    with bus.publisher(KOJI) as koji, running(bus, flaky) as hub:
        publish(koji, 1, 3)
        wait_until(lambda: 3 in calls)
    assert calls == [1, 2, 2, 2, 3]
    stats = hub.deliveries[0].stats
    assert (stats.delivered, stats.retried, stats.failed) == (3, 2, 0)


def test_other_errors_are_tried_a_known_number_of_times_then_the_next_message_comes(bus, caplog):
    calls: list[int] = []

    class Poisoned(Collect):
        def consume(self, message: Message) -> None:
            calls.append(message.body["i"])
            if message.body["i"] == 2:
                raise SystemExit("no way\n\x1b[31m")

    with bus.publisher(KOJI) as koji, running(bus, Poisoned()) as hub:
        publish(koji, 1, 3)
        wait_until(lambda: 3 in calls)
    assert calls == [1, 2, 2, 2, 2, 3]
    stats = hub.deliveries[0].stats
    assert (stats.delivered, stats.failed, stats.gave_up) == (2, 4, 1)
    assert cursor(bus, "collect")[KOJI].sequence == 3
    (line,) = [record.getMessage() for record in caplog.records if "gave up after 4 attempts" in record.getMessage()]
    assert "it is a dead letter" in line
    assert "SystemExit: no way" in line
    assert "test_hub.py" in line


def test_drop_gives_a_message_up_with_its_reason(bus, caplog):
    class Picky(Collect):
        def consume(self, message: Message) -> None:
            if message.body["i"] == 1:
                raise Drop("no package")
            super().consume(message)

    picky = Picky()
    with bus.publisher(KOJI) as koji, running(bus, picky) as hub:
        publish(koji, 1, 2)
        wait_until(lambda: picky.seen)
    assert picky.numbers() == [2]
    assert hub.deliveries[0].stats.dropped == 1
    assert any("no package" in record.getMessage() for record in caplog.records)


def test_halt_stops_the_hub_and_the_message_in_hand_comes_again(bus):
    class Halting(Collect):
        def consume(self, message: Message) -> None:
            if message.body["i"] == 3:
                raise Halt(exit_code=17)
            super().consume(message)

    halting = Halting()
    with bus.publisher(KOJI) as koji:
        with running(bus, halting) as hub:
            publish(koji, 1, 5)
            wait_until(lambda: hub._closed)
        assert hub.exit_code == 17
        assert halting.numbers() == [1, 2]
        again = Collect()
        with running(bus, again):
            wait_until(lambda: len(again.seen) == 3)
    assert again.numbers() == [3, 4, 5]


def test_an_async_consumer_is_awaited_before_the_next_message(bus):
    order: list[str] = []

    @consumer("koji", name="later")
    async def later(message: Message) -> None:
        import asyncio

        order.append(f"begin {message.body['i']}")
        await asyncio.sleep(0)
        order.append(f"end {message.body['i']}")

    with bus.publisher(KOJI) as koji, running(bus, later):
        publish(koji, 1, 2)
        wait_until(lambda: len(order) == 4)
    assert order == ["begin 1", "end 1", "begin 2", "end 2"]


@pytest.mark.fault("F8")
def test_an_async_consumer_that_hangs_is_cancelled_at_its_timeout_and_the_next_message_comes(bus):
    seen: list[int] = []

    class Hanging(Collect):
        async def consume(self, message: Message) -> None:  # type: ignore[override]
            import asyncio

            if message.body["i"] == 1:
                await asyncio.Event().wait()
            seen.append(message.body["i"])

    # long enough for the message that does not hang
    hanging = Enabled(name="hanging", consumer=Hanging(), topics=("#",), attempts=2, timeout=2.0)
    with bus.publisher(KOJI) as koji, running(bus, hanging) as hub:
        publish(koji, 1, 2)
        wait_until(lambda: seen == [2])
    assert hub.deliveries[0].stats.failed == 2
    (letter,) = bus.dead.list()
    assert "TimeoutError: it was not done within its timeout of 2 s" in letter.reason


def test_what_retention_has_removed_is_told_to_each_consumer_in_its_place(bus_folder):
    (bus_folder / "50-journal.yaml").write_text("journal: {segment_bytes: 64KiB, retain_bytes: 256KiB}\n")
    (bus_folder / "50-journal.yaml").chmod(0o600)
    collect = Collect()
    with Bus.open(bus_folder) as bus, bus.publisher(KOJI) as koji:
        with running(bus, collect):
            publish(koji, 1, 10)
            wait_until(lambda: len(collect.seen) == 10)
        for number in range(11, 2001):
            koji.enqueue("package.build.start", {"i": number, "x": "y" * 1000})
        koji.flush()
        with running(bus, collect):
            wait_until(lambda: collect.seen[-1].body["i"] == 2000)
    (loss,) = collect.losses
    numbers = collect.numbers()
    assert (loss.first, loss.cause) == (11, "retention")
    assert numbers == [*range(1, 11), *range(loss.last + 1, 2001)]


def test_an_endpoint_that_comes_back_with_a_new_journal_is_read_from_its_beginning(bus, bus_folder):
    collect = Collect()
    with running(bus, collect):
        with Bus.open(bus_folder) as other, other.publisher(KOJI) as koji:
            publish(koji, 1, 20)
            wait_until(lambda: len(collect.seen) == 20)
        (bus_folder / "state/journal" / KOJI).rename(bus_folder / "state/journal/away")
        with Bus.open(bus_folder) as other, other.publisher(KOJI) as koji:
            publish(koji, 21, 40)
            wait_until(lambda: len(collect.seen) == 40, 60)
    assert collect.numbers() == list(range(1, 41))
    assert [loss.cause for loss in collect.losses] == ["epoch"]


@pytest.mark.fault("F11")
def test_endpoints_that_are_added_and_removed_are_taken_up_while_running(bus, bus_folder):
    collect = Collect()
    settings = bus.settings
    both = dict(settings.endpoints)
    koji_only = {KOJI: both[KOJI]}
    wanted: list[dict[str, Any]] = []
    hub = bus.hub([collect], watch=lambda forced: wanted.pop() if wanted else None)
    hub.source.endpoints = koji_only
    thread = threading.Thread(target=hub.run)
    thread.start()
    try:
        with bus.publisher(KOJI) as koji, bus.publisher(BODHI) as bodhi:
            wait_until(lambda: hub.joined)
            publish(koji, 1, 5)
            wait_until(lambda: len(collect.seen) == 5)
            wanted.append(both)
            hub.reload()
            wait_until(lambda: hub.source.version == 1)
            publish(bodhi, 1, 5)
            wait_until(lambda: len(collect.seen) == 10)
            wanted.append(koji_only)
            hub.reload()
            wait_until(lambda: hub.source.version == 2 and len(hub.intake.readers()) == 1)
            publish(bodhi, 6, 7)
            publish(koji, 6, 7)
            wait_until(lambda: len(collect.seen) == 12)
            wanted.append(both)
            hub.reload()
            wait_until(lambda: len(collect.seen) == 14, what="what came while it was not in the list")
    finally:
        hub.stop()
        thread.join(60)
    assert collect.numbers(KOJI) == collect.numbers(BODHI) == list(range(1, 8))


def test_a_consumer_whose_cursor_another_hub_has_taken_over_ends_the_hub_and_the_others_keep_their_places(bus):
    first, second = Collect("a"), Collect("b")
    with bus.publisher(KOJI) as koji, running(bus, first, second, commit_interval=3600.0) as hub:
        publish(koji, 1, 3)
        wait_until(lambda: len(first.seen) == len(second.seen) == 3, 30, "the messages")
        bus.cursors.save("hub.a", {KOJI: Position(first.seen[0].epoch, 1)}, 7)
    assert hub.exit_code in (0, 1), "it was being stopped anyhow"
    assert cursor(bus, "a")[KOJI].sequence == 1
    assert cursor(bus, "b")[KOJI].sequence == 3


def test_two_consumers_with_one_name_are_refused(bus):
    with pytest.raises(ConfigError, match="two consumers are named 'collect'"):
        bus.hub([Collect(), Collect()])


def test_a_since_that_is_no_place_to_begin_is_an_error_before_anything_runs(bus):
    hub = bus.hub([Enabled(name="a", consumer=Collect(), topics=("#",), since="yesterdayish", origin="a.yaml:3")])
    with pytest.raises(ConfigError, match=r"a\.yaml:3: a: since: 'yesterdayish' is not a place to begin"):
        hub.run()


# --- HTTP ------------------------------------------------------------------------------------------------------


def get(hub: Hub, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{hub.http_address}{path}", timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def samples(text: str) -> dict[str, float]:
    return {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if not line.startswith("#")
    }


def test_the_http_port_tells_how_the_hub_is(bus):
    collect = Collect()
    with bus.publisher(KOJI) as koji, running(bus, collect, http="127.0.0.1:0") as hub:
        publish(koji, 1, 20)
        wait_until(lambda: len(collect.seen) == 20)
        wait_until(lambda: get(hub, "/ready")[0] == 200, what="readiness")
        assert json.loads(get(hub, "/ready")[1]) == {"ready": True, "reasons": []}
        assert get(hub, "/live") == (200, '{"live": true}\n')

        # counted behind the call for the last one
        def counted() -> bool:
            return samples(get(hub, "/metrics")[1])['fedbus_consumer_delivered_total{consumer="collect"}'] == 20

        wait_until(counted)
        status, text = get(hub, "/metrics")
        found = samples(text)
        assert status == 200
        assert found['fedbus_consumer_lag_messages{consumer="collect"}'] == 0
        assert found[f'fedbus_endpoint_messages_total{{endpoint="{KOJI}"}}'] == 20
        assert found["fedbus_hub_ready"] == 1
        # of an endpoint that was never heard too, so that one alarm does for both
        assert found[f'fedbus_endpoint_heard_age_seconds{{endpoint="{KOJI}"}}'] < 60
        assert found['fedbus_endpoint_heard_age_seconds{endpoint="git.host01"}'] > 0
        assert "org.example" not in text
        assert get(hub, "/nothing")[0] == 404


def test_ready_says_what_is_wrong(bus):
    hub = bus.hub(
        [Collect()], options=replace(bus.settings.hub, http="127.0.0.1:0"), problems=["a.yaml:7: import error"]
    )

    def refuse(forced: bool) -> None:
        raise ConfigError("b.yaml:3: unknown key 'x'")

    hub._watch = refuse
    thread = threading.Thread(target=hub.run)
    thread.start()
    try:
        wait_until(lambda: hub.http_address and hub.refused)
        status, text = get(hub, "/ready")
        reasons = json.loads(text)["reasons"]
        assert status == 503
        assert "not loaded: a.yaml:7: import error" in reasons
        assert "configuration refused: b.yaml:3: unknown key 'x'" in reasons
    finally:
        hub.stop()
        thread.join(60)
    assert not thread.is_alive()
    assert not hub.intake.is_alive() and not hub._http.is_alive()


def test_the_cursor_is_written_while_running_and_never_before_the_work_is_done(bus):
    gate = threading.Semaphore(0)
    collect = Collect()
    collect.consume = lambda message: gate.acquire() and collect.seen.append(message)  # type: ignore[method-assign]
    with bus.publisher(KOJI) as koji, running(bus, collect, commit_interval=0.05):
        publish(koji, 1, 10)
        gate.release(4)
        wait_until(lambda: cursor(bus, "collect").get(KOJI, Position("", 0)).sequence == 4)
        begun = time.monotonic()
        wait_until(lambda: time.monotonic() - begun > 0.3)  # several rounds of writing
        assert cursor(bus, "collect")[KOJI].sequence == 4
        gate.release(100)
        wait_until(lambda: len(collect.seen) == 10)
    assert cursor(bus, "collect")[KOJI].sequence == 10
