"""Whatever the network loses and in whatever order things happen, a reader hands on each message once, in order."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from streams import ROOT, ModelPublisher, ModelSubscriber, new_verifier

from fedbus.clock import ManualClock
from fedbus.model.position import Position
from fedbus.transport.state import Mode, Since
from tests.vectors import make

TOPICS = tuple(
    f"{ROOT}.koji.{rest}" for rest in ("build.start", "build.stop", "build.image.start", "builder.start", "tag.add")
)
READERS = (
    (),  # everything
    (f"{ROOT}.koji.build",),
    (f"{ROOT}.koji.tag.add",),
    (f"{ROOT}.koji.*.start",),
    (f"{ROOT}.koji.build.start", f"{ROOT}.koji.tag"),
    (f"{ROOT}.koji.nothing",),
)
BEATS = 6  # after so many beats that arrive, every reader has all that there is

which = st.integers(0, len(READERS) - 1)


class Streams(RuleBasedStateMachine):
    """One publisher, readers of several kinds, and a network that forgets but keeps the order."""

    retain_bytes = 0

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="fedbus-reader-"))
        self.clock = ManualClock(make.NOW)
        self.verifier = new_verifier(self.folder, self.clock)
        self.publisher = ModelPublisher(
            self.folder / "journal", self.clock, segment_bytes=4000, retain_bytes=self.retain_bytes
        )
        self.readers: list[ModelSubscriber] = []
        self.windows = [0]  # heads at earlier beats
        self.sent: list[bytes] = []

    @initialize(before=st.lists(st.lists(st.sampled_from(TOPICS), min_size=1, max_size=5), max_size=4))
    def join(self, before: list[list[str]]) -> None:
        for batch in before:
            self.publisher.publish(batch)
        for number, filters in enumerate(READERS):
            since = Since() if number % 2 == 0 else Since(age=(0.0, self.clock.monotonic()))
            self.readers.append(
                ModelSubscriber(filters, since, verifier=self.verifier, clock=self.clock, pending_bytes=4000)
            )

    def _send(self, frame: bytes, lost: int) -> None:
        self.sent.append(frame)
        for number, one in enumerate(self.readers):
            if not lost >> number & 1 and one.subscribes(frame):
                one.wire.append(frame)

    @rule(
        batch=st.lists(st.sampled_from(TOPICS), min_size=1, max_size=7),
        most=st.integers(1, 3),
        lost=st.lists(st.one_of(st.just(0), st.integers(0, 63)), min_size=1, max_size=7),
    )
    def publish(self, batch: list[str], most: int, lost: list[int]) -> None:
        for place, frame in enumerate(self.publisher.publish(batch, most=most)):
            self._send(frame, lost[place % len(lost)])

    @rule(lost=st.integers(0, 63), back=st.integers(0, 3))
    def send_beat(self, lost: int, back: int) -> None:
        self.windows.append(self.publisher.head)
        self._send(self.publisher.beat(self.windows[-1 - min(back, len(self.windows) - 1)]), lost)

    @rule()
    def restart_the_publisher(self) -> None:
        self.publisher.restart()

    @rule(who=which, count=st.integers(1, 8))
    def hear(self, who: int, count: int) -> None:
        self.readers[who].hear(count)

    @rule(who=which, count=st.integers(1, 6), budget=st.integers(1, 5000), back=st.integers(0, 3))
    def fetch(self, who: int, count: int, budget: int, back: int) -> None:
        window = self.windows[-1 - min(back, len(self.windows) - 1)]
        for _ in range(count):
            self.readers[who].fetch(self.publisher, budget=budget, window=window)

    @rule(who=which)
    def break_off_an_answer(self, who: int) -> None:
        self.readers[who].break_off()

    @rule(who=which, count=st.integers(1, 5))
    def consume(self, who: int, count: int) -> None:
        self.readers[who].consume(count)

    @rule(who=which)
    def restart(self, who: int) -> None:
        self.readers[who].restart()

    @precondition(lambda self: self.sent)
    @rule(who=which, place=st.integers(0, 10**6))
    def somebody_replays_an_old_frame(self, who: int, place: int) -> None:
        frame = self.sent[place % len(self.sent)]
        if self.readers[who].subscribes(frame):
            self.readers[who].wire.append(frame)

    def wanted(self, one: ModelSubscriber) -> list[int]:
        joined = self.publisher.head if one.joined is None else one.joined
        return [sequence for sequence, topic in self.publisher.said if sequence > joined and one.wants(topic)]

    @invariant()
    def everything_came_once_in_order(self) -> None:
        for one in self.readers:
            assert not one.reader.quarantined
            lost = [(loss.first, loss.last) for loss in one.losses]
            assert {loss.cause for loss in one.losses} <= {"retention"}
            assert not lost or self.retain_bytes
            assert not any(first <= sequence <= last for sequence in one.got for first, last in lost)
            due = [
                sequence for sequence in self.wanted(one) if not any(first <= sequence <= last for first, last in lost)
            ]
            assert one.got == due[: len(one.got)]

    def teardown(self) -> None:
        try:
            if self.readers:
                self._converge()
                self.everything_came_once_in_order()
        finally:
            self.publisher.journal.close()
            shutil.rmtree(self.folder)

    def _converge(self) -> None:
        for number in range(BEATS):
            self.windows.append(self.publisher.head)
            self._send(self.publisher.beat(self.windows[-1 - min(2, number)]), 0)
            before = [one.fetches for one in self.readers]
            for one in self.readers:
                one.hear()
                rounds = 0
                while one.fetch(self.publisher, budget=5000):
                    rounds += 1
                    assert rounds < 1000, "the journal is read again and again"
                one.consume()
        assert before == [one.fetches for one in self.readers], "a quiet stream is read again at each beat"
        start = self.publisher.journal.start
        for one in self.readers:
            assert one.reader.mode is Mode.LIVE
            assert one.reader.position == Position(self.publisher.epoch, self.publisher.head)
            gone = [loss for loss in one.losses if loss.first < start]
            assert gone == one.losses
            due = [
                sequence
                for sequence in self.wanted(one)
                if not any(loss.first <= sequence <= loss.last for loss in gone)
            ]
            assert one.got == due, (one.filters, one.losses, one.joined)


class StreamsThatAreForgotten(Streams):
    """The same, with a journal that keeps little: what is gone is told, with its numbers."""

    retain_bytes = 6000


# shrinking a run of forty steps may take longer than a test may
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)

Streams.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, phases=PHASES, suppress_health_check=list(HealthCheck), deadline=None
)
StreamsThatAreForgotten.TestCase.settings = Streams.TestCase.settings


class TestStreams(Streams.TestCase):  # type: ignore[misc]
    """Nothing is ever lost."""


class TestStreamsThatAreForgotten(StreamsThatAreForgotten.TestCase):  # type: ignore[misc]
    """Retention takes what was not read in time."""
