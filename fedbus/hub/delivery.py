"""One consumer and its thread: which message is next, and where its cursor stands."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fedbus.errors import ConfigError
from fedbus.hub.alone import Alone
from fedbus.hub.calls import Stopped, where
from fedbus.hub.consumer import Halt, Retry
from fedbus.hub.crew import Crew
from fedbus.hub.dead import Held, is_behind
from fedbus.hub.enabled import DeliveryStats, Enabled
from fedbus.hub.feed import Feed, Item
from fedbus.hub.isolated import Isolated
from fedbus.hub.options import HubOptions
from fedbus.hub.several import Several
from fedbus.hub.source import Source
from fedbus.hub.trying import LONGEST_PAUSE, Trying
from fedbus.model.message import Message, MessageKey
from fedbus.model.position import Cursor, Position
from fedbus.model.topic import TopicFilter
from fedbus.transport.endpoint import Endpoint
from fedbus.transport.reader import StreamReader
from fedbus.transport.state import Loss, Mode, Since
from fedbus.transport.subscriber import Subscriber

log = logging.getLogger(__name__)

SINCE = "*"
"""Stands in the cursor for all streams that have no place in it yet: they begin at a time (Unix, milliseconds)."""

_IDLE_SECONDS = 0.5
_JOIN_SECONDS = 2.0  # that reaching the feed may take before the consumer lets go of it again
_JOIN_AGAIN_SECONDS = 0.5
_OPEN_AGAIN_SECONDS = 1.0  # between two tries to read journals where that has failed
_HELD_MESSAGES = 2000  # of one stream, from the feed, while the journal is read up to them
_CHOICES = 10_000  # topics whose choice is remembered


@dataclass(slots=True, eq=False)
class _Behind:
    """A stream that is being read from its journal."""

    target: Position | None = None  # how far to read; None: detached from the feed
    deadline: float = 0.0
    next_try_at: float = 0.0
    held: list[Item] = field(default_factory=list)
    held_count: int = 0


class Delivery(threading.Thread):
    """Delivers to one consumer. Nothing in it is shared with other consumers but the intake's items.

    ``places`` may be asked from any thread; it is what the cursor has to say.
    """

    def __init__(
        self,
        enabled: Enabled,
        *,
        source: Source,
        filters: list[TopicFilter],
        feed: Feed,
        through: Mapping[str, Position],
        started_ms: int,
        options: HubOptions,
        on_halt: Callable[[str, Halt], None],
        with_hub: bool = True,
    ) -> None:
        """*with_hub*: it begins together with the hub and its intake."""
        super().__init__(name=f"fedbus-{enabled.name}", daemon=True)
        self.enabled = enabled
        self.stats = DeliveryStats()
        self.feed = feed
        self.caught_up = (
            False  # has been at the head once, and is not reading an endpoint that answers from its journal
        )
        self.cursor = f"hub.{enabled.name}"
        self.trying = Trying(enabled, source, options, self.stats, on_halt)
        self.requeue_asked = False  # there are dead letters to be given again
        self.crew: Crew | None = None  # from `open_cursor` on
        self._source = source
        self.filters = filters
        self._with_hub = with_hub
        self._through = through
        self._started_ms = started_ms
        self._fault = ""  # why it gets nothing at the moment
        self._own_fault = ""  # why it cannot read journals at the moment
        self._open_at = 0.0  # when that is tried again
        self._choices: dict[str, bool] = {}
        self._read: Cursor = {}  # up to where messages were handed to the crew
        self._since_ms = started_ms
        self._committed: Cursor = {}
        self._settled: set[MessageKey] = set()  # noted as done, while one before them is not
        self._behind: dict[str, _Behind] = {}
        self._own: Subscriber | None = None
        self._own_readers: dict[str, StreamReader] = {}
        self._version = source.version

    # --- for the hub -------------------------------------------------------------------------------------------

    @property
    def failure(self) -> str:
        """Why it gets nothing, or not all, at the moment; empty when all is well."""
        found = self._fault or self._own_fault or self.trying.failure
        return found or (self.crew.failure if self.crew is not None else "")

    @property
    def dead(self) -> Held:
        """Its dead letters, as of the hub's last look."""
        return self.trying.held

    @property
    def currents(self) -> Sequence[Message | None]:
        """What each of its workers has in a call."""
        return () if self.crew is None else self.crew.currents

    @property
    def in_hand(self) -> int:
        """Messages from the oldest that its workers are not done with on."""
        return 0 if self.crew is None else self.crew.in_hand

    def kill(self) -> bool:
        """End its processes at once, and so its thread; return False where it has none, which nothing can end."""
        if self.crew is not None:
            self.crew.kill()
        return isinstance(self.enabled.consumer, Isolated)

    def in_words(self) -> str:
        """Return what its workers have in a call, for people."""
        return ", ".join(str(one.key) for one in self.currents if one is not None) or "its stop()"

    def tell_of_deadline(self, seconds: float) -> None:
        """Say in the log that it has not ended within *seconds*."""
        log.warning(
            "consumer %s has not finished %s within %g s; it will get the message again",
            self.enabled.name,
            self.in_words(),
            seconds,
        )

    def adopt(self, options: HubOptions) -> None:
        """Go on with other *options*, as far as they can change while it runs."""
        self.trying.options = options
        self.feed.resize(messages=options.queue_messages, size=options.queue_bytes)
        if self.crew is not None:
            self.crew.adopt(messages=options.queue_messages, size=options.queue_bytes)

    # --- the cursor --------------------------------------------------------------------------------------------

    def open_cursor(self) -> None:
        """Read the cursor, or make it: from now on a crash loses nothing.

        Raises:
            JournalError: The store cannot be used.
            ConfigError: The consumer's ``since`` is no place to begin.
        """
        found = self._source.store.load(self.cursor)
        if not found:
            enabled = self.enabled
            try:
                since, positions = self._source.parse_since(enabled.since)
            except ValueError as error:
                raise ConfigError(f"{enabled.origin or 'consumer'}: {enabled.name}: since: {error}") from error
            found = {SINCE: Position("", self._start_ms(since)), **positions}
            self._source.store.save(self.cursor, found)
        self._committed = dict(found)
        self.trying.take_stock(found)
        self.requeue_asked = self.trying.held.requeued > 0
        mark = found.pop(SINCE, None)
        self._since_ms = mark.sequence if mark is not None else self._started_ms
        self._read = found
        enabled = self.enabled
        if enabled.workers == 1 and enabled.batch is None:
            self.crew = Alone(enabled, self.trying, self._source.hands)
        else:
            self.crew = Several(enabled, self.trying, self._source)

    def _start_ms(self, since: Since) -> int:
        if since.time_ms is not None:
            return max(0, since.time_ms)
        if since.age is not None:
            seconds = since.age[0]
            return max(0, self._started_ms - int(seconds * 1000))
        return 0

    def places(self) -> Cursor:
        """Return, for each stream, up to where this consumer's work is done."""
        read = dict(self._read)  # first: what is handed out meanwhile is behind it
        return read if self.crew is None else self.crew.places(read)

    def commit(self) -> None:
        """Write what has moved since the last time.

        Raises:
            JournalError, Fenced: The store refused; the next call tries again.
        """
        name, dead = self.enabled.name, self._source.dead
        if self.crew is not None:
            # before the cursor: what is in neither would be given again though it is done
            ahead = [key for key in self.crew.ahead() if key not in self._settled]
            if ahead:
                dead.settle(name, ahead)
                self._settled.update(ahead)
        moved = {name: place for name, place in self.places().items() if self._committed.get(name) != place}
        if moved:
            self._source.store.save(self.cursor, moved)
            self._committed.update(moved)
            attempts = self.trying.attempts
            passed = [key for key in [*list(attempts), *self._settled] if is_behind(key, self._committed)]
            if passed:
                dead.forget(name, passed)
                for key in passed:
                    attempts.pop(key, None)
                    self._settled.discard(key)

    # --- the thread --------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ask the thread to end behind what is in hand; any thread may call this."""
        self.trying.stop()
        if self.crew is not None:
            self.crew.stop()
        self.feed.wake()

    def run(self) -> None:
        crew = self.crew
        assert crew is not None
        started = False
        try:
            self._begin(crew)
            started = True
            self._deliver(crew)
        except Stopped:
            pass
        except BaseException as error:  # a fault of ours: the other consumers must not suffer
            self._fault = f"stopped by a fault of the hub: {type(error).__name__}: {error}"
            log.exception("consumer %s: delivery has failed", self.enabled.name)
        finally:
            self._close_own()
            try:
                crew.end(started=started)
            except BaseException as error:
                log.warning("consumer %s: stop() raised %s", self.enabled.name, where(error))

    def _begin(self, crew: Crew) -> None:
        trying = self.trying
        pause = trying.options.retry_pause
        while True:
            try:
                crew.begin()
            except Halt as halt:
                trying.halt(halt)
            except BaseException as error:
                if isinstance(error, Retry):
                    pause = error.after
                self._fault = f"start() raised {where(error)}"
                log.warning("consumer %s: %s; trying again in %.3g s", self.enabled.name, self._fault, pause)
                trying.pause(pause)
                pause = min(LONGEST_PAUSE, pause * 2)
            else:
                self._fault = ""
                return

    def _deliver(self, crew: Crew) -> None:
        feed, trying = self.feed, self.trying
        while not trying.stopping:
            item = feed.pop()
            if item is not None:
                self._take(item)
            if self._version != self._source.version:
                self._endpoints_changed()
            if self.requeue_asked:
                self.requeue_asked = False
                crew.letters(trying.requeued())
            if self._behind:
                self._read_journals(wait=item is None)
            elif item is None:
                self.caught_up = True
                feed.wait(_IDLE_SECONDS)

    def _work(self, messages: Sequence[Message]) -> None:
        if messages and self.crew is not None:
            self.crew.work(messages)

    # --- live --------------------------------------------------------------------------------------------------

    def _take(self, item: Item) -> None:
        endpoint, epoch = item.endpoint, item.epoch
        place = self._read.get(endpoint)
        if place is None and item.joined and self._with_hub and self._since_ms >= self._started_ms:
            # both begin at the start of the hub
            place = self._read[endpoint] = Position(epoch, item.after)
        behind = self._behind.get(endpoint)
        if place is None or place.epoch != epoch or place.sequence < item.after:
            if behind is None:
                self._fall_behind(endpoint)
            elif behind.target is not None:
                behind.held.append(item)
                behind.held_count += len(item.messages)
            return
        if item.through > place.sequence:
            messages = self._chosen(item.messages, place.sequence)
            self._work(messages)
            self._read[endpoint] = Position(epoch, item.through)
        if behind is not None and behind.target is not None:
            self._has_caught_up(endpoint, behind)

    def _chosen(self, messages: Sequence[Message], after: int) -> Sequence[Message]:
        """Return those that are new and ours."""
        if not messages:
            return messages
        if messages[0].sequence <= after:
            messages = [message for message in messages if message.sequence > after]
            if not messages:
                return messages
        first, last = messages[0], messages[-1]
        if last.parcel is first.parcel and last.index - first.index == len(messages) - 1:
            # the common case, all of one parcel; a merged batch may begin and end with the same one
            return messages if self._choose(first.parcel.topic) else ()
        choose = self._choose
        return [message for message in messages if choose(message.parcel.topic)]

    def _choose(self, topic: str) -> bool:
        choice = self._choices.get(topic)
        if choice is None:
            if len(self._choices) >= _CHOICES:
                self._choices.clear()
            choice = self._choices[topic] = any(one.matches(topic) for one in self.filters)
        return choice

    # --- from the journals -------------------------------------------------------------------------------------

    def _fall_behind(self, endpoint: str) -> None:
        self.feed.detached.add(endpoint)
        if endpoint in self._source.endpoints:
            self._behind[endpoint] = _Behind()
            self._open_own()

    def _endpoints_changed(self) -> None:
        self._version = self._source.version
        known = self._source.endpoints
        for endpoint in list(self._behind):
            if endpoint not in known:
                del self._behind[endpoint]
        # those that are gone may come back; whatever they say first then shows that the place is behind
        for endpoint in self.feed.detached - self._behind.keys():
            self.feed.detached.discard(endpoint)
        self._open_own()

    def _open_own(self) -> None:
        """Begin anew to read exactly those streams that are behind, from their places."""
        self._close_own()
        known = self._source.endpoints
        chosen: list[Endpoint] = [known[name] for name in self._behind if name in known]
        if not chosen:
            self._own_fault = ""
            return
        positions = {one.name: self._read[one.name] for one in chosen if one.name in self._read}
        clock = self._source.clock
        since = Since()
        if self._since_ms:
            # an age, not a time: the publisher takes it from its own clock
            since = Since(age=(max(0.0, clock.wall() - self._since_ms / 1000), clock.monotonic()))
        try:
            self._own = self._source.subscribe(
                chosen, self.filters, since=since, positions=positions, on_loss=self._on_loss
            )
        except Exception as error:
            self._cannot_read(error)
            return
        self._own_readers = {reader.endpoint: reader for reader in self._own.readers()}
        if self._own_fault:
            log.warning("consumer %s: journals can be read again", self.enabled.name)
            self._own_fault = ""

    def _cannot_read(self, error: Exception) -> None:
        """Descriptors or memory have run out, or there is a fault of ours: try again, from the same places."""
        self._close_own()
        self._open_at = self._source.clock.monotonic() + _OPEN_AGAIN_SECONDS
        if not self._own_fault:
            log.error("consumer %s: journals cannot be read, it is tried again", self.enabled.name, exc_info=error)
        self._own_fault = f"journals cannot be read: {type(error).__name__}: {error}"

    def _close_own(self) -> None:
        if self._own is not None:
            self._own.close()
            self._own = None
            self._own_readers = {}

    def _read_journals(self, *, wait: bool) -> None:
        own = self._own
        if own is None:
            self.caught_up = False
            left = self._open_at - self._source.clock.monotonic()
            if left <= 0.0:
                self._open_own()
            elif wait:
                self.feed.wait(left)
            return
        try:
            messages = own.receive(0.0)
        except Exception as error:
            self._cannot_read(error)
            return
        if messages:
            endpoint, epoch = messages[0].endpoint, messages[0].epoch
            through = messages[-1].sequence
            place = self._read.get(endpoint)
            if place is None or place.epoch != epoch:
                place = self._read[endpoint] = Position(epoch, messages[0].sequence - 1)
            if through > place.sequence:
                self._work(self._chosen(messages, place.sequence))
                self._read[endpoint] = Position(epoch, through)
        now = self._source.clock.monotonic()
        for endpoint, behind in list(self._behind.items()):
            if self._behind.get(endpoint) is behind:
                self._look(endpoint, behind, now, idle=not messages)
        own = self._own
        if own is None:
            return
        self.caught_up = own.caught_up
        if wait and not messages:
            self.feed.wait(min(own.next_timer(), 0.1), own.descriptors())

    def _look(self, endpoint: str, behind: _Behind, now: float, *, idle: bool) -> None:
        """See how far the journal of one stream was read, and join the feed where that is possible."""
        reader = self._own_readers.get(endpoint)
        if reader is None:
            return  # it has just been removed from the endpoints; the next round takes note of that
        place = self._read.get(endpoint)
        reached = reader.position if reader.handed == reader.accounted else None
        if reached is not None:
            # another epoch counts only when nothing of the one before is still on its way
            same = place is not None and place.epoch == reached.epoch
            if (reached.sequence > place.sequence) if same and place is not None else idle:
                place = self._read[endpoint] = reached
        target = behind.target
        if target is None:
            if reader.mode is Mode.LIVE and now >= behind.next_try_at:
                # first attach, then ask how far the feed was: what comes after is in the queue
                self.feed.detached.discard(endpoint)
                behind.target = self._through.get(endpoint)
                behind.deadline = now + _JOIN_SECONDS
            return
        if place is not None and place.epoch == target.epoch and place.sequence >= target.sequence:
            self._has_caught_up(endpoint, behind)
        elif now > behind.deadline or behind.held_count > _HELD_MESSAGES:
            self.feed.detached.add(endpoint)
            behind.target = None
            behind.held.clear()
            behind.held_count = 0
            behind.next_try_at = now + _JOIN_AGAIN_SECONDS

    def _has_caught_up(self, endpoint: str, behind: _Behind) -> None:
        if self._behind.pop(endpoint, None) is None:
            return
        self.stats.caught_up += 1
        if not self._behind:
            self._close_own()
            self._own_fault = ""
        elif self._own is not None:
            try:
                self._own.update([one for one in self._source.endpoints.values() if one.name in self._behind])
            except Exception as error:
                self._cannot_read(error)
        for item in behind.held:
            self._take(item)

    def _on_loss(self, loss: Loss) -> None:
        self.stats.lost += 1
        if self.crew is not None:
            self.crew.lost(loss)
        place = self._read.get(loss.endpoint)
        if loss.last is not None and (place is None or (place.epoch == loss.epoch and place.sequence < loss.last)):
            self._read[loss.endpoint] = Position(loss.epoch, loss.last)
