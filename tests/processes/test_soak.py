"""A publisher and a reader that are killed at random while they work; a ledger that is neither of them decides.

Runs for FEDBUS_SOAK_SECONDS (default: a few); `make soak` runs it for an hour.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedbus.config import init

SECONDS = float(os.environ.get("FEDBUS_SOAK_SECONDS", "8"))
SEED = int(os.environ.get("FEDBUS_SOAK_SEED", "0")) or random.SystemRandom().randrange(1, 2**31)

PUBLISH = """
import sys, time, fedbus
folder, began = sys.argv[1], int(sys.argv[2])
with fedbus.Bus.open(folder) as bus, bus.publisher("koji.build01") as publisher:
    count = began
    while True:
        topics = ["soak.row.add" if (count + n) % 3 else "soak.mark.set" for n in range(20)]
        rows = [publisher.publish(topic, {"row": count + n}, wait=False) for n, topic in enumerate(topics)]
        for row in rows:
            receipt = row.result()
            print(receipt.sequence, receipt.id, flush=True)
        count += 20
        time.sleep(0.01)
"""

READ = """
import sys, fedbus
with fedbus.Bus.open(sys.argv[1]) as bus, bus.subscribe(since="beginning", cursor="soak", strict=True) as subscriber:
    for message in subscriber:
        print(message.sequence, message.id, flush=True)
"""


class Child:
    """A process that is killed and started again; what it printed in all of its lives is kept."""

    def __init__(self, code: str, output: Path, *arguments: str) -> None:
        self.code, self.output, self.arguments = code, output, arguments
        self.lives = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.lives += 1
        with (self.output / f"{self.lives:05}").open("wb") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-c", self.code, *self.arguments], stdout=sink, stderr=subprocess.PIPE
            )

    def kill(self) -> None:
        assert self.process is not None
        if self.process.poll() is not None:
            _, errors = self.process.communicate()
            raise AssertionError(f"a child ended by itself: {errors.decode()}")
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()

    def lines(self) -> list[list[tuple[int, str]]]:
        """Return (sequence, id) of every whole line, by life."""
        lives = []
        for file in sorted(self.output.iterdir()):
            rows = [line.split() for line in file.read_text().split("\n")[:-1]]
            lives.append([(int(row[0]), row[1]) for row in rows if len(row) == 2])
        return lives


@pytest.mark.fault("F1")
@pytest.mark.fault("F2")
@pytest.mark.timeout(SECONDS + 120)
def test_what_was_acknowledged_arrives_once_and_in_order_whoever_is_killed(tmp_path: Path) -> None:
    print(f"FEDBUS_SOAK_SEED={SEED}")
    chance = random.Random(SEED)
    folder = tmp_path / "bus"
    init.create(folder, ["koji.build01"])
    outputs = {name: tmp_path / name for name in ("published", "read")}
    for output in outputs.values():
        output.mkdir()
    publisher = Child(PUBLISH, outputs["published"], str(folder), "0")
    reader = Child(READ, outputs["read"], str(folder))
    children = [publisher, reader]
    try:
        for child in children:
            child.start()
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            time.sleep(chance.uniform(0.3, 2.5))  # the fault's moment, not a condition to wait for
            child = chance.choice(children)
            child.kill()
            child.start()
        publisher.kill()
        acknowledged = dict(row for life in publisher.lines() for row in life)
        assert acknowledged, "nothing was published"
        last = max(acknowledged)
        end = time.monotonic() + 60.0
        while not any(sequence >= last for life in reader.lines() for sequence, _ in life[-1:]):
            assert time.monotonic() < end, json.dumps({"last": last, "read": [life[-1:] for life in reader.lines()]})
            time.sleep(0.05)
        reader.kill()
    finally:
        for child in children:
            if child.process is not None and child.process.poll() is None:
                child.process.kill()
                child.process.communicate()

    read: dict[int, str] = {}
    for life in reader.lines():
        sequences = [sequence for sequence, _ in life]
        assert sequences == list(range(sequences[0], sequences[0] + len(sequences))) if sequences else True
        for sequence, identifier in life:
            assert read.setdefault(sequence, identifier) == identifier
    missing = {sequence: name for sequence, name in acknowledged.items() if read.get(sequence) != name}
    assert not missing
    assert sorted(read) == list(range(1, len(read) + 1))
