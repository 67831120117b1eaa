"""Segments in a row: the durable, numbered home of one endpoint's stream."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import threading
import uuid
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Self

import uuid_utils

from fedbus.clock import Clock
from fedbus.errors import Fenced, JournalError, JournalLocked, JournalWriteError
from fedbus.journal.index import Index
from fedbus.journal.retention import SegmentInfo, removable
from fedbus.journal.segment import (
    HEADER,
    NO_CEILING,
    RECORD,
    FileCache,
    OpenFile,
    Record,
    SegmentHeader,
    claimed_batch,
    decode_fixed,
    decode_header,
    frame_batch,
    list_segments,
    read_whole,
    segment_name,
    split_records,
    survey,
    write_atomically,
)
from fedbus.model.position import FencingToken
from fedbus.model.stream import Slice

__all__ = ["Journal", "JournalOptions", "JournalReader", "Record", "Slice", "SyncPolicy", "split_records"]

log = logging.getLogger(__name__)

_IOV_MAX = os.sysconf("SC_IOV_MAX")
_BOOKMARKS = 256  # readers whose next place is remembered exactly
_SCAN_BYTES = 4 * 2**20  # what one filtered read looks at, at most, before it answers "nothing up to here"
# sequences passed over when the newest segment has vanished and nobody knows how far it went
_VANISHED = 2**32


_ROLL_AGE = 1 / 8  # of retain_age: so much longer than that may a message of a quiet stream be kept


class SyncPolicy(StrEnum):
    """What an append that returned outlives besides the process."""

    ALWAYS = "always"  # a loss of power
    INTERVAL = "interval"  # a loss of power, ``sync_interval`` seconds later
    ASYNC = "async"  # only the process; the kernel writes when it likes


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalOptions:
    """Where the journal lives, how eagerly it syncs, and how much it keeps."""

    directory: Path
    sync: SyncPolicy = SyncPolicy.ALWAYS
    sync_interval: float = 0.05  # seconds that a loss of power may cost under INTERVAL
    segment_bytes: int = 64 * 2**20  # a closed segment is never written again
    retain_bytes: int = 2**30  # 0: no limit; the disk used is at most this and one segment more
    retain_age: float = 7 * 86400.0  # seconds; 0: no limit
    topics: int = 10_000  # distinct topics at most


class _Segment:
    """A segment file and, once it was needed, its index."""

    __slots__ = ("base", "index", "newest", "path")

    def __init__(self, path: Path, base: int, index: Index | None = None) -> None:
        self.path = path
        self.newest = (0, b"")  # where the last batch begins that a follower has seen, and the header it had
        self.base = base
        self.index = index

    @classmethod
    def at(cls, path: Path) -> _Segment:
        return cls(path, int(path.name[:20]))

    def sidecar(self, suffix: str) -> Path:
        return self.path.with_suffix(suffix)


class _Gather:
    """An answer in the making."""

    __slots__ = ("after", "left", "lost", "pieces", "scanned", "through")

    def __init__(self, after: int, budget: int) -> None:
        self.after = after
        self.through = after
        self.left = budget
        self.scanned = 0
        self.pieces: list[bytes] = []
        self.lost: list[tuple[int, int]] = []

    def pass_to(self, sequence: int) -> None:
        """Cover up to *sequence*; what was not covered before is lost."""
        if sequence > self.through:
            if self.lost and self.lost[-1][1] == self.through:
                self.lost[-1] = (self.lost[-1][0], sequence)
            else:
                self.lost.append((self.through + 1, sequence))
            self.through = sequence


class _Reading:
    """What the writing and the read-only view of a journal share: the way from a sequence to bytes.

    Any thread may read at any time. A closed segment's blocks are checked once, when first read; what this process
    wrote itself is not checked again (see :meth:`recheck`).
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.epoch = ""
        self.endpoint = ""
        self.heads: dict[str, int] = {}
        self.head = 0
        self._segments: tuple[_Segment, ...] = ()
        self._files = FileCache()
        self._bookmarks: dict[int, tuple[_Segment, int, int]] = {}
        self._may_mark = False  # only the writer leaves notes about damage in the folder

    @property
    def start(self) -> int:
        """The first sequence still kept; one more than ``head`` while nothing is."""
        segments = self._segments
        return segments[0].base if segments else self.head + 1

    def read(self, after: int, budget: int, wanted: Callable[[str], bool] | None = None) -> Slice:
        """The records that follow the sequence *after*, about *budget* bytes of them, whole batches and at least one.

        The first batch is the one that holds ``after + 1``. With *wanted*, records of topics it turns down are left
        out; a read that finds nothing within some MiB answers empty, with ``through`` moved on and ``end`` not set.

        Raises:
            JournalError: The files cannot be opened.
        """
        head = self.head
        after = max(after, 0)
        if after >= head:
            return Slice(b"", after, True)
        segments = self._segments
        gather = _Gather(after, budget)
        choices: dict[bytes, bool] = {}
        number = max(bisect_right(segments, after + 1, key=lambda segment: segment.base) - 1, 0)
        while number < len(segments):
            segment = segments[number]
            number += 1
            final = number == len(segments)
            ceiling = NO_CEILING if final else segments[number].base - 1
            gather.pass_to(segment.base - 1)
            try:
                index = self._index(segment, ceiling)
                end, last = index.tip
                enters = gather.through < segment.base and index.whole
                if wanted is not None and enters and not any(wanted(topic) for topic in tuple(index.topics)):
                    gather.through = max(gather.through, last)  # nothing for this reader in the whole file
                else:
                    self._read_segment(segment, index, end, last, gather, wanted, choices)
            except FileNotFoundError:
                last = gather.through  # retention was quicker: the whole segment is gone
                if final:
                    gather.pass_to(head)  # a read-only view that was not refreshed for long
            if gather.through < last:
                break
            if not final:
                gather.pass_to(ceiling)
            if gather.left <= 0 or gather.scanned >= _SCAN_BYTES:
                break
        data = gather.pieces[0] if len(gather.pieces) == 1 else b"".join(gather.pieces)
        return Slice(data, gather.through, gather.through >= head, tuple(gather.lost))

    def _read_segment(
        self,
        segment: _Segment,
        index: Index,
        end: int,
        last: int,
        gather: _Gather,
        wanted: Callable[[str], bool] | None,
        choices: dict[bytes, bool],
    ) -> None:
        """Add to *gather* what it still has room for, from a segment that ends at byte *end*, sequence *last*."""
        if gather.through >= last:
            return
        file = self._open(segment.path)
        blocks = index.block_of(last) + 1
        mark = self._bookmarks.get(gather.through)
        if mark is not None and mark[0] is segment:
            _, block, start = mark
            exact = True  # *start* is where the batch after ``through`` begins
        else:
            block = index.block_of(gather.through + 1)
            start = index.offsets[block]
            exact = gather.through == index.firsts[block] - 1
        while block < blocks:
            beyond = block + 1
            if wanted is None and exact and index.checked[block]:
                # checked blocks have no hole, so a whole run of them goes out as one piece
                limit = start + gather.left
                while beyond < blocks and index.checked[beyond] and self._stop(index, beyond, blocks, end) <= limit:
                    beyond += 1
                stop = self._stop(index, beyond - 1, blocks, end)
                if stop <= limit and len(data := file.read(start, stop - start)) == stop - start:
                    gather.pieces.append(data)
                    gather.left -= len(data)
                    gather.through = index.firsts[beyond] - 1 if beyond < blocks else last
                    block, start = beyond, stop
                    continue
                beyond = block + 1
            stop = self._stop(index, block, blocks, end)
            through = index.firsts[beyond] - 1 if beyond < blocks else last
            start = self._read_block(segment, index, file, block, start, stop, through, gather, wanted, choices)
            if gather.through >= through:
                block = beyond
                exact = True
            if gather.left <= 0 or gather.scanned >= _SCAN_BYTES:
                break
        # where the last block ends, more may be appended to it: the reader's next place is still exact
        self._bookmark(gather.through, segment, min(block, blocks - 1), start)

    @staticmethod
    def _stop(index: Index, block: int, blocks: int, end: int) -> int:
        """Where *block* ends, of a segment seen as *blocks* blocks and *end* bytes."""
        return index.offsets[block + 1] if block + 1 < blocks else end

    def _read_block(
        self,
        segment: _Segment,
        index: Index,
        file: OpenFile,
        block: int,
        start: int,
        stop: int,
        through: int,
        gather: _Gather,
        wanted: Callable[[str], bool] | None,
        choices: dict[bytes, bool],
    ) -> int:
        """Read one block record by record, from byte *start*; return the offset after the last batch taken."""
        checked = bool(index.checked[block])
        whole = start == index.offsets[block]
        try:
            data = file.read(start, stop - start)
        except OSError as error:
            # a bad sector is damage like any other: told, passed over, and the rest is served
            log.error("cannot read bytes %d to %d of %s: %s", start, stop, segment.path, error.strerror)
            data = b""
        gather.scanned += len(data)
        after = gather.through
        base = index.firsts[block] if whole else after + 1
        expected = base
        sound = len(data) == stop - start
        end = 0
        full = False
        begin = until = 0  # the run of bytes taken but not yet cut out
        for batch in survey(data, 0, base, through, verify=not checked):
            if batch.first != expected or batch.start != end:
                sound = False
            if batch.first > expected:
                gather.pass_to(batch.first - 1)
            expected, end = batch.first + batch.size, batch.end
            if batch.last <= after:
                continue
            if wanted is None:
                if batch.start != until:
                    if until > begin:
                        gather.pieces.append(data[begin:until])
                    begin = batch.start
                until = batch.end
                gather.left -= until - batch.start
            else:
                for topic, _, start_of, end_of in batch.parts:
                    choice = choices.get(topic)
                    if choice is None:
                        choice = choices[topic] = wanted(topic.decode("utf-8", "replace"))
                    if choice:
                        if start_of != until:
                            if until > begin:
                                gather.pieces.append(data[begin:until])
                            begin = start_of
                        until = end_of
                        gather.left -= end_of - start_of
            gather.through = batch.last
            if gather.left <= 0 and batch.last < through:
                full = True
                break
        if until > begin:
            gather.pieces.append(data[begin:until])
        if full:
            return start + end
        if expected <= through or not sound:
            self._note_damage(segment, f"block at byte {index.offsets[block]}, sequences {base} to {through}")
            gather.pass_to(through)
        elif whole:
            index.checked[block] = 1
        return stop

    def _bookmark(self, through: int, segment: _Segment, block: int, offset: int) -> None:
        if len(self._bookmarks) >= _BOOKMARKS:
            self._bookmarks.clear()
        self._bookmarks[through] = (segment, block, offset)

    def position_at(self, time_ms: int) -> int:
        """The last sequence before the first batch stamped *time_ms* or later: read after it to miss nothing since.

        ``head`` when nothing is as young, one less than ``start`` when all is. The wall clock may have been set back
        and forth: then batches stamped earlier can follow the place, but none stamped later comes before it.
        """
        segments = self._segments
        for number, segment in enumerate(segments):
            ceiling = segments[number + 1].base - 1 if number + 1 < len(segments) else NO_CEILING
            try:
                index = self._index(segment, ceiling)
                block = index.block_since(time_ms)
                if block is None or index.tip[1] < index.base:
                    continue
                file = self._open(segment.path)
            except FileNotFoundError:
                continue
            blocks = len(index.times)
            stop = index.offsets[block + 1] if block + 1 < blocks else index.tip[0]
            data = file.read(index.offsets[block], stop - index.offsets[block])
            for batch in survey(data, 0, index.firsts[block], ceiling):
                if batch.time_ms >= time_ms:
                    return batch.first - 1
        return self.head

    def recheck(self) -> None:
        """Forget which bytes were found sound: a reader was handed some that are not. The next reads check again."""
        for segment in self._segments:
            if segment.index is not None:
                segment.index.distrust()

    def _open(self, path: Path) -> OpenFile:
        try:
            return self._files.get(path)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise JournalError(
                f"cannot open {path}: {error.strerror}; check its mode and the open files limit"
            ) from error

    def _index(self, segment: _Segment, ceiling: int) -> Index:
        """The index of *segment*: at hand, from its file, or by a scan."""
        if segment.index is None:
            size = self._open(segment.path).size()
            index = None
            with contextlib.suppress(OSError):
                index = Index.decode(segment.sidecar(".index").read_bytes(), segment.base, size)
            if index is None:
                index = self._scan(segment, ceiling)
            segment.index = index
        return segment.index

    def _scan(self, segment: _Segment, ceiling: int) -> Index:
        """Build the index of a closed segment from its records; blocks are checked when they are read."""
        log.warning("the index of %s is missing or damaged; scanning", segment.path)
        file = self._open(segment.path)
        data = file.read(0, file.size())
        header = decode_header(data)
        index = Index(segment.base, header_end(data))
        index.whole = header is not None
        for batch in survey(data, index.offsets[0], segment.base, ceiling):
            if (batch.start, batch.first - 1) != index.tip:
                index.whole = False
            index.add_batch(batch)
        index.whole = index.whole and index.tip == (len(data), ceiling)
        index.distrust()
        if not index.whole:
            self._note_damage(segment, "its records do not follow on each other, or its header is not sound")
        elif self._may_mark:
            self._keep_index(segment, index)
        return index

    def _keep_index(self, segment: _Segment, index: Index) -> None:
        """Write the index beside its segment; only a help, so a full disk is no reason to fail."""
        with contextlib.suppress(OSError):
            write_atomically(segment.sidecar(".index"), index.encode(segment.path.stat().st_size))

    def _note_damage(self, segment: _Segment, text: str) -> None:
        """Say once, in the log and in a file beside the segment, that something in it is damaged."""
        note = segment.sidecar(".damaged")
        if not self._may_mark:
            log.error("%s is damaged: %s", segment.path, text)
            return
        known = ""
        with contextlib.suppress(OSError):
            known = note.read_text()
        if text not in known:
            log.error(
                "%s is damaged: %s; what is sound in it is served, the rest is reported as lost. "
                "Restore the file from a backup while this endpoint is stopped, or let retention remove it",
                segment.path,
                text,
            )
            with contextlib.suppress(OSError):
                write_atomically(note, (known + text + "\n").encode())


