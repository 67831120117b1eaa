"""What a journal makes of torn writes, flipped bits, and files that are cut, empty or gone."""

from __future__ import annotations

import logging
import os
import random
import shutil
from pathlib import Path

import pytest

from fedbus.errors import JournalError
from fedbus.journal.journal import Journal, JournalReader
from tests.unit.journal.journals import TOPICS, append_one, check_records, files_of, open_journal, options, read_all


def written(folder: Path, batches: int, **more: int) -> tuple[list[tuple[int, int]], int]:
    """Write a journal; the (end in bytes, last sequence) after each batch of its last file, and the head."""
    ends = []
    with open_journal(folder, **more) as journal:
        for _ in range(batches):
            last = append_one(journal)
            ends.append((files_of(folder)[-1].stat().st_size, last))
        return ends, journal.head


@pytest.mark.fault("F3")
def test_a_journal_cut_at_any_byte_opens_with_every_whole_batch(tmp_path: Path) -> None:
    ends, _ = written(tmp_path / "whole", 7)
    name = files_of(tmp_path / "whole")[0].name
    begin = ends[0][0] - 3 * 200
    with open_journal(tmp_path / "empty") as journal:
        begin = files_of(tmp_path / "empty")[0].stat().st_size
        assert journal.head == 0
    data = (tmp_path / "whole" / name).read_bytes()
    for cut in range(begin, len(data) + 1):
        (tmp_path / "whole" / name).write_bytes(data[:cut])
        with open_journal(tmp_path / "whole") as journal:
            end, last = max((pair for pair in ends if pair[0] <= cut), default=(begin, 0))
            assert (journal.head, journal.cut) == (last, cut - end)
            check_records(*read_all(journal), head=last)
            append_one(journal)
            check_records(*read_all(journal), head=journal.head)


@pytest.mark.fault("F3")
@pytest.mark.parametrize("tail", [b"\0" * 5000, b"\xff" * 500, bytes(range(256)) * 20, b"\0\0\0\1"])
def test_rubbish_after_the_last_batch_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    _, head = written(tmp_path, 5)
    with files_of(tmp_path)[0].open("ab") as file:
        file.write(tail)
    with open_journal(tmp_path) as journal:
        assert (journal.head, journal.cut) == (head, len(tail))
        append_one(journal)
        check_records(*read_all(journal), head=journal.head)


@pytest.mark.fault("F4")
def test_a_bit_flipped_anywhere_never_yields_wrong_bytes_nor_gives_out_a_number_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    _, head = written(tmp_path / "sound", 24, segment_bytes=1500)
    names = [path.name for path in files_of(tmp_path / "sound")]
    assert len(names) > 3
    chance = random.Random(20)
    for name in (names[0], names[1], names[-1]):
        size = (tmp_path / "sound" / name).stat().st_size
        for at in range(chance.randrange(7), size, 7):
            folder = tmp_path / "flipped"
            shutil.copytree(tmp_path / "sound", folder)
            data = bytearray((folder / name).read_bytes())
            data[at] ^= 1 << chance.randrange(8)
            (folder / name).write_bytes(data)
            if chance.random() < 0.5:
                (folder / name).with_suffix(".index").unlink(missing_ok=True)
            with JournalReader.open(folder) as reader:
                check_records(*read_all(reader), head=reader.head)
            with open_journal(folder, segment_bytes=1500) as journal:
                records, lost = read_all(journal)
                check_records(records, lost, head=journal.head)
                # all but the one batch is served
                assert len(lost) <= 2 and (name == names[-1] or journal.head == head)
                assert sum(last - first + 1 for first, last in lost if last < 2**32) <= 8 or name == names[-1]
            shutil.rmtree(folder)


