"""The processes of a soak that use fedbus: publishers and subscribers, which report to the ledger what befalls them.

``python -m tests.processes.workers publish CONFIG ENDPOINT SOURCE LIFE RATE`` publishes until SIGTERM; once the file
exists that ``SOAK_REST`` names, it only stays, for readers that still need its journal.
``python -m tests.processes.workers subscribe CONFIG NAME LIFE DIVISOR`` reads with the cursor NAME until SIGTERM.
``CONSUMER`` below is the text of a consumer for a hub. ``LEDGER_FD`` names the pipe.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

from fedbus import Bus, Message
from fedbus.errors import DeadlineExceeded, FedbusError, JournalError, JournalWriteError, QueueFull
from fedbus.transport.relay_client import RelayPending
from fedbus.transport.state import Loss

LEDGER = int(os.environ.get("LEDGER_FD", "-1"))
REST = Path(os.environ.get("SOAK_REST", "/nonexistent"))
LIFE_BITS = 24  # the n of a life begin with its number
MARKED = 3  # each n that this divides is published as soak.mark.set, the others as soak.row.add
TICK = 0.01  # seconds between two groups of messages
PADDING = "x" * 100

CONSUMER = """
import os
import fedbus

class Ledger(fedbus.Consumer):
    topics = ("#",)
    since = "beginning"

    def start(self):
        self.fd, self.life = int(os.environ["LEDGER_FD"]), int(os.environ["SOAK_LIFE"])
        os.write(self.fd, f"live hub {self.life} 1\\n".encode())

    def consume(self, one):
        line = f"got hub {self.life} {one.endpoint} {one.epoch} {one.sequence} {one.body['s']} {one.body['n']} 1\\n"
        os.write(self.fd, line.encode())

    def lost(self, loss):
        os.write(self.fd, f"lost hub {self.life} {loss.endpoint} {loss.first} {loss.last}\\n".encode())
"""


def report(lines: Iterable[str]) -> None:
    """Write whole lines to the ledger, in pieces that the kernel keeps whole."""
    piece = b""
    for line in lines:
        data = line.encode() + b"\n"
        if len(piece) + len(data) > select.PIPE_BUF:
            os.write(LEDGER, piece)
            piece = b""
        piece += data
    if piece:
        os.write(LEDGER, piece)


class _Runs:
    """Joins what counts on, sequence and n by ones, into one line: BEFORE SEQUENCE BETWEEN N COUNT."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._words = ("", "")
        self._sequence = self._n = self._count = 0

    def add(self, before: str, sequence: int, between: str, n: int) -> None:
        count = self._count
        if (before, between) == self._words and (sequence, n) == (self._sequence + count, self._n + count):
            self._count += 1
            return
        self.end()
        self._words, self._sequence, self._n, self._count = (before, between), sequence, n, 1

    def end(self) -> list[str]:
        if self._count:
            before, between = self._words
            self.lines.append(f"{before} {self._sequence}{between} {self._n} {self._count}")
        self._count = 0
        return self.lines


class Flags:
    """What SIGTERM has asked for."""

    def __init__(self) -> None:
        self.stop = False
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stop = True


def publish(config: str, endpoint: str, source: str, life: str, rate: str) -> None:
    """Publish *rate* messages a second; end when the publisher itself does."""
    flags = Flags()
    with Bus.open(config) as bus, bus.publisher(endpoint) as publisher:
        n = int(life) << LIFE_BITS
        per_tick = float(rate) * TICK
        due, owed = time.monotonic(), 0.0
        while not flags.stop:
            # what was missed while this process was stopped is not made up for at once
            due = max(due + TICK, time.monotonic() - 1.0)
            time.sleep(max(0.0, due - time.monotonic()))
            if REST.exists():
                continue
            owed += per_tick
            group: list[tuple[int, Any]] = []
            while owed >= 1.0:
                owed -= 1.0
                n += 1
                try:
                    group.append((n, publisher.enqueue(_topic(n), {"s": source, "n": n, "pad": PADDING})))
                except QueueFull:
                    report([f"no {source} {n} 1"])
            if not settle(group, source):
                time.sleep(0.05)


