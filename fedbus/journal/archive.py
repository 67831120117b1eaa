"""A journal as JSON lines: written for other tools and for safe keeping, and read back byte for byte.

A line is an object: what describes the message, and three members more. ``envelope`` is the exact text that was signed,
``sealed`` (base64) a parcel of this message alone, which proves it with nothing but the CA, and ``kept`` says how the
journal held it: ``start`` and ``count`` (the leaves of the parcel that it stood in) and ``written_at_ms``. From the
lines of a whole batch its parcels are made again as they were, since all their bytes follow from leaves and signature.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, BinaryIO
from uuid import UUID

import orjson
import uuid_utils

from fedbus.clock import Clock
from fedbus.errors import JournalError, Reason, Refused, WireError
from fedbus.journal.audit import Kept
from fedbus.journal.journal import Journal, JournalOptions, SyncPolicy
from fedbus.journal.segment import sync_directory
from fedbus.journal.state import is_locked, locked_inodes
from fedbus.model.limits import Limits
from fedbus.model.message import Message
from fedbus.trust.proof import verify_parcel
from fedbus.trust.verifier import SKEW, Verifier
from fedbus.wire import merkle
from fedbus.wire import parcel as parcels
from fedbus.wire.envelope import open_parcel
from fedbus.wire.parcel import Parcel

Describe = Callable[[Message], dict[str, Any]]
"""What a line says of a message for everybody to read; the same function writes and checks it."""

MEMBERS = ("envelope", "sealed", "kept")


def lines_of(kept: Iterable[Kept], describe: Describe) -> Iterator[dict[str, Any]]:
    """Yield the object of a line for each message."""
    sealed: dict[int, list[bytes]] = {}  # of the parcels of a batch, by their first leaf
    batch: tuple[str, int] = ("", 0)
    for one in kept:
        message, parcel = one.message, one.parcel
        if batch != (parcel.epoch, parcel.first):
            sealed.clear()
            batch = (parcel.epoch, parcel.first)
        if parcel.start not in sealed:
            sealed[parcel.start] = parcel.singles()
        yield {
            **describe(message),
            "envelope": message.envelope.decode("utf-8"),
            "sealed": base64.b64encode(sealed[parcel.start][message.index]).decode("ascii"),
            "kept": {"start": parcel.start, "count": len(parcel.envelopes), "written_at_ms": one.taken_at_ms},
        }


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a line, or what stands around it, cannot be used; ``reason`` is set where a proof does not hold."""

    line: int
    text: str
    reason: Reason | None = None

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}"


@dataclass(frozen=True, slots=True)
class Line:
    """One line that is what it says it is."""

    number: int
    message: Message
    parcel: Parcel  # of this message alone
    start: int
    count: int
    written_at_ms: int

    @property
    def leaf(self) -> int:
        """Its place in the batch's tree."""
        return self.parcel.start


def read_lines(file: BinaryIO, verifier: Verifier, limits: Limits, describe: Describe) -> Iterator[Line | Problem]:
    """Check each line of *file* against its own seal; what is wrong with one says nothing about the next.

    Seals are judged as of the time that the signed envelope states.
    """
    longest = 12 * limits.message_bytes + 2**20
    number = 0
    while text := file.readline(longest + 1):
        number += 1
        if len(text) > longest:
            yield Problem(number, f"longer than {longest} bytes; this is no export of a journal with these limits")
            return
        if not text.strip():
            continue
        try:
            yield _line(number, text, verifier, limits, describe)
        except Refused as error:
            yield Problem(number, str(error), error.reason)
        except (ValueError, KeyError, TypeError) as error:
            yield Problem(number, f"not a line of an export: {_shown(error)}")


def _shown(error: Exception) -> str:
    return f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)


