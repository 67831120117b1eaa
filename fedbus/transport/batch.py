"""Batches on their way: messages that wait, and the sealing of those that go together."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol
from uuid import UUID

import msgspec
from uuid_utils import uuid7

from fedbus.errors import DeadlineExceeded, FedbusError
from fedbus.model.receipt import Receipt
from fedbus.trust.signer import Signer
from fedbus.wire import parcel
from fedbus.wire.envelope import EnvelopeWriter, layout, rfc3339, write


@dataclass(slots=True, eq=False)
class Topic:
    """What is the same for all messages of one topic."""

    name: str
    endpoint: str
    epoch: str
    encoded: bytes
    writer: EnvelopeWriter
    levels: tuple[str, ...]  # the topic's first field, first two fields, …, all of it
    overhead: int  # bytes of the envelope around the body
    check: Callable[[Any], None] | None = None  # raises SchemaError for a body that does not fit

    @classmethod
    def make(cls, name: str, endpoint: str, epoch: str, check: Callable[[Any], None] | None = None) -> Topic:
        """Compute it for the full topic *name*."""
        fields = name.split(".")
        levels = tuple(".".join(fields[: place + 1]) for place in range(len(fields)))
        writer = EnvelopeWriter(endpoint, name, epoch)
        overhead = len(write(b"0" * 24, 0, writer.middle("0" * 27), 0, b"", b""))
        return cls(name, endpoint, epoch, name.encode("ascii"), writer, levels, overhead, check)


class _Stamp(NamedTuple):
    """What the ids and times of one batch's messages are made of.

    Each id is a UUIDv7 (RFC 9562) whose last 48 bits count on from a random number, so ids grow within a batch.
    """

    prefix: str  # the first 24 characters
    number: int  # the last 12 of the batch's first message
    first: int
    time: str

    @classmethod
    def make(cls, first: int, wall: float) -> _Stamp:
        identifier = str(uuid7())
        # the upper half stays free, so counting cannot run over
        return cls(identifier[:24], int(identifier[24:], 16) >> 1, first, rfc3339(wall))

    def identifier(self, sequence: int) -> str:
        return f"{self.prefix}{self.number + sequence - self.first:012x}"


class Watcher(Protocol):
    """Who wants to know when messages are settled."""

    def release(self) -> None:
        """Take notice; named as a lock's method, since it stands in for one."""


class Pending(msgspec.Struct, gc=False, eq=False):
    """A message on its way into the journal; what :meth:`Publisher.enqueue` returns."""

    # gc=False: thousands wait in the queue, and the garbage collector would walk over all of them again and again;
    # nothing that one refers to may ever refer back to it, not even by the frames of a traceback
    topic: Topic
    data: bytes
    extra: bytes
    sequence: int = 0
    stamp: _Stamp | None = None
    done: bool = False
    error: FedbusError | None = None
    told: bool = False  # whether somebody was told of the error
    _lock: Any = None

    def result(self, timeout: float | None = 30.0) -> Receipt:
        """Wait until the message is journaled and return its receipt.

        Raises:
            JournalWriteError: The disk refused it; it is not published.
            DeadlineExceeded: Not journaled within *timeout* seconds; it still may be.
        """
        if not self.done:
            lock = threading.Lock()
            lock.acquire()
            self._lock = lock
            # the thread sets `done` before it looks for the lock, so one of the two sees the other
            if not self.done and not lock.acquire(timeout=-1 if timeout is None else timeout):
                raise DeadlineExceeded(f"not journaled within {timeout} s; it may still be published")
        if self.error is not None:
            self.told = True
            # A copy: its traceback leads to this frame, and so to this message, which must not lead back to it.
            again = copy.copy(self.error)
            again.__cause__ = self.error.__cause__
            raise again
        topic, stamp = self.topic, self.stamp
        assert stamp is not None
        identifier = stamp.identifier(self.sequence)
        return Receipt(topic.name, topic.endpoint, topic.epoch, self.sequence, identifier, stamp.time)

    def watch(self, watcher: Watcher) -> None:
        """Have ``watcher.release()`` called as soon as the message is settled, which may be at once or more than once.

        For one who waits for many messages and never calls :meth:`result` before ``done``. It is called in the
        publisher's thread, so it must be quick.
        """
        self._lock = watcher
        # the thread sets `done` before it looks for the lock, so one of the two sees the other
        if self.done:
            watcher.release()

    def finish(self, error: FedbusError | None = None) -> None:
        """Say that the message is journaled, or why it is not; called once, by the publisher's thread.

        *error* has no traceback, see :func:`without_traceback`.
        """
        self.error = error
        self.done = True
        lock = self._lock
        if lock is not None:
            lock.release()


def without_traceback(error: FedbusError) -> FedbusError:
    """Return *error*, which forgets the frames that it came through, and those of what caused it."""
    one: BaseException | None = error
    while one is not None:
        one.__traceback__ = None
        one = one.__cause__ or one.__context__
    return error


