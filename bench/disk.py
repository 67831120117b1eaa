"""One fdatasync of the disk that the journals of this run are on, after an append of a small record.

In the rhythm of the latency rows: one append of 1,400 bytes (a sealed 1 KiB message) a millisecond, since a disk
that was just busy answers otherwise than one that was idle.
"""

from __future__ import annotations

import os
import time

from bench.harness import Session
from bench.rows import percentile

RECORD = os.urandom(1_400)


def measure(session: Session) -> None:
    """Record disk/fdatasync/p50 and p99."""
    taken: list[float] = []
    with session.scratch("disk") as folder:
        descriptor = os.open(folder / "segment", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            due = time.monotonic()
            for _ in range(session.pick(2_000, 800)):
                os.write(descriptor, RECORD)
                begin = time.monotonic_ns()
                os.fdatasync(descriptor)
                taken.append((time.monotonic_ns() - begin) / 1_000)
                due = max(due + 0.001, time.monotonic())
                time.sleep(max(0.0, due - time.monotonic()))
        finally:
            os.close(descriptor)
    session.record("disk/fdatasync/p50", percentile(taken, 0.5), "us")
    session.record("disk/fdatasync/p99", percentile(taken, 0.99), "us")
