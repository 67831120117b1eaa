"""One append-only file of a journal: its header, its records, and how batches are found in bytes that may be damaged.

Record, big-endian: u32 length of the payload, u32 CRC-32 (RFC 1952) of what follows it in the record, u64 sequence of
the batch's first message, u32 messages in the batch, u32 messages in this record, u64 wall time in ms, then the
payload: topic, NUL, anything. A *batch* is the run of records with one first sequence whose counts add up to its size.
"""

from __future__ import annotations

import json
import os
import re
import struct
import threading
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fedbus.errors import JournalError, Reason, WireError
from fedbus.failpoints import ARMED, hit

RECORD = struct.Struct(">IIQIIQ")
LENGTH_CRC = struct.Struct(">II")
COVERED = struct.Struct(">QIIQ")  # the part of a record's header that its checksum covers, besides the payload

MAGIC = b"FEDBUSJ1"
FORMAT = 1
# magic, format, crc of the rest of these 64 bytes, base sequence, created (ms), epoch, token, length and crc of JSON
HEADER = struct.Struct(">8sIIQQ16sQII")

SUFFIX = ".journal"
NAME = re.compile(r"\d{20}\.journal\Z")
NO_CEILING = 2**64 - 1
AHEAD = 2**32  # sequences passed over where nobody knows how many were given out


def segment_name(base: int) -> str:
    """The name of the file whose first message has the sequence *base*."""
    return f"{base:020d}{SUFFIX}"


def list_segments(directory: Path) -> list[Path]:
    """The segment files of *directory*, oldest first (by sequence, never by time)."""
    return sorted(path for path in directory.iterdir() if NAME.match(path.name))


@dataclass(frozen=True, slots=True)
class Record:
    """One parcel as the journal keeps it; ``first`` and ``size`` are those of its batch, ``count`` its own."""

    first: int
    size: int
    count: int
    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What the head of a segment says; ``heads`` are the topics' last sequences just before ``base``."""

    endpoint: str
    epoch: str
    base: int
    created_ms: int
    heads: Mapping[str, int]
    token: int = 0

    def encode(self) -> bytes:
        extra = json.dumps({"endpoint": self.endpoint, "heads": dict(self.heads)}, separators=(",", ":")).encode()
        fixed = HEADER.pack(
            MAGIC,
            FORMAT,
            0,
            self.base,
            self.created_ms,
            uuid.UUID(self.epoch).bytes,
            self.token,
            len(extra),
            zlib.crc32(extra),
        )
        return fixed[:12] + zlib.crc32(fixed[16:]).to_bytes(4, "big") + fixed[16:] + extra


class FixedHeader(NamedTuple):
    """The first 64 bytes of a segment, checked; enough to place it without the list of topics."""

    base: int
    created_ms: int
    epoch: str
    token: int
    extra_length: int
    extra_crc: int

    @property
    def data_start(self) -> int:
        """Where the first record begins, in bytes from the start of the file."""
        return HEADER.size + self.extra_length


def decode_fixed(data: bytes) -> FixedHeader | None:
    """The fixed part of a segment's header, or None when it is short, damaged, or no segment at all."""
    if len(data) < HEADER.size:
        return None
    magic, form, checksum, base, created, epoch, token, length, crc = HEADER.unpack_from(data)
    if magic != MAGIC or form != FORMAT or zlib.crc32(data[16 : HEADER.size]) != checksum:
        return None
    return FixedHeader(base, created, str(uuid.UUID(bytes=epoch)), token, length, crc)


