"""A process that appends is killed at any moment: what it had reported is there, and the numbers go on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.unit.journal.journals import append_one, check_records, open_journal, read_all

ROOT = Path(__file__).resolve().parents[2]
WRITER = textwrap.dedent("""
    import os, sys
    from pathlib import Path
    from fedbus.journal.journal import SyncPolicy
    from tests.unit.journal.journals import append_one, open_journal

    journal = open_journal(Path(sys.argv[1]), sync=SyncPolicy(sys.argv[2]), segment_bytes=200_000)
    os.write(1, f"{journal.epoch}\\n".encode())
    while True:
        os.write(1, f"{append_one(journal, extra=3000)}\\n".encode())
""")


@pytest.mark.fault("F2")
@pytest.mark.fault("F3")
@pytest.mark.parametrize("sync", ["always", "async", "interval"])
def test_a_writer_killed_at_any_moment_has_kept_what_it_acknowledged(tmp_path: Path, sync: str) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    epochs = set()
    acknowledged = 0
    for _ in range(6):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "j"), sync],
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert child.stdout is not None
        try:
            epochs.add(child.stdout.readline())
            for _ in range(chance.randrange(1, 120)):
                acknowledged = int(child.stdout.readline())
        finally:
            child.send_signal(signal.SIGKILL)
            rest = child.stdout.read().splitlines(keepends=True)
            child.wait(60)
            child.stdout.close()
        acknowledged = max([acknowledged, *(int(line) for line in rest if line.endswith(b"\n"))])
        with open_journal(tmp_path / "j", segment_bytes=200_000) as journal:
            assert journal.head >= acknowledged
            records, lost = read_all(journal, budget=10**6)
            assert not lost
            check_records(records, lost, head=journal.head)
            epochs.add(f"{journal.epoch}\n".encode())
            acknowledged = append_one(journal, extra=3000)
    assert len(epochs) == 1
