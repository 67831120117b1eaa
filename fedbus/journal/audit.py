"""Looks at every byte of a journal and says what does not hold: checksums, order, chain, seals, rights.

It only reads, so it may be done while a publisher writes: what is appended meanwhile is left for the next time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate
from pathlib import Path

from fedbus.errors import JournalError, Reason, Refused, WireError
from fedbus.journal.reader import JournalReader
from fedbus.journal.segment import (
    AHEAD,
    NO_CEILING,
    RECORD,
    Batch,
    claimed_batch,
    decode_header,
    header_end,
    list_segments,
    survey,
)
from fedbus.model.limits import Limits
from fedbus.model.message import Message
from fedbus.trust.proof import verify_parcel
from fedbus.trust.verifier import Verifier
from fedbus.wire import parcel as parcels
from fedbus.wire.envelope import open_parcel
from fedbus.wire.parcel import Parcel

_FAULTS = 1000  # named at most; the others are counted
_PIECE = 4 * 2**20  # read at once


class Kind(StrEnum):
    """What is wrong with a part of a journal."""

    DAMAGE = "damage"  # bytes that are not as they were written, or are not there
    ORDER = "order"  # whole records, whose numbers or chain contradict those around them
    REFUSED = "refused"  # a seal, a certificate or the policy does not allow them


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong; ``first`` to ``last`` are the sequences that it concerns (none where last < first)."""

    kind: Kind
    where: str  # file, and bytes where they are known
    first: int
    last: int
    text: str
    reason: Reason | None = None

    def __str__(self) -> str:
        span = f", sequences {self.first} to {self.last}" if self.last >= self.first else ""
        return f"{self.where}{span}: {self.text}"


@dataclass(slots=True)
class Audit:
    """What an audit has found."""

    endpoint: str
    epoch: str
    start: int = 1
    head: int = 0
    segments: int = 0
    records: int = 0
    batches: int = 0
    messages: int = 0  # that are whole, in order, and proved
    bytes: int = 0
    passed: list[tuple[int, int]] = field(default_factory=list)  # sequences that were passed over on purpose
    torn: int = 0  # bytes at the very end that are no whole batch: being written, or cut off at the next opening
    faults: list[Fault] = field(default_factory=list)
    unnamed: int = 0  # faults beyond the first thousand

    def add(self, fault: Fault) -> None:
        """Note a fault."""
        if len(self.faults) < _FAULTS:
            self.faults.append(fault)
        else:
            self.unnamed += 1

    @property
    def worst(self) -> Kind | None:
        """The kind that decides what to do: a refused seal before an order that does not hold, before damage."""
        kinds = {fault.kind for fault in self.faults}
        return next((kind for kind in (Kind.REFUSED, Kind.ORDER, Kind.DAMAGE) if kind in kinds), None)


def audit(
    directory: Path, verifier: Verifier, limits: Limits, *, progress: Callable[[int], object] = lambda size: None
) -> Audit:
    """Check every record of the journal in *directory*; *progress* is told how many bytes were looked at since.

    Seals are judged as of the time at which the journal took them in, so what was signed with a certificate that has
    expired since is good; what a stolen key has signed is not, whenever that was.

    Raises:
        JournalError: There is no journal, or the folder cannot be read.
    """
    with JournalReader.open(directory) as reader:
        found = Audit(reader.endpoint, reader.epoch, reader.start, reader.head)
        _Auditor(reader, verifier, limits, found, progress).run()
    return found


