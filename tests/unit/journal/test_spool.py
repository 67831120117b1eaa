"""Spools: what was appended is found again, whatever happened to the file."""

from __future__ import annotations

import errno
import os
import resource
import struct
import threading
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbus.errors import DeadlineExceeded, JournalError, JournalWriteError, QueueFull
from fedbus.journal import spool
from fedbus.journal.spool import MAGIC, Spool, frame
from tests.support import wait_until

PATIENCE = 60.0  # seconds, for whatever happens soon, on a slow machine too
UID = os.geteuid()
EPOCH = "019ab000-0000-7000-8000-000000000000"


def payloads_of(path: Path) -> list[bytes]:
    fd = os.open(path, os.O_RDONLY)
    try:
        return [one.payload for one in spool.records(fd, os.fstat(fd).st_size)]
    finally:
        os.close(fd)


def read_all(folder: Path) -> list[bytes]:
    return [payload for waiting in spool.list_waiting(folder) for payload in payloads_of(waiting.path)]


def make(folder: Path, most_bytes: int = 2**20) -> Spool:
    return Spool(folder / "spool" / "koji.hook01", most_bytes=most_bytes)


def test_what_is_appended_is_found_in_its_order_also_by_many_threads(tmp_path: Path) -> None:
    mine = make(tmp_path)

    def append(name: int) -> None:
        for number in range(20):
            mine.append([b"%d-%d" % (name, number)], timeout=30.0)

    threads = [threading.Thread(target=append, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    found = read_all(mine.directory)
    assert sorted(found) == sorted(b"%d-%d" % (name, number) for name in range(4) for number in range(20))
    for name in range(4):
        own = [one for one in found if one.startswith(b"%d-" % name)]
        assert own == [b"%d-%d" % (name, number) for number in range(20)]


def test_its_folder_and_files_are_for_nobody_else(tmp_path: Path) -> None:
    mine = make(tmp_path)
    mine.append([b"x"], timeout=1.0)
    assert mine.directory.stat().st_mode & 0o077 == 0
    for path in mine.directory.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.fault("F3")
def test_a_spool_torn_at_any_byte_keeps_every_whole_message_and_takes_more(tmp_path: Path) -> None:
    mine = make(tmp_path)
    mine.append([b"first", b"second message", b'{"third": 3}'], timeout=1.0)
    (waiting,) = spool.list_waiting(mine.directory)
    whole = waiting.path.read_bytes()
    ends = [len(frame(b"first"))]
    ends.append(ends[-1] + len(frame(b"second message")))
    ends.append(ends[-1] + len(frame(b'{"third": 3}')))
    assert ends[-1] == len(whole)
    names = [b"first", b"second message", b'{"third": 3}']
    for cut in range(len(whole)):
        waiting.path.write_bytes(whole[:cut])
        (mine.directory / f"{UID}.lock").unlink()  # what it says of this file is no longer so
        kept = [name for name, end in zip(names, ends, strict=True) if end <= cut]
        assert payloads_of(waiting.path) == kept
        mine.append([b"more"], timeout=1.0)
        assert payloads_of(waiting.path) == [*kept, b"more"]
        assert waiting.path.stat().st_size == sum(len(frame(one)) for one in [*kept, b"more"])


@pytest.mark.fault("F4")
@given(data=st.data())
def test_a_changed_byte_costs_at_most_the_message_it_is_in(tmp_path_factory, data: st.DataObject) -> None:
    bodies = data.draw(st.lists(st.binary(max_size=60), min_size=1, max_size=6))
    whole = b"".join(map(frame, bodies))
    place = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("spool") / "file"
    path.write_bytes(changed)
    at = 0
    hit = 0
    for number, body in enumerate(bodies):
        if at <= place < at + len(frame(body)):
            hit = number
        at += len(frame(body))
    found = payloads_of(path)
    assert found == bodies[:hit] + bodies[hit + 1 :]


@given(st.binary(max_size=400), st.lists(st.integers(0, 390), max_size=5))
def test_any_bytes_at_all_are_read_to_their_end(tmp_path_factory, garbage: bytes, places: list[int]) -> None:
    data = bytearray(garbage)
    for place in places:
        data[place : place + 4] = MAGIC
    path = tmp_path_factory.mktemp("spool") / "file"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        end = 0
        for one in spool.records(fd, len(data)):
            assert end <= one.start < one.end <= len(data)
            assert bytes(data[one.start : one.end]) == frame(one.payload)
            end = one.end
    finally:
        os.close(fd)


@pytest.mark.badinput("B14")
def test_a_file_full_of_what_only_looks_like_records_is_given_up_soon(tmp_path: Path) -> None:
    # each of them would have a checksum computed over all that follows
    data = b"".join(MAGIC + struct.pack(">II", 400_000, number) for number in range(40_000))
    path = tmp_path / "file"
    path.write_bytes(data)
    computed = 0
    real = zlib.crc32

    def count(payload: bytes, *start: int) -> int:
        nonlocal computed
        computed += len(payload)
        return real(payload, *start)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool.zlib, "crc32", count)
        assert payloads_of(path) == []
    assert computed < 10 * len(data) + 2**21


def test_it_is_bounded_also_by_what_is_just_being_sent(tmp_path: Path) -> None:
    mine = make(tmp_path, most_bytes=300)
    mine.append([b"x" * 200], timeout=1.0)
    with pytest.raises(QueueFull, match=r"relay\.spool_bytes"):
        mine.append([b"x" * 100], timeout=1.0)
    (waiting,) = spool.list_waiting(mine.directory)
    sending = spool.take(waiting, epoch=EPOCH, head=7)
    with pytest.raises(QueueFull):
        mine.append([b"x" * 100], timeout=1.0)
    assert sending is not None
    spool.remove(sending)
    mine.append([b"x" * 100], timeout=1.0)
    with pytest.raises(QueueFull):
        frame(b"x" * 2**24)


def test_all_of_several_messages_are_spooled_or_none(tmp_path: Path) -> None:
    mine = make(tmp_path, most_bytes=200)
    with pytest.raises(QueueFull):
        mine.append([b"a" * 50, b"b" * 50, b"c" * 100], timeout=1.0)
    assert read_all(mine.directory) == []


@pytest.mark.fault("F5")
def test_a_full_disk_is_an_error_and_leaves_what_was_there(tmp_path: Path) -> None:
    mine = make(tmp_path, most_bytes=2**30)
    mine.append([b"before"], timeout=1.0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        # SIGXFSZ is ignored by Python, so the write is short and the next one fails, as on a full disk
        with pytest.raises(JournalWriteError, match="nothing was kept"):
            mine.append([b"x" * 2000], timeout=1.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read_all(mine.directory) == [b"before"]
    mine.append([b"after"], timeout=1.0)
    assert read_all(mine.directory) == [b"before", b"after"]


@pytest.mark.fault("F5")
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_sync_that_fails_is_an_error_and_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    mine = make(tmp_path)
    mine.append([b"before"], timeout=1.0)

    def fail(fd: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(spool.os, "fdatasync", fail)
        with pytest.raises(JournalWriteError, match="cannot spool 1 messages"):
            mine.append([b"lost"], timeout=1.0)
    mine.append([b"after"], timeout=1.0)
    assert read_all(mine.directory) == [b"before", b"after"]


def test_a_lock_that_somebody_holds_is_waited_for_until_the_deadline(tmp_path: Path) -> None:
    mine = make(tmp_path)
    mine.append([b"1"], timeout=1.0)
    with spool.lock(mine.directory, UID, timeout=1.0):
        with pytest.raises(DeadlineExceeded):
            mine.append([b"2"], timeout=0.05)
        (waiting,) = spool.list_waiting(mine.directory)
        assert spool.take(waiting, epoch=EPOCH, head=0) is None
    mine.append([b"2"], timeout=1.0)
    assert read_all(mine.directory) == [b"1", b"2"]


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="the kernel does not tell who waits for locks")
def test_those_who_wait_for_the_spool_get_it_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    mine = make(tmp_path)
    mine.append([b"0"], timeout=PATIENCE)
    inode = (mine.directory / f"{UID}.lock").stat().st_ino

    def queued() -> int:
        # 1: -> FLOCK  ADVISORY  WRITE 3072 08:01:7602200 0 EOF; proc(5)
        lines = Path("/proc/locks").read_text().splitlines()
        return sum("->" in line and f":{inode} " in line for line in lines)

    waiting: list[threading.Thread] = []
    with spool.lock(mine.directory, UID, timeout=PATIENCE):
        for number in range(1, 6):
            one = threading.Thread(target=mine.append, args=([b"%d" % number],), kwargs={"timeout": PATIENCE})
            one.start()
            waiting.append(one)
            wait_until(lambda: queued() == len(waiting), PATIENCE, "another one to wait")
    for one in waiting:
        one.join(PATIENCE)
    assert read_all(mine.directory) == [b"0", b"1", b"2", b"3", b"4", b"5"]


def test_what_is_taken_keeps_its_place_before_what_comes_later(tmp_path: Path) -> None:
    mine = make(tmp_path)
    mine.append([b"1"], timeout=1.0)
    (waiting,) = spool.list_waiting(mine.directory)
    taken = spool.take(waiting, epoch=EPOCH, head=7)
    assert taken is not None
    assert (taken.epoch, taken.head, taken.uid) == (EPOCH, 7, UID)
    mine.append([b"2"], timeout=1.0)
    assert read_all(mine.directory) == [b"1", b"2"]
    (first, second) = spool.list_waiting(mine.directory)
    assert spool.take(first, epoch="other", head=9) == taken
    assert (second.epoch, second.head) == ("", 0)
    spool.remove(taken)
    assert read_all(mine.directory) == [b"2"]


@pytest.mark.badinput("B45")
def test_a_link_or_something_else_in_its_place_is_not_written_to(tmp_path: Path) -> None:
    mine = make(tmp_path)
    mine.append([b"1"], timeout=1.0)
    (waiting,) = spool.list_waiting(mine.directory)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    for plant in (waiting.path.symlink_to, lambda target: os.link(target, waiting.path)):
        waiting.path.unlink()
        plant(victim)
        with pytest.raises(JournalWriteError):
            mine.append([b"2"], timeout=1.0)
        with pytest.raises(JournalError):
            spool.open_file(waiting)
    waiting.path.unlink()
    os.mkfifo(waiting.path)
    with pytest.raises(JournalWriteError):
        mine.append([b"2"], timeout=1.0)
    with pytest.raises(JournalError):
        spool.open_file(waiting)
    assert victim.read_bytes() == b"precious"


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert spool.list_waiting(tmp_path / "nowhere") == []


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    mine = make(tmp_path)
    mine.append([b"1"], timeout=1.0)
    for name in ("0.refused", "x.messages", "0.messages~", f"0.{EPOCH}.7.sending"):
        (mine.directory / name).write_bytes(b"?")
    assert read_all(mine.directory) == [b"1"]