def decode_header(data: bytes) -> SegmentHeader | None:
    """The whole header at the start of *data*, or None when any of it is damaged."""
    fixed = decode_fixed(data)
    if fixed is None:
        return None
    extra = data[HEADER.size : fixed.data_start]
    if len(extra) != fixed.extra_length or zlib.crc32(extra) != fixed.extra_crc:
        return None
    try:
        values = json.loads(extra)
        heads = {str(topic): int(last) for topic, last in values["heads"].items()}
        endpoint = str(values["endpoint"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return SegmentHeader(endpoint, fixed.epoch, fixed.base, fixed.created_ms, heads, fixed.token)


def header_end(data: bytes) -> int:
    """Where the records of a segment file begin; just after the fixed part when that is damaged."""
    fixed = decode_fixed(data)
    return fixed.data_start if fixed is not None and fixed.data_start <= len(data) else HEADER.size


# --- batches in bytes ------------------------------------------------------------------------------------------


def frame_batch(
    batch: Sequence[tuple[int, str, bytes]], first: int, size: int, time_ms: int
) -> tuple[list[bytes], int]:
    """The buffers of a batch, header and payload by turns, and how many bytes they are together."""
    crc32, covered, prefix = zlib.crc32, COVERED.pack, LENGTH_CRC.pack
    buffers: list[bytes] = []
    total = RECORD.size * len(batch)
    for count, _, payload in batch:
        rest = covered(first, size, count, time_ms)
        buffers.append(prefix(len(payload), crc32(payload, crc32(rest))) + rest)
        buffers.append(payload)
        total += len(payload)
    return buffers, total


class Part(NamedTuple):
    """A record within a batch: its topic, the sequence of its last message, and its place in the bytes surveyed."""

    topic: bytes
    last: int
    start: int
    end: int


class Batch(NamedTuple):
    """A whole batch found in bytes; ``start`` and ``end`` are offsets into those bytes."""

    first: int
    size: int
    start: int
    end: int
    time_ms: int
    parts: list[Part]

    @property
    def last(self) -> int:
        return self.first + self.size - 1


def _parse_batch(data: bytes, view: memoryview, start: int, verify: bool) -> Batch | None:
    """The batch that begins at *start*, or None when one of its records is short, damaged or of another batch."""
    total, at, got = len(data), start, 0
    batch_first = batch_size = batch_time = 0
    parts: list[Part] = []
    while at + 32 <= total:
        length, checksum, first, size, count, time_ms = RECORD.unpack_from(data, at)
        end = at + 32 + length
        if end > total or count < 1 or (verify and zlib.crc32(view[at + 8 : end]) != checksum):
            return None
        if not got:
            batch_first, batch_size, batch_time = first, size, time_ms
        elif first != batch_first or size != batch_size:
            return None
        got += count
        nul = data.find(b"\0", at + 32, end)
        if got > size or nul < 0 or not first:
            return None
        parts.append(Part(data[at + 32 : nul], first + got - 1, at, end))
        if got == size:
            return Batch(batch_first, size, start, end, batch_time, parts)
        at = end
    return None


def survey(
    data: bytes, start: int, expected: int, ceiling: int = NO_CEILING, *, verify: bool = True
) -> Iterator[Batch]:
    """Every whole batch in ``data[start:]`` with sequences from *expected* to *ceiling*, in order, damage left out.

    Where a batch should begin and does not, the next one that checks is searched for; the caller sees the hole by the
    sequences. Without *verify* checksums are not computed: only for bytes that were checked before.
    """
    view = memoryview(data)
    position = start
    while 0 <= position < len(data):
        batch = _parse_batch(data, view, position, verify)
        if batch is None or batch.first < expected or batch.last > ceiling:
            position = _next_candidate(data, position + 1, expected, ceiling)
            continue
        yield batch
        expected = batch.first + batch.size
        position = batch.end


_NOT_ZERO = re.compile(rb"[^\0]")


def _next_candidate(data: bytes, start: int, expected: int, ceiling: int) -> int:
    """The next offset from *start* where a record's header could stand, -1 when there is none.

    A header is known by its sequence: the upper three of its eight bytes do not change within 2**40 messages, so they
    are searched for as bytes, and what is found has to look like a header before its checksum is tried.
    """
    prefix = expected.to_bytes(8, "big")[:3]
    total = len(data)
    at = start + 8
    while True:
        at = data.find(prefix, at)
        if at < 0 or at + 24 > total:
            return -1
        length, _, first, size, count, _ = RECORD.unpack_from(data, at - 8)
        if expected <= first <= ceiling and 1 <= count <= size and 0 < length <= total - at - 24:
            return at - 8
        # a long run of zeros (a hole that a power loss left) cannot hold a header: its length would be 0
        found = _NOT_ZERO.search(data, at)
        if found is None:
            return -1
        at = found.start() - 7 if found.start() - at > 64 else at + 1


def claimed_batch(data: bytes, start: int, expected: int) -> int:
    """How many messages a batch at *start* claims that is all there by its lengths though not by its checksums.

    0 when it is torn: short, or not laid out as the batch that begins with *expected*. A torn batch was never
    acknowledged; one that is all there may have been, so its numbers must not be used again.
    """
    total, at, got = len(data), start, 0
    while at + 32 <= total:
        length, _, first, size, count, _ = RECORD.unpack_from(data, at)
        got += count
        at += 32 + length
        if first != expected or count < 1 or got > size or at > total:
            return 0
        if got == size:
            return int(size)
    return 0


def split_records(data: bytes, *, verify: bool = True) -> Iterator[Record]:
    """The records of *data*, which holds whole ones and nothing else, as :meth:`Journal.read` returns them.

    Raises:
        WireError: (``Reason.MALFORMED``) a length does not fit, a checksum does not agree, or no topic is there.
    """
    total, at = len(data), 0
    view = memoryview(data)
    while at < total:
        if at + 32 > total:
            raise WireError(Reason.MALFORMED, f"a record's header is cut at byte {at} of {total}; fetch it again")
        length, checksum, first, size, count, _ = RECORD.unpack_from(data, at)
        end = at + 32 + length
        if end > total:
            raise WireError(Reason.MALFORMED, f"the record at byte {at} of {total} ends at {end}; fetch it again")
        if verify and zlib.crc32(view[at + 8 : end]) != checksum:
            raise WireError(
                Reason.MALFORMED,
                f"the checksum of the record at byte {at} (batch {first}) does not agree; fetch it again",
            )
        payload = data[at + 32 : end]
        topic, nul, _ = payload.partition(b"\0")
        if not nul or not 1 <= count <= size or not first:
            raise WireError(Reason.MALFORMED, f"the record at byte {at} (batch {first}) has no topic or a wrong count")
        try:
            text = topic.decode()
        except UnicodeDecodeError:
            raise WireError(Reason.MALFORMED, f"the topic of the record at byte {at} is not UTF-8") from None
        yield Record(first, size, count, text, payload)
        at = end


# --- files -----------------------------------------------------------------------------------------------------


class OpenFile:
    """A descriptor that closes when the last holder lets go, so that a reader never loses it to retention or a roll."""

    __slots__ = ("fd",)

    def __init__(self, path: Path, flags: int, mode: int = 0o600) -> None:
        self.fd = -1
        self.fd = os.open(path, flags | os.O_CLOEXEC, mode)

    def read(self, offset: int, length: int) -> bytes:
        """Up to *length* bytes from *offset*; fewer only at the end of the file."""
        data = os.pread(self.fd, length, offset)
        if len(data) == length or not data:
            return data
        parts = [data]  # one call returns at most about 2 GiB
        got = len(data)
        while got < length and (data := os.pread(self.fd, length - got, offset + got)):
            parts.append(data)
            got += len(data)
        return b"".join(parts)

    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class FileCache:
    """Read descriptors of segments, at most *limit* of them at once."""

    def __init__(self, limit: int = 16) -> None:
        self._limit = limit
        self._files: dict[Path, OpenFile] = {}
        self._lock = threading.Lock()

    def get(self, path: Path) -> OpenFile:
        """An open file for *path*; OSError as ``os.open`` raises it."""
        with self._lock:
            file = self._files.get(path)
            if file is None:
                while len(self._files) >= self._limit:
                    del self._files[next(iter(self._files))]
                file = self._files[path] = OpenFile(path, os.O_RDONLY)
            return file

    def drop(self, path: Path | None = None) -> None:
        """Forget *path*, or all."""
        with self._lock:
            if path is None:
                self._files.clear()
            else:
                self._files.pop(path, None)


def sync_directory(directory: Path) -> None:
    """Make the names in *directory* outlive the machine."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(directory: Path) -> None:
    """Make *directory*, for its owner alone, and those above it where they are missing, so that they outlive a crash.

    What is synced in a folder is lost with it if the folder's own name was never written.
    """
    missing = []
    at = directory
    while not at.exists():
        missing.append(at)
        at = at.parent
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for one in reversed(missing):
        sync_directory(one.parent)


def sync_data(fd: int) -> None:
    """Make what was written to a segment outlive the machine."""
    if ARMED:
        hit("journal.sync.before")
    os.fdatasync(fd)
    if ARMED:
        hit("journal.sync.after")


def write_atomically(path: Path, data: bytes) -> None:
    """Replace *path* by *data*, whole or not at all, synced; mode 0600."""
    fresh = path.with_name(path.name + ".new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        if ARMED:
            hit("journal.replace.before")
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    if ARMED:
        hit("journal.replace.after")
    sync_directory(path.parent)


def read_whole(path: Path) -> bytes:
    """The bytes of a file that ends when it ends; JournalError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise JournalError(f"cannot read {path}: {error.strerror}; check the disk and the file's mode") from error


def read_start(path: Path) -> bytes:
    """The fixed part of a segment's header; empty when the file is gone."""
    try:
        with path.open("rb") as file:
            return file.read(HEADER.size)
    except FileNotFoundError:
        return b""


def read_header(path: Path) -> SegmentHeader | None:
    """The header of a segment, None when the file is gone or its header damaged."""
    fixed = decode_fixed(read_start(path))
    if fixed is None:
        return None
    try:
        with path.open("rb") as file:
            return decode_header(file.read(fixed.data_start))
    except FileNotFoundError:
        return None
