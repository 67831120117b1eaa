"""Which message a worker takes next: order for each key, a bound on what is in hand, and the place of a cursor."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fedbus.clock import ManualClock
from fedbus.hub.lanes import Job, Lanes, Taken, key_of
from fedbus.hub.options import Batch
from fedbus.model.message import Message
from fedbus.model.position import Position
from tests.support import wait_until

EPOCH = "0192f0c0-0000-7000-8000-000000000001"
KOJI, BODHI = "koji.build01", "bodhi.web01"


def message(sequence: int, endpoint: str = KOJI, topic: str = "org.example.dev.koji.build", **body: Any) -> Message:
    parcel: Any = SimpleNamespace(endpoint=endpoint, epoch=EPOCH, topic=topic, envelopes=[b"x" * 100])
    return Message(body, sequence, endpoint, parcel, 0)


def job(sequence: int, key: object = 0, endpoint: str = KOJI, *, alone: bool = False) -> Job:
    return Job(key, message(sequence, endpoint), alone=alone)


def lanes(clock: ManualClock | None = None, *, messages: int = 100, batch: Batch | None = None) -> Lanes:
    return Lanes(clock=clock or ManualClock(), messages=messages, size=10**9, batch=batch)


def sequences(taken: Taken | None) -> list[int]:
    assert taken is not None
    return [one.message.sequence for _, jobs in taken for one in jobs if one.message is not None]


def test_messages_of_one_key_are_with_one_worker_at_a_time_and_others_go_on():
    there = lanes()
    there.put([job(1, "a"), job(2, "a"), job(3, "b")])
    first = there.take()
    assert sequences(first) == [1, 2]
    there.put([job(4, "a")])
    second = there.take()
    assert sequences(second) == [3]
    there.finished(first)
    assert sequences(there.take()) == [4]


def test_what_is_to_be_tried_again_comes_before_all_behind_it_and_lets_other_keys_pass():
    clock = ManualClock()
    there = lanes(clock)
    there.put([job(1, "a"), job(2, "a")])
    there.again(there.take(), 5.0)
    there.put([job(3, "a"), job(4, "b")])
    assert sequences(there.take()) == [4]
    clock.advance(5.0)
    assert sequences(there.take()) == [1, 2, 3]


def test_what_a_worker_has_handed_back_is_taken_by_another_when_that_one_takes_nothing_for_a_while():
    there, got = lanes(), []
    there.put([job(number, "a") for number in range(1, 21)])
    first = there.take()
    assert len(sequences(first)) == 16
    other = threading.Thread(target=lambda: got.append(sequences(there.take())), daemon=True)
    other.start()
    wait_until(lambda: there._work._waiters, 30, "the other worker to wait")  # type: ignore[attr-defined]
    there.finished(first)
    there.pass_on()
    other.join(30)
    assert got == [[17, 18, 19, 20]]


def test_a_retry_that_never_comes_due_ends_no_worker():
    there, got = lanes(), []
    there.put([job(1, "a")])
    there.again(there.take(), 1e300)
    other = threading.Thread(target=lambda: got.append(sequences(there.take())), daemon=True)
    other.start()
    wait_until(lambda: there._work._waiters or not other.is_alive(), 30, "the worker to wait")  # type: ignore[attr-defined]
    there.put([job(2, "b")])
    other.join(30)
    assert got == [[2]]


def test_other_bounds_are_in_force_at_once():
    there = lanes(messages=2)
    there.put([job(1), job(2)])
    assert there.room(0.0) == 0
    there.resize(messages=5, size=10**9)
    assert there.room(0.0) == 3
    there.resize(messages=5, size=100)
    assert there.room(0.0) == 0, "by its size"


def test_the_place_of_a_stream_is_before_the_first_that_is_not_done():
    there = lanes()
    there.put([job(number, number) for number in (3, 5, 8)] + [job(7, "b", BODHI)])
    read = {KOJI: Position(EPOCH, 9), BODHI: Position(EPOCH, 7), "git.host01": Position(EPOCH, 1)}
    assert there.places(dict(read))[KOJI] == Position(EPOCH, 2)
    taken = [there.take() for _ in range(4)]
    there.finished(taken[1])
    assert there.places(dict(read))[KOJI] == Position(EPOCH, 2)
    assert [key.sequence for key in there.ahead()] == [5]
    there.finished(taken[0])
    assert there.places(dict(read)) == {**read, KOJI: Position(EPOCH, 7), BODHI: Position(EPOCH, 6)}
    assert there.ahead() == []
    there.finished(taken[2])
    there.finished(taken[3])
    assert there.places(dict(read)) == read
    assert there.count == 0


def test_a_message_that_waits_bounds_how_far_others_get_ahead():
    there = lanes(messages=10)
    there.put([job(number, number) for number in range(1, 11)])
    assert there.room(0.0) == 0
    stuck = there.take()
    for _ in range(9):
        there.finished(there.take())
    assert there.room(0.0) == 0, "what is done behind it counts too"
    there.finished(stuck)
    assert there.room(0.0) == 10


def test_a_batch_waits_for_its_time_or_until_it_is_full_and_takes_from_all_keys():
    clock = ManualClock()
    there = lanes(clock, batch=Batch(3, 2.0))
    there.put([job(1, "a")])
    clock.advance(1.0)
    there.put([job(2, "b")])
    clock.advance(1.0)
    assert sequences(there.take()) == [1, 2], "two seconds after the first"
    there.put([job(3, "c"), job(4, "d"), job(5, "c"), job(6, "e")])
    assert sequences(there.take()) == [3, 5, 4], "it is full; each key in its order"


def test_what_is_to_be_alone_is_in_no_batch_with_others():
    there = lanes(batch=Batch(10, 0.0))
    there.put([job(1), job(2, alone=True), job(3), job(4)])
    found = []
    for _ in range(3):
        taken = there.take()
        found.append(sequences(taken))
        there.finished(taken)
    assert found == [[1], [2], [3, 4]]


def test_nobody_gets_work_after_a_stop():
    there = lanes()
    there.put([job(1)])
    there.stop()
    assert there.take() is None
    assert there.wait_for(lambda: True, 0.0) is False


@pytest.mark.parametrize(
    ("ordered_by", "left", "right", "same"),
    [
        ("stream", message(1), message(2), True),
        ("endpoint", message(1), message(2, BODHI), False),
        ("none", message(1), message(2), False),
        ("topic", message(1), message(2, BODHI), True),
        ("topic", message(1), message(2, topic="org.example.dev.koji.tag"), False),
        ("body.package", message(1, package="bash"), message(2, BODHI, package="bash"), True),
        ("body.package", message(1, package="bash"), message(2, package="vim"), False),
        ("body.build.id", message(1, build={"id": 7}), message(2, build={"id": 7, "x": 1}), True),
        ("body.build", message(1, build={"b": [1], "a": 2}), message(2, build={"a": 2, "b": [1]}), True),
        ("body.id", message(1, id=1), message(2, id=True), False),
        ("body.id", message(1, id=1), message(2, id="1"), False),
        ("body.package", message(1), message(2, package=None), False),
        ("body.package", message(1), message(2, owner="x"), True),
        ("body.package", message(1), message(2, BODHI), False),
        ("body.package.name", message(1, package="bash"), message(2, package="vim"), True),
    ],
)
def test_equal_values_have_one_key_and_what_lacks_them_has_that_of_its_stream(ordered_by, left, right, same):
    key = key_of(ordered_by)
    assert (key(left) == key(right)) is same
    assert hash(key(left)) is not None


@pytest.mark.parametrize("text", ["", "body", "body.", "body..x", "package", "topic.x"])
def test_what_names_no_order_is_refused(text):
    with pytest.raises(ValueError, match="ordered_by"):
        key_of(text)


class Work(RuleBasedStateMachine):
    """Workers that take, finish and give back in any order, against a list of what was put."""

    @initialize(batch=st.sampled_from([None, Batch(1, 0.0), Batch(4, 0.0)]), most=st.integers(1, 12))
    def begin(self, batch: Batch | None, most: int) -> None:
        self.clock = ManualClock()
        self.lanes = lanes(self.clock, messages=most, batch=batch)
        self.most = max(most, 2 * batch.messages if batch else 1)
        self.taken: list[Taken] = []
        self.done: list[tuple[object, int]] = []
        self.next = 1
        self.waiting: list[int] = []
        self.keys: dict[int, object] = {}

    @rule(keys=st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=6))
    def put(self, keys: Iterable[tuple[int, bool]]) -> None:
        for key, alone in keys:
            if not self.lanes.room(0.0):
                return
            self.lanes.put([job(self.next, key, alone=alone)])
            self.keys[self.next] = key
            self.waiting.append(self.next)
            self.next += 1

    def ready(self) -> bool:
        busy = {lane.key for taken in self.taken for lane, _ in taken}
        return any(self.keys[number] not in busy for number in self.waiting)

    @precondition(lambda self: self.ready() and not self.lanes._later)
    @rule()
    def take(self) -> None:
        taken = self.lanes.take()
        assert taken is not None
        busy = [lane.key for one in self.taken for lane, _ in one]
        for lane, jobs in taken:
            assert lane.key not in busy, "one worker for each key"
            for one in jobs:
                assert one.message is not None
                number = one.message.sequence
                assert number == min(n for n in self.waiting if self.keys[n] == lane.key), "in order"
                self.waiting.remove(number)
                assert not one.alone or len(jobs) == len(taken) == 1
        self.taken.append(taken)

    @precondition(lambda self: self.taken)
    @rule(which=st.integers(0, 100))
    def finish(self, which: int) -> None:
        taken = self.taken.pop(which % len(self.taken))
        self.done += [(lane.key, one.message.sequence) for lane, jobs in taken for one in jobs if one.message]
        self.lanes.finished(taken)

    @precondition(lambda self: self.taken)
    @rule(which=st.integers(0, 100), some=st.integers(0, 3), after=st.sampled_from([0.0, 1.0]))
    def give_back(self, which: int, some: int, after: float) -> None:
        taken = self.taken.pop(which % len(self.taken))
        for lane, jobs in taken:
            for place, one in enumerate(jobs):
                assert one.message is not None
                if place < some:
                    one.done = True
                    self.done.append((lane.key, one.message.sequence))
                else:
                    self.waiting.append(one.message.sequence)
        self.lanes.again(taken, after)
        self.clock.advance(after)
        if self.ready():
            self.take()

    @invariant()
    def every_key_was_done_in_order_and_the_place_is_right(self) -> None:
        for key in range(4):
            numbers = [number for one, number in self.done if one == key]
            assert numbers == sorted(numbers)
        done = {number for _, number in self.done}
        first = next(number for number in range(1, self.next + 1) if number not in done)
        place = self.lanes.places({KOJI: Position(EPOCH, self.next - 1)})[KOJI].sequence
        assert place == first - 1
        assert {one.sequence for one in self.lanes.ahead()} == {number for number in done if number > place}
        assert self.lanes.count == self.next - 1 - place <= self.most


Work.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
test_any_number_of_workers_keeps_order_and_place = Work.TestCase
