"""A journal that was damaged while its endpoint was down: told as a loss, the rest served, nothing deleted."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from fedbus import Bus, Message
from fedbus.transport.reader import Loss
from tests.conftest import Running
from tests.support import wait_until

KOJI = "koji.build01"
PATIENCE = 60.0
COUNT = 300


@pytest.fixture
def chance() -> random.Random:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    return random.Random(seed)


def segments(bus_folder: Path) -> list[Path]:
    return sorted((bus_folder / "state" / "journal" / KOJI).glob("*.journal"))


def publish(bus: Bus, first: int, last: int) -> None:
    with bus.publisher(KOJI) as koji:
        for number in range(first, last + 1):
            koji.enqueue("build.start", {"n": number})
            if not number % 5:
                koji.flush()  # a batch of its own


def flip(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(200, len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def cut(path: Path, chance: random.Random) -> None:
    with path.open("r+b") as file:
        file.truncate(chance.randrange(100, path.stat().st_size - 100))


def remove(path: Path, chance: random.Random) -> None:
    path.unlink()


@pytest.mark.fault("F4")
@pytest.mark.parametrize("damage", [flip, cut, remove], ids=["a bit", "its end", "all of it"])
@pytest.mark.parametrize("up", [True, False], ids=["from the publisher", "from its files"])
def test_damage_in_the_middle_is_told_as_a_loss_and_the_rest_is_read(
    bus_folder: Path, chance: random.Random, damage: Callable[[Path, random.Random], None], up: bool
) -> None:
    (bus_folder / "60-journal.yaml").write_text("journal: {segment_bytes: 8KiB}\n")
    (bus_folder / "60-journal.yaml").chmod(0o600)
    with Bus.open(bus_folder) as bus:
        publish(bus, 1, COUNT)
    files = segments(bus_folder)
    assert len(files) > 5
    hurt = files[len(files) // 2]
    damage(hurt, chance)
    before = {path: path.read_bytes() for path in segments(bus_folder)}
    losses: list[Loss] = []
    got: list[Message] = []
    with Bus.open(bus_folder) as bus, bus.subscribe(since="beginning", on_loss=losses.append) as subscriber:

        def read() -> bool:
            got.extend(subscriber.receive(0.05))
            return bool(got) and got[-1].sequence >= COUNT

        if up:
            with bus.publisher(KOJI) as koji:
                koji.publish("build.start", {"n": COUNT + 1})
                wait_until(read, PATIENCE)
        else:
            wait_until(read, PATIENCE)
    assert losses and all(loss.endpoint == KOJI and loss.last is not None for loss in losses)
    lost = {number for loss in losses for number in range(loss.first, (loss.last or 0) + 1)}
    had = [one.sequence for one in got]
    assert had == sorted(set(had))
    assert set(had) | lost >= set(range(1, COUNT + 1))
    assert not lost & set(had)
    first, last = int(hurt.name[:20]), int(files[len(files) // 2 + 1].name[:20]) - 1
    assert lost <= set(range(first, last + 1)), "what is sound in other files is not lost"
    assert all(one.body == {"n": one.sequence} for one in got)
    # not one byte of what was there has gone; the newest segment may have grown
    for path, data in before.items():
        assert path.read_bytes()[: len(data)] == data


@pytest.mark.fault("F4")
def test_a_consumer_of_a_hub_is_told_of_damage_and_gets_the_rest(
    bus_folder: Path, spawn: Callable[..., Running], tmp_path: Path, chance: random.Random
) -> None:
    (bus_folder / "60-journal.yaml").write_text("journal: {segment_bytes: 8KiB}\n")
    (bus_folder / "60-journal.yaml").chmod(0o600)
    consumer = tmp_path / "note.py"
    consumer.write_text(
        "import fedbus\n"
        "class Note(fedbus.Consumer):\n"
        "    topics = ('#',)\n"
        "    since = 'beginning'\n"
        "    def consume(self, message):\n"
        "        print('got', message.sequence, flush=True)\n"
        "    def lost(self, loss):\n"
        "        print('lost', loss.first, loss.last, loss.cause, flush=True)\n"
    )
    with Bus.open(bus_folder) as bus:
        publish(bus, 1, COUNT)
        files = segments(bus_folder)
        remove(files[len(files) // 2], chance)
        with bus.publisher(KOJI):
            hub = spawn("hub", "--consumer", consumer, config=bus_folder)
            wait_until(lambda: f"got {COUNT}\n" in hub.out, PATIENCE)
    words = [line.split() for line in hub.out.splitlines() if line.startswith(("got", "lost"))]
    lost = [(int(one[1]), int(one[2])) for one in words if one[0] == "lost"]
    gone = {number for first, last in lost for number in range(first, last + 1)}
    had = [int(one[1]) for one in words if one[0] == "got"]
    assert gone == set(range(int(files[len(files) // 2].name[:20]), int(files[len(files) // 2 + 1].name[:20])))
    assert had == [number for number in range(1, COUNT + 1) if number not in gone]
    assert {one[3] for one in words if one[0] == "lost"} == {"damage"}
