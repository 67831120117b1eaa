"""Several workers and batches: who gets what, in which order, and what is given again after a stop or a kill."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedbus import Batch, Bus, Consumer, Drop, Halt, Message, Publisher, Retry, consumer
from fedbus.hub.enabled import Enabled
from fedbus.hub.hub import Hub
from fedbus.hub.options import ConsumerSettings
from fedbus.hub.registry import find
from fedbus.hub.several import Several
from tests.support import wait_until

KOJI, BODHI = "koji.build01", "bodhi.web01"


class Work(Consumer):
    """Calls ``act`` for each message, and keeps what was begun and done, and by which thread."""

    name = "work"
    topics = ("#",)

    def __init__(self, act: Callable[[Message], Any] | None = None) -> None:
        self.act = act
        self.turn = threading.Lock()
        self.begun: list[int] = []
        self.seen: list[int] = []
        self.threads: dict[int, str] = {}
        self.at_once = self.most = 0
        self.losses: list[Any] = []

    def consume(self, message: Message) -> None:
        number = message.body["i"]
        with self.turn:
            self.begun.append(number)
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            self.threads[number] = threading.current_thread().name
        try:
            if self.act is not None:
                self.act(message)
        finally:
            with self.turn:
                self.at_once -= 1
        with self.turn:
            self.seen.append(number)

    def lost(self, loss: Any) -> None:
        self.losses.append((loss, list(self.seen)))


@pytest.fixture
def bus(bus_folder: Path) -> Iterator[Bus]:
    with Bus.open(bus_folder) as opened:
        yield opened


@contextmanager
def running(bus: Bus, one: Consumer | Enabled, *others: Any, workers: int = 1, **changes: Any) -> Iterator[Hub]:
    own = {name: changes.pop(name) for name in ("ordered_by", "batch", "attempts", "timeout") if name in changes}
    if not isinstance(one, Enabled):
        one = Enabled(name="work", consumer=one, topics=("#",), since="beginning", workers=workers, **own)
    # a slow machine takes its time to end
    quick = {"retry_pause": 0.01, "commit_interval": 0.05, "drain_timeout": 60.0}
    options = replace(bus.settings.hub, **{**quick, **changes})
    hub = bus.hub([one, *others], options=options)
    thread = threading.Thread(target=hub.run)
    thread.start()
    try:
        wait_until(lambda: hub.intake is not None and hub.intake.is_alive(), what="the hub's start")
        yield hub
    finally:
        hub.stop()
        thread.join(90)
        assert not thread.is_alive()


def publish(publisher: Publisher, first: int, last: int, **body: Any) -> None:
    for number in range(first, last + 1):
        publisher.enqueue("package.build.start", {"i": number, **body})
    publisher.flush()


def place(bus: Bus) -> int:
    found = bus.cursors.load("hub.work").get(KOJI)
    return 0 if found is None else found.sequence


def test_streams_are_worked_on_at_the_same_time_and_each_in_order(bus):
    """Unless ordered_by says otherwise."""
    both = threading.Barrier(2, timeout=90)
    work = Work(lambda message: both.wait() if message.body["i"] in (1, 1001) else None)
    with bus.publisher(KOJI) as koji, bus.publisher(BODHI) as bodhi, running(bus, work, workers=4) as hub:
        publish(koji, 1, 300)
        for number in range(1001, 1301):
            bodhi.enqueue("update.create", {"i": number})
        bodhi.flush()
        wait_until(lambda: len(work.seen) >= 600)
        wait_until(lambda: not hub.reasons(), what="readiness")
        wait_until(lambda: place(bus) == 300)
        wait_until(lambda: hub.deliveries[0].stats.delivered == 600)  # counted behind the call
    assert [number for number in work.seen if number < 1000] == list(range(1, 301))
    assert [number for number in work.seen if number > 1000] == list(range(1001, 1301))
    assert work.threads[1] != work.threads[1001]


def test_equal_values_are_worked_on_in_order_and_different_ones_at_the_same_time(bus):
    packages = ["bash", "vim", "zsh"]
    all_three = threading.Barrier(3, timeout=90)
    work = Work(lambda message: all_three.wait() if message.body["i"] <= 3 else None)
    with bus.publisher(KOJI) as koji, running(bus, work, workers=3, ordered_by="body.package"):
        for number in range(1, 301):
            koji.enqueue("package.build.start", {"i": number, "package": packages[number % 3]})
        koji.flush()
        wait_until(lambda: len(work.seen) >= 300)
        wait_until(lambda: place(bus) == 300)
    for rest in range(3):
        numbers = [number for number in work.seen if number % 3 == rest]
        assert numbers == sorted(numbers)
        assert len(numbers) == 100
    assert 2 <= work.most <= 3


def test_async_calls_of_one_consumer_run_at_the_same_time_in_one_loop(bus):
    loops: set[Any] = set()
    together: list[int] = []
    gate: list[asyncio.Event] = []

    class Later(Consumer):
        async def start(self) -> None:  # type: ignore[override]
            gate.append(asyncio.Event())
            loops.add(asyncio.get_running_loop())

        async def consume(self, message: Message) -> None:  # type: ignore[override]
            loops.add(asyncio.get_running_loop())
            together.append(message.body["i"])
            if len(together) == 5:
                gate[0].set()
            await gate[0].wait()
            if message.body["i"] == 3:
                raise SystemExit("not the hub's end")

        async def stop(self) -> None:  # type: ignore[override]
            loops.add(asyncio.get_running_loop())

    with bus.publisher(KOJI) as koji, running(bus, Later(), workers=5, ordered_by="none", attempts=1) as hub:
        publish(koji, 1, 20)
        wait_until(lambda: hub.deliveries[0].stats.delivered == 19)
        wait_until(lambda: place(bus) == 20)
    assert len(loops) == 1
    assert [letter.key.sequence for letter in bus.dead.list()] == [3]


@pytest.mark.fault("F8")
def test_a_key_that_is_tried_again_holds_up_no_other_and_is_behind_the_cursor_until_it_is_done(bus):
    again = True

    def act(message: Message) -> None:
        if message.body["i"] == 2 and again:
            raise Retry(after=0.01)

    work = Work(act)
    with bus.publisher(KOJI) as koji, running(bus, work, workers=2, ordered_by="body.i") as hub:
        publish(koji, 1, 50)
        wait_until(lambda: len(work.seen) == 49)
        wait_until(lambda: place(bus) == 1)
        assert 2 not in work.seen
        wait_until(lambda: len(bus.dead.attempts("work", {})) == 48, what="the note of what is done behind it")
        again = False
        wait_until(lambda: place(bus) == 50)
        wait_until(lambda: not bus.dead.attempts("work", {}))
        assert hub.deliveries[0].stats.failed == 0
    assert sorted(work.seen) == list(range(1, 51))


def test_what_was_done_behind_a_message_that_waits_is_not_given_again_by_the_next_hub(bus):
    def act(message: Message) -> None:
        if message.body["i"] == 2:
            raise Retry(after=3600.0)

    first, second = Work(act), Work()
    with bus.publisher(KOJI) as koji:
        with running(bus, first, workers=3, ordered_by="none"):
            publish(koji, 1, 100)
            wait_until(lambda: len(first.seen) == 99)
        assert place(bus) == 1
        with running(bus, second, workers=3, ordered_by="none"):
            publish(koji, 101, 110)
            wait_until(lambda: len(second.seen) == 11)
            wait_until(lambda: place(bus) == 110)
    assert sorted(second.seen) == [2, *range(101, 111)]
    assert bus.dead.attempts("work", {}) == {}


def test_others_get_ahead_of_a_message_that_waits_only_as_far_as_the_queue_is_long(bus):
    gate = threading.Event()
    work = Work(lambda message: gate.wait(100) if message.body["i"] == 1 else None)
    try:
        with bus.publisher(KOJI) as koji, running(bus, work, workers=2, ordered_by="none", queue_messages=40) as hub:
            publish(koji, 1, 300)
            wait_until(lambda: len(work.seen) == 39)
            crew = hub.deliveries[0].crew
            assert crew is not None
            wait_until(lambda: crew.in_hand == 40)
            gate.set()
            wait_until(lambda: len(work.seen) == 300)
            wait_until(lambda: place(bus) == 300)
    finally:
        gate.set()
    assert sorted(work.seen) == list(range(1, 301))


@pytest.mark.fault("F8")
def test_a_poison_message_among_several_workers_dies_once_and_comes_back_once(bus):
    bad = {7}

    def act(message: Message) -> None:
        if message.body["i"] in bad:
            raise RuntimeError("boom")

    work = Work(act)
    with bus.publisher(KOJI) as koji, running(bus, work, workers=4, ordered_by="body.i", attempts=3) as hub:
        publish(koji, 1, 60)
        wait_until(lambda: len(work.seen) == 59)
        (letter,) = wait_until(bus.dead.list)
        assert (letter.key.sequence, letter.attempts) == (7, 3)
        assert work.begun.count(7) == 3
        wait_until(lambda: place(bus) == 60)
        bad.clear()
        bus.dead.requeue(letter.id)
        wait_until(lambda: not bus.dead.list(), what="the letter's end")
        publish(koji, 61, 70)
        wait_until(lambda: len(work.seen) == 70)
        stats = hub.deliveries[0].stats
        wait_until(lambda: stats.delivered == 70)  # counted behind the call
        assert (stats.delivered, stats.gave_up, stats.requeued) == (70, 1, 1)
    assert work.begun.count(7) == 4


def test_a_stop_lets_each_worker_finish_what_it_has_and_nothing_is_given_twice(bus):
    gate = threading.Event()
    entered = threading.Semaphore(0)

    def act(message: Message) -> None:
        entered.release()
        gate.wait(100)

    first, second = Work(act), Work()
    with bus.publisher(KOJI) as koji:
        publish(koji, 1, 200)
        with running(bus, first, workers=3, ordered_by="body.i") as hub:
            for _ in range(3):
                assert entered.acquire(timeout=60)
            crew = hub.deliveries[0].crew
            assert isinstance(crew, Several)
            hub.stop()
            wait_until(lambda: crew._lanes.stopping)  # or they would take one more
            gate.set()
        assert len(first.seen) == 3
        with running(bus, second, workers=3, ordered_by="body.i"):
            wait_until(lambda: place(bus) == 200)
    assert sorted([*first.seen, *second.seen]) == list(range(1, 201))


def test_halt_in_a_worker_stops_the_hub_and_the_message_comes_again(bus):
    def act(message: Message) -> None:
        if message.body["i"] == 5:
            raise Halt(exit_code=9)

    with bus.publisher(KOJI) as koji:
        publish(koji, 1, 10)
        with running(bus, Work(act), workers=3, ordered_by="none") as hub:
            wait_until(lambda: hub._closed)
        assert hub.exit_code == 9
        assert place(bus) < 5
        again = Work()
        with running(bus, again, workers=3, ordered_by="none"):
            wait_until(lambda: 5 in again.seen)


def test_a_loss_is_told_behind_all_that_was_given_of_its_stream(bus_folder):
    (bus_folder / "50-journal.yaml").write_text("journal: {segment_bytes: 64KiB, retain_bytes: 256KiB}\n")
    (bus_folder / "50-journal.yaml").chmod(0o600)
    work = Work()
    with Bus.open(bus_folder) as bus, bus.publisher(KOJI) as koji:
        with running(bus, Work(), workers=3):
            publish(koji, 1, 5)
            wait_until(lambda: place(bus) == 5)
        publish(koji, 6, 2000, fill="x" * 500)
        with running(bus, work, workers=3, ordered_by="none"):
            wait_until(lambda: 2000 in work.seen)
            wait_until(lambda: place(bus) == 2000)
    ((loss, seen),) = work.losses
    assert seen == []
    assert sorted(work.seen) == list(range(loss.last + 1, 2001))


# --- batches ---------------------------------------------------------------------------------------------------


class Store(Consumer):
    """Takes batches; fails with those that hold a number of ``bad``."""

    name = "work"
    topics = ("#",)
    since = "beginning"
    batch = Batch(50, 0.05)

    def __init__(self, *bad: int) -> None:
        self.bad = set(bad)
        self.batches: list[list[int]] = []
        self.seen: list[int] = []
        self.error: Callable[[list[int]], BaseException] = lambda numbers: RuntimeError(f"boom {numbers}")

    def consume_batch(self, messages: Sequence[Message]) -> None:
        numbers = [message.body["i"] for message in messages]
        self.batches.append(numbers)
        if self.bad.intersection(numbers):
            raise self.error(numbers)
        self.seen += numbers


def test_batches_hold_what_is_there_in_the_order_of_the_stream_and_no_more_than_they_may(bus):
    store = Store()
    with bus.publisher(KOJI) as koji, running(bus, store, batch=Batch(50, 0.05)) as hub:
        publish(koji, 1, 500)
        wait_until(lambda: len(store.seen) == 500)
        wait_until(lambda: place(bus) == 500)
        assert hub.deliveries[0].stats.delivered == 500
    assert store.seen == list(range(1, 501))
    assert max(map(len, store.batches)) == 50


def test_the_hooks_of_a_consumer_run_in_the_thread_of_its_only_worker(bus):
    threads: list[threading.Thread] = []

    class Bound(Store):
        def start(self) -> None:
            threads.append(threading.current_thread())
            if len(threads) == 1:
                raise OSError("not yet")

        def consume_batch(self, messages: Sequence[Message]) -> None:
            threads.append(threading.current_thread())
            super().consume_batch(messages)

        def stop(self) -> None:
            threads.append(threading.current_thread())

    store = Bound()
    with bus.publisher(KOJI) as koji, running(bus, store, batch=Batch(5, 0.0)):
        publish(koji, 1, 20)
        wait_until(lambda: len(store.seen) == 20)
    assert len(threads) > 3
    assert len(set(threads)) == 1


def test_a_batch_comes_at_its_time_though_it_is_not_full(bus):
    store = Store()
    with bus.publisher(KOJI) as koji, running(bus, store, batch=Batch(1000, 0.05)):
        publish(koji, 1, 3)
        wait_until(lambda: store.seen == [1, 2, 3])


@pytest.mark.fault("F8")
def test_a_batch_that_fails_is_given_one_by_one_and_only_the_bad_message_dies(bus):
    store = Store(13)
    with bus.publisher(KOJI) as koji:
        publish(koji, 1, 40)
        with running(bus, store, batch=Batch(40, 30.0), attempts=3) as hub:
            wait_until(lambda: len(store.seen) == 39)
            wait_until(lambda: place(bus) == 40)
            stats = hub.deliveries[0].stats
            assert (stats.delivered, stats.failed, stats.gave_up, stats.broken_batches) == (39, 3, 1, 1)
    assert store.batches[0] == list(range(1, 41))
    assert store.batches[1:14] == [[number] for number in range(1, 14)]
    assert store.batches.count([13]) == 3
    assert store.seen == [number for number in range(1, 41) if number != 13]
    assert [letter.key.sequence for letter in bus.dead.list()] == [13]


def test_retry_means_the_whole_batch_and_drop_only_the_message_that_is_alone(bus):
    store = Store(2)
    store.error = lambda numbers: Retry(after=0.0) if len(store.batches) < 4 else Drop("no")
    with bus.publisher(KOJI) as koji:
        publish(koji, 1, 3)
        with running(bus, store, batch=Batch(3, 30.0)) as hub:
            wait_until(lambda: place(bus) == 3)
            stats = hub.deliveries[0].stats
            assert (stats.delivered, stats.retried, stats.dropped, stats.failed) == (2, 3, 1, 0)
    assert store.batches == [[1, 2, 3]] * 4 + [[1], [2], [3]]
    assert store.seen == [1, 3]


def test_several_workers_take_batches_of_different_keys_each_in_order(bus):
    store = Store()
    with bus.publisher(KOJI) as koji, running(bus, store, workers=3, ordered_by="body.key", batch=Batch(20, 0.01)):
        for number in range(1, 401):
            koji.enqueue("package.build.start", {"i": number, "key": number % 7})
        koji.flush()
        wait_until(lambda: len(store.seen) == 400)
        wait_until(lambda: place(bus) == 400)
    for rest in range(7):
        numbers = [number for number in store.seen if number % 7 == rest]
        assert numbers == sorted(numbers)


def test_functions_take_lists_and_a_class_says_by_itself_that_it_takes_batches(bus, tmp_path):
    got: list[list[int]] = []

    @consumer("koji", name="listed", since="beginning", batch=Batch(10, 0.01))
    async def listed(messages: list[Message]) -> None:
        got.append([message.body["i"] for message in messages])

    store = Store()
    with bus.publisher(KOJI) as koji:
        publish(koji, 1, 30)
        hub = bus.hub([listed, store])
        assert [one.batch for one in hub.roster.consumers] == [Batch(10, 0.01), Batch(50, 0.05)]
        thread = threading.Thread(target=hub.run)
        thread.start()
        wait_until(lambda: sum(map(len, got)) == 30 and len(store.seen) == 30)
        hub.stop()
        thread.join(60)
    assert [number for numbers in got for number in numbers] == list(range(1, 31))


SOURCE = """
import os, signal, time, fedbus