class _Auditor:
    def __init__(
        self,
        reader: JournalReader,
        verifier: Verifier,
        limits: Limits,
        found: Audit,
        progress: Callable[[int], object],
    ) -> None:
        self._reader = reader
        self._verifier = verifier
        self._limits = limits
        self._found = found
        self._progress = progress
        # topic level -> first and last sequence of the latest batch that has messages below it. After a restart a
        # publisher knows of each topic's last message only in which batch it was, so any place in that is right.
        self._levels: dict[str, tuple[int, int]] = {}
        self._complete = False  # whether _levels lacks none

    def run(self) -> None:
        directory, found = self._reader.directory, self._found
        paths = list_segments(directory)
        if not paths:
            raise JournalError(f"there is no journal in {directory}; its publisher creates it when it first starts")
        bases = [int(path.name[:20]) for path in paths]
        expected = bases[0]
        found.start = expected
        for number, path in enumerate(paths):
            final = number + 1 == len(paths)
            ceiling = NO_CEILING if final else bases[number + 1] - 1
            if bases[number] > expected:
                text = "no file holds them; a segment was removed by hand, or its newest messages have vanished"
                self._fault(Kind.DAMAGE, directory.name, expected, bases[number] - 1, text)
                self._forget()
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                if not number or bases[number - 1] not in _present(directory):
                    found.start = bases[number + 1] if not final else found.start
                    expected = ceiling + 1 if not final else expected
                    continue  # retention was quicker, from the old end
                data = b""
            except OSError as error:
                self._fault(Kind.DAMAGE, path.name, bases[number], ceiling, f"cannot be read: {error.strerror}")
                self._forget()
                expected = ceiling + 1 if not final else expected
                continue
            expected = self._segment(path, data, bases[number], ceiling, first=number == 0)
            found.segments += 1
            found.bytes += len(data)
        found.head = max(expected - 1, 0)

    def _segment(self, path: Path, data: bytes, base: int, ceiling: int, *, first: bool) -> int:
        """Check one file; return the sequence that has to follow."""
        found = self._found
        header = decode_header(data)
        if header is None:
            self._fault(Kind.DAMAGE, f"{path.name}, header", base, base - 1, "its checksum does not agree")
        elif header.epoch != found.epoch or header.endpoint != found.endpoint or header.base != base:
            text = f"it is of {header.endpoint}/{header.epoch}, from {header.base} on: another journal's"
            self._fault(Kind.DAMAGE, f"{path.name}, header", base, base - 1, text)
        if first:
            self._complete = base == 1  # otherwise what the chain says of a level for the first time is believed
        place, expected = header_end(data), base
        told = 0
        for batch in survey(data, place, base, ceiling):
            if batch.start != place or batch.first != expected:
                self._damaged(path, place, batch.start, expected, batch.first - 1)
            self._batch(path, data, batch)
            place, expected = batch.end, batch.first + batch.size
            self._progress(place - told)
            told = place
        self._progress(len(data) - told)
        if ceiling != NO_CEILING:
            # what lies behind the next file's first sequence was written again there, and is never read
            if expected + AHEAD - 1 == ceiling:
                found.passed.append((expected, ceiling))  # after an import, or where the newest messages had vanished
            elif expected <= ceiling:
                self._damaged(path, place, len(data), expected, ceiling)
            return ceiling + 1
        claimed = claimed_batch(data, place, expected) if place < len(data) else 0
        if claimed:
            self._damaged(path, place, len(data), expected, expected + claimed - 1)
            return expected + claimed
        found.torn = max(len(data) - place, 0)  # where not even a header is left
        return expected

    def _damaged(self, path: Path, start: int, end: int, first: int, last: int) -> None:
        self._forget()
        where = f"{path.name}, bytes {start} to {end}"
        text = "checksums do not agree, or records are missing" if last >= first else "these belong to no record"
        self._fault(Kind.DAMAGE, where, first, last, text)

    def _batch(self, path: Path, data: bytes, batch: Batch) -> None:
        found = self._found
        found.batches += 1
        found.records += len(batch.parts)
        where = f"{path.name}, bytes {batch.start} to {batch.end}"
        taken: list[tuple[Parcel, list[int]]] = []  # with the sequences of its messages
        for part in batch.parts:
            count = RECORD.unpack_from(data, part.start)[4]
            try:
                parcel = self._parcel(data[part.start + RECORD.size : part.end], batch, count)
                identity = verify_parcel(self._verifier, parcel, at=batch.time_ms / 1000)
            except Refused as error:
                self._fault(Kind.REFUSED, where, batch.first, batch.last, str(error), error.reason)
                continue
            taken.append((parcel, self._open(parcel, identity.name, where)))
        self._check_batch(where, batch, taken)

    def _parcel(self, payload: bytes, batch: Batch, count: int) -> Parcel:
        """Take a record's parcel apart.

        Raises:
            WireError: It is none, or not the one that the record says.
        """
        found = self._found
        parcel = parcels.decode(payload, parcel_bytes=len(payload))
        if (parcel.endpoint, parcel.epoch) != (found.endpoint, found.epoch):
            raise WireError(Reason.EPOCH, f"a parcel of {parcel.endpoint}/{parcel.epoch} stands in this journal")
        if (parcel.first, parcel.size, len(parcel.envelopes)) != (batch.first, batch.size, count):
            raise WireError(Reason.SEQUENCE, f"the record and its seal disagree: {parcel!r}")
        return parcel

    def _open(self, parcel: Parcel, signer: str, where: str) -> list[int]:
        def refuse(error: WireError) -> None:
            self._fault(Kind.REFUSED, where, parcel.first, parcel.last, f"an envelope: {error}", error.reason)

        return [message.sequence for message in open_parcel(parcel, signer, self._limits, refuse)]

    def _check_batch(self, where: str, batch: Batch, taken: list[tuple[Parcel, list[int]]]) -> None:
        """Whether the parcels fill the batch, and what they say of those before agrees with what was found there."""
        found = self._found
        before = len(found.faults) + found.unnamed
        whole = sum(len(parcel.envelopes) for parcel, _ in taken) == batch.size
        sequences = sorted(sequence for _, own in taken for sequence in own)
        if whole:
            starts = [parcel.start for parcel, _ in taken]
            ends = list(accumulate(len(parcel.envelopes) for parcel, _ in taken))
            if starts != [0, *ends[:-1]] or sequences != list(range(batch.first, batch.last + 1)):
                text = "its parcels and messages are not those of one batch, each once"
                self._fault(Kind.ORDER, where, batch.first, batch.last, text)
        inside: dict[str, int] = {}
        for parcel, _ in taken:
            for level in _levels(parcel.topic):
                inside[level] = inside.get(level, 0) + len(parcel.envelopes)
        for parcel, _ in taken:
            for number, level in enumerate(_levels(parcel.topic), 1):
                said = parcel.level(number)
                low, high = self._levels.get(level, (0, 0))
                if whole and said.inside != inside[level]:
                    text = (
                        f"it says that {said.inside} messages below {level} are in its batch, there are {inside[level]}"
                    )
                elif not low <= said.prior <= high and (level in self._levels or self._complete):
                    text = f"it says that the message before it below {level} is {said.prior}, it is {high}"
                else:
                    continue
                self._fault(Kind.ORDER, where, batch.first, batch.last, text)
                break
        for level in inside:
            self._levels[level] = (batch.first, batch.last)
        if len(found.faults) + found.unnamed == before:
            found.messages += len(sequences)
        if not whole:
            self._forget()

    def _forget(self) -> None:
        """What comes next may speak of messages that were not found: let it say so."""
        self._levels.clear()
        self._complete = False

    def _fault(self, kind: Kind, where: str, first: int, last: int, text: str, reason: Reason | None = None) -> None:
        self._found.add(Fault(kind, where, first, last, text, reason))


