"""Segments in a row: the durable, numbered home of one endpoint's stream, as the one process sees it that writes it."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Sequence
from typing import Self

import uuid_utils

from fedbus.clock import Clock
from fedbus.errors import Fenced, JournalError, JournalWriteError
from fedbus.failpoints import ARMED, hit, torn_writev
from fedbus.journal import opening
from fedbus.journal.index import Index
from fedbus.journal.opening import heads_before
from fedbus.journal.options import JournalOptions, SyncPolicy
from fedbus.journal.reader import JournalReader
from fedbus.journal.reading import UNSOUND, Reading, Segment
from fedbus.journal.retention import DoubtedClock, SegmentInfo, removable
from fedbus.journal.segment import (
    AHEAD,
    OpenFile,
    Record,
    SegmentHeader,
    decode_fixed,
    frame_batch,
    header_end,
    list_segments,
    read_start,
    segment_name,
    split_records,
    survey,
    sync_data,
    write_atomically,
)
from fedbus.model.position import FencingToken
from fedbus.model.stream import Slice

__all__ = ["Journal", "JournalOptions", "JournalReader", "Record", "Slice", "SyncPolicy", "split_records"]

log = logging.getLogger(__name__)

_IOV_MAX = os.sysconf("SC_IOV_MAX")
_UNCACHE_STEP = 4 * 2**20  # bytes let go of by the page cache at once
_WINDOW_SECONDS = 10.0
_ROLL_AGE = 1 / 8  # of retain_age: so much longer than that may a message of a quiet stream be kept


class SyncTimes:
    """How often the disk was asked to sync, and how long that took; a look at it from another thread does no harm."""

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        self._recent = (0.0, 0.0)  # the longest of the last window, and of this one
        self._turned_at = float("-inf")

    def note(self, now: float, seconds: float) -> None:
        """Note a sync that ended at the monotonic time *now*, whether it succeeded or not."""
        self.count += 1
        self.seconds += seconds
        if now - self._turned_at > _WINDOW_SECONDS:
            self._recent = (self._recent[1] if now - self._turned_at < 2 * _WINDOW_SECONDS else 0.0, seconds)
            self._turned_at = now
        elif seconds > self._recent[1]:
            self._recent = (self._recent[0], seconds)

    def longest(self, now: float) -> float:
        """Return the seconds of the longest sync within the last ten to twenty seconds."""
        since = now - self._turned_at
        if since > 2 * _WINDOW_SECONDS:
            return 0.0
        return self._recent[1] if since > _WINDOW_SECONDS else max(self._recent)


class Journal(Reading):
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
        self.syncs = SyncTimes()
        self._clock = clock
        self._age_clock = DoubtedClock(clock)
        self._may_mark = True
        self._token = 0
        self._always = options.sync is SyncPolicy.ALWAYS
        self._turn = threading.RLock()  # held by whoever writes
        self._closed = False
        self._file: OpenFile | None = None  # the active segment's
        self._end = 0  # where the next batch goes
        self._uncached = 0  # what is before it in the active segment was let go of by the page cache
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
            journal._lock_fd = opening.lock(options.directory, endpoint)
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

    @classmethod
    def create(cls, options: JournalOptions, *, endpoint: str, epoch: str, first: int, clock: Clock) -> Self:
        """Make the journal of *endpoint* anew, in a folder that has none, to take up *epoch* from sequence *first* on.

        Raises:
            JournalError: There is a journal already, or the folder cannot be used.
        """
        try:
            options.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if list_segments(options.directory):
                raise JournalError(f"there is a journal in {options.directory} already; move it away")
            maker = cls(options, endpoint, clock)
            maker.epoch = epoch
            maker._begin_segment(first, {})
            maker._release()
            opening.write_identity(options.directory, endpoint, epoch)
        except OSError as error:
            raise JournalError(f"cannot make a journal in {options.directory}: {error.strerror}") from error
        return cls.open(options, endpoint=endpoint, clock=clock)

    def pass_over(self) -> None:
        """Go on with a number far ahead, since nobody knows how many were given out; readers are told of a loss.

        Raises:
            JournalWriteError: The disk refused.
        """
        with self._turn:
            try:
                self._sync_active()
                closed = self._segments[-1]
                self._begin_segment(self.head + 1 + AHEAD, self.heads)
            except OSError as error:
                raise JournalWriteError(f"cannot begin a segment in {self.directory}: {error.strerror}") from error
            if closed.index is not None:
                self._keep_index(closed, closed.index)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- opening

    def _load(self) -> None:
        for left in self.directory.glob("*.new"):
            left.unlink(missing_ok=True)
        identity = opening.read_identity(self.directory)
        segments = [Segment.at(path) for path in list_segments(self.directory)]
        if identity is None and segments:
            identity = opening.identity_from(segments)
            if identity is not None:
                log.error("%s is missing or damaged; restored it from the segments", self.directory / "journal.json")
                opening.write_identity(self.directory, *identity)
        if identity is not None:
            if identity[0] != self.endpoint:
                raise JournalError(
                    f"the journal in {self.directory} belongs to endpoint {identity[0]!r}, not {self.endpoint!r}; "
                    f"give each endpoint a folder of its own"
                )
            self.epoch = identity[1]
            segments = opening.own_segments(segments, self.epoch)
        else:
            opening.set_aside(segments, "whose journal nobody can tell any more")
            segments = []
        if not segments:
            if identity is not None:
                log.error("the journal in %s has lost all its segments; it goes on with a new epoch", self.directory)
            self.epoch = str(uuid_utils.uuid7())
            self._begin_segment(1, {})
            if ARMED:
                hit("journal.create")
            opening.write_identity(self.directory, self.endpoint, self.epoch)
            return
        self._token = opening.read_token(self.directory)
        self._recover(segments)

    def _recover(self, segments: list[Segment]) -> None:
        """Find the head: read the last segment through, cut off what is torn, pass over what is damaged."""
        active = segments[-1]
        self.heads = heads_before(segments)
        found = opening.look_into(active)
        self.heads.update(found.index.topics)
        file, last = found.file, found.last
        if found.sound and not found.vanished:
            end = found.index.tip[0]
            if end < found.size:
                self.cut = found.size - end
                log.warning("cut %d bytes of a torn batch after sequence %d off %s", self.cut, last, active.path)
                if ARMED:
                    hit("journal.recover")
                os.ftruncate(file.fd, end)
            sync_data(file.fd)
            active.index = found.index
            self._segments = tuple(segments)
            self._file, self._end, self._safe = file, end, (end, last)
            self.head = self.synced = last
            return
        sync_data(file.fd)
        if found.hollow:
            opening.set_aside([segments.pop()], "of which nothing can be read")
        if found.vanished:
            # how many messages there were nobody knows: their numbers must not be given out a second time
            log.error(
                "the newest messages after %s have vanished; the next message gets a number far ahead, and "
                "readers are told that what lies between is lost",
                active.path,
            )
            last += AHEAD
        else:
            log.error("%s is damaged; it is kept as it is, and a new segment is begun", active.path)
            if not found.hollow:  # what is beside a file that was set aside nobody looks at
                self._note_damage(active, UNSOUND)
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
        self._segments = (*kept, Segment(path, base, Index(base, len(header))))
        if self._file is not None and self.options.cached_bytes:
            self._uncache(self._end)
        self._file, self._end, self._safe = file, len(header), (len(header), base - 1)
        self._uncached = 0
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
            if self.options.cached_bytes and self._end - self._uncached > self.options.cached_bytes + _UNCACHE_STEP:
                self._uncache(self._end - self.options.cached_bytes)

    def _uncache(self, end: int) -> None:
        """Let the page cache give up what stands before *end* in the active segment.

        A journal is written for ever and read rarely, and mostly at its end. Pages that it gives back are those that
        its next writes take, which is several times quicker than taking memory that nobody has touched lately, and the
        other programs of the host keep theirs.
        """
        assert self._file is not None
        try:
            os.posix_fadvise(self._file.fd, self._uncached, end - self._uncached, os.POSIX_FADV_DONTNEED)
        except OSError:
            pass  # advice that this file system does not take
        self._uncached = end

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
            if ARMED:
                hit("journal.write.before")
            done = torn_writev("journal.write.torn", fd, buffers) if ARMED else os.writev(fd, buffers)
            if done != total:
                rest = memoryview(b"".join(buffers))[done:]
                while rest:
                    rest = rest[os.write(fd, rest) :]
            written = True
            if ARMED:
                hit("journal.write.after")
            if self._always:
                self._sync(fd)
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

    def _sync(self, fd: int) -> None:
        monotonic = self._clock.monotonic
        begun = monotonic()
        try:
            sync_data(fd)
        finally:
            now = monotonic()
            self.syncs.note(now, now - begun)

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
        if ARMED:
            hit("journal.roll.before")
        self._begin_segment(self.head + 1, self.heads)
        if ARMED:
            hit("journal.roll.after")
        assert closed.index is not None
        self._keep_index(closed, closed.index)
        self._retain()

    def _sync_active(self) -> None:
        assert self._file is not None
        if self.synced >= self.head:
            return
        try:
            self._sync(self._file.fd)
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
        if ARMED:
            hit("journal.rewrite")
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
        self._segments = (*kept, Segment(path, last + 1, index))
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
            self._sync(file.fd)
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
        now = self._age_clock.wall()
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
                if ARMED:
                    hit("journal.retain.before")
                segment.path.unlink(missing_ok=True)
            except OSError as error:
                log.error("cannot remove %s: %s; the journal grows beyond its limit", segment.path, error.strerror)
                break
            removed += 1
            self._segments = segments[removed:]
            self._files.drop(segment.path)
            for suffix in (".index", ".damaged"):
                with contextlib.suppress(OSError):
                    if ARMED:
                        hit("journal.retain.after")
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