@pytest.mark.fault("F4")
def test_a_damaged_last_batch_keeps_its_numbers_for_good(tmp_path: Path) -> None:
    ends, head = written(tmp_path, 6)
    path = files_of(tmp_path)[0]
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with open_journal(tmp_path) as journal:
        assert journal.head == head, "it may have been acknowledged, so a new message must not look like it"
        append_one(journal)
        records, lost = read_all(journal)
        assert lost == [(ends[-2][1] + 1, head)]
        check_records(records, lost, head=journal.head)
        assert path.read_bytes() == data, "a damaged file is kept as it was"
        assert path.with_suffix(".damaged").exists()


@pytest.mark.fault("F4")
def test_damage_that_a_publisher_meets_when_it_opens_is_noted_before_anybody_reads(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ends, _ = written(tmp_path, 6)
    path = files_of(tmp_path)[0]
    data = bytearray(path.read_bytes())
    data[(ends[1][0] + ends[2][0]) // 2] ^= 1
    path.write_bytes(data)
    with open_journal(tmp_path):
        pass
    assert "do not follow on each other" in path.with_suffix(".damaged").read_text()
    told = caplog.text.count("do not follow on each other")
    with open_journal(tmp_path) as journal:
        check_records(*read_all(journal), head=journal.head)
    assert caplog.text.count("do not follow on each other") == told == 1


@pytest.mark.fault("F4")
def test_damage_in_the_middle_of_a_large_segment_costs_one_batch(tmp_path: Path) -> None:
    with open_journal(tmp_path, segment_bytes=400_000) as journal:
        while len(files_of(tmp_path)) < 3:
            append_one(journal, extra=900)
    path = files_of(tmp_path)[1]
    data = bytearray(path.read_bytes())
    data[200_000] ^= 4
    path.write_bytes(data)
    for _ in range(2):
        with open_journal(tmp_path, segment_bytes=400_000) as journal:
            for budget in (1, 3000, 10**6):
                records, lost = read_all(journal, budget=budget)
                assert len(lost) == 1 and lost[0][1] - lost[0][0] < 12
                check_records(records, lost, head=journal.head)
            records, _ = read_all(journal, wanted=lambda topic: topic == TOPICS[0])
            assert records and {record.topic for record in records} == {TOPICS[0]}


@pytest.mark.fault("F4")
@pytest.mark.parametrize("how", ["gone", "empty", "short"])
@pytest.mark.parametrize("which", [0, 1, -1])
def test_a_segment_that_is_gone_or_cut_is_told_and_the_rest_is_served(tmp_path: Path, which: int, how: str) -> None:
    _, head = written(tmp_path, 40, segment_bytes=1500)
    path = files_of(tmp_path)[which]
    heads = JournalReader.open(tmp_path).heads
    if how == "gone":
        path.unlink()
    else:
        os.truncate(path, 0 if how == "empty" else path.stat().st_size // 2)
    with open_journal(tmp_path, segment_bytes=1500) as journal:
        append_one(journal)
        records, lost = read_all(journal, journal.start - 1)
        check_records(records, lost, head=journal.head, start=journal.start)
        if which >= 0:
            assert journal.heads.keys() == heads.keys() and (lost or journal.start > 1)
        elif how != "short":
            assert journal.head > head + 1 and lost, "numbers that may be spent are not given out again"
        assert JournalReader.open(tmp_path).head == journal.head


@pytest.mark.fault("F4")
def test_an_index_that_is_missing_or_damaged_is_built_again(tmp_path: Path) -> None:
    _, head = written(tmp_path, 60, segment_bytes=1500)
    indexes = sorted(tmp_path.glob("*.index"))
    assert len(indexes) > 4
    sound = indexes[2].read_bytes()
    indexes[0].unlink()
    indexes[1].write_bytes(b"")
    for at in range(len(sound)):
        indexes[2].write_bytes(sound[:at] + bytes([sound[at] ^ 8]) + sound[at + 1 :])
        with open_journal(tmp_path, segment_bytes=1500) as journal:
            check_records(*read_all(journal), head=head)
        assert indexes[2].read_bytes() == sound
    assert indexes[0].exists()


@pytest.mark.fault("F4")
@pytest.mark.parametrize("content", [None, b"", b"{", b'{"format":1}', b"[]", b"\xff"])
def test_a_lost_identity_is_restored_from_the_segments(tmp_path: Path, content: bytes | None) -> None:
    written(tmp_path, 10)
    identity = tmp_path / "journal.json"
    before = identity.read_bytes()
    identity.unlink()
    if content is not None:
        identity.write_bytes(content)
    with open_journal(tmp_path) as journal:
        assert identity.read_bytes() == before
        check_records(*read_all(journal), head=journal.head)


def test_a_journal_without_its_segments_goes_on_with_a_new_epoch(tmp_path: Path) -> None:
    written(tmp_path, 10)
    epoch = JournalReader.open(tmp_path).epoch
    for path in files_of(tmp_path):
        path.unlink()
    with open_journal(tmp_path) as journal:
        assert journal.epoch != epoch and journal.head == 0


def test_a_journal_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    written(tmp_path, 1)
    identity = tmp_path / "journal.json"
    identity.write_text(identity.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(JournalError, match="format 2"):
        open_journal(tmp_path)


def test_a_segment_of_another_epoch_is_set_aside_not_served(tmp_path: Path) -> None:
    _, head = written(tmp_path / "a", 10)
    written(tmp_path / "b", 60, segment_bytes=1500)
    foreign = files_of(tmp_path / "b")[-1]
    shutil.copy(foreign, tmp_path / "a" / foreign.name)
    with open_journal(tmp_path / "a") as journal:
        assert journal.head == head
        check_records(*read_all(journal), head=head)
    assert len(list((tmp_path / "a").glob("*.aside"))) == 1


@pytest.mark.fault("F4")
def test_a_live_journal_finds_later_damage_when_it_is_told_to_look_again(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        for _ in range(30):
            append_one(journal)
        check_records(*read_all(journal), head=journal.head)
        with files_of(tmp_path)[0].open("r+b") as file:
            file.seek(1500)
            byte = file.read(1)
            file.seek(1500)
            file.write(bytes([byte[0] ^ 1]))
        journal.recheck()
        records, lost = read_all(journal)
        assert len(lost) == 1
        check_records(records, lost, head=journal.head)


@pytest.mark.fault("F6")
def test_after_a_loss_of_power_all_that_was_synced_is_kept(tmp_path: Path) -> None:
    """The model: of each file only what was synced survives, with anything or nothing after it."""
    chance = random.Random(6)
    for turn in range(40):
        folder = tmp_path / f"{turn}"
        sizes: dict[str, int] = {}
        with open_journal(folder, segment_bytes=2500) as journal:
            for _ in range(chance.randrange(1, 40)):
                append_one(journal)
                if chance.random() < 0.3:
                    journal.sync()
                    sizes = {path.name: path.stat().st_size for path in files_of(folder)}
            synced, epoch = journal.synced, journal.epoch
            closed = {path.name: path.stat().st_size for path in files_of(folder)[:-1]}
            image = {path.name: path.read_bytes() for path in folder.iterdir()}
        crashed = tmp_path / f"{turn}-after"
        crashed.mkdir()
        for name, data in image.items():
            if name.endswith(".journal") and name not in closed:
                kept = max(sizes.get(name, 0), 64 + int.from_bytes(data[56:60], "big"))
                rest = len(data) - kept
                data = data[:kept] + chance.choice([b"", bytes(rest), data[kept : kept + rest // 2], data[kept:]])
            (crashed / name).write_bytes(data)
        with open_journal(crashed, segment_bytes=2500) as journal:
            assert journal.epoch == epoch and journal.head >= synced
            check_records(*read_all(journal), head=journal.head)
            append_one(journal)
            check_records(*read_all(journal), head=journal.head)


def test_a_folder_that_cannot_be_used_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="file"):
        Journal.open(options(tmp_path / "file" / "j"), endpoint="a.b", clock=open_journal(tmp_path / "x")._clock)
