"""All that the author of a consumer meets: the class, the decorator, and what may be raised."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from fedbus.hub.options import Batch
from fedbus.model.message import Message
from fedbus.texts.texts import Texts
from fedbus.transport.state import Loss

log = logging.getLogger(__name__)

MARK = "__fedbus_consumer__"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class Outcome(Exception):
    """What a consumer may raise to say what becomes of the message in hand; no failure, and never logged as one."""


class Retry(Outcome):
    """Deliver the same message again after *after* seconds; until then the consumer gets nothing that comes behind it.

    May be raised any number of times for one message and does not count as a failed attempt. From ``consume_batch`` it
    means the whole batch.
    """

    def __init__(self, after: float = 1.0, reason: str = "") -> None:
        if not 0.0 <= after < float("inf"):
            raise ValueError(f"Retry(after={after!r}): a number of seconds, 0 or more, is needed")
        super().__init__(reason or f"again in {after} s")
        self.after = after
        self.reason = reason


class Drop(Outcome):
    """Give up this message, for *reason*, which is logged; the next one follows."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


class Halt(Outcome):
    """Stop the whole hub, which then ends with *exit_code*. The message in hand comes again at the next start."""

    def __init__(self, exit_code: int = 0, reason: str = "") -> None:
        if not 0 <= exit_code <= 255:
            raise ValueError(f"Halt(exit_code={exit_code!r}): an exit code is between 0 and 255")
        super().__init__(reason)
        self.exit_code = exit_code
        self.reason = reason


class Consumer:
    """Base of consumers written as classes. The hub calls one at a time, always from the same thread, unless the
    configuration says ``workers``: then so many calls may run at once, each in another thread.

    What a consumer needs comes through ``__init__``: the ``settings`` of the configuration, as keyword arguments, after
    they were checked against ``schema``. Messages are shared with other consumers, so bodies must not be changed.
    Delivery is at least once, in the order of each stream; ``message.key`` tells when one comes again.
    """

    name: ClassVar[str] = ""
    """What its cursor, log lines and metrics are called; empty: the name of the class, as ``announce-builds``."""

    topics: ClassVar[tuple[str, ...]] = ()
    """Filters such as ``koji.package``; the configuration may name others."""

    since: ClassVar[str] = "now"
    """Where it begins the first time that a hub runs it: ``now``, ``beginning``, a time, or how long ago."""

    schema: ClassVar[Mapping[str, Any] | None] = None
    """JSON Schema of its settings; None: whatever ``__init__`` takes."""

    texts: Texts = Texts()
    """What messages say to people; the hub puts that of its configuration here before ``start()``."""

    state: Path | None = None
    """The folder ``state`` of the configuration, for a consumer that keeps something; put here as ``texts`` is."""

    batch: ClassVar[Batch | None] = None
    """For consumers with ``consume_batch``: how much it is given at once; the configuration may say otherwise."""

    def consume(self, message: Message) -> Awaitable[None] | None:
        """Work on *message*; returning says that it is done. May be ``async def``.

        Raises:
            Retry: Again, later.
            Drop: Never again.
            Halt: Stop the hub.
            Exception: Tried again a known number of times, with growing pauses, then given up.
        """
        raise NotImplementedError(f"{type(self).__name__} has no consume(message)")

    def consume_batch(self, messages: Sequence[Message]) -> Awaitable[None] | None:
        """Work on all *messages*, in their order; returning says that all are done. May be ``async def``.

        Where a class defines it, it is called in place of ``consume``. A batch fails as a whole: each message of it is
        then given in a batch of its own, and what is raised there counts for that message alone, as with ``consume``.

        Raises:
            Retry: The same batch again, later.
            Halt: Stop the hub.
            Drop, Exception: As above; from a batch of several it only means that they are given one by one.
        """
        raise NotImplementedError(f"{type(self).__name__} has no consume_batch(messages)")

    def start(self) -> Awaitable[None] | None:
        """Called once before the first message, in the thread that delivers; tried again later if it raises."""

    def stop(self) -> Awaitable[None] | None:
        """Called once after the last message, in the thread that delivers."""

    def lost(self, loss: Loss) -> Awaitable[None] | None:
        """Told, in its place in the order, of messages that this consumer will not get."""
        log.warning("consumer %s: %s", name_of(type(self)), loss)
        return None


@dataclass(frozen=True, slots=True)
class Declaration:
    """What the decorator notes on a callback."""

    name: str
    topics: tuple[str, ...]
    since: str
    batch: Batch | None = None


C = TypeVar("C", bound=Callable[[Any], object])


def consumer(*topics: str, name: str | None = None, since: str = "now", batch: Batch | None = None) -> Callable[[C], C]:
    """Make a function of one message a consumer of *topics*; it stays the function that it was.

    ``@consumer("koji.package.build", name="announce")``. Without *name* its cursor is called as the function. With
    *batch* it is one of a list of messages. Nothing is registered anywhere: a hub finds it in the module that it is
    told to load.

    Raises:
        TypeError: Used without topics, as in ``@consumer``.
        ValueError: The name cannot be that of a cursor.
    """
    if not topics or not all(isinstance(topic, str) for topic in topics):
        raise TypeError('name the topics: @consumer("koji.package.build"), or @consumer("#") for all')
    if name is not None:
        check_name(name)

    def mark(function: C) -> C:
        chosen = name or _named(function.__name__)
        check_name(chosen)
        setattr(function, MARK, Declaration(chosen, topics, since, batch))
        return function

    return mark


class Callback(Consumer):
    """A function that :func:`consumer` has marked, as the hub runs it; *batched*: it takes a list of messages."""

    def __init__(self, function: Callable[[Any], Any], *, batched: bool = False) -> None:
        if batched:
            self.consume_batch = function  # type: ignore[method-assign,assignment]
        else:
            self.consume = function  # type: ignore[method-assign,assignment]


def takes_batches(kind: type[Consumer]) -> bool:
    """Return whether a consumer class defines ``consume_batch``."""
    return kind.consume_batch is not Consumer.consume_batch


def check_name(name: str) -> None:
    """Raises ValueError unless *name* can be that of a consumer."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"consumer name {name!r} must be at most 64 of a-z, 0-9, '_' and '-', a letter or digit first")


def name_of(kind: type[Consumer]) -> str:
    """Return what a consumer class is called where the configuration gives no other name."""
    return kind.name or _named(re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", kind.__name__))


def _named(text: str) -> str:
    return text.lower().strip("_") or "consumer"
