"""The intake: one subscriber for all consumers of a hub, in a thread of its own, so live traffic is verified once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence

from fedbus.hub.feed import Feed, Item
from fedbus.hub.source import Source
from fedbus.model.message import Message, Sealed
from fedbus.model.position import Position
from fedbus.model.topic import TopicFilter
from fedbus.transport.endpoint import Endpoint
from fedbus.transport.reader import StreamReader
from fedbus.transport.state import Loss, Mode, Since
from fedbus.transport.subscriber import Subscriber

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.2  # how often streams that bring no message of ours are looked at
_FAILED_PAUSE = 1.0


class Intake(threading.Thread):
    """Reads the union of all consumers' filters from the start of the hub on, and puts it into their feeds.

    ``through`` says for each stream up to where it was put; consumers read it to learn how far they have to come. An
    intake that is given that of another begins where that one ended. ``feeds`` may be replaced at any time.
    """

    def __init__(
        self,
        source: Source,
        filters: list[TopicFilter],
        feeds: Sequence[Feed],
        *,
        endpoints: Iterable[Endpoint],
        since: Since,
        through: dict[str, Position],
    ) -> None:
        super().__init__(name="fedbus-intake", daemon=True)
        self.through = through
        self.feeds = feeds
        self.failure = ""  # why reading does not work at the moment
        self._source = source
        self._readers: dict[str, StreamReader] = {}
        self._broken: set[str] = set()  # streams in which the intake missed something since its last item
        self._wanted: list[Endpoint] | None = None
        self._next_look = 0.0
        self._stopping = False
        self.caught_up = False
        self.subscriber: Subscriber = source.subscribe(
            endpoints, filters, since=since, positions=dict(through), on_loss=self._on_loss
        )
        self._refresh_readers()

    def update(self, endpoints: Iterable[Endpoint]) -> None:
        """Ask the thread to take up a changed list of endpoints."""
        self._wanted = list(endpoints)

    def stop(self) -> None:
        """Ask the thread to end; any thread may call this."""
        self._stopping = True
        self.subscriber.stop()

    def readers(self) -> list[StreamReader]:
        """Return the state of each stream, for status and metrics."""
        return list(self._readers.values())

    def run(self) -> None:
        while not self._stopping:
            try:
                self._step()
                self.failure = ""
            except Exception as error:
                # nothing that comes from outside may end a daemon; if it is a fault of ours, the log shows where
                self.failure = f"{type(error).__name__}: {error}"
                log.exception("the intake failed; it goes on in %s s", _FAILED_PAUSE)
                self._pause(_FAILED_PAUSE)
        self.subscriber.close()

    def _pause(self, seconds: float) -> None:
        deadline = self._source.clock.monotonic() + seconds
        waiting = threading.Event()
        while not self._stopping and self._source.clock.monotonic() < deadline:
            waiting.wait(0.05)

    def _step(self) -> None:
        messages = self.subscriber.receive(_LOOK_SECONDS)
        if messages:
            self._spread(messages)
        wanted = self._wanted
        if wanted is not None:
            self._wanted = None
            self.subscriber.update(wanted)
            self._refresh_readers()
        now = self._source.clock.monotonic()
        if not messages or now >= self._next_look:
            self._next_look = now + _LOOK_SECONDS
            self._look(idle=not messages)
            if self.subscriber.caught_up:
                self.caught_up = True
            elif any(reader.mode is Mode.BEHIND for reader in self._readers.values()):
                self.caught_up = False

    def _refresh_readers(self) -> None:
        self._readers = {reader.endpoint: reader for reader in self.subscriber.readers()}

    def _spread(self, messages: list[Message]) -> None:
        first, last = messages[0], messages[-1]
        parcel = first.parcel
        endpoint, epoch = parcel.endpoint, parcel.epoch
        known = self.through.get(endpoint)
        if known is None:
            # nothing of the stream was put yet, and these are not worked on, so the reader still says where it joined
            place = self._readers[endpoint].position
            after = first.sequence - 1 if place is None or place.epoch != epoch else place.sequence
        elif endpoint in self._broken or known.epoch != epoch:
            after = first.sequence - 1
        else:
            after = known.sequence
        self._broken.discard(endpoint)
        if last.parcel is parcel and last.index - first.index == len(messages) - 1:
            size = _size(parcel)
        else:
            size = sum(map(_size, {one.parcel for one in messages}))
        self._put(Item(endpoint, epoch, after, last.sequence, messages, size, known is None))

    def _put(self, item: Item) -> None:
        # before the item is put: a consumer that attaches in between finds it covered by `through`, and asks for it
        self.through[item.endpoint] = Position(item.epoch, item.through)
        for feed in self.feeds:
            feed.put(item)

    def _look(self, *, idle: bool) -> None:
        """Tell of streams whose place has moved without a message: joined, nothing of ours, or lost."""
        for endpoint, reader in self._readers.items():
            if reader.handed != reader.accounted:
                continue  # what is not worked on yet comes as an item
            place = reader.position
            if place is None:
                continue
            known = self.through.get(endpoint)
            if known is not None:
                if known.epoch == place.epoch and known.sequence >= place.sequence:
                    continue
                if known.epoch != place.epoch and not idle:
                    continue  # messages of the old epoch may still be on their way
            clean = known is not None and known.epoch == place.epoch and endpoint not in self._broken
            after = known.sequence if clean and known is not None else place.sequence
            self._broken.discard(endpoint)
            self._put(Item(endpoint, place.epoch, after, place.sequence, joined=known is None))

    def _on_loss(self, loss: Loss) -> None:
        # each consumer meets the hole in its own place and is told there, by its own reading of the journal
        self._broken.add(loss.endpoint)


def _size(parcel: Sealed) -> int:
    return sum(map(len, parcel.envelopes))