def _line(number: int, text: bytes, verifier: Verifier, limits: Limits, describe: Describe) -> Line:
    values = orjson.loads(text)
    if not isinstance(values, dict):
        raise ValueError("not an object")
    kept = values["kept"]
    start, count, written_at_ms = (_number(kept, name) for name in ("start", "count", "written_at_ms"))
    try:
        frame = base64.b64decode(values["sealed"], validate=True)
    except binascii.Error as error:
        raise ValueError(f"sealed is not base64: {error}") from None
    parcel = parcels.decode(frame, parcel_bytes=len(frame))
    if len(parcel.envelopes) != 1:
        raise WireError(Reason.MALFORMED, f"sealed holds {len(parcel.envelopes)} messages instead of one")
    identity = verify_parcel(verifier, parcel, at=written_at_ms / 1000)
    if values["envelope"].encode("utf-8", "surrogatepass") != parcel.envelopes[0]:
        raise WireError(Reason.SIGNATURE, "envelope is another text than the one that is sealed; somebody changed it")

    def refuse(error: WireError) -> None:
        raise error

    (message,) = open_parcel(parcel, identity.name, limits, refuse)
    # the time it was judged by is the operator's file's word, so it has to be that of the signed envelope
    if abs(datetime.fromisoformat(message.time).timestamp() - written_at_ms / 1000) > SKEW:
        raise WireError(Reason.SIGNATURE, f"kept.written_at_ms is not the time of the signed envelope, {message.time}")
    said = {name: value for name, value in values.items() if name not in MEMBERS}
    meant = orjson.loads(orjson.dumps(describe(message)))
    if said != meant:
        wrong = sorted(name for name in said.keys() | meant.keys() if said.get(name) != meant.get(name))
        raise WireError(Reason.SIGNATURE, f"{', '.join(wrong)}: not as sealed; somebody changed the line")
    if not start <= parcel.start < start + count <= parcel.size:
        raise WireError(Reason.MALFORMED, "kept does not fit the message's place in its batch")
    return Line(number, message, parcel, start, count, written_at_ms)


def _number(values: dict[str, Any], name: str) -> int:
    value = values[name]
    if type(value) is not int or not 0 <= value < 2**62:
        raise ValueError(f"kept.{name} is not a whole number")
    return value


@dataclass(slots=True)
class Summary:
    """What a file of lines holds."""

    endpoint: str = ""
    epoch: str = ""
    first: int = 0
    last: int = 0
    messages: int = 0
    batches: int = 0


def check_order(lines: Iterable[Line | Problem], summary: Summary) -> Iterator[list[Line] | Problem]:
    """Yield whole batches, in order, and every problem: of the lines themselves, holes, repetitions, mixed streams.

    Behind a problem of a line a hole is told too, since the messages of that line are missing.
    """
    batch: list[Line] = []
    before: Line | None = None
    for line in lines:
        if isinstance(line, Problem):
            yield line
            continue
        parcel, sequence = line.parcel, line.message.sequence
        if before is None:
            summary.endpoint, summary.epoch, summary.first = parcel.endpoint, parcel.epoch, sequence
        elif (parcel.endpoint, parcel.epoch) != (summary.endpoint, summary.epoch):
            yield Problem(
                line.number,
                f"of {parcel.endpoint}/{parcel.epoch}, where the lines before are of {summary.endpoint}/"
                f"{summary.epoch}; one export holds one epoch of one endpoint",
            )
            continue
        elif sequence <= before.message.sequence:
            what = "again" if sequence == before.message.sequence else "behind"
            yield Problem(line.number, f"sequence {sequence} {what} {before.message.sequence} of line {before.number}")
            continue
        elif sequence > before.message.sequence + 1:
            yield Problem(
                line.number, f"sequences {before.message.sequence + 1} to {sequence - 1} are missing before it"
            )
        if batch and batch[0].parcel.first != parcel.first:
            if len(batch) == batch[0].parcel.size:
                summary.batches += 1
                yield batch
            batch = []
        batch.append(line)
        summary.messages += 1
        summary.last = sequence
        if before is None and sequence != parcel.first:
            yield Problem(
                line.number,
                f"the batch of sequence {sequence} begins at {parcel.first}, which is missing; export from there",
            )
        before = line
    if batch:
        size, first = batch[0].parcel.size, batch[0].parcel.first
        if len(batch) == size:
            summary.batches += 1
            yield batch
        if batch[-1].message.sequence != first + size - 1:
            yield Problem(
                batch[-1].number,
                f"the last batch goes on to sequence {first + size - 1}, which is missing; export up to there",
            )


