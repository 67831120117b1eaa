"""From a sequence to bytes: what the writer of a journal and those who only look at it have in common."""

from __future__ import annotations

import contextlib
import logging
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path

from fedbus.errors import JournalError
from fedbus.failpoints import ARMED, hit
from fedbus.journal.index import Index
from fedbus.journal.segment import (
    HEADER,
    NO_CEILING,
    RECORD,
    FileCache,
    OpenFile,
    decode_fixed,
    decode_header,
    header_end,
    survey,
    write_atomically,
)
from fedbus.model.stream import Slice

log = logging.getLogger(__name__)

_BOOKMARKS = 256  # readers whose next place is remembered exactly
UNSOUND = "its records do not follow on each other, or its header is not sound"
_SCAN_BYTES = 4 * 2**20  # what one filtered read looks at, at most, before it answers "nothing up to here"


class Segment:
    """A segment file and, once it was needed, its index."""

    __slots__ = ("base", "index", "newest", "path")

    def __init__(self, path: Path, base: int, index: Index | None = None) -> None:
        self.path = path
        self.newest = (0, b"")  # where the last batch begins that a follower has seen, and the header it had
        self.base = base
        self.index = index

    @classmethod
    def at(cls, path: Path) -> Segment:
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


class Reading:
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
        self._segments: tuple[Segment, ...] = ()
        self._files = FileCache()
        self._bookmarks: dict[int, tuple[Segment, int, int]] = {}
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
        segment: Segment,
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
        segment: Segment,
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

    def _bookmark(self, through: int, segment: Segment, block: int, offset: int) -> None:
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

    def span(self) -> tuple[int | None, int | None]:
        """The wall times in ms of the first and of the latest batch that is kept; None where there is none."""
        oldest = newest = None
        segments = self._segments
        for segment in segments:
            with contextlib.suppress(FileNotFoundError):
                file = self._open(segment.path)
                start = decode_fixed(file.read(0, HEADER.size))
                record = b"" if start is None else file.read(start.data_start, RECORD.size)
                if len(record) == RECORD.size:
                    oldest = RECORD.unpack(record)[5]
                    break
        for number in range(len(segments) - 1, -1, -1):
            ceiling = segments[number + 1].base - 1 if number + 1 < len(segments) else NO_CEILING
            with contextlib.suppress(FileNotFoundError):
                index = self._index(segments[number], ceiling)
                if index.times[-1]:
                    newest = index.times[-1]
                    break
        return oldest, newest

    def count(self) -> int:
        """How many sequences are in the files, by their indexes: from start to head, less what lies between files."""
        segments = self._segments
        found = 0
        for number, segment in enumerate(segments):
            ceiling = segments[number + 1].base - 1 if number + 1 < len(segments) else NO_CEILING
            with contextlib.suppress(FileNotFoundError):
                found += min(self._index(segment, ceiling).tip[1], ceiling) - segment.base + 1
        return found

    def disk_bytes(self) -> int:
        """How many bytes the segments take; any thread may ask."""
        total = 0
        for segment in self._segments:
            with contextlib.suppress(OSError):
                total += segment.path.stat().st_size
        return total

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

    def _index(self, segment: Segment, ceiling: int) -> Index:
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

    def _scan(self, segment: Segment, ceiling: int) -> Index:
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
            self._note_damage(segment, UNSOUND)
        elif self._may_mark:
            self._keep_index(segment, index)
        return index

    def _keep_index(self, segment: Segment, index: Index) -> None:
        """Write the index beside its segment; only a help, so a full disk is no reason to fail."""
        with contextlib.suppress(OSError):
            if ARMED:
                hit("journal.index")
            write_atomically(segment.sidecar(".index"), index.encode(segment.path.stat().st_size))

    def _note_damage(self, segment: Segment, text: str) -> None:
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
