"""What tests of a bus on real sockets share: settings that are quick, reading until a count, hostile endpoints."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedbus import Bus, Message
from fedbus.config.settings import Settings
from fedbus.transport.asubscriber import AsyncSubscriber
from fedbus.transport.subscriber import Subscriber
from tests.support import wait_until

KOJI, BODHI, GIT = "koji.build01", "bodhi.web01", "git.host01"
PATIENCE = 60.0  # seconds, for whatever happens soon, on a slow machine too


def quick(folder: Path, **parts: dict[str, Any]) -> Settings:
    """The settings of *folder* with more beats and looks at files; ``publisher={…}`` and the like change options."""
    settings = Settings.load(folder, {})
    changes: dict[str, dict[str, Any]] = {
        "publisher": {"beat_interval": 0.1},
        "subscriber": {"refresh_interval": 0.1, "commit_interval": 0.1},
    }
    for name, values in parts.items():
        changes[name] = {**changes.get(name, {}), **values}
    journal = changes.pop("journal", {})
    return replace(
        settings,
        journals={name: replace(one, **journal) for name, one in settings.journals.items()},
        **{name: replace(getattr(settings, name), **values) for name, values in changes.items()},
    )


def take(subscriber: Subscriber, count: int, timeout: float = PATIENCE) -> list[Message]:
    """Return the next *count* messages; fewer when *timeout* seconds were not enough."""
    found: list[Message] = []
    deadline = time.monotonic() + timeout
    while len(found) < count and (left := deadline - time.monotonic()) > 0:
        found += subscriber.receive(left)
    return found


def take_until(subscriber: Subscriber, condition: Callable[[], object], timeout: float = PATIENCE) -> list[Message]:
    """Read until *condition* is true; fail when it does not come true within *timeout* seconds."""
    found: list[Message] = []
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s; got {found}"
        found += subscriber.receive(0.02)
    while more := subscriber.receive(0.0):
        found += more
    return found


def first(subscriber: Subscriber, count: int) -> list[Message]:
    """Return exactly *count* messages, of which the last has not been worked on yet."""
    timer = threading.Timer(PATIENCE, subscriber.stop)
    timer.start()
    try:
        return list(itertools.islice(subscriber, count))
    finally:
        timer.cancel()


async def atake(subscriber: AsyncSubscriber, count: int) -> list[Message]:
    """Return the next *count* messages."""
    found: list[Message] = []
    async for message in subscriber:
        found.append(message)
        if len(found) >= count:
            break
    return found


def join(subscriber: Subscriber, *endpoints: str) -> None:
    """Read until the streams of *endpoints* (all, if none is named), which run, have been joined and read to the end.

    And until they are heard: a journal answers over another connection, perhaps before that of the live feed is there.
    """
    readers = [one for one in subscriber.readers() if not endpoints or one.endpoint in endpoints]

    def joined() -> bool:
        return all(one.mode.value == "live" and one.heard_at is not None for one in readers)

    assert take_until(subscriber, joined) == []


def next_millisecond() -> None:
    """Wait until what was published lies in an earlier millisecond, with one to spare for how clocks are compared."""
    before = int(time.time() * 1000)
    wait_until(lambda: int(time.time() * 1000) > before + 1)


def numbers(messages: list[Message]) -> list[int]:
    return [message.body["n"] for message in messages]


__all__ = [
    "BODHI",
    "GIT",
    "KOJI",
    "PATIENCE",
    "Bus",
    "atake",
    "first",
    "join",
    "next_millisecond",
    "numbers",
    "quick",
    "take",
    "take_until",
]
