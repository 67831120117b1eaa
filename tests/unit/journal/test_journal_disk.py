"""A disk that is full, fails, or takes half of a write; and what retention removes."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbus.clock import ManualClock
from fedbus.errors import JournalWriteError
from fedbus.journal.journal import Journal, JournalReader, SyncPolicy
from fedbus.journal.retention import SegmentInfo, removable
from tests.support import wait_until
from tests.unit.journal.journals import ENDPOINT, append_one, check_records, files_of, open_journal, options, read_all


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


class Disk:
    """The far edge: system calls of the real disk that fail when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failing: dict[str, int] = {}
        self.calls: dict[str, int] = {}
        self.longest = 2**62
        self.sound_calls = 0  # how many calls that are to fail succeed before
        for name in ("writev", "write", "fdatasync", "fsync", "ftruncate"):
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(fd: int, *args: Any) -> Any:
            self.calls[name] = self.calls.get(name, 0) + 1
            if name in self.failing and self.sound_calls:
                self.sound_calls -= 1
            elif name in self.failing:
                raise OSError(self.failing[name], os.strerror(self.failing[name]))
            if name == "writev":
                data = b"".join(args[0])
                if len(data) > self.longest:
                    return os.pwrite(fd, data[: self.longest], 0)  # O_APPEND: at the end
            return real(fd, *args)

        return call


@pytest.mark.fault("F5")
@pytest.mark.parametrize("sync", list(SyncPolicy))
def test_a_file_that_may_not_grow_fails_the_append_and_heals_without_a_restart(
    tmp_path: Path, sync: SyncPolicy
) -> None:
    with open_journal(tmp_path, sync=sync) as journal:
        for _ in range(5):
            append_one(journal)
        path = files_of(tmp_path)[0]
        size, head = path.stat().st_size, journal.head
        for room in (0, 1, 40, 100):
            with file_size_limit(size + room), pytest.raises(JournalWriteError):
                append_one(journal, extra=500)
            assert (journal.head, path.stat().st_size) == (head, size)
            check_records(*read_all(journal), head=head)
        append_one(journal)
        check_records(*read_all(journal), head=journal.head)
        assert len(files_of(tmp_path)) == 1
    with open_journal(tmp_path) as journal:
        check_records(*read_all(journal), head=journal.head)


@pytest.mark.fault("F5")
def test_half_a_write_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    with open_journal(tmp_path) as journal:
        for disk.longest in (1, 31, 33, 100, 150):
            append_one(journal)
        check_records(*read_all(journal), head=journal.head)
    with open_journal(tmp_path) as journal:
        check_records(*read_all(journal), head=journal.head)


@pytest.mark.fault("F5")
@pytest.mark.parametrize("truncates", [True, False])
@pytest.mark.parametrize("call", ["writev", "fdatasync"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EROFS])
def test_after_a_refused_write_or_sync_nothing_of_the_batch_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: int, truncates: bool
) -> None:
    disk = Disk(monkeypatch)
    with open_journal(tmp_path, sync=SyncPolicy.ALWAYS) as journal:
        append_one(journal)
        head, heads = journal.head, dict(journal.heads)
        disk.failing = {call: error} if truncates else {call: error, "ftruncate": error}
        for _ in range(3):
            with pytest.raises(JournalWriteError, match="free space or mend the disk"):
                append_one(journal, extra=99)
        assert (journal.head, journal.heads, journal.synced) == (head, heads, head)
        check_records(*read_all(journal), head=head)
        disk.failing = {}
        for _ in range(3):
            append_one(journal)
        check_records(*read_all(journal), head=journal.head)
        # data that a failed sync may have lost is never built upon
        assert (len(files_of(tmp_path)) == 1) == (call == "writev" and truncates)
        head, heads = journal.head, dict(journal.heads)
    with open_journal(tmp_path) as journal, JournalReader.open(tmp_path) as reader:
        assert (journal.head, journal.heads) == (reader.head, reader.heads) == (head, heads)
        check_records(*read_all(journal), head=journal.head)
        check_records(*read_all(reader), head=journal.head)