def _present(directory: Path) -> set[int]:
    return {int(path.name[:20]) for path in list_segments(directory)}


def _levels(topic: str) -> Iterator[str]:
    """Yield the topic's first field, its first two, and so on."""
    end = topic.find(".")
    while end >= 0:
        yield topic[:end]
        end = topic.find(".", end + 1)
    yield topic


# --- messages, one by one ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kept:
    """A message as a journal keeps it."""

    message: Message
    parcel: Parcel
    taken_at_ms: int  # wall time at which the journal took it in


def kept_messages(
    reader: JournalReader,
    verifier: Verifier,
    limits: Limits,
    *,
    after: int = 0,
    through: int | None = None,
    wanted: Callable[[str], bool] | None = None,
    refuse: Callable[[Fault], object],
    lost: Callable[[int, int], object],
) -> Iterator[Kept]:
    """Yield the messages behind the sequence *after* up to *through* (by default the head), verified, in order.

    *wanted* chooses by topic. What does not verify is given to *refuse* and left out, what cannot be read to *lost*.

    Raises:
        JournalError: The files cannot be opened.
    """
    end = reader.head if through is None else min(through, reader.head)
    place = max(after, reader.start - 1)
    while place < end:
        piece = reader.read(place, _PIECE, wanted)
        for first, last in piece.lost:
            if first <= end:
                lost(first, min(last, end))
        for batch in _batches(piece.data):
            found: list[Kept] = []
            for time_ms, payload in batch:
                try:
                    parcel = parcels.decode(payload, parcel_bytes=len(payload))
                    if (parcel.endpoint, parcel.epoch) != (reader.endpoint, reader.epoch):
                        raise WireError(Reason.EPOCH, f"it is of {parcel.endpoint}/{parcel.epoch}")
                    identity = verify_parcel(verifier, parcel, at=time_ms / 1000)
                except Refused as error:
                    refuse(Fault(Kind.REFUSED, reader.endpoint, *_span(payload), str(error), error.reason))
                    continue

                def refuse_one(error: WireError, parcel: Parcel = parcel) -> None:
                    refuse(Fault(Kind.REFUSED, reader.endpoint, parcel.first, parcel.last, str(error), error.reason))

                for message in open_parcel(parcel, identity.name, limits, refuse_one):
                    if place < message.sequence <= end:
                        found.append(Kept(message, parcel, time_ms))
            found.sort(key=lambda kept: kept.message.sequence)
            yield from found
        if piece.end or piece.through <= place:
            return
        place = piece.through


def _batches(data: bytes) -> Iterator[list[tuple[int, bytes]]]:
    """Yield (wall time in ms, payload) of the records of each batch, whole or in part, in sound *data*."""
    batch: list[tuple[int, bytes]] = []
    at, current = 0, 0
    while at < len(data):
        length, _, first, _, _, time_ms = RECORD.unpack_from(data, at)
        if first != current and batch:
            yield batch
            batch = []
        current = first
        at += RECORD.size + length
        batch.append((time_ms, data[at - length : at]))
    if batch:
        yield batch


def _span(payload: bytes) -> tuple[int, int]:
    """The sequences of the batch that a refused parcel says it is of; (1, 0) where it says nothing."""
    try:
        parcel = parcels.decode(payload, parcel_bytes=len(payload))
    except Refused:
        return 1, 0
    return parcel.first, parcel.last
