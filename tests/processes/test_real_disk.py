"""Publishers on real file systems that are full, lose writes, turn read-only or stand still, and come back.

Each test mounts a small one of its own, which only root may do; elsewhere they are skipped. A disk stays full for
FEDBUS_FAULT_SECONDS, by default for a few refusals only; in `make soak` for a minute.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedbus.bus import Bus
from fedbus.config.settings import Settings
from fedbus.errors import DeadlineExceeded, JournalWriteError, QueueFull
from fedbus.journal.audit import audit
from fedbus.transport.publisher import Publisher
from tests.support import need_program, wait_until

KOJI, BODHI = "koji.build01", "bodhi.web01"
TOPIC = "package.build.complete"
PATIENCE = 120.0
SECONDS = float(os.environ.get("FEDBUS_FAULT_SECONDS", "0"))

Mount = Callable[..., None]


def run(*arguments: str | Path) -> None:
    subprocess.run([str(one) for one in arguments], check=True, capture_output=True, text=True, timeout=PATIENCE)


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Mount with the arguments of mount(8), the last of them the folder; all is unmounted at the end."""
    program, unmount = need_program("mount"), need_program("umount")
    folders: list[Path] = []

    def make(*arguments: str | Path) -> None:
        try:
            run(program, *arguments)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine lets us mount nothing: {error.stderr.strip()}")
        folders.append(Path(arguments[-1]))

    yield make
    for folder in reversed(folders):
        run(unmount, "--lazy", folder)


def settings_of(folder: Path, **journal: Any) -> Settings:
    settings = Settings.load(folder, {})
    return replace(
        settings,
        publisher=replace(settings.publisher, beat_interval=0.1),
        journals={name: replace(one, **journal) for name, one in settings.journals.items()},
    )


class Ledger:
    """What was acknowledged, and what was refused."""

    def __init__(self, publisher: Publisher) -> None:
        self.publisher = publisher
        self.kept: list[tuple[int, int]] = []  # sequence, number in the body
        self.refused = 0
        self.number = 0

    def publish(self, size: int = 1000) -> bool:
        """Publish one message more; say whether it was acknowledged."""
        self.number += 1
        try:
            receipt = self.publisher.publish(TOPIC, {"n": self.number, "padding": "x" * size})
        except JournalWriteError:
            self.refused += 1
            return False
        self.kept.append((receipt.sequence, self.number))
        return True


def everything(bus: Bus, count: int) -> list[tuple[int, int]]:
    """The whole stream of KOJI as a reader gets it."""
    found: list[tuple[int, int]] = []
    with bus.subscribe(since="beginning", endpoints=[KOJI], strict=True) as subscriber:

        def some() -> bool:
            found.extend((message.sequence, message.body["n"]) for message in subscriber.receive(0.1))
            return len(found) >= count and subscriber.caught_up

        wait_until(some, PATIENCE, f"{count} messages")
    return found


def fill(path: Path) -> None:
    """Let nothing more fit beside *path*."""
    with path.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue


def check(bus: Bus, kept: list[tuple[int, int]]) -> None:
    """The journal holds exactly what was acknowledged, without a hole, and every byte verifies."""
    assert [sequence for sequence, _ in kept] == list(range(1, len(kept) + 1))
    assert everything(bus, len(kept)) == kept
    found = audit(bus.settings.journal_for(KOJI).directory, bus.verifier, bus.settings.limits)
    assert not found.faults and found.messages == len(kept)


@pytest.mark.fault("F5")
def test_a_full_disk_refuses_what_it_cannot_keep_and_heals_without_a_restart(
    bus_folder: Path, mount: Mount, fedbus: Any
) -> None:
    state = bus_folder / "state"
    state.mkdir(mode=0o700, exist_ok=True)
    mount("-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", state)
    with Bus(settings_of(bus_folder)) as bus, bus.publisher(KOJI) as koji:
        ledger = Ledger(koji)
        for _ in range(50):
            assert ledger.publish()
        with bus.subscribe(since=f"{KOJI}/{koji.epoch}/50", endpoints=[KOJI]) as live:
            wait_until(lambda: live.receive(0.02) or live.caught_up, PATIENCE, "joining")
            for seconds in (SECONDS, 0.0, 0.0):
                fill(state / "filler")
                wait_until(lambda: not ledger.publish(10_000), PATIENCE, "a refusal")
                for _ in range(5):
                    assert not ledger.publish(10_000)
                over = time.monotonic() + seconds
                while time.monotonic() < over:
                    assert not ledger.publish(10_000)
                report = json.loads(fedbus("check", "--json").stdout)
                assert report["disk"]["free_percent"] < 5
                assert {"name": "disk", "state": "critical"}.items() <= {
                    key: value for one in report["results"] if one["name"] == "disk" for key, value in one.items()
                }.items()
                (state / "filler").unlink()
                for _ in range(20):
                    assert ledger.publish()
            seen: list[int] = []

            def caught_up() -> bool:
                seen.extend(message.body["n"] for message in live.receive(0.1))
                return len(seen) >= len(ledger.kept) - 50

            wait_until(caught_up, PATIENCE, "what was published meanwhile")
            assert seen == [number for _, number in ledger.kept[50:]]
        assert ledger.refused >= 18 and koji.stats.failures == ledger.refused
        check(bus, ledger.kept)
    with Bus(settings_of(bus_folder)) as bus, bus.publisher(KOJI) as koji:
        assert koji.head == len(ledger.kept)