@pytest.mark.fault("F5")
@pytest.mark.parametrize("segment_bytes", [1000, 10**6])
def test_what_a_failed_sync_left_open_is_written_again_when_the_disk_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, segment_bytes: int
) -> None:
    disk = Disk(monkeypatch)
    journal = open_journal(tmp_path, segment_bytes=segment_bytes)
    for _ in range(4):
        append_one(journal)
    journal.sync()
    synced = journal.synced
    append_one(journal)
    append_one(journal)
    disk.failing = {"fdatasync": errno.EIO, "fsync": errno.EIO}
    for _ in range(2):
        with pytest.raises(JournalWriteError):
            journal.sync()
    with pytest.raises(JournalWriteError):
        append_one(journal)
    assert synced <= journal.synced < journal.head
    disk.failing = {}
    append_one(journal)
    journal.sync()
    assert journal.synced == journal.head
    check_records(*read_all(journal), head=journal.head)
    head, heads = journal.head, dict(journal.heads)
    journal.close()
    with open_journal(tmp_path, segment_bytes=segment_bytes) as journal:
        assert (journal.head, journal.heads) == (head, heads)
        check_records(*read_all(journal), head=journal.head)
        append_one(journal)
        check_records(*read_all(journal), head=journal.head)


@pytest.mark.fault("F5")
def test_the_helper_thread_survives_a_failing_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    with open_journal(tmp_path, sync=SyncPolicy.INTERVAL, sync_interval=0.002) as journal:
        disk.failing = {"fdatasync": errno.EIO, "fsync": errno.EIO}
        append_one(journal)
        wait_until(lambda: disk.calls.get("fsync", 0) > 3, what="a try to write again")
        assert journal.synced == 0
        disk.failing = {}
        wait_until(lambda: journal.synced == journal.head, what="the sync")
        append_one(journal)
        check_records(*read_all(journal), head=journal.head)


@pytest.mark.fault("F5")
@pytest.mark.parametrize("sound_calls", [0, 1])
@pytest.mark.parametrize("sync", list(SyncPolicy))
def test_a_roll_that_the_disk_refuses_at_any_step_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sound_calls: int, sync: SyncPolicy
) -> None:
    disk = Disk(monkeypatch)
    for turn in range(12):
        with open_journal(tmp_path, segment_bytes=2000, sync=sync) as journal:
            check_records(*read_all(journal), head=journal.head)
            disk.failing, disk.sound_calls = {"fsync": errno.ENOSPC}, sound_calls  # of the new file, or of its name
            for _ in range(1 + turn % 3):
                try:
                    append_one(journal, extra=300)
                except JournalWriteError:
                    disk.failing = disk.failing if turn % 2 else {}
            disk.failing = {}
            if turn % 4:
                append_one(journal, extra=0)  # small enough for the segment that was to be closed
            check_records(*read_all(journal), head=journal.head)
            head, heads = journal.head, dict(journal.heads)
        with open_journal(tmp_path, segment_bytes=2000, sync=sync) as journal:
            assert (journal.head, journal.heads) == (head, heads)
        assert not list(tmp_path.glob("*.new"))


def test_each_append_is_one_write_and_at_most_one_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    for policy, syncs in ((SyncPolicy.ALWAYS, 50), (SyncPolicy.ASYNC, 0)):
        with open_journal(tmp_path / policy, sync=policy) as journal:
            disk.calls.clear()
            for _ in range(50):
                append_one(journal)
            assert disk.calls.get("writev") == 50 and disk.calls.get("fdatasync", 0) == syncs
            assert not disk.calls.keys() - {"writev", "fdatasync"}


# --- retention


@given(
    st.lists(st.tuples(st.integers(0, 100), st.floats(0, 1000)), min_size=1),
    st.integers(0, 500),
    st.floats(0, 500),
    st.floats(0, 2000),
)
def test_retention_takes_only_from_the_old_end_and_only_what_is_over_a_limit(
    sizes: list[tuple[int, float]], retain_bytes: int, retain_age: float, now: float
) -> None:
    segments = [SegmentInfo(n, size, closed) for n, (size, closed) in enumerate(sizes)]
    count = removable(segments, retain_bytes, retain_age, now)
    assert 0 <= count < len(segments)
    left = segments[count:]
    if retain_bytes and len(left) > 1:
        assert sum(segment.size_bytes for segment in left) <= retain_bytes
    if retain_age and len(left) > 1:
        assert now - left[0].closed_at <= retain_age
    if not retain_bytes and not retain_age:
        assert count == 0
    if count and not retain_age:
        assert sum(segment.size_bytes for segment in segments[count - 1 :]) > retain_bytes


