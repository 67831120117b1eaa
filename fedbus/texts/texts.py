"""Gives each message its texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from fedbus.texts.guess import guess
from fedbus.texts.text import Text


class Shown(Protocol):
    """What is asked of a message: a topic and a body."""

    @property
    def topic(self) -> str: ...
    @property
    def body(self) -> dict[str, Any]: ...


class Texts:
    """The texts of messages. ``Texts()`` knows of no schema and no configuration, and still says what it can."""

    def __init__(self, *, root: str = "") -> None:
        """*root*: the PREFIX.ENV of this bus, which titles leave out, or empty."""
        self.root = root

    def of(self, message: Shown) -> Text:
        """Return the texts of *message*; never raises, and takes no longer for a larger body."""
        body = message.body
        return guess(message.topic, body if isinstance(body, Mapping) else {}, self.root)
