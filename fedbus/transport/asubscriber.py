"""The reading end for asyncio: the same subscriber, driven by the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from types import TracebackType

from fedbus.model.message import Message
from fedbus.model.position import Cursor
from fedbus.transport.subscriber import Subscriber

_LONGEST_WAIT = 0.5  # seconds; timers of the subscriber are looked at this often


class AsyncSubscriber:
    """Wraps a :class:`Subscriber`; iterate it with ``async for``. Belongs to one event loop.

    Frames are taken from the sockets in bounded rows when the loop says that there are some, so other tasks get their
    turn; nothing is awaited for each message that is already here.
    """

    def __init__(self, subscriber: Subscriber) -> None:
        self.subscriber = subscriber
        self._watched: set[int] = set()
        self._event = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._rest: Iterator[Message] | None = None  # what an iteration has still to yield of what was received

    async def receive(self, timeout: float | None = None) -> list[Message]:
        """Return some messages of one stream, in order, or an empty list after *timeout* seconds or ``stop()``."""
        if self._rest is not None:
            rest, self._rest = list(self._rest), None
            if rest:
                return rest
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError("a subscriber belongs to one event loop; subscribe again in this one")
        deadline = None if timeout is None else loop.time() + timeout
        while True:
            self._event.clear()
            messages = self.subscriber.receive(0.0)
            if messages or self.subscriber.stopped:
                return messages
            self._watch(loop)
            left = _LONGEST_WAIT
            if deadline is not None:
                left = min(left, deadline - loop.time())
                if left <= 0:
                    return []
            # the file descriptors of ZeroMQ tell of changes only; receive(0) above has taken all that there was
            left = min(left, self.subscriber.next_timer())
            try:
                await asyncio.wait_for(self._event.wait(), max(0.0, left))
            except TimeoutError:
                pass

    async def __aiter__(self) -> AsyncIterator[Message]:
        """Yield messages until ``stop()``; asking for the next one says that the last was worked on.

        An iteration that was left goes on with the next message when the subscriber is iterated again.
        """
        while True:
            if self._rest is None:
                messages = await self.receive()
                if not messages:
                    return
                self._rest = iter(messages)
            for message in self._rest:
                yield message
                self.subscriber.done(message)
            self._rest = None

    def positions(self) -> Cursor:
        """Return, for each stream that was joined, up to where its messages have been worked on."""
        return self.subscriber.positions()

    def commit(self) -> None:
        """Write the named cursor, if there is one; a few hundred microseconds of disk time."""
        self.subscriber.commit()

    def stop(self) -> None:
        """End the iteration; may be called from any thread."""
        self.subscriber.stop()

    async def close(self) -> None:
        """Commit the cursor and close the sockets."""
        self._unwatch()
        self.subscriber.close()

    async def __aenter__(self) -> AsyncSubscriber:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Follow the subscriber's set of descriptors, which changes when it asks journals."""
        wanted = set(self.subscriber.descriptors())
        for gone in self._watched - wanted:
            loop.remove_reader(gone)
        for new in wanted - self._watched:
            loop.add_reader(new, self._event.set)
        self._watched = wanted

    def _unwatch(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            for descriptor in self._watched:
                self._loop.remove_reader(descriptor)
        self._watched = set()
