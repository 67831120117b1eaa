"""The intake: one subscriber for all consumers of a hub, in a thread of its own, so live traffic is verified once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence

from fedbus.failpoints import ARMED, hit
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
    intake that is given that of another begins where that one ended. ``feeds`` are replaced by :meth:`serve`.
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
        self._unseen: set[str] = set()  # of which it lost what came first: nobody begins with them here
        # of which perhaps not everybody got what `through` says; those who come late did not
        self._doubted: set[str] = set(through)
        self._newcomers = False  # there are feeds that were not told how far the streams are
        self._turned_at = source.clock.monotonic()
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

    def serve(self, feeds: Sequence[Feed]) -> None:
        """Put what comes into these *feeds*, and tell each how far the streams are; any thread may call this.

        A consumer that begins between two messages would otherwise learn only from the next one that it is behind.
        """
        self.feeds = feeds
        self._newcomers = True  # after the feeds: whoever sees it puts into these

    def stop(self) -> None:
        """Ask the thread to end; any thread may call this."""
        self._stopping = True
        self.subscriber.stop()

    def readers(self) -> list[StreamReader]:
        """Return the state of each stream, for status and metrics."""
        return list(self._readers.values())

    @property
    def stopping(self) -> bool:
        """Whether it was asked to end."""
        return self._stopping

    def live(self, limit: float) -> bool:
        """Say whether the thread has come round within *limit* seconds; one that was told to end may have ended."""
        if self.ident is None:
            return True
        if not self.is_alive():
            return self._stopping
        # a flood keeps it for long in one look for messages, and that is work
        turned = max(self._turned_at, self.subscriber.turned_at)
        return self._source.clock.monotonic() - turned < limit

    def run(self) -> None:
        try:
            while not self._stopping:
                self._turned_at = self._source.clock.monotonic()
                try:
                    self._step()
                    self.failure = ""
                except Exception as error:
                    # nothing that comes from outside may end a daemon; if it is a fault of ours, the log shows where
                    self.failure = f"{type(error).__name__}: {error}"
                    self._miss_all()
                    log.exception("the intake failed; it goes on in %s s", _FAILED_PAUSE)
                    self._pause(_FAILED_PAUSE)
        except BaseException as error:
            self.failure = f"its thread has ended: {type(error).__name__}: {error}"
            log.critical("the intake has ended, and no consumer gets anything", exc_info=error)
        finally:
            self.subscriber.close()

    def _miss_all(self) -> None:
        """What was taken in may not have been put: let nobody believe that the next item follows on the last one."""
        for endpoint in self._readers:
            self._broken.add(endpoint)
            self._doubted.add(endpoint)
            if endpoint not in self.through:
                self._unseen.add(endpoint)

    def _pause(self, seconds: float) -> None:
        deadline = self._source.clock.monotonic() + seconds
        waiting = threading.Event()
        while not self._stopping and self._source.clock.monotonic() < deadline:
            waiting.wait(0.05)

    def _step(self) -> None:
        messages = self.subscriber.receive(_LOOK_SECONDS)
        if messages:
            if ARMED:
                hit("hub.intake")
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
        if known is None and endpoint not in self._unseen:
            # nothing of the stream was put yet, and these are not worked on, so the reader still says where it joined
            place = self._readers[endpoint].position
            after = first.sequence - 1 if place is None or place.epoch != epoch else place.sequence
        elif known is None or endpoint in self._broken or known.epoch != epoch:
            after = first.sequence - 1
        else:
            after = known.sequence
        self._broken.discard(endpoint)
        if last.parcel is parcel and last.index - first.index == len(messages) - 1:
            size = _size(parcel)
        else:
            size = sum(map(_size, {one.parcel for one in messages}))
        joined = known is None and endpoint not in self._unseen
        self._put(Item(endpoint, epoch, after, last.sequence, messages, size, joined))

    def _put(self, item: Item) -> None:
        # before the item is put: a consumer that attaches in between finds it covered by `through`, and asks for it
        self.through[item.endpoint] = Position(item.epoch, item.through)
        for feed in self.feeds:
            feed.put(item)

    def _look(self, *, idle: bool) -> None:
        """Tell of streams whose place has moved without a message: joined, nothing of ours, or lost."""
        if self._newcomers:
            self._newcomers = False
            self._doubted.update(self.through)
        for endpoint, reader in self._readers.items():
            if endpoint in self._doubted:
                self._doubted.discard(endpoint)
                if (known := self.through.get(endpoint)) is not None:
                    # whoever did not get all up to there learns it now, and not only with the next message
                    self._put(Item(endpoint, known.epoch, known.sequence, known.sequence))
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
            joined = known is None and endpoint not in self._unseen
            self._put(Item(endpoint, place.epoch, after, place.sequence, joined=joined))

    def _on_loss(self, loss: Loss) -> None:
        # each consumer meets the hole in its own place and is told there, by its own reading of the journal
        self._broken.add(loss.endpoint)


def _size(parcel: Sealed) -> int:
    return sum(map(len, parcel.envelopes))
