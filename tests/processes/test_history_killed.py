"""A hub that is killed while it stores messages, again and again: the history has each of them once."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedbus import Bus, HistoryQuery, HistoryStore, open_history
from fedbus.config.settings import Settings
from fedbus.history.partition import PAGE_BYTES
from tests.conftest import Running
from tests.support import wait_until

KOJI, BODHI = "koji.build01", "bodhi.web01"
KILLS = int(os.environ.get("FEDBUS_HISTORY_KILLS", "6"))
PATIENCE = 180.0
CONFIG = """
hub: {commit_interval: 20ms}
consumers:
  history:
    use: fedbus_consumers.history
    batch: {messages: 50, seconds: 0.02}
"""


@contextmanager
def publishing(folder: Path) -> Iterator[Callable[[], int]]:
    """Publish bursts of both endpoints, from a thread, until left; yields how many were acknowledged so far."""
    done = [0]
    stop = threading.Event()

    def run() -> None:
        with Bus.open(folder) as bus, bus.publisher(KOJI) as koji, bus.publisher(BODHI) as bodhi:
            while not stop.wait(0.02):
                for number in range(3):
                    koji.enqueue("package.build.start" if number % 2 else "tag.add", {"package": f"p{number}"})
                    bodhi.enqueue("update.create", {"user": "ralph"})
                koji.flush()
                bodhi.flush()
                done[0] += 6

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield lambda: done[0]
    finally:
        stop.set()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def history(folder: Path) -> HistoryStore:
    return open_history(str(Settings.load(folder, {}).state / "history"))


def count(folder: Path) -> int:
    with history(folder) as store:
        return store.count(HistoryQuery())


def wait_for(folder: Path, hub: Running, messages: int) -> None:
    """Wait until the history holds so many messages, or the hub has ended."""
    wait_until(lambda: count(folder) >= messages or hub.code is not None, PATIENCE, f"{messages} messages")


@pytest.mark.fault("F8")
@pytest.mark.fault("F18")
@pytest.mark.timeout(900 + 30 * KILLS)
def test_a_hub_killed_again_and_again_leaves_the_history_with_each_message_once(
    bus_folder: Path, spawn: Callable[..., Running], fedbus
) -> None:
    (bus_folder / "50-history.yaml").write_text(CONFIG)
    (bus_folder / "50-history.yaml").chmod(0o600)
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    print(f"seed {seed}")
    with publishing(bus_folder) as published:
        for turn in range(KILLS):
            points = ("history.commit.before=kill", "history.commit.after=kill", "")
            armed = points[turn % 3] and f"{points[turn % 3]}@{chance.randint(1, 6)}"
            before = count(bus_folder)
            hub = spawn("hub", config=bus_folder, environment={"FEDBUS_FAILPOINTS": armed})
            if not armed:
                # in the middle of something, wherever that is
                wait_for(bus_folder, hub, before + chance.randint(1, 60))
                hub.send(signal.SIGKILL)
            assert hub.wait(PATIENCE) == -signal.SIGKILL, hub.err
        sent = published()
    sent = max(sent, published())
    hub = spawn("hub", config=bus_folder)
    wait_for(bus_folder, hub, sent)
    hub.send(signal.SIGTERM)
    assert hub.wait(PATIENCE) == 0, hub.err
    with history(bus_folder) as store:
        keys = [stored.key for stored in store.find(HistoryQuery())]
        assert list(store.faults()) == []
    for endpoint in (KOJI, BODHI):
        assert sorted(key.sequence for key in keys if key.endpoint == endpoint) == list(range(1, sent // 2 + 1))
    assert len({key.epoch for key in keys}) == 2
    done = fedbus("history", "verify")
    assert (done.returncode, done.stdout) == (0, f"{sent} good, 0 refused, 0 not verifiable\n"), done.stderr


@pytest.mark.fault("F18")
def test_a_damaged_history_is_rebuilt_from_itself_and_the_journals_though_the_rebuilding_is_killed_too(
    bus_folder: Path, spawn: Callable[..., Running], fedbus
) -> None:
    (bus_folder / "50-history.yaml").write_text(CONFIG)
    (bus_folder / "50-history.yaml").chmod(0o600)
    with Bus.open(bus_folder) as bus, bus.publisher(KOJI) as koji:
        for number in range(300):
            koji.enqueue("package.build.start", {"n": number, "text": "word " * 100})
        koji.flush()
    hub = spawn("hub", config=bus_folder)
    wait_for(bus_folder, hub, 300)
    hub.send(signal.SIGTERM)
    assert hub.wait(PATIENCE) == 0, hub.err
    folder = Settings.load(bus_folder, {}).state / "history"
    (path,) = [one for one in folder.glob("*.db") if one.name != "history.db"]
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    data = bytearray(path.read_bytes())
    data[PAGE_BYTES * 6 : PAGE_BYTES * 12] = bytes(PAGE_BYTES * 6)
    path.write_bytes(data)
    done = fedbus("history", "verify")
    assert done.returncode in (1, 4) and "rebuild" in done.stderr, done.stderr
    killed = spawn("history", "rebuild", config=bus_folder, environment={"FEDBUS_FAILPOINTS": "history.aside=kill@1"})
    assert killed.wait(PATIENCE) == -signal.SIGKILL
    done = fedbus("history", "rebuild")
    assert done.returncode == 1  # two of the endpoints have no journal
    assert "300 messages added of 300" in done.stdout, done.stdout + done.stderr
    done = fedbus("history", "verify")
    assert (done.returncode, done.stdout) == (0, "300 good, 0 refused, 0 not verifiable\n"), done.stderr
