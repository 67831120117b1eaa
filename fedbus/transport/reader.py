"""What a subscriber knows of one stream: where it stands, what is missing, and what to hand on next. No socket.

Parcels come in live or from replay and are judged by the same rule. Each states, for the level of its topic that we
subscribe to, the last sequence before its batch (``prior``) and how many messages of its batch are ours (``inside``).
So long as ``prior`` is not beyond what we have accounted for, nothing is missing; a batch is handed on, sorted by
sequence, once ``inside`` messages of it are here. Everything else (a late join, a lost frame, a restart) is one case:
ask the replay socket for what comes after the last sequence accounted for.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from fedbus.errors import Reason, Refused, TrustError, WireError
from fedbus.journal.journal import split_records
from fedbus.model.limits import Limits
from fedbus.model.message import Message
from fedbus.model.position import Position
from fedbus.trust.proof import verify_beat, verify_parcel
from fedbus.trust.verifier import Verifier
from fedbus.wire import parcel as parcels
from fedbus.wire.beat import Beat
from fedbus.wire.envelope import open_parcel
from fedbus.wire.parcel import Parcel
from fedbus.wire.replay import End, Fetch, Start

log = logging.getLogger(__name__)

_TRIES = 3  # fetches that may come back without what signed evidence says there is
_REMEMBERED_BATCHES = 64
_BEAT_VERIFIED_EVERY = 10.0  # seconds; a beat that says nothing new is only a sign of life


@dataclass(frozen=True, slots=True)
class Loss:
    """Messages of a stream that this reader will not get; reported once, in their place in the order.

    ``first`` and ``last`` bound them (``last`` is None where nobody knows how many there were). ``cause`` is
    ``retention`` (removed by age or size), ``damage`` (unreadable in the journal), ``refused`` (their proof did not
    hold), ``missing`` (the publisher does not have them) or ``epoch`` (the journal was replaced).
    """

    endpoint: str
    epoch: str
    first: int
    last: int | None
    cause: str

    def __str__(self) -> str:
        span = f"{self.first} to {self.last}" if self.last is not None else f"from {self.first} on"
        return f"{self.endpoint}: messages {span} of epoch {self.epoch} are lost ({self.cause})"


@dataclass(frozen=True, slots=True)
class Since:
    """Where to begin where no cursor says so: exactly one field is set, or none for the beginning."""

    position: Position | None = None
    time_ms: int | None = None
    age: tuple[float, float] | None = None  # (seconds, monotonic time at which that was asked for)


class Mode(Enum):
    """How a stream is being read."""

    JOINING = "joining"  # where it begins is not known yet
    BEHIND = "behind"  # reading from the journal
    LIVE = "live"


@dataclass(slots=True)
class ReaderStats:
    """Counters of one stream at one subscriber."""

    messages: int = 0
    duplicates: int = 0
    gaps: int = 0  # times that live traffic showed a hole; refilled unless `lost` grows too
    lost: int = 0  # reports of loss
    refused: int = 0
    skew: float = 0.0  # seconds that the publisher's clock is ahead of ours, by its last beat; never used for order
    fetched: int = 0  # records read from the journal


@dataclass(slots=True)
class _Collection:
    """The part of one batch that has come in; ``parcels`` by the index of their first leaf."""

    first: int
    last: int
    needed: int
    counted: int = 0
    parcels: dict[int, Sealed] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sealed:
    """Verified messages that are not decoded yet: that is done when they are handed on, one at a time.

    Decoding a whole batch ahead would keep thousands of small objects alive and the garbage collector busy with them.
    """

    parcel: Parcel
    signer: str
    after: int  # messages up to this sequence were handed on before


class StreamReader:
    """Puts one stream in order. Feed it what comes in; take what is ready from ``ready``.

    ``ready`` receives verified parcels (or, where those of a batch must be merged, lists of messages) and single
    :class:`Loss` reports, in the order of the stream, each with the sequence that is accounted for with it. Use
    :meth:`open` to get the messages; whoever has worked on an entry calls :meth:`finished`.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        prefix: str,
        chosen: Callable[[str], bool],
        since: Since,
        verifier: Verifier,
        limits: Limits,
        pending_bytes: int,
        parcel_bytes: int,
        ready: deque[Ready],
    ) -> None:
        self.endpoint = endpoint
        self.stats = ReaderStats()
        self.mode = Mode.JOINING
        self.epoch = ""
        self.accounted = 0  # everything of ours up to here was handed on or reported
        self.handed = 0  # everything up to here has been worked on by the user of the subscriber
        self.quarantined = ""  # why nothing of this stream is handed on any more
        self.heard_at: float | None = None  # monotonic time of the last beat or parcel
        self.beat: Beat | None = None  # the last one that was verified
        self._prefix = prefix
        self._below = prefix + "."
        self._depth = prefix.count(".") + 1 if prefix else 0
        self._chosen = chosen
        self._choices: dict[str, bool] = {}
        self._since = since
        self._verifier = verifier
        self._limits = limits
        self._pending: deque[Parcel] = deque()
        self._pending_bytes = 0
        self._most_pending = pending_bytes
        self._parcel_bytes = parcel_bytes
        self._ready = ready
        self._unfinished = 0
        self._collection: _Collection | None = None
        self._asked = 0  # what the current row of fetches has covered, by the publisher's unsigned word
        self._tries = 0
        self._refused_in_fetch = False
        self._fetched_beat: Beat | None = None
        self._verified_beat_at = float("-inf")
        self._roots: dict[int, bytes] = {}  # first sequence of recent batches -> signature, to tell copies from clones
        if since.position is not None:
            self.epoch = since.position.epoch
            self.accounted = self.handed = self._asked = since.position.sequence

    @property
    def position(self) -> Position | None:
        """How far the user of the subscriber has come; None before the stream was joined."""
        return Position(self.epoch, self.handed) if self.epoch else None

    def finished(self, through: int) -> None:
        """The user has worked on an entry of ``ready``, and so on all up to sequence *through*."""
        self._unfinished -= 1
        if not self._unfinished:
            self.handed = self.accounted
        elif through > self.handed:
            self.handed = through

    @property
    def wants_fetch(self) -> bool:
        """Whether the journal has to be asked."""
        return self.mode is not Mode.LIVE and not self.quarantined

    @property
    def joins_by_age(self) -> bool:
        """Whether the next fetch says how long ago to begin, which is right only when it arrives at once."""
        return not self.epoch and self._since.age is not None

    def fetch(self, request: int, budget: int, now: float) -> Fetch:
        """Return what to ask the journal for next."""
        filters = [self._prefix] if self._prefix else []
        self._refused_in_fetch = False
        self._fetched_beat = None
        since = self._since
        if self.epoch:
            return Fetch(id=request, budget=budget, epoch=self.epoch, after=self._asked, filters=filters)
        if since.time_ms is not None:
            return Fetch(id=request, budget=budget, time_ms=since.time_ms, filters=filters)
        if since.age is not None:
            seconds, asked_at = since.age
            return Fetch(id=request, budget=budget, age_ms=int((seconds + now - asked_at) * 1000), filters=filters)
        return Fetch(id=request, budget=budget, after=0, filters=filters)

    # --- live --------------------------------------------------------------------------------------------------

    def on_live(self, parcel: Parcel, now: float) -> None:
        """Take in a parcel from the PUB socket.

        Raises:
            Refused: It does not verify; nothing else has changed.
        """
        self.heard_at = now
        if self.quarantined or not self._ours(parcel.topic):
            return
        if self.mode is not Mode.LIVE:
            self._keep(parcel)
            return
        if not self._apply(parcel, live=True):
            self._fall_behind()
            self._keep(parcel)

    def on_beat(self, beat: Beat, now: float, wall: float) -> None:
        """Take in a beat; one that says nothing new is verified only now and then.

        Raises:
            Refused: It does not verify.
        """
        facts = beat.facts
        self.heard_at = now
        news = facts.epoch != self.epoch or facts.head > self.accounted
        if not news and now - self._verified_beat_at < _BEAT_VERIFIED_EVERY:
            return
        self._verify_beat(beat, now)
        self.stats.skew = facts.sent_at_ms / 1000 - wall
        if self.mode is not Mode.LIVE or self.quarantined:
            return
        if facts.epoch != self.epoch:
            self._fall_behind()
        elif not self._depth or self.accounted < facts.window:
            if facts.head > self.accounted:
                self._fall_behind()
        elif beat.head_below(self._prefix) > self.accounted:
            self._fall_behind()
        elif self._collection is None and facts.head > self.accounted:
            # nothing of ours up to the head: the place in the stream moves on without a message
            self._move_to(facts.head)

    def _verify_beat(self, beat: Beat, now: float) -> None:
        verify_beat(self._verifier, beat)
        if beat.facts.endpoint != self.endpoint:
            raise TrustError(Reason.ENDPOINT_MISMATCH, f"a beat of {beat.facts.endpoint!r} for {self.endpoint!r}")
        self._verified_beat_at = now
        self.beat = beat

    def _ours(self, topic: str) -> bool:
        return not self._prefix or topic == self._prefix or topic.startswith(self._below)

    def _keep(self, parcel: Parcel) -> None:
        """Hold a live parcel until the journal has been read up to it; the oldest give way, the journal has them."""
        self._pending.append(parcel)
        self._pending_bytes += len(parcel.frame)
        while self._pending_bytes > self._most_pending:
            self._pending_bytes -= len(self._pending.popleft().frame)

    def _fall_behind(self) -> None:
        self.stats.gaps += 1
        self.read_again()

    def read_again(self) -> None:
        """Read the journal from what is accounted for; there may be more in it."""
        self.mode = Mode.BEHIND
        self._collection = None
        self._asked = self.accounted
        self._tries = 0

    # --- replay ------------------------------------------------------------------------------------------------

    def on_fetched_beat(self, beat: Beat, now: float) -> None:
        """Take in the signed word of start and head that comes before an answer's records."""
        self._verify_beat(beat, now)
        self._fetched_beat = beat

    def on_start(self, start: Start) -> None:
        """Take in where the answer begins."""
        beat = self._fetched_beat
        if beat is not None and beat.facts.epoch != start.epoch:
            raise WireError(Reason.EPOCH, f"an answer of epoch {start.epoch} behind a beat of {beat.facts.epoch}")
        if not self.epoch:
            self.epoch = start.epoch
            self.accounted = self.handed = self._asked = start.after
            self.mode = Mode.BEHIND
        elif start.epoch != self.epoch:
            self._lose(self.accounted + 1, None, "epoch")
            self.epoch = start.epoch
            # entries of the old epoch may still wait to be worked on; until then the new one counts from its start
            self.accounted = self.handed = self._asked = start.after
            self._collection = None
            self._roots.clear()
            self.mode = Mode.BEHIND
        else:
            self.mode = Mode.BEHIND
            if beat is not None and beat.facts.head < self.accounted:
                self._quarantine(
                    f"its journal ends at {beat.facts.head}, but {self.accounted} of the same epoch was read before"
                )
        if beat is not None and beat.facts.start > self.accounted + 1:
            # start is signed: what is before it is gone for good
            self._lose(self.accounted + 1, beat.facts.start - 1, "retention")
            self._move_to(beat.facts.start - 1)

    def on_records(self, data: bytes) -> list[Refused]:
        """Take in records of the journal; return what had to be refused."""
        refused: list[Refused] = []
        for record in split_records(data):
            self.stats.fetched += 1
            try:
                parcel = parcels.decode(record.payload, parcel_bytes=self._parcel_bytes)
                if parcel.endpoint != self.endpoint:
                    raise TrustError(Reason.ENDPOINT_MISMATCH, f"a parcel of {parcel.endpoint!r} in replay")
                if self._ours(parcel.topic) and not self.quarantined and not self._apply(parcel, live=False):
                    # replay comes in order, so what is not here is not coming
                    self._accept_hole(parcel)
                    self._apply(parcel, live=False)
            except Refused as error:
                self._refused_in_fetch = True
                refused.append(error)
        return refused

    def on_end(self, end: End) -> list[Refused]:
        """Take in the end of an answer; turn to live parcels if it reached the head. Return what was refused."""
        if self._collection is not None:
            self._finish_collection("refused" if self._refused_in_fetch else "missing")
        for first, last in end.lost:
            if last > self.accounted:
                log.warning("endpoint %s: its journal cannot read %d to %d", self.endpoint, first, last)
        self._asked = max(self._asked, end.through)
        refused: list[Refused] = []
        if not end.end or self.quarantined:
            return refused
        if self._depth and end.through >= self.accounted and self._fetched_beat is not None:
            facts = self._fetched_beat.facts
            if self.accounted >= facts.window and self._fetched_beat.head_below(self._prefix) <= self.accounted:
                self._move_to(max(self.accounted, min(facts.head, end.through)))
        evidence = 0
        if not self._depth and self._fetched_beat is not None and self._fetched_beat.facts.head > self.accounted:
            evidence = self._fetched_beat.facts.head
        self.mode = Mode.LIVE
        pending, self._pending, self._pending_bytes = self._pending, deque(), 0
        while pending:
            parcel = pending.popleft()
            if parcel.epoch != self.epoch:
                continue  # of a journal that has been replaced, or newer than this answer: then the next beat says so
            try:
                if self._apply(parcel, live=True):
                    continue
            except Refused as error:
                refused.append(error)
                continue
            evidence = max(evidence, parcel.level(self._depth).prior)
            pending.appendleft(parcel)
            break
        if evidence > self.accounted:
            self._still_behind(evidence, end.through, "damage" if end.lost else None)
            for parcel in pending:
                self._keep(parcel)
        return refused

    def _still_behind(self, evidence: int, through: int, cause: str | None) -> None:
        """Signed evidence says that there is more than came: ask again, and after some tries report it as lost."""
        self.mode = Mode.BEHIND
        self._collection = None
        if evidence > through:
            self._tries = 0  # it is simply newer than the answer
            return
        self._tries += 1
        self._asked = self.accounted
        if self._refused_in_fetch or cause or self._tries >= _TRIES:
            self._lose(self.accounted + 1, evidence, cause or ("refused" if self._refused_in_fetch else "missing"))
            self._move_to(evidence)
            self._asked = evidence

    def _accept_hole(self, parcel: Parcel) -> None:
        cause = "refused" if self._refused_in_fetch else "missing"
        if self._collection is not None:
            self._finish_collection(cause)
        prior = parcel.level(self._depth).prior
        if prior > self.accounted:
            self._lose(self.accounted + 1, prior, cause)
            self._move_to(prior)

    # --- both --------------------------------------------------------------------------------------------------

    def _apply(self, parcel: Parcel, *, live: bool) -> bool:
        """Verify and use a parcel; return False if something before it is missing.

        Raises:
            Refused: It does not verify.
        """
        last = parcel.last
        if parcel.epoch == self.epoch and last <= self.accounted:
            self._check_copy(parcel)
            return True
        identity = verify_parcel(self._verifier, parcel)
        if parcel.epoch != self.epoch:
            return False
        prior, inside = parcel.level(self._depth)
        collection = self._collection
        if collection is None:
            if prior > self.accounted:
                return False
            if not live or len(self._roots) >= _REMEMBERED_BATCHES * 2:
                self._forget_old_batches()
            self._roots[parcel.first] = parcel.signature
            if len(parcel.envelopes) == inside:
                # the common case: the parcel is all of the batch that is ours
                self._hand_on([Sealed(parcel, identity.name, self.accounted)], last)
                return True
            collection = self._collection = _Collection(parcel.first, last, inside)
        elif collection.first != parcel.first:
            return False
        if parcel.start in collection.parcels:
            self.stats.duplicates += 1
            return True
        collection.parcels[parcel.start] = Sealed(parcel, identity.name, self.accounted)
        collection.counted += len(parcel.envelopes)
        if collection.counted >= collection.needed:
            self._hand_on_collection(collection)
        return True

    def _hand_on_collection(self, collection: _Collection) -> None:
        self._collection = None
        # leaves of one topic stand in the order of their sequences
        self._hand_on([sealed for _, sealed in sorted(collection.parcels.items())], collection.last)

    def _finish_collection(self, cause: str) -> None:
        """Hand on what there is of a batch whose rest will not come, and report the rest."""
        collection = self._collection
        assert collection is not None
        self._lose(max(collection.first, self.accounted + 1), collection.last, cause)
        self._hand_on_collection(collection)

    def _is_chosen(self, topic: str) -> bool:
        choice = self._choices.get(topic)
        if choice is None:
            if len(self._choices) > 10_000:
                self._choices.clear()
            choice = self._choices[topic] = self._chosen(topic)
        return choice

    def open(self, entry: Sealed | list[Message]) -> Iterator[Message]:
        """Yield the messages of an entry of ``ready``; one that is signed but not well formed is counted and left out.

        Its place in the stream counts as seen: the signer has said it, and nobody can mend it.
        """
        if isinstance(entry, list):
            return iter(entry)
        return self._open(entry)

    def _open(self, sealed: Sealed) -> Iterator[Message]:
        after, stats = sealed.after, self.stats
        for message in open_parcel(sealed.parcel, sealed.signer, self._limits, self._refuse_message):
            if message.sequence > after:
                stats.messages += 1
                yield message

    def _refuse_message(self, error: WireError) -> None:
        self.stats.refused += 1
        self._verifier.reject(error.reason)
        log.warning("endpoint %s: a signed message was refused: %s", self.endpoint, error)

    def _hand_on(self, parts: list[Sealed], last: int) -> None:
        before, self.accounted = self.accounted, last
        parts = [sealed for sealed in parts if self._is_chosen(sealed.parcel.topic)]
        if not parts:
            if not self._unfinished:
                self.handed = last
            return
        ready = self._ready
        if len(parts) > 1 and any(sealed.parcel.topic != parts[0].parcel.topic for sealed in parts):
            messages = [message for sealed in parts for message in self._open(sealed)]
            messages.sort(key=_sequence)
            ready.append((self, messages, last))
            self._unfinished += 1
            return
        self._unfinished += len(parts)
        for sealed in parts[:-1]:
            ready.append((self, sealed, before))
        ready.append((self, parts[-1], last))

    def _move_to(self, sequence: int) -> None:
        self.accounted = sequence
        if not self._unfinished:
            self.handed = sequence

    def _lose(self, first: int, last: int | None, cause: str) -> None:
        self.stats.lost += 1
        self._unfinished += 1
        self._ready.append((self, Loss(self.endpoint, self.epoch, first, last, cause), first - 1))

    def _check_copy(self, parcel: Parcel) -> None:
        """A batch that was had before: a copy is dropped quietly; another batch under its number is a clone's."""
        self.stats.duplicates += 1
        known = self._roots.get(parcel.first)
        if known is None or known == parcel.signature:
            return
        identity = verify_parcel(self._verifier, parcel)
        if identity.verify(known, parcel.statement()):
            return  # of one ECDSA signature anybody can make a second that is as good; the batch is the same
        self._quarantine(f"two batches begin with sequence {parcel.first} of epoch {parcel.epoch}, both signed")
        raise TrustError(Reason.CONFLICT, f"{self.endpoint}: {self.quarantined}")

    def _quarantine(self, why: str) -> None:
        self.quarantined = why
        self._pending.clear()
        self._pending_bytes = 0
        self._verifier.reject(Reason.CONFLICT)
        log.error(
            "endpoint %s is quarantined: %s; two publishers may run under one name, or its journal was put back from "
            "an older copy: stop one of them, give it a new journal folder, then restart this reader",
            self.endpoint,
            why,
        )

    def _forget_old_batches(self) -> None:
        while len(self._roots) >= _REMEMBERED_BATCHES:
            del self._roots[next(iter(self._roots))]


Ready = tuple[StreamReader, Sealed | list[Message] | Loss, int]
"""An entry of ``ready``: the reader, what to hand on, and the sequence that is accounted for with it."""


def _sequence(message: Message) -> int:
    return message.sequence
