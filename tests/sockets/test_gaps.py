"""What is lost on the way is noticed within two beats, for every filter, and read from the journal once, in order."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from buses import KOJI, Bus, take_until
from forger import Forger

from fedbus.model.topic import TopicFilter
from fedbus.transport.state import Loss

ROOT = "org.example.dev"
TOPICS = tuple(
    f"{ROOT}.koji.{rest}"
    for rest in ("build.start", "build.stop", "build.image.layer.add", "builder.start", "tag.add", "tag.image.add")
)
FILTERS = {
    "everything": (),
    "a service": ("koji",),
    "an object": ("koji.build",),
    "a deep prefix": ("koji.build.image.layer",),
    "a whole topic": ("koji.build.image.layer.add",),
    "any object": ("koji.*.start",),
    "any depth": ("koji.#.add",),
    "any service": ("#.start",),
    "two prefixes": ("koji.build.image", "koji.tag"),
    "nothing that is ever said": ("koji.build.cancel",),
}


@pytest.fixture
def forger(bus: Bus, tmp_path: Path) -> Iterator[Forger]:
    one = Forger(bus, tmp_path / "forged")
    yield one
    one.close()


@pytest.mark.fault("F1")
@pytest.mark.fault("F9")
@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS.keys())
@pytest.mark.parametrize("recent", [False, True], ids=["beats of all topics", "beats of the last batch alone"])
def test_a_loss_is_noticed_within_two_beats_also_that_of_the_last_message(
    bus: Bus, forger: Forger, filters: tuple[str, ...], recent: bool
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    losses: list[Loss] = []
    publisher = forger.publisher
    wanted = [TopicFilter.parse(text, bus.settings.naming) for text in filters]
    with bus.subscribe(*filters, since="beginning", endpoints=[KOJI], on_loss=losses.append) as subscriber:
        forger.join(subscriber)
        (reader,) = subscriber.readers()
        got: list[int] = []
        for turn in range(4):
            for _ in range(chance.randrange(1, 12)):
                before = publisher.head
                frames = publisher.publish([chance.choice(TOPICS) for _ in range(chance.randrange(1, 9))])
                for frame in frames:
                    if chance.random() < 0.4:
                        forger.send(frame)
            if turn % 2:
                # of everything the last message alone, of the rarest topics too, does not arrive
                before = publisher.head
                publisher.publish([chance.choice(TOPICS)])
            for _ in range(2):
                forger.send(publisher.beat(before if recent else 0))

            def caught_up() -> bool:
                forger.serve()
                return reader.accounted == publisher.head and reader.mode.value == "live"

            got += [message.sequence for message in take_until(subscriber, caught_up)]
    said = [number for number, topic in publisher.said if not wanted or any(one.matches(topic) for one in wanted)]
    assert got == said
    assert losses == []
