"""SQLite when it is busy, full, damaged or gone: nothing is lost in silence, and nothing is there twice."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from fedbus import HistoryDamaged, HistoryQuery, HistoryStore, HistoryUnavailable
from fedbus.history import partition
from fedbus.history.verify import SealCheck, State
from tests.unit.history.press import WALL, Press
from tests.unit.history.stores import Open, opener

NAME = "2027-01.db"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "history"


@pytest.fixture
def open_it(folder: Path, press: Press) -> Open:
    return opener(str(folder), press.clock)


def bodies(start: int, count: int) -> list[dict[str, object]]:
    return [{"n": number, "text": "word " * 40} for number in range(start, start + count)]


def numbers(store: HistoryStore) -> list[int]:
    return sorted(one.message().body["n"] for one in store.find(HistoryQuery()))


def salvage(store: HistoryStore, press: Press, where: str) -> int:
    """As `fedbus history rebuild` does."""
    check = SealCheck(press.verifier)
    good = [one for one in store.set_aside(where) if check.check(one).state is State.GOOD]
    return store.write([one.message() for one in good]).new


@pytest.mark.fault("F18")
def test_a_database_that_another_one_keeps_locked_is_waited_for_and_then_told(open_it, folder, press, monkeypatch):
    monkeypatch.setattr(partition, "BUSY_SECONDS", 0.05)
    messages = press.batch(bodies(0, 3))
    with open_it() as store:
        store.write(messages[:1])
        other = sqlite3.connect(folder / NAME, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(HistoryUnavailable, match="locked"):
            store.write(messages)
        other.execute("ROLLBACK")
        other.close()
        assert store.write(messages).new == 2
        assert numbers(store) == [0, 1, 2]


@pytest.mark.fault("F18")
def test_a_full_disk_keeps_nothing_of_a_batch_and_heals_by_itself(open_it, folder, press):
    with open_it() as store:
        store.write(press.batch(bodies(0, 5)))
        more = press.batch(bodies(5, 500))
        part = store._open["2027-01"]  # type: ignore[attr-defined]
        (pages,) = part.connection.execute("PRAGMA page_count").fetchone()
        part.connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(HistoryUnavailable, match="full"):
            store.write(more)
        assert numbers(store) == list(range(5))
        assert store.write(more).new == 500  # the file was opened again, without that bound
        assert list(store.faults()) == []


@pytest.mark.fault("F18")
def test_a_damaged_file_is_told_and_its_messages_are_saved_from_it(open_it, folder, press):
    with open_it() as store:
        for start in range(0, 2000, 100):
            store.write(press.batch(bodies(start, 100)))
        store.write(press.batch(bodies(5000, 5), wall=WALL - 40 * 86400))
    path = folder / NAME
    data = bytearray(path.read_bytes())
    page = partition.PAGE_BYTES
    middle = len(data) // 2 // page * page
    data[middle : middle + 3 * page] = os.urandom(3 * page)
    path.write_bytes(data)
    again = press.batch(bodies(9000, 5))
    with open_it() as store:
        assert {fault.where for fault in store.faults() if fault.aside} == {NAME}
        saved = salvage(store, press, NAME)
        # all but what stood on the pages that are gone; and other files are as they were
        assert 1900 < saved <= 2000
        kept = numbers(store)
        assert len(kept) == len(set(kept)) == saved + 5
        assert set(range(5000, 5005)) <= set(kept)
        assert store.write(again).new == 5
        assert list(store.faults()) == []
    assert (folder / f"{NAME}.damaged-1").exists()


@pytest.mark.fault("F18")
@pytest.mark.parametrize("garbage", [b"", b"no database at all" * 1000, b"SQLite format 3\0" + bytes(5000)])
def test_what_is_no_database_is_told_and_can_be_replaced(open_it, folder, press, garbage):
    first, second = press.batch(bodies(0, 3)), press.batch(bodies(3, 3))
    with open_it() as store:
        store.write(first)
    (folder / NAME).write_bytes(garbage)
    with open_it() as store:
        if garbage:
            with pytest.raises(HistoryDamaged, match="rebuild"):
                store.write(second)
            assert NAME in {fault.where for fault in store.faults()}
            assert salvage(store, press, NAME) == 0
        store.write([*first, *second])
        assert numbers(store) == list(range(6))


@pytest.mark.fault("F18")
def test_writes_that_are_gone_with_a_damaged_log_are_told_until_they_were_read_again(
    open_it, folder, press, tmp_path, caplog
):
    batches = [press.batch(bodies(start, 10)) for start in range(0, 50, 10)]
    with open_it() as store:
        store.write(batches[0])
    # as after a crash: the log holds what was written since the last checkpoint
    store = open_it()
    for batch in batches[1:]:
        store.write(batch)
    crashed = tmp_path / "crashed"
    shutil.copytree(folder, crashed)
    store.close()
    log_file = crashed / f"{NAME}-wal"
    data = bytearray(log_file.read_bytes())
    data[len(data) // 2] ^= 1
    log_file.write_bytes(data)
    (crashed / f"{NAME}-shm").unlink()
    with opener(str(crashed), press.clock)() as store, caplog.at_level(logging.ERROR):
        last = press.batch(bodies(50, 1))
        store.write(last)
        assert "are gone" in caplog.text
        assert 0 < len(numbers(store)) < 51
        assert [fault.aside for fault in store.faults()] == [False]
        for batch in batches:
            store.write(batch)
        assert numbers(store) == list(range(51))
        store.settle()
        assert list(store.faults()) == []


@pytest.mark.fault("F18")
def test_a_file_that_holds_less_than_was_written_is_told_before_anybody_writes_again(open_it, folder, press):
    with open_it() as store:
        store.write(press.batch(bodies(0, 3)))
    older = (folder / NAME).read_bytes()
    with open_it() as store:
        store.write(press.batch(bodies(3, 3)))
        assert list(store.faults()) == []
    for content, writes in ((older, 1), (b"", 2)):
        (folder / NAME).write_bytes(content)
        with open_it() as store:
            told = f"the last {writes} of its writes are gone"
            assert [(fault.where, fault.text, fault.aside) for fault in store.faults()] == [(NAME, told, False)]
            assert [one.fault for one in store.partitions()] == [told]
    with open_it() as store:
        store.settle()  # no journal has them any more
        assert list(store.faults()) == []
        assert [one.fault for one in store.partitions()] == [""]


@pytest.mark.fault("F18")
def test_a_file_that_is_gone_is_told_and_not_begun_anew_in_silence(open_it, folder, press):
    messages = press.batch(bodies(0, 3))
    with open_it() as store:
        store.write(messages)
    (folder / NAME).unlink()
    with open_it() as store:
        with pytest.raises(HistoryDamaged, match="gone"):
            store.write(messages)
        assert [(one.name, bool(one.fault)) for one in store.partitions()] == [("2027-01", True)]
        assert salvage(store, press, NAME) == 0
        assert store.write(messages).new == 3


def test_a_file_that_was_replaced_meanwhile_is_opened_anew(open_it, folder, press, tmp_path):
    messages = press.batch(bodies(0, 9))
    with open_it() as store:
        store.write(messages[:3])
        with open_it() as other:
            assert salvage(other, press, NAME) == 3
        assert store.write(messages).new == 6
        assert numbers(store) == list(range(9))


def test_files_are_for_their_owner_alone_and_foreign_files_do_not_matter(open_it, folder, press):
    with open_it() as store:
        store.write(press.batch(bodies(0, 1)))
        (folder / "notes.db").write_text("mine")
        (folder / "README").write_text("mine")
        assert [one.name for one in store.partitions()] == ["2027-01"]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.glob("20*.db*")} == {0o600}


def test_a_history_is_read_where_nobody_may_write(open_it, folder, press):
    with open_it() as store:
        store.write(press.batch(bodies(0, 3)))
    folder.chmod(0o500)
    try:
        with open_it(writable=False) as reader:
            assert numbers(reader) == [0, 1, 2]
    finally:
        folder.chmod(0o700)


def test_a_file_that_its_first_writer_has_only_just_made_is_empty_and_no_damage(open_it, folder, press):
    with open_it() as store:
        (folder / NAME).touch()
        assert numbers(store) == []
        assert store.count(HistoryQuery(text="word")) == 0
        assert [(one.name, one.fault) for one in store.partitions()] == [("2027-01", "")]
        assert list(store.faults()) == []
        store.write(press.batch(bodies(0, 2)))
        assert numbers(store) == [0, 1]