class Journal(_Reading):
    """The one writer of a journal, and a reader of it.

    ``append``, ``retain``, ``sync`` and ``close`` may be called from any thread, and take turns; reads go on meanwhile.
    ``heads`` maps each topic to its last sequence, also of messages that retention has removed. Messages are counted
    over the records of a batch in their order; where a publisher numbers them otherwise within the batch, the head is
    another sequence of the same batch, which is as good, since readers advance by whole batches. Never change it.
    ``cut`` is how many bytes of a torn batch were cut off when the journal was opened.
    """

    def __init__(self, options: JournalOptions, endpoint: str, clock: Clock) -> None:
        super().__init__(options.directory)
        self.options = options
        self.endpoint = endpoint
        self.synced = 0
        self.cut = 0
        self._clock = clock
        self._may_mark = True
        self._token = 0
        self._always = options.sync is SyncPolicy.ALWAYS
        self._turn = threading.RLock()  # held by whoever writes
        self._closed = False
        self._file: OpenFile | None = None  # the active segment's
        self._end = 0  # where the next batch goes
        self._safe = (0, 0)  # end in bytes and last sequence of what is synced in the active segment
        self._roll_next = False  # the active file's tail is not to be trusted any more
        self._unsafe = False  # a sync has failed: what was not synced has to be written again
        self._lock_fd = -1
        self._wake = threading.Event()
        self._helper: threading.Thread | None = None

    @classmethod
    def open(cls, options: JournalOptions, *, endpoint: str, clock: Clock) -> Self:
        """Open the journal of *endpoint* for writing, or create it; what is torn at its end is cut off.

        Raises:
            JournalLocked: Another process has it open for writing.
            JournalError: The folder or a file in it cannot be used, or it belongs to another endpoint.
        """
        journal = cls(options, endpoint, clock)
        try:
            journal._lock()
            journal._load()
        except OSError as error:
            journal._release()
            raise JournalError(
                f"cannot open the journal of endpoint {endpoint!r} in {options.directory}: {error.strerror}; "
                f"check the folder's owner and mode, and the disk"
            ) from error
        except BaseException:
            journal._release()
            raise
        if options.sync is SyncPolicy.INTERVAL:
            journal._helper = threading.Thread(target=journal._sync_often, name=f"journal {endpoint}", daemon=True)
            journal._helper.start()
        return journal

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- opening

    def _lock(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.directory / "lock"
        self._lock_fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(self._lock_fd, 32, 0).decode("ascii", "replace").strip()
            holder = f"process {pid}" if pid.isdigit() else "another process"
            raise JournalLocked(
                f"the journal of endpoint {self.endpoint!r} in {self.directory} is open in {holder}; "
                f"an endpoint has one publisher: stop that one, or publish as another endpoint"
            ) from None
        with contextlib.suppress(OSError):  # the number is only for people; a full disk must not matter
            os.ftruncate(self._lock_fd, 0)
            os.pwrite(self._lock_fd, f"{os.getpid()}\n".encode(), 0)

    def _load(self) -> None:
        for left in self.directory.glob("*.new"):
            left.unlink(missing_ok=True)
        identity = read_identity(self.directory)
        segments = [_Segment.at(path) for path in list_segments(self.directory)]
        if identity is None and segments:
            identity = identity_from(segments)
            if identity is not None:
                log.error("%s is missing or damaged; restored it from the segments", self.directory / "journal.json")
                self._write_identity(*identity)
        if identity is not None:
            if identity[0] != self.endpoint:
                raise JournalError(
                    f"the journal in {self.directory} belongs to endpoint {identity[0]!r}, not {self.endpoint!r}; "
                    f"give each endpoint a folder of its own"
                )
            self.epoch = identity[1]
            segments = self._own(segments)
        else:
            segments = self._set_aside(segments, "whose journal nobody can tell any more")
        if not segments:
            if identity is not None:
                log.error("the journal in %s has lost all its segments; it goes on with a new epoch", self.directory)
            self.epoch = str(uuid_utils.uuid7())
            self._begin_segment(1, {})
            self._write_identity(self.endpoint, self.epoch)
            return
        self._token = read_token(self.directory)
        self._recover(segments)

    def _write_identity(self, endpoint: str, epoch: str) -> None:
        text = json.dumps({"format": 1, "endpoint": endpoint, "epoch": epoch}) + "\n"
        write_atomically(self.directory / "journal.json", text.encode())

    def _own(self, segments: list[_Segment]) -> list[_Segment]:
        """Those of *segments* that are of this epoch or too damaged to tell; the others are set aside."""
        ours: list[_Segment] = []
        others: list[_Segment] = []
        for segment in segments:
            fixed = decode_fixed(read_start(segment.path))
            (others if fixed is not None and fixed.epoch != self.epoch else ours).append(segment)
        self._set_aside(others, "of another epoch")
        return ours

    def _set_aside(self, segments: list[_Segment], why: str) -> list[_Segment]:
        for segment in segments:
            aside = segment.path.with_suffix(f".{uuid_utils.uuid7()}.aside")
            log.error("%s is a segment %s; renamed to %s", segment.path, why, aside.name)
            segment.path.rename(aside)
        return []

    def _recover(self, segments: list[_Segment]) -> None:
        """Find the head: read the last segment through, cut off what is torn, pass over what is damaged."""
        active = segments[-1]
        self.heads = heads_before(segments)
        file = OpenFile(active.path, os.O_RDWR | os.O_APPEND)
        data = file.read(0, file.size())
        header = decode_header(data)
        index = Index(active.base, header_end(data))
        fixed = decode_fixed(data)
        sound = header is not None
        for batch in survey(data, index.offsets[0], active.base):
            if (batch.start, batch.first - 1) != index.tip:
                sound = False
            index.add_batch(batch)
        end, last = index.tip
        self.heads.update(index.topics)
        claimed = claimed_batch(data, end, last + 1) if end < len(data) else 0
        if claimed:
            # all there, but not as it was written: it may have been acknowledged, so its numbers are spent
            sound = False
            last += claimed
        hollow = not sound and last < active.base  # a header is synced before its file gets its name: no tear does this
        vanished = (sound and active.sidecar(".index").exists()) or (
            hollow and (fixed is None or fixed.data_start != len(data))
        )
        if sound and not vanished:
            if end < len(data):
                self.cut = len(data) - end
                log.warning("cut %d bytes of a torn batch after sequence %d off %s", self.cut, last, active.path)
                os.ftruncate(file.fd, end)
            os.fdatasync(file.fd)
            active.index = index
            self._segments = tuple(segments)
            self._file, self._end, self._safe = file, end, (end, last)
            self.head = self.synced = last
            return
        os.fdatasync(file.fd)
        if hollow:
            self._set_aside([segments.pop()], "of which nothing can be read")
        if vanished:
            # how many messages there were nobody knows: their numbers must not be given out a second time
            log.error(
                "the newest messages after %s have vanished; the next message gets a number far ahead, and "
                "readers are told that what lies between is lost",
                active.path,
            )
            last += _VANISHED
        else:
            log.error("%s is damaged; it is kept as it is, and a new segment is begun", active.path)
        self._segments = tuple(segments)
        self._begin_segment(last + 1, self.heads)

    def _begin_segment(self, base: int, heads: dict[str, int]) -> None:
        """Make an empty segment, synced with its name, and go on in it; an OSError leaves everything as it was."""
        path = self.directory / segment_name(base)
        now_ms = int(self._clock.wall() * 1000)
        header = SegmentHeader(self.endpoint, self.epoch, base, max(now_ms, 0), heads, self._token).encode()
        write_atomically(path, header)
        file = OpenFile(path, os.O_RDWR | os.O_APPEND)
        kept = tuple(segment for segment in self._segments if segment.base < base)
        self._files.drop(path)
        self._segments = (*kept, _Segment(path, base, Index(base, len(header))))
        self._file, self._end, self._safe = file, len(header), (len(header), base - 1)
        self.head = self.synced = base - 1
        self._roll_next = self._unsafe = False

    # --- writing

    def has_room_for(self, topic: str) -> bool:
        """Whether a message of *topic* may be appended: it is known, or ``options.topics`` is not reached yet."""
        return topic in self.heads or len(self.heads) < self.options.topics

    def append(
        self,
        batch: Sequence[tuple[int, str, bytes]],
        *,
        first: int,
        size: int,
        time_ms: int,
        token: FencingToken | None = None,
    ) -> None:
        """Write a batch of (messages in it, topic, payload) with one write and, under ``ALWAYS``, one sync.

        *first* is ``head + 1``, *size* the messages in all records together, *time_ms* the wall time. On return the
        batch outlives the process, under ``ALWAYS`` the machine. When it raises, nothing of the batch is kept.

        Raises:
            JournalWriteError: The disk refused the write or the sync. The journal is as before, and the next append
                may succeed without a restart.
            Fenced: A holder of a higher *token* has already written here; step down.
            JournalError: The batch does not fit: its numbers, its topics, or the journal is closed.
        """
        with self._turn:
            self._check(batch, first, size)
            if token is not None and token != self._token:
                self._take_token(token)
            buffers, total = frame_batch(batch, first, size, time_ms)
            try:
                if self._unsafe:
                    self._write_again()
                if self._roll_next or (
                    self._end + total > self.options.segment_bytes and self.head >= self._segments[-1].base
                ):
                    self._roll()
                self._write(buffers, total)
            except OSError as error:
                raise JournalWriteError(
                    f"cannot write {total} bytes to the journal of endpoint {self.endpoint!r} in {self.directory}: "
                    f"{error.strerror or error}; nothing of the batch was kept; "
                    f"free space or mend the disk, and publish again"
                ) from error
            active = self._segments[-1]
            index = active.index
            assert index is not None
            last = first - 1
            for count, topic, _ in batch:
                last += count
                index.topics[topic] = last
                self.heads[topic] = last
            start, self._end = self._end, self._end + total
            index.add(first, size, start, self._end, time_ms)
            if self._always:
                self._safe = (self._end, last)
                self.synced = last
            self.head = last

    def _check(self, batch: Sequence[tuple[int, str, bytes]], first: int, size: int) -> None:
        if self._closed:
            raise JournalError(f"the journal of endpoint {self.endpoint!r} is closed; open it again")
        if first != self.head + 1:
            raise JournalError(f"a batch must begin with sequence {self.head + 1}, not {first}; number it again")
        total = 0
        fresh = set()
        for count, topic, payload in batch:
            if count < 1 or not payload.startswith(topic.encode() + b"\0"):
                raise JournalError(f"a record of topic {topic!r} has {count} messages or another topic in its payload")
            total += count
            if topic not in self.heads:
                fresh.add(topic)
        if total != size or not size:
            raise JournalError(f"the records of a batch of {size} messages hold {total}")
        if fresh and len(self.heads) + len(fresh) > self.options.topics:
            raise JournalError(
                f"the journal of endpoint {self.endpoint!r} knows {len(self.heads)} topics and may know "
                f"{self.options.topics}; raise that limit, or put what varies into the body instead of the topic"
            )

    def _take_token(self, token: FencingToken) -> None:
        if token < self._token:
            raise Fenced(
                f"token {token} is older than {self._token}, which has written to the journal of "
                f"endpoint {self.endpoint!r}; step down"
            )
        try:
            write_atomically(self.directory / "token", f"{token}\n".encode())
        except OSError as error:
            raise JournalWriteError(
                f"cannot write {self.directory / 'token'}: {error.strerror}; free space or mend the disk"
            ) from error
        self._token = token

    def _write(self, buffers: list[bytes], total: int) -> None:
        """Put *buffers* after the last batch and sync if the policy asks for it; OSError leaves the file as it was."""
        assert self._file is not None
        fd = self._file.fd
        if len(buffers) > _IOV_MAX:
            buffers = [b"".join(buffers)]
        written = False
        try:
            done = os.writev(fd, buffers)
            if done != total:
                rest = memoryview(b"".join(buffers))[done:]
                while rest:
                    rest = rest[os.write(fd, rest) :]
            written = True
            if self._always:
                os.fdatasync(fd)
        except BaseException:
            # After a failed sync the kernel may have marked the pages clean that it could not write, and the next
            # sync then succeeds over data that is not there ("fsyncgate"): nothing more goes into this file.
            if written:
                self._roll_next = True
            try:
                os.ftruncate(fd, self._end)
            except OSError:
                self._roll_next = True  # what is left behind lies above the next segment's base and is never read
            raise

    def _roll(self) -> None:
        """Close the active segment, go on in a new one, and let retention take what it may."""
        self._sync_active()
        closed = self._segments[-1]
        # Whatever fails from here on, the new file may already have its name: it then hides what would still be
        # appended to the old one, so nothing may be until a roll has succeeded.
        self._roll_next = True
        if self.head < closed.base:
            # nothing in it yet, so the new file takes its name and place; the old descriptor goes with it
            self._begin_segment(closed.base, self.heads)
            return
        self._begin_segment(self.head + 1, self.heads)
        assert closed.index is not None
        self._keep_index(closed, closed.index)
        self._retain()

    def _sync_active(self) -> None:
        assert self._file is not None
        if self.synced >= self.head:
            return
        try:
            os.fdatasync(self._file.fd)
        except OSError:
            self._unsafe = True
            raise
        self._safe = (self._end, self.head)
        self.synced = self.head

    def _write_again(self) -> None:
        """After a failed sync: put what may not have reached the disk into a new segment, while it can still be read.

        The new segment begins after the last message known to be on disk, and takes over from there.
        """
        assert self._file is not None
        end, last = self._safe
        active = self._segments[-1]
        data = self._file.read(end, self._end - end)
        batches = list(survey(data, 0, last + 1, self.head))
        if sum(batch.size for batch in batches) != self.head - last:
            log.error(
                "%s: messages %d to %d cannot all be read back after a failed sync", active.path, last + 1, self.head
            )
            assert active.index is not None
            active.index.distrust()
            self._begin_segment(self.head + 1, self.heads)
            return
        heads = heads_before(list(self._segments))
        before = Index(active.base, header_end(start := self._file.read(0, end)))
        for batch in survey(start, before.offsets[0], active.base, last):
            before.add_batch(batch)
        heads.update(before.topics)
        header = SegmentHeader(
            self.endpoint, self.epoch, last + 1, max(int(self._clock.wall() * 1000), 0), heads, self._token
        ).encode()
        path = self.directory / segment_name(last + 1)
        write_atomically(path, header + data)
        index = Index(last + 1, len(header))
        shift = len(header)
        for batch in batches:
            index.add_batch(batch._replace(start=batch.start + shift, end=batch.end + shift))
        self._files.drop(path)
        kept = self._segments if last >= active.base else self._segments[:-1]
        self._file = OpenFile(path, os.O_RDWR | os.O_APPEND)
        self._end = shift + len(data)
        # the old file keeps its tail: a reader may be in the middle of it, and the new base says where it ends
        self._segments = (*kept, _Segment(path, last + 1, index))
        self._bookmarks.clear()
        self._safe = (self._end, self.head)
        self.synced = self.head
        self._unsafe = self._roll_next = False

    def sync(self) -> None:
        """Make everything appended so far outlive the machine.

        Raises:
            JournalWriteError: The disk refused. What was appended is written anew by the next append or sync.
        """
        with self._turn:
            if self._closed:
                return
            try:
                if self._unsafe:
                    self._write_again()
                self._sync_active()
            except OSError as error:
                raise JournalWriteError(
                    f"cannot sync the journal of endpoint {self.endpoint!r} in {self.directory}: {error.strerror}; "
                    f"mend the disk; messages after {self.synced} are not safe yet"
                ) from error

    def _sync_often(self) -> None:
        """The helper thread of ``INTERVAL``; an error is logged and met again by the next append."""
        failing = False
        while not self._wake.wait(self.options.sync_interval):
            try:
                self._sync_aside()
                failing = False
            except JournalWriteError as error:
                if not failing:
                    log.error("%s", error)
                failing = True

    def _sync_aside(self) -> None:
        """Sync without keeping appends waiting for the disk."""
        with self._turn:
            file, end, head = self._file, self._end, self.head
            if file is None or self.synced >= head:
                return
            if self._unsafe:
                self.sync()
                return
        try:
            os.fdatasync(file.fd)
        except OSError:
            with self._turn:
                if self._file is file:
                    self._unsafe = True
                    self.sync()
            return
        with self._turn:
            if self._file is file and not self._unsafe and head > self.synced:
                self._safe = (end, head)
                self.synced = head

    # --- retention and the end

    def retain(self) -> int:
        """Remove what the options no longer keep; the number of segments that went.

        An active segment that was begun long ago is closed first: only closed ones go, and a stream with few messages
        would otherwise keep them for ever. To be called now and then.

        Raises:
            JournalWriteError: A new segment cannot be begun; nothing was removed.
        """
        with self._turn:
            active, kept = self._segments[-1], len(self._segments)
            fixed = decode_fixed(read_start(active.path)) if self.options.retain_age else None
            if (
                fixed is not None
                and self.head >= active.base
                and self._clock.wall() - fixed.created_ms / 1000 > self.options.retain_age * _ROLL_AGE
            ):
                try:
                    self._roll()  # which lets retention take what it may
                    kept += 1
                except OSError as error:
                    raise JournalWriteError(
                        f"cannot begin a new segment in {self.directory}: {error.strerror}; free space or mend the disk"
                    ) from error
            self._retain()
            return kept - len(self._segments)

    def _retain(self) -> int:
        segments = self._segments
        infos = []
        now = self._clock.wall()
        for number, segment in enumerate(segments):
            closed_at = now
            size = 0
            with contextlib.suppress(OSError):
                size = segment.path.stat().st_size
                if number + 1 < len(segments):
                    fixed = decode_fixed(read_start(segments[number + 1].path))
                    closed_at = fixed.created_ms / 1000 if fixed is not None else now
            infos.append(SegmentInfo(segment.base, size, closed_at))
        count = removable(infos, self.options.retain_bytes, self.options.retain_age, now)
        removed = 0
        for segment in segments[:count]:
            try:
                segment.path.unlink(missing_ok=True)
            except OSError as error:
                log.error("cannot remove %s: %s; the journal grows beyond its limit", segment.path, error.strerror)
                break
            removed += 1
            self._segments = segments[removed:]
            self._files.drop(segment.path)
            for suffix in (".index", ".damaged"):
                with contextlib.suppress(OSError):
                    segment.sidecar(suffix).unlink(missing_ok=True)
        if removed:
            self._bookmarks.clear()
        return removed

    def close(self) -> None:
        """Sync and let go; again is harmless. JournalWriteError (from the sync) comes after everything is released."""
        self._wake.set()
        if self._helper is not None and self._helper is not threading.current_thread():
            self._helper.join(timeout=30.0)
        with self._turn:
            if self._closed:
                return
            try:
                if self._file is not None:
                    self.sync()
            finally:
                self._closed = True
                self._release()

    def _release(self) -> None:
        self._file = None
        self._files.drop()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


class JournalReader(_Reading):
    """A read-only view of a journal that a process may be writing right now, or has left behind; changes nothing."""

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Look at the journal in *directory* as it is now.

        Raises:
            JournalError: There is no journal.
        """
        reader = cls(directory)
        identity = read_identity(directory)
        if identity is None:
            try:
                segments = [_Segment.at(path) for path in list_segments(directory)]
            except OSError as error:
                raise JournalError(f"cannot read the journal in {directory}: {error.strerror}") from error
            identity = identity_from(segments)
        if identity is None:
            raise JournalError(f"there is no journal in {directory}; its publisher creates it when it first starts")
        reader.endpoint, reader.epoch = identity
        reader.refresh()
        return reader

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def refresh(self) -> bool:
        """Take in what was appended or removed since; whether there is anything new to read. One thread at a time.

        Raises:
            JournalError: The folder has gone or cannot be read.
        """
        before = self.head
        try:
            paths = list_segments(self.directory)
        except OSError as error:
            raise JournalError(f"cannot read the journal in {self.directory}: {error.strerror}") from error
        known = {segment.base: segment for segment in self._segments}
        fresh: list[_Segment] = []
        for path in paths:
            segment = known.get(int(path.name[:20])) or _Segment.at(path)
            fixed = decode_fixed(read_start(path))
            if fixed is None or fixed.epoch == self.epoch:
                fresh.append(segment)
        if not fresh:
            return False
        if not self._segments:
            self.heads = heads_before(fresh)
        # everything from the segment that was the last one so far: its end was not known yet
        at = max((number for number, segment in enumerate(fresh) if segment.base in known), default=len(fresh) - 1)
        for number in range(at, len(fresh)):
            ceiling = fresh[number + 1].base - 1 if number + 1 < len(fresh) else NO_CEILING
            with contextlib.suppress(FileNotFoundError):
                self._follow(fresh[number], ceiling)
        last = fresh[-1].index
        self._segments = tuple(fresh)
        self.head = max(self.head, last.tip[1] if last is not None else fresh[-1].base - 1)
        return self.head > before

    def _follow(self, segment: _Segment, ceiling: int) -> None:
        """Read on in *segment* from where its index ends."""
        file = self._open(segment.path)
        size = file.size()
        if segment.index is None:
            fixed = decode_fixed(file.read(0, HEADER.size))
            sound = fixed is not None and fixed.data_start <= size
            segment.index = Index(segment.base, fixed.data_start if fixed is not None and sound else HEADER.size)
        index = segment.index
        end, last = index.tip
        at, newest = segment.newest
        if size < HEADER.size:
            return
        if size < end or file.read(at, len(newest)) != newest:
            # the writer took back a batch that it could not sync, and may have put another in its place
            segment.index, segment.newest = None, (0, b"")
            self._bookmarks.clear()
            self._follow(segment, ceiling)
            return
        data = file.read(end, size - end)
        for batch in survey(data, 0, last + 1, ceiling):
            block = len(index.times) - 1
            hole = (batch.start + end, batch.first - 1) != index.tip
            batch = batch._replace(start=batch.start + end, end=batch.end + end)
            index.add_batch(batch)
            segment.newest = (batch.start, data[batch.start - end : batch.start - end + RECORD.size])
            if hole:
                index.checked[block] = index.checked[-1] = 0
                index.whole = False
            for part in batch.parts:
                self.heads[part.topic.decode("utf-8", "replace")] = part.last

    def close(self) -> None:
        """Close the files."""
        self._files.drop()


# --- small files and starts of files -----------------------------------------------------------------------------


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


def read_identity(directory: Path) -> tuple[str, str] | None:
    """Endpoint and epoch from ``journal.json``, None when it is missing or damaged."""
    try:
        values = json.loads((directory / "journal.json").read_bytes())
        endpoint, epoch, form = values["endpoint"], values["epoch"], values["format"]
        if isinstance(form, int) and form > 1:
            raise JournalError(
                f"the journal in {directory} has format {form}, this release reads 1: use the release that wrote it"
            )
        if not isinstance(endpoint, str) or str(uuid.UUID(epoch)) != epoch:
            return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return endpoint, epoch


def identity_from(segments: list[_Segment]) -> tuple[str, str] | None:
    """Endpoint and epoch from the newest segment whose header is sound."""
    for segment in reversed(segments):
        header = read_header(segment.path)
        if header is not None:
            return header.endpoint, header.epoch
    return None


def read_token(directory: Path) -> int:
    """The highest fencing token that has written here; 0 when none has."""
    try:
        return int((directory / "token").read_text())
    except (OSError, ValueError):
        return 0


def heads_before(segments: list[_Segment]) -> dict[str, int]:
    """Each topic's last sequence before the last of *segments*.

    Its header says so. Where that is damaged, an older one and the records since then do; where none is sound, what
    retention has removed stays unknown.
    """
    heads: dict[str, int] = {}
    sound = len(segments) - 1
    while sound > 0 and read_header(segments[sound].path) is None:
        sound -= 1
    header = read_header(segments[sound].path)
    if header is not None:
        heads.update(header.heads)
    for number in range(sound, len(segments) - 1):
        data = read_whole(segments[number].path)
        ceiling = segments[number + 1].base - 1
        for batch in survey(data, header_end(data), segments[number].base, ceiling):
            for part in batch.parts:
                heads[part.topic.decode("utf-8", "replace")] = part.last
    return heads


def header_end(data: bytes) -> int:
    """Where the records of a segment file begin; just after the fixed part when that is damaged."""
    fixed = decode_fixed(data)
    return fixed.data_start if fixed is not None and fixed.data_start <= len(data) else HEADER.size