@contextmanager
def image(folder: Path, mount: Mount) -> Iterator[tuple[Path, Path, Callable[[], None]]]:
    """An ext4 in a sparse file on a tmpfs of 8 MiB; yields the tmpfs, the disk, and what mounts it anew."""
    back, disk = folder / "back", folder / "disk"
    back.mkdir()
    disk.mkdir()
    make = need_program("mkfs.ext4")
    mount("-t", "tmpfs", "-o", "size=8m", "tmpfs", back)
    with (back / "image").open("wb") as file:
        file.truncate(64 * 2**20)
    run(make, "-q", "-J", "size=1", "-b", "1024", back / "image")
    arguments = ("-o", "loop", back / "image", disk)
    mount(*arguments)

    def again() -> None:
        run(need_program("umount"), disk)
        run(need_program("mount"), *arguments)

    yield back, disk, again


@pytest.mark.fault("F5")
@pytest.mark.fault("F6")
def test_what_a_device_lost_that_the_page_cache_had_was_refused_and_all_else_is_there_afterwards(
    bus_folder: Path, tmp_path: Path, mount: Mount
) -> None:
    """The device fails under the file system: EIO at the sync, then EROFS, until it is mended and mounted again."""
    with image(tmp_path, mount) as (back, disk, again):
        (bus_folder / "90-state.yaml").write_text(f"state: {disk / 'state'}\n")
        (bus_folder / "90-state.yaml").chmod(0o600)
        with Bus(settings_of(bus_folder)) as bus, bus.publisher(KOJI) as koji:
            ledger = Ledger(koji)
            for _ in range(20):
                assert ledger.publish()
            fill(back / "filler")
            wait_until(lambda: not ledger.publish(30_000), PATIENCE, "a refusal")
            for _ in range(5):
                assert not ledger.publish(30_000)
            assert everything(bus, len(ledger.kept)) == ledger.kept
        (back / "filler").unlink()
        again()  # what only the page cache had is gone now
        with Bus(settings_of(bus_folder)) as bus, bus.publisher(KOJI) as koji:
            assert koji.head == len(ledger.kept)
            ledger.publisher = koji
            for _ in range(20):
                assert ledger.publish()
            check(bus, ledger.kept)


@pytest.mark.fault("F5")
def test_a_journal_on_a_disk_that_turned_read_only_refuses_and_heals_without_a_restart(
    bus_folder: Path, mount: Mount
) -> None:
    with Bus(settings_of(bus_folder, segment_bytes=8192)) as bus, bus.publisher(KOJI) as koji:
        ledger = Ledger(koji)
        for _ in range(20):
            assert ledger.publish()
        folder = bus.settings.journal_for(KOJI).directory
        # the same folder once more, read-only, on top of itself: files that are open may be written on, new ones not
        mount("--bind", folder, folder)
        run(need_program("mount"), "-o", "remount,bind,ro", folder)
        wait_until(lambda: not ledger.publish(), PATIENCE, "a refusal")
        for _ in range(5):
            assert not ledger.publish()
        assert [number for _, number in everything(bus, len(ledger.kept))] == [number for _, number in ledger.kept]
        run(need_program("mount"), "-o", "remount,bind,rw", folder)
        for _ in range(20):
            assert ledger.publish()
        check(bus, ledger.kept)


@pytest.mark.fault("F5")
def test_a_disk_that_stands_still_delays_its_endpoint_alone_and_loses_nothing(
    bus_folder: Path, tmp_path: Path, mount: Mount
) -> None:
    freeze = need_program("fsfreeze")
    with image(tmp_path, mount) as (_, disk, _):
        settings = settings_of(bus_folder)
        journals = {KOJI: replace(settings.journals[KOJI], directory=disk / "koji"), BODHI: settings.journals[BODHI]}
        settings = replace(
            settings,
            journals={**settings.journals, **journals},
            publisher=replace(settings.publisher, queue_messages=10),
        )
        with Bus(settings) as bus, bus.publisher(KOJI) as koji, bus.publisher(BODHI) as bodhi:
            ledger = Ledger(koji)
            for _ in range(10):
                assert ledger.publish()
            run(freeze, "--freeze", disk)
            try:
                with pytest.raises(DeadlineExceeded, match="may still be published"):
                    koji.publish(TOPIC, {"n": 11}, timeout=0.3)
                for number in range(12, 22):
                    koji.enqueue(TOPIC, {"n": number}, timeout=PATIENCE)
                with pytest.raises(QueueFull):
                    koji.enqueue(TOPIC, {"n": 22}, timeout=0.3)
                for number in range(20):
                    assert bodhi.publish("update.request", {"n": number}).sequence == number + 1
                assert koji.facts()["queued_messages"] == 10
            finally:
                run(freeze, "--unfreeze", disk)
            koji.flush()
            assert everything(bus, 21) == [(number, number) for number in range(1, 22)]
            assert koji.facts()["sync_longest_seconds"] > 0
            found = audit(disk / "koji", bus.verifier, settings.limits)
            assert not found.faults and found.messages == 21
