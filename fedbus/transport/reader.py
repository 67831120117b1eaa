"""What a subscriber knows of one stream: where it stands, what is missing, and what to hand on next. No socket.

Parcels come in live or from replay and are judged by the same rule. Each states, for the level of its topic that we
subscribe to, the last sequence before its batch (``prior``) and how many messages of its batch are ours (``inside``).
So long as ``prior`` is not beyond what we have accounted for, nothing is missing; a batch is handed on, sorted by
sequence, once ``inside`` messages of it are here. Everything else (a late join, a lost frame, a restart) is one case:
ask the replay socket for what comes after the last sequence accounted for.
"""

from __future__ import annotations

import heapq
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import ceil

from fedbus.errors import Reason, Refused, TrustError, WireError
from fedbus.journal.journal import split_records
from fedbus.model.limits import Limits
from fedbus.model.message import Message
from fedbus.model.position import Position
from fedbus.schemas.registry import Schemas
from fedbus.transport.foreign import ForeignStream
from fedbus.transport.state import Loss, Mode, ReaderStats, Since
from fedbus.trust.proof import verify_beat, verify_parcel
from fedbus.trust.verifier import Identity, Verifier
from fedbus.wire import parcel as parcels
from fedbus.wire.beat import Beat
from fedbus.wire.envelope import open_parcel
from fedbus.wire.parcel import Parcel
from fedbus.wire.replay import End, Fetch, Start

log = logging.getLogger(__name__)

