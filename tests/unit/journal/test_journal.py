"""The journal as its writer and its readers meet it."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from fedbus.clock import ManualClock
from fedbus.errors import Fenced, JournalError, JournalLocked, WireError
from fedbus.journal.journal import Journal, JournalReader, SyncPolicy, split_records
from fedbus.model.position import FencingToken
from tests.support import wait_until
from tests.unit.journal.journals import (
    ENDPOINT,
    TOPICS,
    append_one,
    batch_at,
    check_records,
    files_of,
    open_journal,
    options,
    read_all,
)


def test_an_empty_journal_starts_after_its_head(tmp_path: Path) -> None:
    with open_journal(tmp_path / "j") as journal:
        assert (journal.head, journal.start, journal.heads) == (0, 1, {})
        answer = journal.read(0, 1000)
        assert (answer.data, answer.through, answer.end, answer.lost) == (b"", 0, True, ())


def test_folder_and_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    with open_journal(tmp_path / "state" / "j") as journal:
        append_one(journal)
    assert stat.S_IMODE((tmp_path / "state" / "j").stat().st_mode) == 0o700
    for path in (tmp_path / "state" / "j").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.fault("F1")
@pytest.mark.parametrize("budget", [1, 300, 5_000, 100_000, 10**7])
def test_all_that_was_appended_is_read_back_from_any_place(tmp_path: Path, budget: int) -> None:
    with open_journal(tmp_path, segment_bytes=200_000) as journal:
        lasts = [append_one(journal, extra=700) for _ in range(400)]
        assert len(files_of(tmp_path)) > 2
        check_records(*read_all(journal, budget=budget), head=journal.head)
        for after in (*range(40), *range(journal.head - 20, journal.head)):
            records, lost = read_all(journal, after, budget)
            begins = max((last for last in lasts if last <= after), default=0) + 1
            check_records(records, lost, head=journal.head, start=begins)
        assert journal.read(journal.head + 5, 10).through == journal.head + 5


def test_a_read_ends_with_a_whole_batch_near_its_budget(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        for _ in range(600):
            append_one(journal, extra=1000)
        for budget in (1, 10_000, 200_000, 500_000):
            part = journal.read(7, budget)
            assert 0 < len(part.data) <= budget + 6000 and not part.end
            last = list(split_records(part.data))[-1]
            assert part.through == last.first + last.size - 1


def test_a_filtered_read_leaves_out_records_but_covers_their_sequences(tmp_path: Path) -> None:
    with open_journal(tmp_path, segment_bytes=50_000) as journal:
        for _ in range(500):
            append_one(journal)
        everything, _ = read_all(journal)
        chosen, lost = read_all(journal, wanted=lambda topic: topic == TOPICS[1])
        assert chosen == [record for record in everything if record.topic == TOPICS[1]] and not lost
        nothing = journal.read(0, 1000, lambda topic: False)
        assert (nothing.data, nothing.through, nothing.end) == (b"", journal.head, True)


def test_a_reopened_journal_goes_on_with_the_same_epoch_numbers_and_heads(tmp_path: Path) -> None:
    epoch, heads = "", {}
    for turn in range(6):
        with open_journal(tmp_path, segment_bytes=3000) as journal:
            assert turn == 0 or (journal.epoch, journal.heads) == (epoch, heads)
            for _ in range(17):
                append_one(journal)
            epoch, heads = journal.epoch, dict(journal.heads)
            check_records(*read_all(journal), head=journal.head)
            assert journal.cut == 0


def test_a_batch_that_does_not_fit_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with open_journal(tmp_path, topics=2) as journal:
        append_one(journal)
        size = files_of(tmp_path)[0].stat().st_size
        record = (1, TOPICS[0], TOPICS[0].encode() + b"\0x")
        for batch, first, number in (
            ([record], journal.head + 2, 1),
            ([record], journal.head, 1),
            ([record], journal.head + 1, 2),
            ([], journal.head + 1, 0),
            ([(1, TOPICS[1], record[2])], journal.head + 1, 1),
            ([(0, TOPICS[0], record[2])], journal.head + 1, 0),
            ([(1, "a.b", b"a.b\0"), (1, "a.c", b"a.c\0")], journal.head + 1, 2),
        ):
            with pytest.raises(JournalError):
                journal.append(batch, first=first, size=number, time_ms=0)
        assert files_of(tmp_path)[0].stat().st_size == size
        assert not journal.has_room_for("a.b") and journal.has_room_for(TOPICS[1])


def test_a_second_writer_is_refused_and_told_who_holds_the_journal(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        with pytest.raises(JournalLocked, match=str(os.getpid())):
            open_journal(tmp_path)
        append_one(journal)
    open_journal(tmp_path).close()


def test_a_journal_of_another_endpoint_is_refused(tmp_path: Path) -> None:
    open_journal(tmp_path).close()
    with pytest.raises(JournalError, match=r"belongs to endpoint 'koji\.build01'"):
        Journal.open(options(tmp_path), endpoint="koji.build02", clock=ManualClock())


def test_a_lower_token_is_fenced_also_after_a_restart(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        append_one(journal, token=FencingToken(7))
        append_one(journal, token=FencingToken(9))
        with pytest.raises(Fenced):
            append_one(journal, token=FencingToken(8))
    with open_journal(tmp_path) as journal:
        head = journal.head
        with pytest.raises(Fenced):
            append_one(journal, token=FencingToken(8))
        assert journal.head == head
        append_one(journal, token=FencingToken(9))
        check_records(*read_all(journal), head=journal.head)


def test_the_interval_policy_syncs_soon_without_being_asked(tmp_path: Path) -> None:
    with open_journal(tmp_path, sync=SyncPolicy.INTERVAL, sync_interval=0.01) as journal:
        last = append_one(journal)
        wait_until(lambda: journal.synced == last, what="the sync")


def test_always_has_synced_before_append_returns_and_async_syncs_when_asked(tmp_path: Path) -> None:
    with open_journal(tmp_path / "a", sync=SyncPolicy.ALWAYS) as journal:
        assert append_one(journal) == journal.synced
    with open_journal(tmp_path / "b") as journal:
        append_one(journal)
        assert journal.synced == 0
        journal.sync()
        assert journal.synced == journal.head


def test_a_closed_journal_says_so(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    journal.close()
    journal.close()
    with pytest.raises(JournalError, match="closed"):
        append_one(journal)


@pytest.mark.fault("F12")
def test_order_is_by_sequence_and_a_place_in_time_misses_nothing_when_the_clock_jumps(tmp_path: Path) -> None:
    hour = 3_600_000
    stamps = [10 * hour + n * 1000 for n in range(40)] + [9 * hour + n * 1000 for n in range(40)]
    stamps += [34 * hour + n * 1000 for n in range(40)] + [10 * hour + n * 1000 for n in range(40, 80)]
    with open_journal(tmp_path, segment_bytes=4000) as journal:
        firsts = []
        for stamp in stamps:
            firsts.append(journal.head + 1)
            append_one(journal, time_ms=stamp)
        for reopened in (False, True):
            view = JournalReader.open(tmp_path) if reopened else journal
            for wanted in (0, stamps[0], stamps[5] + 1, 9 * hour, 10 * hour + 39_000, 20 * hour, 34 * hour + 39_000):
                place = view.position_at(wanted)
                assert place == firsts[next(n for n, stamp in enumerate(stamps) if stamp >= wanted)] - 1
            assert view.position_at(35 * hour) == journal.head
        check_records(*read_all(journal), head=journal.head)


def test_readers_and_the_writer_do_not_disturb_each_other(tmp_path: Path) -> None:
    with open_journal(tmp_path, segment_bytes=30_000) as journal:
        failures: list[BaseException] = []

        def follow(budget: int) -> None:
            try:
                after = 0
                while after < 1000:
                    part = journal.read(after, budget)
                    records = list(split_records(part.data))
                    assert not part.lost
                    for record in records:
                        assert record.first == after + 1 or record.first + record.size - 1 > after
                    if records:
                        check_records(records, [], part.through, records[0].first)
                    after = part.through
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=follow, args=(budget,)) for budget in (1, 2000, 10**6)]
        for thread in threads:
            thread.start()
        while journal.head < 1000:
            append_one(journal)
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert not failures


def test_more_records_than_one_writev_takes_are_one_batch(tmp_path: Path) -> None:
    many = [(1, TOPICS[0], TOPICS[0].encode() + b"\0" + str(n).encode()) for n in range(3000)]
    with open_journal(tmp_path) as journal:
        journal.append(many, first=1, size=3000, time_ms=0)
        part = journal.read(1500, 10)
        assert [record.payload for record in split_records(part.data)] == [payload for _, _, payload in many]


def test_records_with_any_byte_changed_or_cut_are_refused_when_split(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        append_one(journal)
        data = journal.read(0, 10**6).data
    list(split_records(data))
    ends = {0}
    for record in split_records(data):
        ends.add(max(ends) + 32 + len(record.payload))
    for at in range(len(data)):
        with pytest.raises(WireError):
            list(split_records(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]))
        if at not in ends:
            with pytest.raises(WireError):
                list(split_records(data[:at]))


# --- the read-only view


def test_a_reader_follows_a_journal_that_is_being_written(tmp_path: Path) -> None:
    with open_journal(tmp_path, segment_bytes=5000) as journal:
        append_one(journal)
        with JournalReader.open(tmp_path) as reader:
            assert (reader.epoch, reader.endpoint) == (journal.epoch, ENDPOINT)
            after = 0
            for turn in range(60):
                for _ in range(turn % 5):
                    append_one(journal)
                assert reader.refresh() == (turn % 5 > 0)
                assert (reader.head, reader.start, reader.heads) == (journal.head, journal.start, journal.heads)
                records, lost = read_all(reader, after)
                check_records(records, lost, journal.head, after + 1)
                after = journal.head
            assert len(files_of(tmp_path)) > 3


def test_a_reader_tolerates_a_torn_tail_and_changes_nothing(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        for _ in range(5):
            append_one(journal)
        head = journal.head
    path = files_of(tmp_path)[0]
    whole = path.read_bytes()
    path.write_bytes(whole + whole[-30:])
    before = {item.name: item.read_bytes() for item in tmp_path.iterdir()}
    with JournalReader.open(tmp_path) as reader:
        assert reader.head == head
        check_records(*read_all(reader), head=head)
        assert not reader.refresh()
    assert {item.name: item.read_bytes() for item in tmp_path.iterdir()} == before


def test_a_reader_is_not_led_astray_by_a_batch_that_was_taken_back(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        for _ in range(5):
            append_one(journal)
        head = journal.head
        path = files_of(tmp_path)[0]
        size = path.stat().st_size
        append_one(journal)
        tail = path.read_bytes()[size:]
    os.truncate(path, size)
    with open_journal(tmp_path) as journal, path.open("ab") as file:
        file.write(tail)  # a batch on its way to the disk
        file.flush()
        with JournalReader.open(tmp_path) as reader:
            assert reader.head > head
            os.truncate(path, size)  # whose sync failed
            records = [(5, TOPICS[2], TOPICS[2].encode() + b"\0" + b"x" * 500)]
            journal.append(records, first=head + 1, size=5, time_ms=0)
            reader.refresh()
            found, lost = read_all(reader, head)
            assert not lost and [record.payload for record in found] == [records[0][2]]


def test_a_reader_of_no_journal_says_so(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(JournalError):
            JournalReader.open(folder)


def test_batches_are_the_same_for_the_same_sequence() -> None:
    assert batch_at(5) == batch_at(5) != batch_at(6)


def test_all_but_the_newest_part_is_given_back_to_the_page_cache_and_can_still_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    megabyte = 2**20
    advised: dict[str, int] = {}  # how much of each file, from its start
    advise = os.posix_fadvise

    def watched(fd: int, offset: int, length: int, advice: int) -> None:
        name = Path(f"/proc/self/fd/{fd}").readlink().name
        assert (advice, offset) == (os.POSIX_FADV_DONTNEED, advised.get(name, 0))
        advised[name] = offset + length
        advise(fd, offset, length, advice)

    monkeypatch.setattr(os, "posix_fadvise", watched)
    with open_journal(tmp_path, cached_bytes=megabyte, segment_bytes=12 * megabyte) as journal:
        for _ in range(300):
            append_one(journal, extra=40_000)
        closed, *others = sorted(files_of(tmp_path))
        assert others
        assert advised[closed.name] == closed.stat().st_size  # a file that is not the newest, wholly
        active = others[-1]
        assert active.stat().st_size - advised.get(active.name, 0) >= megabyte
        check_records(*read_all(journal, budget=megabyte), head=journal.head)
