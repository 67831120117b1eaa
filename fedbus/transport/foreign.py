"""What a subscriber needs of a feed in another format than ours, which brings its own sockets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from fedbus.model.message import Message
from fedbus.transport.endpoint import Endpoint


class ForeignStream:
    """Stands where a stream's reader does, for messages that have no place in a stream: no cursor moves with them."""

    left_behind = True
    epoch = ""
    handed = 0

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def open(self, entry: Any) -> Iterator[Message]:
        """Return the messages of an entry."""
        return iter(entry)

    def finished(self, through: int) -> None:
        """There is nothing to note."""


class ForeignFeed(Protocol):
    """Reads endpoints of another format; belongs to one thread."""

    @property
    def descriptor(self) -> int:
        """Becomes readable when :meth:`drain` may find something."""

    def update(self, endpoints: Iterable[Endpoint]) -> None:
        """Take up a changed list of endpoints; those that stay the same are not touched."""

    def drain(self, now: float) -> tuple[list[tuple[ForeignStream, list[Message]]], bool]:
        """Return what has come in, verified, and whether there may be more right away."""

    def tick(self, now: float) -> None:
        """Do what is due; called every half second or so."""

    def close(self) -> None:
        """Close the sockets."""