def test_retention_moves_the_start_reports_the_loss_and_keeps_the_heads(tmp_path: Path) -> None:
    with open_journal(tmp_path, segment_bytes=2000, retain_bytes=6000) as journal:
        records = [(1, "org.example.dev.koji.rare.event", b"org.example.dev.koji.rare.event\0")]
        journal.append(records, first=1, size=1, time_ms=0)
        while journal.start == 1:
            append_one(journal)
        for _ in range(50):
            append_one(journal)
        assert sum(path.stat().st_size for path in files_of(tmp_path)) <= 6000 + 2000
        part = journal.read(0, 100)
        assert part.lost == ((1, journal.start - 1),)
        found, lost = read_all(journal, journal.start - 1)
        assert not lost
        check_records(found, lost, head=journal.head, start=journal.start)
        assert journal.position_at(0) == journal.start - 1
        heads, start, head = dict(journal.heads), journal.start, journal.head
        assert heads["org.example.dev.koji.rare.event"] == 1
    with open_journal(tmp_path, segment_bytes=2000, retain_bytes=6000) as journal:
        assert (journal.heads, journal.start, journal.head) == (heads, start, head)


def test_age_removes_closed_segments_when_retain_is_called(tmp_path: Path) -> None:
    clock = ManualClock()
    with Journal.open(
        options(tmp_path, segment_bytes=2000, retain_age=60.0), endpoint=ENDPOINT, clock=clock
    ) as journal:
        for _ in range(40):
            append_one(journal)
        assert journal.retain() == 0 and journal.start == 1
        clock.advance(61.0)
        before = len(files_of(tmp_path))
        assert journal.retain() == before - 1 > 2
        # what was the active segment has been closed for its age, and its own age counts from now
        names = [f"{journal.start:020d}.journal", f"{journal.head + 1:020d}.journal"]
        assert [path.name for path in files_of(tmp_path)] == names
        assert len(list(tmp_path.glob("*.index"))) == 1
        with JournalReader.open(tmp_path) as reader:
            assert (reader.start, reader.head, reader.heads) == (journal.start, journal.head, journal.heads)


@pytest.mark.fault("F12")
def test_a_clock_that_jumps_forth_and_back_removes_nothing_and_one_that_stays_there_is_believed_after_a_day(
    tmp_path: Path,
) -> None:
    clock = ManualClock()
    day = 86_400.0
    with Journal.open(
        options(tmp_path, segment_bytes=2000, retain_age=7 * day), endpoint=ENDPOINT, clock=clock
    ) as journal:
        for _ in range(40):
            append_one(journal)
        for jump in (day, 400 * day, -400 * day, -day):
            clock.jump(jump)
            assert journal.retain() == 0
            clock.advance(3600.0)
            assert journal.retain() == 0 and journal.start == 1
        clock.jump(8 * day)
        assert journal.retain() == 0
        clock.advance(day - 1.0)
        assert journal.retain() == 0 and journal.start == 1
        clock.advance(1.0)
        assert journal.retain() > 2 and journal.start > 1


def test_a_reader_in_a_segment_that_retention_removes_is_told(tmp_path: Path) -> None:
    with open_journal(tmp_path, segment_bytes=2000, retain_bytes=4000) as journal:
        append_one(journal)
        with JournalReader.open(tmp_path) as reader:
            while journal.start == 1:
                append_one(journal)
            reader.refresh()
            records, lost = read_all(reader)
            assert lost == [(1, journal.start - 1)]
            check_records(records, lost, head=journal.head)


def test_a_quiet_stream_does_not_keep_its_messages_for_ever(tmp_path: Path) -> None:
    clock = ManualClock()
    with Journal.open(options(tmp_path, retain_age=800.0), endpoint=ENDPOINT, clock=clock) as journal:
        head = append_one(journal)
        heads = dict(journal.heads)
        assert journal.retain() == 0 and journal.start == 1
        clock.advance(101.0)  # an eighth of the age: the segment is closed, and so begins to age
        assert journal.retain() == 0 and journal.start == 1
        clock.advance(801.0)
        assert journal.retain() == 1
        assert (journal.start, journal.head, journal.heads) == (head + 1, head, heads)
        append_one(journal)
        assert journal.head > head and journal.start == head + 1
    with Journal.open(options(tmp_path, retain_age=800.0), endpoint=ENDPOINT, clock=clock) as journal:
        assert journal.start == head + 1