_TRIES = 3  # fetches that may come back without what signed evidence says there is
_REMEMBERED_BATCHES = 64
_BEAT_VERIFIED_EVERY = 10.0  # seconds; a beat that says nothing new is only a sign of life


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

    ``ready`` receives verified parcels (those of several topics in one batch together, to be merged) and single
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
        schemas: Schemas | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.stats = ReaderStats()
        self.mode = Mode.JOINING
        self.epoch = ""
        self.accounted = 0  # everything of ours up to here was handed on or reported
        self.handed = 0  # everything up to here has been worked on by the user of the subscriber
        self.quarantined = ""  # why nothing of this stream is handed on any more
        self.heard_at: float | None = None  # monotonic time of the last beat or parcel that verified
        self.beat_at: float | None = None  # monotonic time of the last beat
        self.behind_since: float | None = None  # monotonic time at which live traffic last showed a hole
        self.silent_since: float | None = None  # monotonic time, while it has not been heard for too long
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
        self._schemas = schemas
        self._unfinished = 0
        self._collection: _Collection | None = None
        self._asked = 0  # what the current row of fetches has covered, by the publisher's unsigned word
        self._proved = 0  # nothing of ours is missing up to here, by signed words alone
        self._tries = 0
        self._refused_in_fetch = False
        self._started = False  # the answer that is coming in has said where it begins
        self._interrupted = False  # the rest of it is of no use
        self._unreadable: list[tuple[int, int]] = []  # what the journal cannot read, by the last answer
        self._fetched_beat: Beat | None = None
        self._verified_beat_at = float("-inf")
        self._boundary = 0  # where the last batch ended that was handed on
        # first sequence of recent batches -> last sequence and signature, to tell copies from clones
        self._batches: dict[int, tuple[int, bytes]] = {}
        self._left: set[str] = set()  # epochs that were left behind; they never come back
        self._unfinished_left = 0  # entries of such that the user has still to work on
        self._join_ms: int | None = None  # where to begin by the publisher's clock, once that is known
        if since.position is not None:
            self.epoch = since.position.epoch
            self.accounted = self.handed = self._asked = self._proved = since.position.sequence

    @property
    def position(self) -> Position | None:
        """How far the user of the subscriber has come; None before the stream was joined."""
        return Position(self.epoch, self.handed) if self.epoch else None

    def finished(self, through: int) -> None:
        """The user has worked on an entry of ``ready``, and so on all up to sequence *through*."""
        self._unfinished -= 1
        left = self._unfinished_left > 0
        if left:
            self._unfinished_left -= 1  # its sequence is none of the epoch that is being read now
        if not self._unfinished:
            self.handed = self.accounted
        elif not left and through > self.handed:
            self.handed = through

    @property
    def left_behind(self) -> bool:
        """Whether the next entry to be finished is of an epoch that has ended; then it does not move ``handed``."""
        return self._unfinished_left > 0

    @property
    def wants_fetch(self) -> bool:
        """Whether the journal has to be asked."""
        return self.mode is not Mode.LIVE and not self.quarantined

    @property
    def joins_by_age(self) -> bool:
        """Whether the next fetch says how long ago to begin, which is right only when it arrives at once."""
        return not self.epoch and self._since.age is not None and self._join_ms is None

    def compare_clocks(self, beat: Beat, asked_at: float, now: float, wall: float) -> None:
        """Learn where to begin by the publisher's clock from a *beat* that it has signed upon our request.

        We asked at *asked_at* and it is *now* (monotonic), *wall* by our clock. An age counts from when the publisher
        reads the request: what it has published since we asked would be left out, and by a busy machine that is much.
        How far its clock is ahead lies between two bounds. The lower one begins no later than wanted; but where both
        clocks may be the same they are taken to be so, which is exact on one machine.

        Raises:
            Refused: The beat does not verify.
        """
        self._verify_beat(beat, now)
        age = self._since.age
        assert age is not None
        least = beat.facts.sent_at_ms / 1000 - wall
        most = least + 0.001 + (now - asked_at)  # a beat's time is cut to milliseconds
        ahead = 0.0 if least <= 0.0 <= most else least
        seconds, wanted_at = age
        self._join_ms = max(0, int((wall + ahead - seconds - (now - wanted_at)) * 1000))

    def forget_clock(self) -> None:
        """A new connection: what was learnt over the one before may be long ago."""
        self._join_ms = None

    def fetch(self, request: int, budget: int, now: float) -> Fetch:
        """Return what to ask the journal for next."""
        filters = [self._prefix] if self._prefix else []
        self._refused_in_fetch = self._started = self._interrupted = False
        self._fetched_beat = None
        since = self._since
        if self.epoch:
            # an answer that broke off may have brought us further than the end of the one before it
            self._asked = max(self._asked, self.accounted)
            return Fetch(id=request, budget=budget, epoch=self.epoch, after=self._asked, filters=filters)
        if since.time_ms is not None:
            return Fetch(id=request, budget=budget, time_ms=since.time_ms, filters=filters)
        if since.age is not None:
            if self._join_ms is not None:
                return Fetch(id=request, budget=budget, time_ms=self._join_ms, filters=filters)
            seconds, asked_at = since.age
            return Fetch(id=request, budget=budget, age_ms=ceil((seconds + now - asked_at) * 1000), filters=filters)
        return Fetch(id=request, budget=budget, after=0, filters=filters)

    # --- live --------------------------------------------------------------------------------------------------

    def on_live(self, parcel: Parcel, now: float) -> None:
        """Take in a parcel from the PUB socket.

        Raises:
            Refused: It does not verify; nothing else has changed.
        """
        if self.quarantined or not self._ours(parcel.topic):
            return
        if self.mode is not Mode.LIVE:
            self._keep(parcel)
            return
        if not self._apply(parcel, live=True):
            self._fall_behind()
            self.behind_since = now
            self._keep(parcel)
        self.heard_at = now  # only now: what others have forged must not hide that this endpoint is gone

    def on_beat(self, beat: Beat, now: float, wall: float) -> None:
        """Take in a beat; one that says nothing new is verified only now and then.

        Raises:
            Refused: It does not verify.
        """
        facts = beat.facts
        # A journal that has become shorter was put back from an older copy. A beat from before a journal was read up to
        # here says the same, so it is the journal that is asked.
        shorter = facts.head < self.accounted and (self.beat is None or facts.sent_at_ms > self.beat.facts.sent_at_ms)
        news = facts.epoch != self.epoch or facts.head > self.accounted or shorter
        # the first is verified in any case: one that came with an answer of the journal tells nothing of the skew
        known = self.beat_at is not None and now - self._verified_beat_at < _BEAT_VERIFIED_EVERY
        if known and not news:
            self.heard_at = self.beat_at = now
            return
        self._verify_beat(beat, now)
        self.heard_at = self.beat_at = now
        self.stats.skew = facts.sent_at_ms / 1000 - wall
        if self.mode is not Mode.LIVE or self.quarantined:
            return
        if shorter and facts.epoch == self.epoch:
            self.read_again()
        else:
            self._judge_beat(beat)
        if self.mode is not Mode.LIVE:
            self.behind_since = now

    def _judge_beat(self, beat: Beat) -> None:
        """Hold where a live stream stands against what a verified beat says."""
        facts = beat.facts
        if facts.epoch != self.epoch:
            if facts.epoch not in self._left:
                self._fall_behind()
        elif not self._depth or self.accounted < facts.window:
            if facts.head > self.accounted:
                self._fall_behind()
        elif beat.head_below(self._prefix) > self.accounted:
            self._fall_behind()
        elif self._collection is None and facts.head > self.accounted:
            # nothing of ours up to the head: the place in the stream moves on without a message
            self._move_to(facts.head, proved=self._proved >= facts.window)

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

    def read_again(self, tries: int = 0) -> None:
        """Read the journal from what is accounted for; there may be more in it."""
        self.mode = Mode.BEHIND
        self._collection = None
        self._asked = self.accounted
        self._tries = tries

    # --- replay ------------------------------------------------------------------------------------------------

    def on_fetched_beat(self, beat: Beat, now: float) -> None:
        """Take in the signed word of start and head that comes before an answer's records."""
        self._verify_beat(beat, now)
        self._fetched_beat = beat

    def on_start(self, start: Start, *, local: bool = False) -> None:
        """Take in where the answer begins; *local* for a journal that was opened as files, which needs no beat.

        Raises:
            WireError: It does not fit the signed beat before it, or goes back to an epoch that was left behind.
        """
        beat = self._fetched_beat
        if not local:
            if beat is None:
                raise WireError(Reason.MALFORMED, "an answer without a beat in front of it")
            if beat.facts.epoch != start.epoch:
                raise WireError(Reason.EPOCH, f"an answer of epoch {start.epoch} behind a beat of {beat.facts.epoch}")
            if start.after > beat.facts.head:
                raise WireError(Reason.MALFORMED, f"an answer that begins behind the head, {beat.facts.head}")
        if start.epoch in self._left:
            raise WireError(Reason.EPOCH, f"an answer of epoch {start.epoch}, which was left behind before")
        self._started = True
        self.mode = Mode.BEHIND
        gone = start.after if beat is None else beat.facts.start - 1  # a beat's start is signed
        if not self.epoch:
            since = self._since
            if since.time_ms is None and since.age is None and start.after > gone:
                raise WireError(Reason.MALFORMED, f"an answer from {start.after} on, where the beginning is {gone + 1}")
            self.epoch = start.epoch
            self.accounted = self.handed = self._asked = self._proved = start.after
        elif start.epoch != self.epoch:
            self._lose(self.accounted + 1, None, "epoch")
            self._left.add(self.epoch)
            self._unfinished_left = self._unfinished
            self.epoch = start.epoch
            self.accounted = self.handed = self._asked = self._proved = self._boundary = 0
            self._collection = None
            self._batches.clear()
        elif beat is not None and beat.facts.head < self.accounted:
            self._quarantine(
                f"its journal ends at {beat.facts.head}, but {self.accounted} of the same epoch was read before"
            )
            return
        known = max(self.accounted, self._asked)
        if gone > known:
            # what is before the journal's start is gone for good
            self._lose(known + 1, gone, "retention")
            self._collection = None
            self._asked = gone
            self._move_to(gone)

    def on_records(self, data: bytes) -> list[Refused]:
        """Take in records of the journal; return what had to be refused."""
        self._check_started()
        refused: list[Refused] = []
        if self._interrupted:
            return refused
        for record in split_records(data):
            self.stats.fetched += 1
            try:
                parcel = parcels.decode(record.payload, parcel_bytes=self._parcel_bytes)
                if parcel.endpoint != self.endpoint:
                    raise TrustError(Reason.ENDPOINT_MISMATCH, f"a parcel of {parcel.endpoint!r} in replay")
                if parcel.epoch != self.epoch:
                    raise WireError(Reason.EPOCH, f"a parcel of epoch {parcel.epoch} in an answer of {self.epoch}")
                if self._ours(parcel.topic) and not self.quarantined and not self._apply(parcel, live=False):
                    # replay comes in order, so what is not here is not coming
                    cause = self._cause_of_hole(parcel)
                    if cause is None:
                        self._interrupted = True
                        return refused
                    self._accept_hole(parcel, cause)
                    self._apply(parcel, live=False)
            except Refused as error:
                self._refused_in_fetch = True
                refused.append(error)
        return refused

    def on_end(self, end: End) -> list[Refused]:
        """Take in the end of an answer; turn to live parcels if it reached the head. Return what was refused."""
        self._check_started()
        self._started = False
        self._unreadable = end.lost
        if self._interrupted or (not self._tries and any(last > self.accounted for _, last in end.lost)):
            self.read_again(tries=self._tries + 1)
            return []
        if self._collection is not None:
            self._finish_collection("refused" if self._refused_in_fetch else "missing")
        for first, last in end.lost:
            if last > self.accounted:
                log.warning("endpoint %s: its journal cannot read %d to %d", self.endpoint, first, last)
        self._asked = max(self._asked, end.through)
        refused: list[Refused] = []
        if not end.end or self.quarantined:
            return refused
        beat = self._fetched_beat
        evidence = 0
        if beat is None:
            self._trust(end, end.through)
        elif not self._depth:
            evidence = beat.facts.head
        elif self._proved >= beat.facts.window:
            evidence = beat.head_below(self._prefix)
            if evidence <= self.accounted:
                evidence = 0
                self._move_to(max(self.accounted, min(beat.facts.head, end.through)))
        else:
            self._trust(end, min(beat.facts.head, end.through))
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
            collection = self._collection
            evidence = max(evidence, parcel.level(self._depth).prior, collection.last if collection else 0)
            pending.appendleft(parcel)
            break
        if evidence > self.accounted:
            self._still_behind(evidence, end.through, "damage" if end.lost else None)
            for parcel in pending:
                self._keep(parcel)
        return refused

    def _check_started(self) -> None:
        if not self._started:
            raise WireError(Reason.MALFORMED, "a part of an answer that has not said where it begins")

    def _trust(self, end: End, through: int) -> None:
        """Believe that nothing of ours stands between what came and *through*, which no signed word says.

        The chain of the next parcel of ours tells whether that was true: ``_proved`` stays behind.
        """
        for first, last in end.lost:
            if last > self.accounted:
                self._lose(max(first, self.accounted + 1), last, "damage")
                self._move_to(last)
        if through > self.accounted:
            self._move_to(through, proved=self._fetched_beat is None)  # without a beat these are files of this host

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

    def _cause_of_hole(self, parcel: Parcel) -> str | None:
        """Say why an answer has nothing between what is accounted for and *parcel*; None to ask once more.

        The next answer begins with a newer beat, so it tells if retention was quicker than the answer; and the end of
        this one tells what cannot be read.
        """
        if self._refused_in_fetch:
            return "refused"
        prior = parcel.level(self._depth).prior
        if any(first <= prior and last > self.accounted for first, last in self._unreadable):
            return "damage"
        return "missing" if self._tries >= _TRIES else None

    def _accept_hole(self, parcel: Parcel, cause: str) -> None:
        self._tries = 0
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
        if last <= self.accounted and parcel.epoch == self.epoch:
            self._check_copy(parcel)
            return True
        identity = verify_parcel(self._verifier, parcel)
        if parcel.epoch != self.epoch:
            if parcel.epoch in self._left:
                self.stats.duplicates += 1
                return True
            return False
        prior, inside = parcel.level(self._depth)
        collection = self._collection
        if collection is None:
            if prior > self._proved:
                if prior <= self.accounted:
                    # what we were told without a signature was not true
                    self.accounted = self._asked = self._proved
                    self.handed = min(self.handed, self.accounted)
                return False
            if parcel.first <= self._boundary or parcel.first in self._batches:
                self._check_clone(parcel, identity)
            if not live or len(self._batches) >= _REMEMBERED_BATCHES * 2:
                self._forget_old_batches()
            self._batches[parcel.first] = (last, parcel.signature)
            if len(parcel.envelopes) == inside:
                # the common case: the parcel is all of the batch that is ours
                self._hand_on([Sealed(parcel, identity.name, self.accounted)], last)
                return True
            collection = self._collection = _Collection(parcel.first, last, inside)
        elif collection.first != parcel.first:
            if parcel.first <= collection.last:
                self._check_clone(parcel, identity)
            return False
        elif parcel.signature != self._batches[parcel.first][1]:
            self._check_clone(parcel, identity)
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
        self._collection = None
        begin, last = self.accounted + 1, collection.last
        found = [
            message
            for sealed in collection.parcels.values()
            for message in open_parcel(sealed.parcel, sealed.signer, self._limits, self._refuse_message)
        ]
        found.sort(key=_sequence)
        had = {message.sequence for message in found}
        # of a prefix's batch nobody can say which of the numbers that did not come are ours
        missing = [number for number in range(max(collection.first, begin), last + 1) if number not in had]
        chosen = [message for message in found if message.sequence >= begin and self._is_chosen(message.topic)]
        self.stats.messages += len(chosen)
        if missing:
            ahead = [message for message in chosen if message.sequence < missing[0]]
            if ahead:
                self._unfinished += 1
                self._ready.append((self, ahead, missing[0] - 1))
            self._lose(missing[0], missing[-1], cause)
            chosen = chosen[len(ahead) :]
        self.accounted = self._proved = self._boundary = last
        if chosen:
            self._unfinished += 1
            self._ready.append((self, chosen, last))
        elif not self._unfinished:
            self.handed = last

    def _is_chosen(self, topic: str) -> bool:
        choice = self._choices.get(topic)
        if choice is None:
            if len(self._choices) > 10_000:
                self._choices.clear()
            choice = self._choices[topic] = self._chosen(topic)
        return choice

    def open(self, entry: Sealed | tuple[Sealed, ...] | list[Message]) -> Iterator[Message]:
        """Yield the messages of an entry of ``ready``; one that is signed but not well formed is counted and left out.

        Its place in the stream counts as seen: the signer has said it, and nobody can mend it.
        """
        if isinstance(entry, list):
            return iter(entry)
        if isinstance(entry, tuple):
            return heapq.merge(*[self._open(sealed) for sealed in entry], key=_sequence)
        return self._open(entry)

    def _open(self, sealed: Sealed) -> Iterator[Message]:
        parcel, after = sealed.parcel, sealed.after
        if self._schemas is not None:
            fits = self._schemas.receiving(parcel.topic)
            if fits is not None:
                return self._open_inspected(sealed, fits)
        if after >= parcel.first:
            return self._open_behind(sealed)
        # another generator around this one would cost more than the rest of what is done for a message here
        self.stats.messages += len(parcel.envelopes)
        return open_parcel(parcel, sealed.signer, self._limits, self._refuse_counted)

    def _open_behind(self, sealed: Sealed) -> Iterator[Message]:
        for message in open_parcel(sealed.parcel, sealed.signer, self._limits, self._refuse_message):
            if message.sequence > sealed.after:
                self.stats.messages += 1
                yield message

    def _open_inspected(self, sealed: Sealed, fits: Callable[[Message], bool]) -> Iterator[Message]:
        for message in self._open_behind(sealed):
            if fits(message):
                yield message
            else:
                # its place in the stream counts as seen, as that of what is not well formed
                self.stats.messages -= 1
                self.count_refusal(Reason.SCHEMA)
                self._verifier.reject(Reason.SCHEMA)

    def _refuse_counted(self, error: WireError) -> None:
        self.stats.messages -= 1
        self._refuse_message(error)

    def count_refusal(self, reason: Reason) -> None:
        """Count something of this stream that was refused."""
        stats = self.stats
        stats.refused += 1
        stats.refusals[reason.value] = stats.refusals.get(reason.value, 0) + 1

    @property
    def lag(self) -> int:
        """How many sequences lie between what the user has worked on and the head, as far as it is known by beats."""
        beat = self.beat
        head = 0 if beat is None or beat.facts.epoch != self.epoch else beat.facts.head
        return max(head, self.accounted) - self.handed

    def _refuse_message(self, error: WireError) -> None:
        self.count_refusal(error.reason)
        self._verifier.reject(error.reason)
        log.warning("endpoint %s: a signed message was refused: %s", self.endpoint, error)

    def _hand_on(self, parts: list[Sealed], last: int) -> None:
        before = self.accounted
        self.accounted = self._proved = self._boundary = last
        parts = [sealed for sealed in parts if self._is_chosen(sealed.parcel.topic)]
        if not parts:
            if not self._unfinished:
                self.handed = last
            return
        ready = self._ready
        if len(parts) > 1 and any(sealed.parcel.topic != parts[0].parcel.topic for sealed in parts):
            ready.append((self, tuple(parts), last))
            self._unfinished += 1
            return
        self._unfinished += len(parts)
        for sealed in parts[:-1]:
            ready.append((self, sealed, before))
        ready.append((self, parts[-1], last))

    def _move_to(self, sequence: int, *, proved: bool = True) -> None:
        self.accounted = sequence
        if proved:
            self._proved = sequence
        if not self._unfinished:
            self.handed = sequence

    def _lose(self, first: int, last: int | None, cause: str) -> None:
        stats = self.stats
        stats.lost += 1
        stats.losses[cause] = stats.losses.get(cause, 0) + 1
        stats.lost_messages += 0 if last is None else last - first + 1
        self._unfinished += 1
        self._ready.append((self, Loss(self.endpoint, self.epoch, first, last, cause), first - 1))

    def _check_copy(self, parcel: Parcel) -> None:
        """A batch that was had before: a copy is dropped quietly; another batch under its number is a clone's."""
        self.stats.duplicates += 1
        known = self._batches.get(parcel.first)
        if known is None:
            if not self._batches or parcel.first < next(iter(self._batches)):
                return  # too long ago to be remembered
        elif known[1] == parcel.signature:
            return
        self._check_clone(parcel, verify_parcel(self._verifier, parcel))

    def _check_clone(self, parcel: Parcel, identity: Identity) -> None:
        """Raise if a verified parcel and a batch that is remembered cannot both be of one publisher."""
        known = self._batches.get(parcel.first)
        last = parcel.last
        if known is None:
            if all(last < first or end < parcel.first for first, (end, _) in self._batches.items()):
                return
        elif known[0] == last and (known[1] == parcel.signature or identity.verify(known[1], parcel.statement())):
            return  # of one ECDSA signature anybody can make a second that is as good; the batch is the same
        self._quarantine(
            f"two different batches hold the sequence {parcel.first} of epoch {parcel.epoch}, and both are signed"
        )
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
        while len(self._batches) >= _REMEMBERED_BATCHES:
            del self._batches[next(iter(self._batches))]


Ready = tuple[StreamReader | ForeignStream, Sealed | tuple[Sealed, ...] | list[Message] | Loss, int]
"""An entry of ``ready``: the reader, what to hand on, and the sequence that is accounted for with it."""


def _sequence(message: Message) -> int:
    return message.sequence
