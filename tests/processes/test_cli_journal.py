"""`fedbus journal` on journals of processes that run, have ended, and were damaged or forged."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest

from fedbus.bus import Bus
from fedbus.clock import SystemClock
from fedbus.journal.journal import Journal, JournalOptions, SyncPolicy
from fedbus.journal.segment import HEADER, RECORD, decode_fixed
from fedbus.wire import parcel as parcels
from tests.conftest import COMMAND

KOJI = "koji.build01"
BODHI = "bodhi.web01"
TOPICS = ("package.build.complete", "package.build.start", "tag.add")


def folder(bus_folder: Path, name: str = KOJI) -> Path:
    return bus_folder / "state" / "journal" / name


def publish(bus_folder: Path, count: int, name: str = KOJI, **options: Any) -> None:
    """Publish *count* messages of three topics in batches of some, and close."""
    with Bus.open(bus_folder) as bus, bus.publisher(name) as publisher:
        for number in range(count):
            publisher.enqueue(TOPICS[number * 7 % 3], {"n": number, "text": "é€😀", **options})
            if number % 11 == 0:
                publisher.flush()


def segments(bus_folder: Path, name: str = KOJI) -> list[Path]:
    return sorted(folder(bus_folder, name).glob("*.journal"))


def records(path: Path) -> bytes:
    """The bytes of a segment behind its header."""
    data = path.read_bytes()
    fixed = decode_fixed(data)
    assert fixed is not None
    return data[fixed.data_start :]


def verdict(done: Any) -> dict[str, Any]:
    (row,) = json.loads(done.stdout)
    assert isinstance(row, dict)
    return row


# --- list and show


def test_list_tells_of_every_journal_of_the_host(bus_folder, fedbus):
    done = fedbus("journal", "list")
    assert done.returncode == 0 and "there are no journals" in done.stderr
    publish(bus_folder, 30)
    publish(bus_folder, 3, BODHI)
    with Bus.open(bus_folder) as bus, bus.publisher(BODHI):
        rows = json.loads(fedbus("journal", "list", "--json").stdout)
        table = fedbus("journal", "list").stdout.splitlines()
    bodhi, koji = rows
    assert (koji["endpoint"], koji["start"], koji["head"], koji["messages"]) == (KOJI, 1, 30, 30)
    assert (koji["writing"], bodhi["writing"]) == (False, True)
    assert koji["sync"] == "always" and koji["segments"] == 1 and koji["damaged"] == []
    assert koji["bytes"] == sum(path.stat().st_size for path in folder(bus_folder).iterdir())
    assert koji["used"] == round(koji["bytes"] / koji["retain_bytes"], 4)
    assert "2026-" < koji["oldest"] <= koji["newest"] < "2126-"
    assert [line.split()[0] for line in table] == ["ENDPOINT", BODHI, KOJI]
    assert table[1].endswith("open") and table[2].endswith("closed")


def test_list_shows_a_journal_that_the_configuration_does_not_name_any_more_and_one_that_is_damaged(bus_folder, fedbus):
    publish(bus_folder, 30)
    shutil.copytree(folder(bus_folder), folder(bus_folder, "old.name"))
    note = segments(bus_folder)[0].with_suffix(".damaged")
    note.write_text("block at byte 99, sequences 3 to 5\n")
    (folder(bus_folder, BODHI)).mkdir()
    (folder(bus_folder, BODHI) / "journal.json").write_text("{}")
    done = fedbus("journal", "list", "--json")
    rows = {row.get("directory", row["endpoint"]).rpartition("/")[2]: row for row in json.loads(done.stdout)}
    assert done.returncode == 1 and "there is no journal" in rows[BODHI]["error"]
    assert rows[KOJI]["damaged"] == [f"{segments(bus_folder)[0].name}: block at byte 99, sequences 3 to 5"]
    assert "sequences 3 to 5" in fedbus("journal", "list").stderr


def test_show_shows_what_was_asked_for_as_the_tail_does(bus_folder, fedbus):
    publish(bus_folder, 40)
    tail = fedbus("tail", "--since", "beginning", "--no-follow", "--json", "--endpoint", KOJI).stdout.splitlines()
    shown = fedbus("journal", "show", KOJI, "--json")
    assert shown.returncode == 0 and shown.stdout.splitlines() == tail
    some = fedbus("journal", "show", KOJI, "--from", "5", "--to", "17", "--json").stdout.splitlines()
    assert some == tail[4:17]
    last = fedbus("journal", "show", KOJI, "--last", "3", "--topic", "koji.tag", "--json").stdout.splitlines()
    assert last == [line for line in tail if ".koji.tag.add" in line][-3:]
    assert "koji tag.add" in fedbus("journal", "show", KOJI, "--last", "1", "--topic", "koji.tag").stdout
    raw = fedbus("journal", "show", KOJI, "--from", "7", "--to", "8", "--raw").stdout.splitlines()
    assert [json.loads(line)["sequence"] for line in raw] == [f"{7:020d}", f"{8:020d}"]


def test_an_endpoint_without_a_journal_and_one_that_is_unknown_are_told_apart(bus_folder, fedbus):
    assert "there is no journal of" in fedbus("journal", "show", KOJI).stderr
    done = fedbus("journal", "verify", "koji.build02")
    assert done.returncode == 3 and f"did you mean {KOJI!r}?" in done.stderr
    assert fedbus("journal", "show", KOJI, "--json", "--raw").returncode == 2


# --- verify


def test_a_sound_journal_verifies_while_its_publisher_writes(bus_folder, fedbus, spawn):
    publish(bus_folder, 100)
    with Bus.open(bus_folder) as bus, bus.publisher(KOJI) as koji:
        running = [spawn("journal", "verify", "--json", config=bus_folder) for _ in range(2)]
        while any(one.code is None for one in running):
            koji.publish("package.build.complete", {"n": koji.head})
        for one in running:
            assert one.wait() == 0, one.err
            (row,) = json.loads(one.out)
            assert row["ok"] and row["head"] >= 100 and row["messages"] == row["head"]


@pytest.mark.fault("F4")
@pytest.mark.parametrize("seed", range(6))
def test_a_flipped_bit_is_found_and_exactly_its_batch_is_named(bus_folder, fedbus, seed):
    publish(bus_folder, 60)
    path = segments(bus_folder)[0]
    data = bytearray(path.read_bytes())
    start = decode_fixed(bytes(data)).data_start
    place = start + (seed * 7919 + 13) % (len(data) - start)
    at, hurt = start, (0, 0)
    while at < len(data):
        length, _, first, size, _, _ = RECORD.unpack_from(data, at)
        if at <= place < at + RECORD.size + length:
            hurt = (first, first + size - 1)
        at += RECORD.size + length
    data[place] ^= 1 << seed
    path.write_bytes(data)
    done = fedbus("journal", "verify", KOJI, "--json")
    row = verdict(done)
    assert done.returncode == 1 and not row["ok"] and row["refused"] == []
    assert [(one["first"], one["last"]) for one in row["damage"]] == [hurt]
    assert row["messages"] == 60 - (hurt[1] - hurt[0] + 1)
    assert f"sequences {hurt[0]} to {hurt[1]}" in fedbus("journal", "verify").stdout


@pytest.mark.fault("F4")
def test_a_missing_segment_and_a_damaged_header_are_named(bus_folder, fedbus):
    (bus_folder / "90-small.yaml").write_text("journal: {segment_bytes: 8KiB}\n")
    (bus_folder / "90-small.yaml").chmod(0o600)
    publish(bus_folder, 120)
    files = segments(bus_folder)
    assert len(files) > 4
    first, after = int(files[1].name[:20]), int(files[2].name[:20])
    files[1].unlink()
    header = bytearray(files[3].read_bytes())
    header[HEADER.size + 3] ^= 0xFF
    files[3].write_bytes(header)
    row = verdict(fedbus("journal", "verify", "--json"))
    assert [(one["first"], one["last"]) for one in row["damage"]] == [(first, after - 1), (None, None)]
    assert row["damage"][1]["where"] == f"{files[3].name}, header"
    assert row["messages"] == 120 - (after - first)
    done = fedbus("journal", "show", KOJI, "--json")
    assert done.returncode == 1 and f"sequences {first} to {after - 1} cannot be read" in done.stderr
    assert len(done.stdout.splitlines()) == row["messages"]


def rewrite(path: Path, change: Any) -> None:
    """Put the payload of each record through *change* (payload, batch), with checksums that agree afterwards."""
    data = path.read_bytes()
    start = decode_fixed(data).data_start
    out, at = [data[:start]], start
    while at < len(data):
        length, _, first, size, count, time_ms = RECORD.unpack_from(data, at)
        payload = data[at + RECORD.size : at + RECORD.size + length]
        at += RECORD.size + length
        payload = change(payload, first)
        rest = RECORD.pack(0, 0, first, size, count, time_ms)[8:]
        checksum = zlib.crc32(payload, zlib.crc32(rest))
        out.append(RECORD.pack(len(payload), checksum, first, size, count, time_ms) + payload)
    path.write_bytes(b"".join(out))


@pytest.mark.fault("F4")
def test_the_journal_of_another_endpoint_is_not_called_good(bus_folder, fedbus):
    publish(bus_folder, 5, BODHI)
    shutil.copytree(folder(bus_folder, BODHI), folder(bus_folder))
    (row,) = [row for row in json.loads(fedbus("journal", "verify", "--json").stdout) if row["endpoint"] == KOJI]
    assert f"belongs to endpoint '{BODHI}', not '{KOJI}'" in row["error"]
    for command in (("list",), ("verify", KOJI), ("show", KOJI), ("export", KOJI)):
        done = fedbus("journal", *command)
        assert done.returncode == 1 and f"belongs to endpoint '{BODHI}', not '{KOJI}'" in done.stderr, command
    done = fedbus("check")
    assert done.returncode == 1 and f"belongs to endpoint {BODHI}, not {KOJI}" in done.stdout


@pytest.mark.fault("F4")
def test_a_segment_of_which_nothing_is_left_is_one_fault_and_not_less_than_nothing(bus_folder, fedbus):
    publish(bus_folder, 5)
    segments(bus_folder)[0].write_bytes(b"")
    done = fedbus("journal", "verify", KOJI)
    assert done.returncode == 1 and "1 fault" in done.stdout and "batch being written" not in done.stderr
    assert verdict(fedbus("journal", "verify", KOJI, "--json"))["torn_bytes"] == 0


@pytest.mark.fault("F20")
def test_closed_standard_streams_are_told_or_do_no_harm(bus_folder, fedbus):
    publish(bus_folder, 5)

    def with_closed(streams: str, *command: str) -> Any:
        return subprocess.run(
            ["sh", "-c", f'exec "$0" "$@" {streams}', *COMMAND, "journal", *command],
            env={**os.environ, "FEDBUS_CONFIG": str(bus_folder)},
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )

    for command in (("show", KOJI), ("show", "--raw", KOJI), ("list",), ("verify",)):
        done = with_closed(">&-", *command)
        assert (done.returncode, done.stderr) == (0, ""), command
    assert with_closed("2>&-", "verify").returncode == 0
    done = with_closed(">&-", "export", KOJI)
    assert done.returncode == 1 and "stdout is closed" in done.stderr
    done = with_closed("<&-", "import", "-", "--check")
    assert done.returncode == 1 and "stdin is closed" in done.stderr


@pytest.mark.badinput("B21")
def test_a_forged_message_with_sound_checksums_is_refused_with_exit_code_4(bus_folder, fedbus):
    publish(bus_folder, 5)
    rewrite(segments(bus_folder)[0], lambda payload, first: payload.replace(b'"n":3', b'"n":9'))
    done = fedbus("journal", "verify", "--json")
    row = verdict(done)
    assert done.returncode == 4 and row["damage"] == []
    assert [one["reason"] for one in row["refused"]] == ["signature"]
    assert row["refused"][0]["first"] <= 4 <= row["refused"][0]["last"]
    shown = fedbus("journal", "show", KOJI, "--json")
    assert shown.returncode == 4 and "refused" in shown.stderr and '"n":9' not in shown.stdout
    assert fedbus("journal", "export", KOJI, "-o", bus_folder / "x").returncode == 4


@pytest.mark.badinput("B27")
def test_a_topic_that_the_policy_does_not_allow_is_refused_with_exit_code_4(bus_folder, fedbus):
    rule = bus_folder / "95-rule.yaml"
    rule.write_text("policy:\n- {signer: koji.build01, topics: [bodhi.update]}\n")
    rule.chmod(0o600)
    with Bus.open(bus_folder) as bus, bus.publisher(KOJI) as koji:
        koji.publish("org.example.dev.bodhi.update.request", {})
        koji.publish("package.build.complete", {})
    assert fedbus("journal", "verify").returncode == 0
    rule.unlink()
    done = fedbus("journal", "verify", "--json")
    assert done.returncode == 4 and [one["reason"] for one in verdict(done)["refused"]] == ["policy"]


@pytest.mark.badinput("B24")
def test_a_certificate_that_has_expired_since_is_good_and_one_of_a_stolen_key_is_not(bus_folder, fedbus):
    publish(bus_folder, 3)
    assert fedbus("keys", "rotate", KOJI).returncode == 0
    assert fedbus("journal", "verify").returncode == 0
    publish(bus_folder, 3)
    assert fedbus("keys", "revoke", KOJI, "--reason", "keyCompromise").returncode == 0
    done = fedbus("journal", "verify", "--json")
    assert done.returncode == 4 and {one["reason"] for one in verdict(done)["refused"]} == {"revoked"}


def test_records_that_were_taken_out_of_the_middle_break_the_chain(bus_folder, fedbus, tmp_path):
    """Whole batches are removed and what follows is numbered as if nothing had been there; seals cannot follow."""
    publish(bus_folder, 5)
    publish(bus_folder, 5)
    path = segments(bus_folder)[0]
    data = path.read_bytes()
    start = decode_fixed(data).data_start
    at, ends = start, {}
    while at < len(data):
        length, _, first, _, _, _ = RECORD.unpack_from(data, at)
        at += RECORD.size + length
        ends[first] = at
    firsts = sorted(ends)
    cut = data[: ends[firsts[0]]] + data[ends[firsts[1]] :]
    path.write_bytes(cut)
    row = verdict(fedbus("journal", "verify", "--json"))
    assert [(one["first"], one["last"]) for one in row["damage"]] == [(firsts[1], firsts[2] - 1)]


def test_a_batch_of_which_only_a_part_was_written_is_told_but_is_no_fault(bus_folder, fedbus):
    publish(bus_folder, 5)
    path = segments(bus_folder)[0]
    whole = path.read_bytes()
    path.write_bytes(whole + whole[decode_fixed(whole).data_start :][:50])
    done = fedbus("journal", "verify", "--json")
    assert done.returncode == 0 and verdict(done)["torn_bytes"] == 50


# --- export and import


def export(bus_folder: Path, fedbus: Any, *more: str) -> Path:
    path = bus_folder.parent / "export.jsonl"
    done = fedbus("journal", "export", KOJI, "-o", path, *more)
    assert done.returncode == 0, done.stderr
    assert path.stat().st_mode & 0o777 == 0o600
    return path


@pytest.mark.parametrize("small", [False, True], ids=["one segment", "many segments"])
def test_a_lost_journal_is_restored_byte_for_byte_and_readers_go_on_at_their_cursors(bus_folder, fedbus, small):
    if small:
        (bus_folder / "90-small.yaml").write_text("journal: {segment_bytes: 8KiB}\n")
        (bus_folder / "90-small.yaml").chmod(0o600)
    publish(bus_folder, 100)
    read = ("tail", "--cursor", "nightly", "--since", "beginning", "--no-follow", "--json", "--endpoint", KOJI)
    assert len(fedbus(*read, "--count", "60").stdout.splitlines()) == 60
    path = export(bus_folder, fedbus)
    before = b"".join(map(records, segments(bus_folder)))
    identity = (folder(bus_folder) / "journal.json").read_text()
    shutil.rmtree(folder(bus_folder))
    done = fedbus("journal", "import", path, "--as", KOJI, "--complete", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert (report["messages"], report["next"], report["restored"]) == (100, 101, True)
    assert b"".join(map(records, segments(bus_folder))) == before
    assert json.loads((folder(bus_folder) / "journal.json").read_text()) == json.loads(identity)
    assert [one.name for one in folder(bus_folder).parent.iterdir()] == [KOJI]
    assert fedbus("journal", "verify").returncode == 0
    publish(bus_folder, 5)
    done = fedbus(*read, "--strict")
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["sequence"] for line in done.stdout.splitlines()] == list(range(61, 106))
    assert fedbus("journal", "verify").returncode == 0


def test_without_complete_no_number_is_given_out_twice_and_readers_are_told_of_the_hole(bus_folder, fedbus):
    publish(bus_folder, 20)
    path = export(bus_folder, fedbus)
    publish(bus_folder, 10)  # these are lost with the disk, and a reader has seen them
    read = ("tail", "--cursor", "nightly", "--since", "beginning", "--no-follow", "--json", "--endpoint", KOJI)
    assert len(fedbus(*read).stdout.splitlines()) == 30
    shutil.rmtree(folder(bus_folder))
    done = fedbus("journal", "import", path, "--as", KOJI)
    assert done.returncode == 0 and f"will be number {21 + 2**32}" in done.stderr
    publish(bus_folder, 3)
    done = fedbus(*read)
    assert [json.loads(line)["sequence"] for line in done.stdout.splitlines()] == [21 + 2**32 + n for n in range(3)]
    assert "lost" in done.stderr and "quarantine" not in done.stderr
    done = fedbus("journal", "verify", "--json")
    assert done.returncode == 0 and verdict(done)["passed_over"] == [{"first": 21, "last": 20 + 2**32}]
    assert json.loads(fedbus("journal", "list", "--json").stdout)[0]["messages"] == 23


def test_import_takes_no_place_that_is_not_empty_and_no_foreign_export(bus_folder, fedbus):
    publish(bus_folder, 10)
    path = export(bus_folder, fedbus)
    before = {one: one.read_bytes() for one in folder(bus_folder).iterdir()}
    done = fedbus("journal", "import", path, "--as", KOJI)
    assert done.returncode == 1 and "is not empty" in done.stderr
    assert {one: one.read_bytes() for one in folder(bus_folder).iterdir()} == before
    done = fedbus("journal", "import", path, "--as", BODHI)
    assert done.returncode == 1 and f"is of '{KOJI}', not of '{BODHI}'" in done.stderr
    assert [one.name for one in folder(bus_folder).parent.iterdir()] == [KOJI]
    folder(bus_folder, BODHI).mkdir()  # empty is as good as not there
    assert fedbus("journal", "import", path).returncode == 2


def test_a_part_of_a_journal_verifies_and_is_not_restored(bus_folder, fedbus):
    publish(bus_folder, 30)
    some = export(bus_folder, fedbus, "--topic", "koji.tag")
    shutil.rmtree(folder(bus_folder))
    done = fedbus("journal", "import", some, "--check", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 1 and report["verified"] and not report["restorable"]
    assert any("are missing before it" in one["text"] for one in report["problems"])
    assert fedbus("journal", "import", some, "--as", KOJI).returncode == 1
    assert not folder(bus_folder).exists()


def change_envelope(values: dict[str, Any]) -> None:
    values["envelope"] = values["envelope"].replace('"n":3', '"n":4')


def change_body(values: dict[str, Any]) -> None:
    values["body"]["n"] = 4


def change_seal(values: dict[str, Any]) -> None:
    frame = bytearray(base64.b64decode(values["sealed"]))
    frame[-5] ^= 1
    values["sealed"] = base64.b64encode(frame).decode()


def change_both(values: dict[str, Any]) -> None:
    frame = base64.b64decode(values["sealed"]).replace(b'"n":3', b'"n":4')
    values["sealed"] = base64.b64encode(frame).decode()
    change_envelope(values)
    change_body(values)


def change_time(values: dict[str, Any]) -> None:
    values["kept"]["written_at_ms"] += 600_000


@pytest.mark.badinput("B21")
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (change_envelope, "envelope is another text"),
        (change_body, "body: not as sealed"),
        (change_seal, "does not verify"),
        (change_both, "does not verify"),
        (change_time, "written_at_ms is not the time"),
        (lambda values: values.update(signer="bodhi.web01"), "signer: not as sealed"),
        (lambda values: values.update(dataschema="x"), "dataschema: not as sealed"),
    ],
)
def test_a_line_that_somebody_changed_is_named_and_nothing_is_restored(bus_folder, fedbus, change, text):
    publish(bus_folder, 10)
    path = export(bus_folder, fedbus)
    lines = path.read_text().splitlines()
    values = json.loads(lines[3])
    change(values)
    lines[3] = json.dumps(values, ensure_ascii=False)
    path.write_text("\n".join(lines) + "\n")
    shutil.rmtree(folder(bus_folder))
    done = fedbus("journal", "import", path, "--check", "--json")
    assert done.returncode == 4
    problem = json.loads(done.stdout)["problems"][0]
    assert problem["line"] == 4 and text in problem["text"] and problem["reason"]
    done = fedbus("journal", "import", path, "--as", KOJI)
    assert done.returncode == 4 and "line 4: " in done.stderr
    assert not list(folder(bus_folder).parent.iterdir())


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda lines: lines[:4] + lines[5:], "sequences 5 to 5 are missing before it"),
        (lambda lines: [*lines[:4], lines[3], *lines[4:]], "sequence 4 again 4 of line 4"),
        (lambda lines: [*lines[:4], lines[5], lines[4], *lines[6:]], "sequence 5 behind 6 of line 5"),
        (lambda lines: [*lines[:2], "{]", *lines[3:]], "line 3: not a line of an export"),
        (lambda lines: [*lines[:2], "[" * 100_000, *lines[3:]], "line 3: not a line of an export"),
        (lambda lines: [*lines[:2], '{"kept": 3}', *lines[3:]], "line 3: not a line of an export"),
        (lambda lines: [*lines[:2], '{"kept": {"start": 0, "count": 1}}', *lines[3:]], "'written_at_ms' is missing"),
        (lambda lines: [], "there is no message"),
    ],
)
def test_a_hole_a_repetition_and_rubbish_are_named_and_nothing_is_restored(bus_folder, fedbus, edit, text):
    publish(bus_folder, 12)
    path = export(bus_folder, fedbus)
    path.write_text("".join(line + "\n" for line in edit(path.read_text().splitlines())))
    shutil.rmtree(folder(bus_folder))
    done = fedbus("journal", "import", path, "--as", KOJI)
    assert done.returncode == 1 and text in done.stderr, done.stderr
    assert not list(folder(bus_folder).parent.iterdir())


def test_an_export_that_cuts_a_batch_is_told_where_to_cut_and_is_not_restored(bus_folder, fedbus):
    inside: list[int] = []  # lines of messages that stand inside a batch, neither at its beginning nor at its end
    lines: list[str] = []
    while not inside:  # how many messages make a batch is for the publisher to decide
        publish(bus_folder, 200)
        lines = export(bus_folder, fedbus).read_text().splitlines()
        for number, line in enumerate(lines):
            frame = base64.b64decode(json.loads(line)["sealed"])
            parcel = parcels.decode(frame, parcel_bytes=len(frame))
            if parcel.first < number + 1 < parcel.last:
                inside.append(number)
    shutil.rmtree(folder(bus_folder))
    for part, text in (
        (lines[inside[0] :], f"the batch of sequence {inside[0] + 1} begins at"),
        (lines[: inside[0] + 1], "the last batch goes on to sequence"),
    ):
        done = fedbus("journal", "import", "-", "--as", KOJI, stdin="".join(line + "\n" for line in part))
        assert done.returncode == 1 and text in done.stderr, done.stderr
        assert not list(folder(bus_folder).parent.iterdir())


def test_an_export_goes_through_pipes_and_a_single_line_of_it_verifies_alone(bus_folder, fedbus):
    publish(bus_folder, 12)
    out = fedbus("journal", "export", KOJI).stdout
    done = fedbus("journal", "import", "-", "--check", stdin=out)
    assert done.returncode == 0 and "12 messages" in done.stdout
    one = out.splitlines()[7]
    frame = base64.b64decode(json.loads(one)["sealed"])
    parcel = parcels.decode(frame, parcel_bytes=len(frame))
    assert parcel.envelopes == [json.loads(one)["envelope"].encode()]
    report = json.loads(fedbus("journal", "import", "-", "--check", "--json", stdin=one).stdout)
    assert report["verified"] and not report["restorable"] and report["messages"] == 1


def test_an_export_that_begins_where_retention_left_off_is_restored(bus_folder, fedbus):
    (bus_folder / "90-small.yaml").write_text("journal: {segment_bytes: 8KiB, retain_bytes: 30KiB}\n")
    (bus_folder / "90-small.yaml").chmod(0o600)
    publish(bus_folder, 200)
    start = int(segments(bus_folder)[0].name[:20])
    assert start > 1
    path = export(bus_folder, fedbus)
    before = b"".join(map(records, segments(bus_folder)))
    shutil.rmtree(folder(bus_folder))
    done = fedbus("journal", "import", path, "--as", KOJI, "--complete", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["first"] == start
    assert b"".join(map(records, segments(bus_folder))) == before
    publish(bus_folder, 20)
    assert fedbus("journal", "verify").returncode == 0


def test_what_an_import_left_that_was_killed_is_cleared_away_and_never_shown(bus_folder, fedbus):
    publish(bus_folder, 5)
    path = export(bus_folder, fedbus)
    shutil.rmtree(folder(bus_folder))
    left = folder(bus_folder).with_name(f".{KOJI}.0.import")
    Journal.open(JournalOptions(directory=left, sync=SyncPolicy.ASYNC), endpoint=KOJI, clock=SystemClock()).close()
    assert "there are no journals" in fedbus("journal", "list").stderr
    assert fedbus("journal", "import", path, "--as", KOJI).returncode == 0
    assert [one.name for one in folder(bus_folder).parent.iterdir()] == [KOJI]
