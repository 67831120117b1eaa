"""The live feed: what the intake hands to each consumer's thread, bounded.

Every item says which part of a stream it covers: everything of the hub's filters behind ``after`` up to ``through`` is
in it. A consumer takes an item only if its own place is not before ``after``; otherwise it misses something, whatever
the cause (it was away, its queue was full, the intake itself lost something), and reads that from the journal. So
there is one way of getting back, and joining the feed needs no agreement between threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from fedbus.bell import Bell
from fedbus.model.message import Message


@dataclass(frozen=True, slots=True)
class Item:
    """A stretch of one stream. ``messages`` is shared by all consumers and not to be changed."""

    endpoint: str
    epoch: str
    after: int
    through: int
    messages: Sequence[Message] = ()
    size: int = 0  # bytes of the envelopes
    joined: bool = False  # the intake begins with the stream here


class Feed:
    """A bounded queue from the intake's thread to that of one consumer.

    What does not fit is not put in at all: its endpoint becomes *detached*, until the consumer, which has read on from
    its own place meanwhile, attaches it again. No locks: each counter is written by one thread only.
    """

    def __init__(self, *, messages: int, size: int) -> None:
        self.detached: set[str] = set()
        self._most_messages = messages
        self._most_size = size
        self._items: deque[Item] = deque()
        self._put = [0, 0]  # messages, bytes; written by the intake
        self._got = [0, 0]  # written by the consumer
        self._sleeping = False
        self._bell = Bell()

    def resize(self, *, messages: int, size: int) -> None:
        """Hold other numbers of messages and bytes from now on; any thread may call this."""
        self._most_messages, self._most_size = messages, size

    @property
    def waiting(self) -> int:
        """Messages in the queue."""
        return self._put[0] - self._got[0]

    @property
    def empty(self) -> bool:
        """Whether everything was taken."""
        return not self._items

    def put(self, item: Item) -> None:
        """Hand *item* over, or detach its endpoint. For the intake's thread."""
        if item.endpoint in self.detached:
            return
        put, got = self._put, self._got
        count = len(item.messages)
        # a single item is let in whatever its size, or it would never get through
        if (put[0] - got[0] + count > self._most_messages or put[1] - got[1] + item.size > self._most_size) and (
            self._items
        ):
            self.detached.add(item.endpoint)
            # a mark, behind what is here, from which the consumer learns in its turn that something is missing
            self._items.append(Item(item.endpoint, item.epoch, item.through, item.through))
            if self._sleeping:
                self.wake()
            return
        put[0] += count
        put[1] += item.size
        self._items.append(item)
        if self._sleeping:
            self.wake()

    def wake(self) -> None:
        """End the consumer's wait; any thread may call this."""
        self._bell.release()

    def pop(self) -> Item | None:
        """Take the next item. For the consumer's thread, as are the methods below."""
        if not self._items:
            return None
        item = self._items.popleft()
        self._got[0] += len(item.messages)
        self._got[1] += item.size
        return item

    def wait(self, seconds: float, others: Sequence[int] = ()) -> None:
        """Return when there is an item, after :meth:`wake`, when one of *others* (descriptors) is readable, or late."""
        self._sleeping = True
        try:
            # looked at after the flag is up: what is put from now on writes to the descriptor
            if self._items:
                return
            self._bell.wait(seconds, others)
        finally:
            self._sleeping = False

    def close(self) -> None:
        """Free the descriptor."""
        self._bell.close()