def _topic(n: int) -> str:
    return "soak.row.add" if n % MARKED else "soak.mark.set"


def settle(group: list[tuple[int, Any]], source: str) -> bool:
    """Wait for the receipts of *group* and report them; return whether all were given."""
    runs = _Runs()
    others: list[str] = []
    refused = False
    for n, pending in group:
        try:
            receipt = pending.settle(10.0) if isinstance(pending, RelayPending) else pending.result(120.0)
        except (JournalWriteError, QueueFull):
            refused = True
            others.append(f"no {source} {n} 1")
        except DeadlineExceeded:
            others.append(f"maybe {source} {n} 1")
        except FedbusError as error:
            report([*runs.end(), *others, f"maybe {source} {n} 1"])
            raise SystemExit(f"no receipt for {n}: {error}") from error
        else:
            if receipt.spooled:
                others.append(f"spooled {source} {n} 1")
            else:
                runs.add(f"ack {source} {receipt.endpoint} {receipt.epoch}", receipt.sequence, "", n)
    report([*runs.end(), *others])
    return not refused


def scripts(config: str, endpoint: str, source: str, life: str, rate: str) -> None:
    """Run a `fedbus publish` for each message, as hooks do; *rate* a second, or as fast as they end."""
    flags = Flags()
    n = int(life) << LIFE_BITS
    due = time.monotonic()
    while not flags.stop:
        due = max(due + 1.0 / float(rate), time.monotonic())
        while not flags.stop and (time.monotonic() < due or REST.exists()):
            time.sleep(0.05)
        if flags.stop:
            return
        n += 1
        body = json.dumps({"s": source, "n": n, "pad": PADDING})
        command = ["-m", "fedbus.cli", "--config", config, "publish", _topic(n), body, "--as", endpoint, "--json"]
        done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, check=False)
        if done.returncode:
            # 1: the disk refused it, 6: no room, or nobody knows; which of both is not told by the code
            report([f"maybe {source} {n} 1"])
            continue
        receipt = json.loads(done.stdout)
        if receipt.get("sequence"):
            report([f"ack {source} {endpoint} {receipt['epoch']} {receipt['sequence']} {n} 1"])
        else:
            report([f"spooled {source} {n} 1"])


def subscribe(config: str, name: str, life: str, divisor: str) -> None:
    """Read with cursor *name*, and report all before asking for more."""
    flags = Flags()
    report([f"live {name} {life} {divisor}"])

    def on_loss(loss: Loss) -> None:
        report([f"lost {name} {life} {loss.endpoint} {loss.first} {loss.last}"])

    filters = ["*.soak.mark"] if divisor != "1" else []
    with Bus.open(config) as bus:
        subscriber = bus.subscribe(*filters, since="beginning", cursor=name, on_loss=on_loss)
        while not flags.stop:
            try:
                messages = subscriber.receive(0.2)
            except JournalError as error:
                print(f"cursor {name}: {error}", file=sys.stderr, flush=True)
                time.sleep(0.1)
                continue
            got(name, life, messages)
        try:
            subscriber.close()
        except JournalError as error:
            # its place is not written, so the next life gets some messages again
            print(f"cursor {name}, at the end: {error}", file=sys.stderr, flush=True)


def got(name: str, life: str, messages: list[Message]) -> None:
    runs = _Runs()
    for one in messages:
        runs.add(f"got {name} {life} {one.endpoint} {one.epoch}", one.sequence, f" {one.body['s']}", one.body["n"])
    report(runs.end())


if __name__ == "__main__":
    faulthandler.register(signal.SIGUSR2)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    logging.captureWarnings(True)
    {"publish": publish, "scripts": scripts, "subscribe": subscribe}[sys.argv[1]](*sys.argv[2:])
