"""A loss of power at any moment: all that was acknowledged is on the disk, for journals and for cursors.

The processes are real, and so are their system calls; only the disk is a model, which keeps what was synced.
"""

from __future__ import annotations

import random
import subprocess
import textwrap
from pathlib import Path

import pytest

from fedbus.clock import ManualClock
from fedbus.journal.cursors import CursorStore
from fedbus.journal.journal import Journal, JournalOptions, JournalReader
from tests.processes import powerloss
from tests.support import need_program
from tests.unit.journal.journals import ENDPOINT, check_records, read_all

JOURNAL = textwrap.dedent("""
    import os, random, sys
    from pathlib import Path
    from fedbus.journal.journal import SyncPolicy
    from tests.unit.journal.journals import append_one, open_journal

    chance = random.Random(int(sys.argv[2]))
    folder = Path(sys.argv[1]) / "state" / "journal" / "koji.build01"
    for life in range(3):
        with open_journal(folder, sync=SyncPolicy(sys.argv[3]), segment_bytes=3000, retain_bytes=30_000) as journal:
            if not life:
                os.write(1, f"epoch {journal.epoch}\\n".encode())
            for number in range(chance.randrange(10, 40)):
                append_one(journal, extra=chance.choice((40, 700)))
                if sys.argv[3] == "async" and chance.random() < 0.3:
                    journal.sync()
                if journal.synced:
                    os.write(1, f"ack {journal.synced} {journal.start}\\n".encode())
""")

CURSORS = textwrap.dedent("""
    import os, random, sys
    from pathlib import Path
    from fedbus.journal.cursors import CursorStore
    from fedbus.model.position import Position

    chance = random.Random(int(sys.argv[2]))
    sequence = 0
    for life in range(3):
        with CursorStore.open(Path(sys.argv[1]) / "state" / "cursors.db") as store:
            if life == 1:
                # the log is written back to the database under our feet, as happens by itself after a thousand pages
                store._connection.execute("PRAGMA wal_autocheckpoint=3")
            for number in range(12):
                sequence += 1
                places = {name: Position("e", sequence) for name in ("koji.build01", "bodhi.web01")}
                store.save(f"cursor-{chance.randrange(3)}", {**places, "pad." + "x" * 50: Position("e", 1)})
                store.save("last", places)
                os.write(1, f"ack {sequence}\\n".encode())
""")


@pytest.fixture(scope="module")
def strace() -> str:
    program = need_program("strace")
    if subprocess.run([program, "-o", "/dev/null", "true"], capture_output=True, check=False).returncode:
        pytest.skip("strace may not trace here")
    return program


@pytest.fixture
def chance() -> random.Random:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.mark.fault("F6")
@pytest.mark.parametrize("sync", ["always", "async"])
def test_a_journal_keeps_what_it_acknowledged_wherever_the_power_fails(
    strace: str, tmp_path: Path, chance: random.Random, sync: str
) -> None:
    root = tmp_path / "disk"
    calls = powerloss.record(strace, JOURNAL, root, str(chance.randrange(2**32)), sync)
    seen = 0
    everything = [line.split() for line in powerloss.said(calls)]
    for image, said in powerloss.images(calls, root, tmp_path, chance, every=0.25):
        if len(said) < 2:
            continue
        seen += 1
        epoch, synced = everything[0][1], int(said[-1].split()[1])
        # retention may have been at work, and of several names that it has removed any may be there again
        gone = int(everything[min(len(said), len(everything) - 1)][2]) - 1
        folder = image / "state" / "journal" / ENDPOINT
        options = JournalOptions(directory=folder, segment_bytes=3000, retain_bytes=0)
        with Journal.open(options, endpoint=ENDPOINT, clock=ManualClock()) as journal:
            assert journal.epoch == epoch
            assert journal.head >= synced
            assert journal.start - 1 <= gone
            records, lost = read_all(journal, journal.start - 1)
            assert all(last <= gone or first > synced for first, last in lost), "nothing acknowledged is lost"
            check_records(records, lost, head=journal.head, start=journal.start)
            with JournalReader.open(folder) as reader:
                assert reader.head == journal.head
    assert seen > 20  # how many there are is a matter of chance


@pytest.mark.fault("F6")
def test_cursors_are_where_they_were_said_to_be_wherever_the_power_fails(
    strace: str, tmp_path: Path, chance: random.Random
) -> None:
    root = tmp_path / "disk"
    calls = powerloss.record(strace, CURSORS, root, str(chance.randrange(2**32)))
    seen = 0
    for image, said in powerloss.images(calls, root, tmp_path, chance, every=0.5):
        if not said:
            continue
        seen += 1
        acked = int(said[-1].split()[1])
        with CursorStore.open(image / "state" / "cursors.db") as store:
            places = store.load("last")
            assert places["koji.build01"] == places["bodhi.web01"], "all or none"
            assert places["koji.build01"].sequence in (acked, acked + 1)
            for name in store.list():
                found = store.load(name)
                assert found["koji.build01"] == found["bodhi.web01"]
    assert seen > 50


CARELESS = textwrap.dedent("""
    import os, sys
    for name, careful in (("careless", False), ("careful", True)):
        with open(os.path.join(sys.argv[1], name), "w") as file:
            file.write("all of it")
            file.flush()
            if careful:
                os.fsync(file.fileno())
                folder = os.open(sys.argv[1], os.O_RDONLY)
                os.fsync(folder)
        os.write(1, f"{name}\\n".encode())
""")


def test_the_model_of_the_disk_loses_what_was_not_synced_and_keeps_what_was(
    strace: str, tmp_path: Path, chance: random.Random
) -> None:
    root = tmp_path / "disk"
    calls = powerloss.record(strace, CARELESS, root)
    kept = {"careless": 0, "careful": 0}
    seen = {"careless": 0, "careful": 0}
    for turn in range(30):
        (tmp_path / f"{turn}").mkdir()
        for image, said in powerloss.images(calls, root, tmp_path / f"{turn}", chance):
            for name in said:
                seen[name] += 1
                path = image / name
                kept[name] += path.exists() and path.read_text() == "all of it"
    assert kept["careful"] == seen["careful"] > 0
    assert 0 < kept["careless"] < seen["careless"]
