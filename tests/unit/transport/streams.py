"""A publisher without sockets or thread, for tests of those who read: real seals, real beats, a real journal."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

from fedbus.clock import Clock, ManualClock
from fedbus.journal.journal import Journal, JournalOptions, SyncPolicy
from fedbus.model.limits import Limits
from fedbus.model.topic import Naming, TopicFilter, common_prefix
from fedbus.transport.batch import level_heads
from fedbus.transport.reader import Ready, StreamReader
from fedbus.transport.state import Loss, Since
from fedbus.trust.keyring import Keyring, KeyringOptions
from fedbus.trust.policy import Policy
from fedbus.trust.verifier import Verifier
from fedbus.wire import beat, parcel, replay
from fedbus.wire.envelope import EnvelopeWriter, write
from tests.vectors import make

ROOT = make.ROOT
PARCEL_BYTES = 2**20


def new_verifier(folder: Path, clock: ManualClock) -> Verifier:
    """A verifier that trusts the CA of the test vectors, on a bus of ``org.example`` and ``dev``."""
    path = folder / "ca.crt"
    path.write_bytes((make.HERE / "ca.crt").read_bytes())
    path.chmod(0o644)
    keyring = Keyring.load(KeyringOptions(ca=path, crl=None), clock=clock)
    return Verifier(keyring, Policy(Naming("org.example", "dev")), clock=clock)


def levels_of(topic: str) -> list[str]:
    fields = topic.split(".")
    return [".".join(fields[: place + 1]) for place in range(len(fields))]


class ModelPublisher:
    """Numbers, seals and journals what it is told to, in batches that the test chooses."""

    def __init__(self, folder: Path, clock: Clock, who: make.Identity = make.KOJI, **options: Any) -> None:
        self.who = who
        self.clock = clock
        self.journal = Journal.open(
            JournalOptions(
                directory=folder, sync=SyncPolicy.ASYNC, **{"retain_bytes": 0, "retain_age": 0.0, **options}
            ),
            endpoint=who.name,
            clock=clock,
        )
        self.said: list[tuple[int, str]] = []  # sequence and topic of every message there ever was
        self.last: dict[str, int] = {}  # the last sequence of every topic
        self.level_heads: dict[str, int] = {}

    @property
    def epoch(self) -> str:
        return self.journal.epoch

    @property
    def head(self) -> int:
        return self.journal.head

    def envelope(self, topic: str, sequence: int, data: bytes | None = None) -> bytes:
        middle = EnvelopeWriter(self.who.name, topic, self.epoch).middle(make.NOW_TEXT)
        body = b'{"n":%d}' % sequence if data is None else data
        return write(b"019bbf72-3c00-7000-8000-", sequence, middle, sequence, b"", body)

    def seal(
        self,
        topics: list[str],
        first: int,
        *,
        most: int = 256,
        data: bytes | None = None,
        edit: Callable[[bytes], bytes] | None = None,
    ) -> list[tuple[int, str, bytes]]:
        """The parcels of a batch whose message *i* has *topics[i]*, as they would be if it began at *first*.

        Bodies are *data*, by default the message's number; *edit* changes each envelope before it is sealed.
        """
        groups: dict[str, list[bytes]] = {}
        inside: dict[str, int] = {}
        for sequence, topic in enumerate(topics, first):
            envelope = self.envelope(topic, sequence, data)
            groups.setdefault(topic, []).append(envelope if edit is None else edit(envelope))
            for level in levels_of(topic):
                inside[level] = inside.get(level, 0) + 1
        heads = self.level_heads
        return parcel.seal(
            [
                parcel.Group(
                    topic.encode(),
                    parcel.chain_block([(heads.get(level, 0), inside[level]) for level in levels_of(topic)]),
                    envelopes,
                )
                for topic, envelopes in groups.items()
            ],
            endpoint=self.who.name.encode(),
            epoch=UUID(self.epoch).bytes,
            first=first,
            sign=self.who.sign,
            certificate=self.who.certificate,
            parcel_bytes=2**17,
            parcel_messages=most,
        )

    def publish(self, topics: list[str], **options: Any) -> list[bytes]:
        """Journal one batch and return its frames, as they would be sent; *options* are those of :meth:`seal`."""
        first = self.head + 1
        parcels = self.seal(topics, first, **options)
        self.journal.append(parcels, first=first, size=len(topics), time_ms=int(self.clock.wall() * 1000))
        for sequence, topic in enumerate(topics, first):
            self.said.append((sequence, topic))
            self.last[topic] = sequence
            for level in levels_of(topic):
                self.level_heads[level] = sequence
        return [frame for _, _, frame in parcels]

    def restart(self) -> None:
        """Know only what the journal knows, as after a restart."""
        self.level_heads = level_heads(self.journal.heads)

    def beat(self, window: int = 0) -> bytes:
        facts = beat.BeatFacts(
            endpoint=self.who.name,
            epoch=self.epoch,
            start=self.journal.start,
            head=self.head,
            window=window,
            topics={topic: last for topic, last in self.last.items() if last > window},
            sent_at_ms=int(self.clock.wall() * 1000),
            interval_ms=1000,
        )
        return beat.encode(facts, sign=self.who.sign, certificate=self.who.certificate)

    def answer(self, fetch: replay.Fetch, window: int = 0, frame_bytes: int = 700) -> Iterator[Any]:
        """The parts of an answer, each made when it is asked for: a beat, a start, bytes of records, an end."""
        journal = self.journal
        if fetch.age_ms is not None or fetch.time_ms is not None:
            after = journal.head if fetch.time_ms is None else journal.position_at(fetch.time_ms)
        else:
            after = 0 if fetch.epoch not in (None, journal.epoch) else min(fetch.after or 0, journal.head)
        after = max(after, journal.start - 1)
        start = replay.Start(journal.epoch, after)
        yield beat.decode(self.beat(window))
        yield start
        filters = [TopicFilter(text) for text in fetch.filters]
        wanted = (lambda topic: any(one.matches(topic) for one in filters)) if filters else None
        budget, lost = fetch.budget, []
        while True:
            piece = journal.read(after, min(frame_bytes, max(1, budget)), wanted=wanted)
            after = piece.through
            budget -= max(len(piece.data), 1)
            lost += piece.lost
            if piece.data:
                yield piece.data
            if piece.end or budget <= 0:
                yield replay.End(after, piece.end, lost)
                return


class ModelSubscriber:
    """One reader with its user; the network between it and the publisher is the test's."""

    def __init__(
        self,
        filters: Iterable[str],
        since: Since,
        *,
        verifier: Verifier,
        clock: ManualClock,
        pending_bytes: int = 2**20,
    ) -> None:
        self.filters = [TopicFilter(text) for text in filters]
        self.prefix = ".".join(common_prefix(self.filters))
        self.verifier = verifier
        self.clock = clock
        self.pending_bytes = pending_bytes
        self.wire: deque[bytes] = deque()  # sent by the publisher, not read yet
        self.got: list[int] = []
        self.losses: list[Loss] = []
        self.joined: int | None = None  # everything behind this sequence is wanted
        self.fetches = 0
        self.join(since)

    def join(self, since: Since) -> None:
        self.ready: deque[Ready] = deque()
        self.reader = StreamReader(
            make.KOJI.name,
            prefix=self.prefix,
            chosen=self.wants,
            since=since,
            verifier=self.verifier,
            limits=Limits(),
            pending_bytes=self.pending_bytes,
            parcel_bytes=PARCEL_BYTES,
            ready=self.ready,
        )
        self.wire.clear()
        self.coming: Iterator[Any] | None = None  # the rest of an answer
        self.answered: tuple[int, bool] | None = None
        if since.position is not None and self.joined is None:
            self.joined = since.position.sequence

    def wants(self, topic: str) -> bool:
        return not self.filters or any(one.matches(topic) for one in self.filters)

    def subscribes(self, frame: bytes) -> bool:
        """Whether the socket would let *frame* through."""
        if frame[:1] == beat.MARK or not self.prefix:
            return True
        topic = frame.partition(b"\0")[0].decode()
        return topic == self.prefix or topic.startswith(self.prefix + ".")

    def hear(self, count: int = 10**9) -> None:
        """Take in so many frames."""
        now, wall = self.clock.monotonic(), self.clock.wall()
        while self.wire and count:
            count -= 1
            frame = self.wire.popleft()
            if frame[:1] == beat.MARK:
                self.reader.on_beat(beat.decode(frame), now, wall)
            else:
                self.reader.on_live(parcel.decode(frame, parcel_bytes=PARCEL_BYTES), now)

    def fetch(self, publisher: ModelPublisher, *, budget: int = 1500, window: int = 0) -> bool:
        """Take in one part of an answer, after asking for one if need be; return whether there is more to do."""
        reader = self.reader
        if self.coming is None:
            if not reader.wants_fetch:
                return False
            self.fetches += 1
            self.coming = publisher.answer(reader.fetch(1, budget, self.clock.monotonic()), window)
        part = next(self.coming)
        if isinstance(part, beat.Beat):
            reader.on_fetched_beat(part, self.clock.monotonic())
        elif isinstance(part, replay.Start):
            reader.on_start(part)
            if self.joined is None:
                self.joined = reader.accounted
        elif isinstance(part, bytes):
            assert reader.on_records(part) == []
        else:
            self.coming = None
            assert reader.on_end(part) == []
        return True

    def break_off(self) -> None:
        """The connection to the journal is lost."""
        self.coming = None

    def consume(self, count: int = 10**9) -> None:
        """Work on so many entries, as the user of a subscriber does."""
        while self.ready and count:
            count -= 1
            reader, entry, through = self.ready.popleft()
            if isinstance(entry, Loss):
                self.losses.append(entry)
            else:
                for message in reader.open(entry):
                    assert message.body == {"n": message.sequence}
                    self.got.append(message.sequence)
                    through = max(through, message.sequence)
            reader.finished(through)

    def restart(self) -> None:
        """End, and go on later from the cursor; what was not worked on is forgotten."""
        position = self.reader.position
        if position is not None:
            self.join(Since(position))