def note(text):
    with open(PATH, "a") as file:
        file.write(f"{os.getpid()} {text}\\n")

class Wild(fedbus.Consumer):
    topics = ("koji",)
    since = "beginning"
    def consume(self, message):
        number = message.body["i"]
        note(number)
        while number <= 3 and len({line.split()[0] for line in open(PATH)}) < 3:
            time.sleep(0.01)
        if number == 7:
            os.kill(os.getpid(), signal.SIGSEGV)

class Batched(fedbus.Consumer):
    topics = ("koji",)
    since = "beginning"
    batch = fedbus.Batch(25, 30.0)
    def consume_batch(self, messages):
        numbers = [message.body["i"] for message in messages]
        note(",".join(map(str, numbers)))
        if 7 in numbers:
            os._exit(3)

@fedbus.consumer("koji", since="beginning")
def plain(messages):
    note(",".join(str(message.body["i"]) for message in messages))
"""


@pytest.fixture
def wanted(tmp_path: Path) -> Callable[..., ConsumerSettings]:
    folder = tmp_path / "consumers"
    folder.mkdir(mode=0o700)
    (folder / "wild.py").write_text(SOURCE.replace("PATH", repr(str(tmp_path / "out.txt"))))
    (folder / "wild.py").chmod(0o600)
    return lambda use, **changes: ConsumerSettings(
        **{"name": "work", "use": use, "origin": "a.yaml:3", "attempts": 2, "isolation": "process", **changes}
    )


def notes(tmp_path: Path) -> list[tuple[str, list[int]]]:
    out = tmp_path / "out.txt"
    rows = [line.split() for line in out.read_text().splitlines()] if out.exists() else []
    return [(row[0], [int(number) for number in row[1].split(",")]) for row in rows]


@pytest.mark.fault("F8")
def test_workers_in_processes_of_their_own_share_the_work_and_a_crash_costs_one_message_its_attempts(
    bus, tmp_path, wanted
):
    found = find({"work": wanted("wild.py:Wild", workers=3, ordered_by="none")}, folder=tmp_path / "consumers")
    assert found.problems == []
    with bus.publisher(KOJI) as koji:
        publish(koji, 1, 90)
        with running(bus, found.consumers[0]):
            wait_until(lambda: place(bus) == 90, 60)
    got = notes(tmp_path)
    assert sorted(number for _, numbers in got for number in numbers) == sorted([*range(1, 91), 7])
    assert len({pid for pid, _ in got}) >= 3
    assert [letter.key.sequence for letter in bus.dead.list()] == [7]


@pytest.mark.fault("F8")
def test_a_batch_in_a_process_that_crashes_is_given_one_by_one(bus, tmp_path, wanted):
    found = find({"work": wanted("wild.py:Batched")}, folder=tmp_path / "consumers")
    assert found.problems == []
    assert found.consumers[0].batch == Batch(25, 30.0)
    with bus.publisher(KOJI) as koji:
        publish(koji, 1, 25)
        with running(bus, found.consumers[0]):
            wait_until(lambda: place(bus) == 25, 60)
    numbers = [numbers for _, numbers in notes(tmp_path)]
    assert [1] in numbers
    assert numbers.count([7]) == 2
    assert [letter.key.sequence for letter in bus.dead.list()] == [7]


def test_the_configuration_has_the_last_word_on_batches(tmp_path, wanted):
    folder = tmp_path / "consumers"

    def load(use: str, **changes: Any) -> Any:
        return find({"work": wanted(use, isolation="thread", **changes)}, folder=folder)

    assert load("wild.py:Batched", batch=Batch(3, 1.0)).consumers[0].batch == Batch(3, 1.0)
    plain = load("wild.py:plain", batch=Batch(3, 1.0)).consumers[0]
    assert plain.consumer.consume_batch is not None
    assert load("wild.py:plain").consumers[0].batch is None
    (problem,) = load("wild.py:Wild", batch=Batch(3, 1.0)).problems
    assert "a.yaml:3: consumer 'work': it takes no batches" in problem