def rebuild(batch: list[Line]) -> list[tuple[int, str, bytes]]:
    """The parcels of a whole batch as the journal had them: (messages, topic, frame), in the order of their leaves.

    Raises:
        JournalError: What the lines say of their parcels contradicts itself.
    """
    by_leaf = sorted(batch, key=lambda line: line.leaf)
    one = by_leaf[0].parcel
    rows = merkle.levels([line.parcel.leaves()[0] for line in by_leaf])
    if [line.leaf for line in by_leaf] != list(range(one.size)) or len({line.written_at_ms for line in batch}) != 1:
        raise JournalError(f"the lines of the batch {one.first} to {one.last} contradict each other; export it anew")
    head = parcels.head(one.endpoint.encode("ascii"), UUID(one.epoch).bytes, one.first, one.size)
    found: list[tuple[int, str, bytes]] = []
    at = 0
    while at < one.size:
        count, parcel = by_leaf[at].count, by_leaf[at].parcel
        members = by_leaf[at : at + count]
        same = {(line.start, line.count, line.parcel.topic, line.parcel.chain) for line in members}
        if same != {(at, count, parcel.topic, parcel.chain)} or len(members) != count:
            raise JournalError(f"the lines of the batch {one.first} to {one.last} do not make parcels; export it anew")
        frame = parcels.encode(
            parcel.topic.encode("ascii"),
            head,
            at,
            parcel.signature,
            parcel.certificate,
            parcel.chain,
            merkle.range_path(rows, at, count),
            [line.parcel.envelopes[0] for line in members],
        )
        found.append((count, parcel.topic, frame))
        at += count
    return found


class Restoration:
    """A journal in the making, in a folder beside the one that it is to be; use it as a context manager.

    Nothing is in the journal's own place before :meth:`finish`, and nothing stays behind without it.
    """

    def __init__(self, options: JournalOptions, endpoint: str, *, clock: Clock) -> None:
        """Prepare to restore the journal of *endpoint* to ``options.directory``.

        Raises:
            JournalError: Something is in that folder already.
        """
        self._options = options
        self._endpoint = endpoint
        self._clock = clock
        self._folder = options.directory.with_name(f".{options.directory.name}.{uuid_utils.uuid7()}.import")
        self._journal: Journal | None = None
        locked = locked_inodes()
        for left in options.directory.parent.glob(f".{options.directory.name}.*.import"):
            if is_locked(left, locked) is False:  # of an import that was killed
                shutil.rmtree(left, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            if any(options.directory.iterdir()):
                raise JournalError(
                    f"{options.directory} is not empty, and what is there might be lost; move it away, and import again"
                )

    def add(self, batch: list[Line], verifier: Verifier) -> None:
        """Append a whole batch.

        Raises:
            JournalError: It does not follow the one before, the disk refused it, or its lines contradict each other.
            Refused: The parcels that the lines make do not verify.
        """
        one = batch[0].parcel
        if one.endpoint != self._endpoint:
            raise JournalError(f"the export is of {one.endpoint!r}, not of {self._endpoint!r}; import it as that one")
        made = rebuild(batch)
        for _, _, frame in made:
            verify_parcel(verifier, parcels.decode(frame, parcel_bytes=len(frame)), at=batch[0].written_at_ms / 1000)
        if self._journal is None:
            try:
                self._folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise JournalError(f"cannot make {self._folder.parent}: {error.strerror}") from error
            # synced once, at the end: until then there is nothing to keep; and retention is for a publisher to begin
            options = replace(
                self._options, directory=self._folder, sync=SyncPolicy.ASYNC, retain_bytes=0, retain_age=0.0
            )
            self._journal = Journal.create(
                options, endpoint=self._endpoint, epoch=one.epoch, first=one.first, clock=self._clock
            )
        self._journal.append(made, first=one.first, size=one.size, time_ms=batch[0].written_at_ms)

    def finish(self, *, complete: bool) -> int:
        """Put the journal into its place, synced; return the sequence that its next message will have.

        Unless it is *complete*, that is far ahead: what was published after the export has numbers that nobody here
        knows, and readers that have seen those would take a second message under one of them for a forgery.

        Raises:
            JournalError: There was no message, the disk refused, or somebody was quicker at the journal's place.
        """
        journal = self._journal
        if journal is None:
            raise JournalError("there is no message in it, so there is nothing to restore")
        if not complete:
            journal.pass_over()
        following = journal.head + 1
        journal.close()
        directory = self._options.directory
        try:
            (self._folder / "lock").unlink(missing_ok=True)
            self._folder.rename(directory)
            sync_directory(directory.parent)
        except OSError as error:
            raise JournalError(
                f"cannot put the journal to {directory}: {error.strerror}; stop the publisher of {self._endpoint!r}, "
                "empty that folder, and import again"
            ) from error
        self._journal = None
        return following

    def __enter__(self) -> Restoration:
        return self

    def __exit__(self, *_: object) -> None:
        if self._journal is not None:
            with contextlib.suppress(JournalError):
                self._journal.close()
        shutil.rmtree(self._folder, ignore_errors=True)