@dataclass(slots=True, eq=False)
class SealedBatch:
    """Messages that one signature covers, ready for the journal and the socket."""

    messages: list[Pending]
    parcels: list[tuple[int, str, bytes]]  # number of messages, topic, frame
    first: int
    time_ms: int
    topics: dict[str, int]  # the last sequence of each topic in it
    before: dict[str, int]  # what the heads were of the levels that it has moved


class Sealer:
    """Numbers messages, links them to those before at every level of their topics, and seals them.

    ``head`` is the last sequence given out. A batch that the journal refused is taken back with :meth:`take_back`, the
    latest first.
    """

    def __init__(
        self,
        *,
        endpoint: str,
        epoch: str,
        head: int,
        heads: dict[str, int],
        signer: Signer,
        parcel_bytes: int,
        parcel_messages: int,
    ) -> None:
        """*heads* gives the last sequence of every topic, as the journal knows them."""
        self.head = head
        self._endpoint = endpoint.encode("ascii")
        self._epoch = UUID(epoch).bytes
        self._heads = level_heads(heads)
        self._signer = signer
        self._parcel_bytes = parcel_bytes
        self._parcel_messages = parcel_messages

    def seal(self, messages: list[Pending], wall: float) -> SealedBatch:
        """Seal *messages* as one batch of the wall time *wall*."""
        first = self.head + 1
        sequence = self.head
        stamp = _Stamp.make(first, wall)
        prefix, number = stamp.prefix.encode("ascii"), stamp.number - first
        by_topic: dict[Topic, tuple[bytes, list[bytes]]] = {}
        last_of: dict[Topic, int] = {}
        topic = None
        for pending in messages:
            if pending.topic is not topic:
                if topic is not None:
                    last_of[topic] = sequence
                topic = pending.topic
                try:
                    form, envelopes = by_topic[topic]
                except KeyError:
                    form, envelopes = by_topic[topic] = (layout(prefix, topic.writer.middle(stamp.time)), [])
                append = envelopes.append
            sequence += 1
            pending.sequence = sequence
            pending.stamp = stamp
            append(form % (number + sequence, sequence, pending.extra, pending.data))
        assert topic is not None
        last_of[topic] = sequence
        groups, before = self._link(by_topic, last_of)
        parcels = parcel.seal(
            groups,
            endpoint=self._endpoint,
            epoch=self._epoch,
            first=first,
            sign=self._signer.sign,
            certificate=self._signer.certificate,
            parcel_bytes=self._parcel_bytes,
            parcel_messages=self._parcel_messages,
        )
        self.head = sequence
        topics = {topic.name: last for topic, last in last_of.items()}
        return SealedBatch(messages, parcels, first, int(wall * 1000), topics, before)

    def take_back(self, batch: SealedBatch) -> None:
        """Forget *batch*, the latest: its sequences are given out again."""
        for level, head in batch.before.items():
            if head:
                self._heads[level] = head
            else:
                self._heads.pop(level, None)
        self.head = batch.first - 1

    def _link(
        self, by_topic: dict[Topic, tuple[bytes, list[bytes]]], last_of: dict[Topic, int]
    ) -> tuple[list[parcel.Group], dict[str, int]]:
        """Return the batch's groups, each with what stands before and inside the batch at every level of its topic.

        The heads move on to the end of the batch; what they were is returned too.
        """
        heads = self._heads
        if len(by_topic) == 1:
            ((topic, (_, envelopes)),) = by_topic.items()
            levels, count, last = topic.levels, len(envelopes), last_of[topic]
            priors = [heads.get(level, 0) for level in levels]
            for level in levels:
                heads[level] = last
            chain = parcel.chain_block([(prior, count) for prior in priors])
            return [parcel.Group(topic.encoded, chain, envelopes)], dict(zip(levels, priors, strict=True))
        inside: dict[str, int] = {}
        for topic, (_, envelopes) in by_topic.items():
            count = len(envelopes)
            for level in topic.levels:
                inside[level] = inside.get(level, 0) + count
        before = {level: heads.get(level, 0) for level in inside}
        groups = [
            parcel.Group(
                topic.encoded,
                parcel.chain_block([(before[level], inside[level]) for level in topic.levels]),
                envelopes,
            )
            for topic, (_, envelopes) in by_topic.items()
        ]
        for topic, last in sorted(last_of.items(), key=_by_sequence):
            for level in topic.levels:
                heads[level] = last
        return groups, before


def _by_sequence(entry: tuple[Topic, int]) -> int:
    return entry[1]


def level_heads(heads: dict[str, int]) -> dict[str, int]:
    """Return the last sequence below every level, from the last sequence of every topic."""
    levels: dict[str, int] = {}
    for topic, last in heads.items():
        end = -1
        while end != len(topic):
            end = topic.find(".", end + 1)
            end = len(topic) if end < 0 else end
            level = topic[:end]
            levels[level] = max(levels.get(level, 0), last)
    return levels
