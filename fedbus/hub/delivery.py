"""One consumer and its thread: which message is next, what becomes of it, and where its cursor stands."""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from fedbus.errors import FedbusError, Fenced, Refused
from fedbus.failpoints import ARMED, hit
from fedbus.hub.consumer import Consumer, Drop, Halt, Retry
from fedbus.hub.dead import Attempts, Held, Letter, is_behind
from fedbus.hub.feed import Feed, Item
from fedbus.hub.inhand import REQUEUED, InHand
from fedbus.hub.isolated import ChildEnded, ChildFailed
from fedbus.hub.options import HubOptions
from fedbus.hub.source import Source
from fedbus.model.message import Message, MessageKey
from fedbus.model.position import Cursor, Position
from fedbus.model.topic import TopicFilter
from fedbus.transport.endpoint import Endpoint
from fedbus.transport.reader import StreamReader
from fedbus.transport.state import Loss, Mode, Since
from fedbus.transport.subscriber import Subscriber
from fedbus.trust.proof import verify_parcel
from fedbus.wire import parcel as parcels
from fedbus.wire.envelope import open_parcel

log = logging.getLogger(__name__)

SINCE = "*"
"""Stands in the cursor for all streams that have no place in it yet: they begin at a time (Unix, milliseconds)."""

_LONGEST_PAUSE = 60.0  # seconds between two tries
_SAID_AGAIN = 30.0  # seconds between two lines about dead letters that cannot be kept
_FOREVER = 365 * 86400.0  # what an event can wait is bounded
_IDLE_SECONDS = 0.5
_JOIN_SECONDS = 2.0  # that reaching the feed may take before the consumer lets go of it again
_JOIN_AGAIN_SECONDS = 0.5
_HELD_MESSAGES = 2000  # of one stream, from the feed, while the journal is read up to them
_CHOICES = 10_000  # topics whose choice is remembered


@dataclass(frozen=True, slots=True, kw_only=True)
class Enabled:
    """A consumer that is to run, and how."""

    name: str
    consumer: Consumer
    topics: tuple[str, ...]
    since: str = "now"
    attempts: int = 4
    timeout: float = 60.0
    origin: str = ""


@dataclass(slots=True)
class DeliveryStats:
    """Counters of one consumer, in messages."""

    delivered: int = 0  # its call returned
    failed: int = 0  # calls that raised an error
    retried: int = 0  # calls that asked for another try
    dropped: int = 0  # given up by the consumer
    gave_up: int = 0  # made dead letters, after the last try
    requeued: int = 0  # dead letters that were given to it once more
    lost: int = 0  # reports of loss
    caught_up: int = 0  # times that it came back from the journal to the live feed


@dataclass(slots=True, eq=False)
class _Behind:
    """A stream that is being read from its journal."""

    target: Position | None = None  # how far to read; None: detached from the feed
    deadline: float = 0.0
    next_try_at: float = 0.0
    held: list[Item] = field(default_factory=list)
    held_count: int = 0


class _Stopped(BaseException):
    """The hub is stopping: leave what is not begun."""


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
    ) -> None:
        super().__init__(name=f"fedbus-{enabled.name}", daemon=True)
        self.enabled = enabled
        self.stats = DeliveryStats()
        self.feed = feed
        self.failure = ""  # why it gets nothing at the moment
        self.caught_up = (
            False  # has been at the head once, and is not reading an endpoint that answers from its journal
        )
        self.current: Message | None = None  # in the consumer's hands
        self.cursor = f"hub.{enabled.name}"
        self.dead = Held(0, 0, 0)  # as of the hub's last look
        self.requeue_asked = False  # there are dead letters to be given again
        self._source = source
        self._filters = filters
        self._through = through
        self._started_ms = started_ms
        self._options = options
        self._retry_pause = options.retry_pause
        self._on_halt = on_halt
        self._choices: dict[str, bool] = {}
        self._positions: Cursor = {}
        self._since_ms = started_ms
        self._done: Message | None = None
        self._committed: Cursor = {}
        self._behind: dict[str, _Behind] = {}
        self._own: Subscriber | None = None
        self._own_readers: dict[str, StreamReader] = {}
        self._version = source.version
        self._stopping = False
        self._stop_asked = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._consume: Callable[[Message], object] = enabled.consumer.consume
        self._attempts: dict[MessageKey, Attempts] = {}  # of messages that were tried in vain and may come again
        self._hand: InHand | None = None
        self._slot: memoryview | list[int] = [0]  # the sequence in hand, where a crash leaves it to be found

    # --- the cursor --------------------------------------------------------------------------------------------

    def open_cursor(self) -> None:
        """Read the cursor, or make it: from now on a crash loses nothing.

        Raises:
            JournalError: The store cannot be used.
            ValueError: The consumer's ``since`` is no place to begin.
        """
        found = self._source.store.load(self.cursor)
        if not found:
            since, positions = self._source.parse_since(self.enabled.since)
            found = {SINCE: Position("", self._start_ms(since)), **positions}
            self._source.store.save(self.cursor, found)
        self._committed = dict(found)
        self._take_stock(found)
        mark = found.pop(SINCE, None)
        self._since_ms = mark.sequence if mark is not None else self._started_ms
        self._positions = found

    def _take_stock(self, cursor: Cursor) -> None:
        """Learn what was tried before, and count as tried what the last hub had in hand when it died."""
        name, dead = self.enabled.name, self._source.dead
        self._attempts = dead.attempts(name, cursor)
        self._hand = InHand(self._source.hands / f"{name}.hand")
        self._slot = self._hand.slot
        left = self._hand.left()
        self._slot[0] = 0
        self.dead = dead.held(name)
        self.requeue_asked = self.dead.requeued > 0
        if left is None:
            return
        key, requeued = left
        if requeued:
            for letter in dead.requeued(name):
                if letter.key == key:
                    dead.tried_again(letter, letter.tries + 1)
        elif not is_behind(key, cursor):
            count = self._attempts.get(key, Attempts(0)).count + 1
            dead.tried(name, key, count)
            self._attempts[key] = Attempts(count)
        log.warning("consumer %s: the last hub ended while it had %s in hand; that counts as an attempt", name, key)

    def _start_ms(self, since: Since) -> int:
        if since.time_ms is not None:
            return max(0, since.time_ms)
        if since.age is not None:
            seconds = since.age[0]
            return max(0, self._started_ms - int(seconds * 1000))
        return 0

    def places(self) -> Cursor:
        """Return, for each stream, up to where this consumer's work is done."""
        found = dict(self._positions)
        done = self._done
        if done is not None:
            place = found.get(done.endpoint)
            if place is not None and place.epoch == done.epoch and done.sequence > place.sequence:
                found[done.endpoint] = Position(done.epoch, done.sequence)
        return found

    def commit(self) -> None:
        """Write what has moved since the last time.

        Raises:
            JournalError, Fenced: The store refused; the next call tries again.
        """
        moved = {name: place for name, place in self.places().items() if self._committed.get(name) != place}
        if moved:
            self._source.store.save(self.cursor, moved)
            self._committed.update(moved)
            for key in [key for key in list(self._attempts) if is_behind(key, self._committed)]:
                self._source.dead.forget(self.enabled.name, key)
                self._attempts.pop(key, None)

    # --- the thread --------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ask the thread to end behind the message in hand; any thread may call this."""
        self._stopping = True
        self._stop_asked.set()
        self.feed.wake()

    def run(self) -> None:
        consumer = self.enabled.consumer
        started = False
        try:
            self._begin(consumer)
            started = True
            self._deliver()
        except _Stopped:
            pass
        except BaseException as error:  # a fault of ours: the other consumers must not suffer
            self.failure = f"stopped by a fault of the hub: {type(error).__name__}: {error}"
            log.exception("consumer %s: delivery has failed", self.enabled.name)
        finally:
            self._close_own()
            if started:
                try:
                    self._settle(consumer.stop())
                except BaseException as error:
                    log.warning("consumer %s: stop() raised %s", self.enabled.name, _where(error))
            if self._loop is not None:
                self._loop.close()
            self._slot = [0]
            if self._hand is not None:
                self._hand.close()

    def _begin(self, consumer: Consumer) -> None:
        pause = self._retry_pause
        while True:
            try:
                self._settle(consumer.start())
            except Halt as halt:
                self._halt(halt)
            except BaseException as error:
                if isinstance(error, Retry):
                    pause = error.after
                self.failure = f"start() raised {_where(error)}"
                log.warning("consumer %s: %s; trying again in %.3g s", self.enabled.name, self.failure, pause)
                self._pause(pause)
                pause = min(_LONGEST_PAUSE, pause * 2)
            else:
                self.failure = ""
                return

    def _deliver(self) -> None:
        feed = self.feed
        while not self._stopping:
            item = feed.pop()
            if item is not None:
                self._take(item)
            if self._version != self._source.version:
                self._endpoints_changed()
            if self.requeue_asked:
                self._work_on_requeued()
            if self._behind:
                self._read_journals(wait=item is None)
            elif item is None:
                self.caught_up = True
                feed.wait(_IDLE_SECONDS)

    # --- live --------------------------------------------------------------------------------------------------

    def _take(self, item: Item) -> None:
        endpoint, epoch = item.endpoint, item.epoch
        place = self._positions.get(endpoint)
        if place is None and item.joined and self._since_ms >= self._started_ms:
            # both begin at the start of the hub
            place = self._positions[endpoint] = Position(epoch, item.after)
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
            if messages:
                self._work(messages)
                if ARMED:
                    hit("hub.consumed")
            self._positions[endpoint] = Position(epoch, item.through)
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
            choice = self._choices[topic] = any(one.matches(topic) for one in self._filters)
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
            return
        positions = {one.name: self._positions[one.name] for one in chosen if one.name in self._positions}
        clock = self._source.clock
        since = Since()
        if self._since_ms:
            # an age, not a time: the publisher takes it from its own clock
            since = Since(age=(max(0.0, clock.wall() - self._since_ms / 1000), clock.monotonic()))
        self._own = self._source.subscribe(
            chosen, self._filters, since=since, positions=positions, on_loss=self._on_loss
        )
        self._own_readers = {reader.endpoint: reader for reader in self._own.readers()}

    def _close_own(self) -> None:
        if self._own is not None:
            self._own.close()
            self._own = None
            self._own_readers = {}

    def _read_journals(self, *, wait: bool) -> None:
        own = self._own
        if own is None:
            self._open_own()
            return
        messages = own.receive(0.0)
        if messages:
            endpoint, epoch = messages[0].endpoint, messages[0].epoch
            through = messages[-1].sequence
            place = self._positions.get(endpoint)
            if place is None or place.epoch != epoch:
                place = self._positions[endpoint] = Position(epoch, messages[0].sequence - 1)
            if through > place.sequence:
                self._work(self._chosen(messages, place.sequence))
                if ARMED:
                    hit("hub.consumed")
                self._positions[endpoint] = Position(epoch, through)
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
        reader = self._own_readers[endpoint]
        place = self._positions.get(endpoint)
        reached = reader.position if reader.handed == reader.accounted else None
        if reached is not None:
            # another epoch counts only when nothing of the one before is still on its way
            same = place is not None and place.epoch == reached.epoch
            if (reached.sequence > place.sequence) if same and place is not None else idle:
                place = self._positions[endpoint] = reached
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
        elif self._own is not None:
            self._own.update([one for one in self._source.endpoints.values() if one.name in self._behind])
        for item in behind.held:
            self._take(item)

    def _on_loss(self, loss: Loss) -> None:
        self.stats.lost += 1
        try:
            self._settle(self.enabled.consumer.lost(loss))
        except Halt as halt:
            self._halt(halt)
        except BaseException as error:
            log.error("consumer %s: lost() raised %s; it was to hear: %s", self.enabled.name, _where(error), loss)
        place = self._positions.get(loss.endpoint)
        if loss.last is not None and (place is None or (place.epoch == loss.epoch and place.sequence < loss.last)):
            self._positions[loss.endpoint] = Position(loss.epoch, loss.last)

    # --- one message -------------------------------------------------------------------------------------------

    def _work(self, messages: Sequence[Message]) -> None:
        if not messages:
            return
        consume, slot = self._consume, self._slot
        delivered = 0
        if self._hand is not None:
            self._hand.stream(messages[0].endpoint, messages[0].epoch)
        try:
            for message in messages:
                if self._stopping:
                    raise _Stopped
                if self._attempts and not self._may_try(message):
                    self._done = message
                    continue
                self.current = message
                slot[0] = message.sequence
                try:
                    result = consume(message)
                    if result is not None:
                        self._settle(result)
                except BaseException as error:
                    if not self._failed(message, error):
                        self._done = message
                        continue
                delivered += 1
                self._done = message
        finally:
            self.current = None
            slot[0] = 0
            self.stats.delivered += delivered

    def _may_try(self, message: Message) -> bool:
        """Return whether a message, perhaps one that was tried by a hub before this one, is to be given at all."""
        known = self._attempts.get(message.key)
        if known is None:
            return True
        if known.settled:
            return False
        if known.count >= self.enabled.attempts:
            reason = f"the hub ended, or was killed, while the consumer had it, for the last of {known.count} times"
            self._bury(message, reason, "", known.count)
            return False
        return True

    def _failed(self, message: Message, error: BaseException, letter: Letter | None = None) -> bool:
        """Do what *error* calls for until the message is done with; return whether the consumer took it in the end.

        *letter* is the dead letter that the message comes from, if it was requeued.
        """
        name, stats, slot = self.enabled.name, self.stats, self._slot
        in_hand = slot[0]
        before = letter.tries if letter is not None else self._attempts.get(message.key, Attempts(0)).count
        attempt = before + 1
        while True:
            slot[0] = 0
            if self._stopping and isinstance(error, ChildEnded):
                raise _Stopped  # it was we who ended it, at the deadline
            if isinstance(error, Retry):
                stats.retried += 1
                log.info("consumer %s: %s again in %.3g s: %s", name, message.key, error.after, error.reason)
                pause = error.after
            elif isinstance(error, Drop):
                stats.dropped += 1
                log.warning("consumer %s dropped %s (%s): %s", name, message.key, message.topic, error.reason)
                self._forget_attempts(message, letter)
                return False
            elif isinstance(error, Halt):
                self._halt(error)
            else:
                stats.failed += 1
                reason = _where(error)
                what = f"consumer {name}: {message.key} ({message.topic}): {reason}"
                if attempt >= self.enabled.attempts:
                    self._bury(message, reason, _trace(error), attempt)
                    return False
                self._note_attempt(message, letter, attempt)
                # jitter, so that many consumers do not come back to a weak server in step
                pause = min(_LONGEST_PAUSE, self._retry_pause * 2.0 ** min(attempt - 1, 30)) * random.uniform(
                    0.75, 1.25
                )
                log.warning("%s; attempt %d of %d, again in %.3g s", what, attempt, self.enabled.attempts, pause)
                log.debug("%s", _trace(error))
                attempt += 1
            self._pause(pause)
            slot[0] = in_hand
            try:
                self._settle(self._consume(message))
            except BaseException as again:
                error = again
            else:
                slot[0] = 0
                self._forget_attempts(message, letter)
                return True

    # --- attempts and dead letters -----------------------------------------------------------------------------

    def _note_attempt(self, message: Message, letter: Letter | None, count: int) -> None:
        """Write down that the message was tried in vain *count* times, so that a restart does not begin anew."""
        try:
            if letter is not None:
                self._source.dead.tried_again(letter, count)
            else:
                self._source.dead.tried(self.enabled.name, message.key, count)
                self._attempts[message.key] = Attempts(count)
        except Fenced as error:
            self._fenced(error)
        except FedbusError as error:
            log.error("consumer %s: a restart would try %s anew: %s", self.enabled.name, message.key, error)

    def _forget_attempts(self, message: Message, letter: Letter | None) -> None:
        try:
            if letter is None and self._attempts.pop(message.key, None) is not None:
                self._source.dead.forget(self.enabled.name, message.key)
        except Fenced as error:
            self._fenced(error)
        except FedbusError as error:
            log.error("consumer %s: the attempts of %s are not forgotten: %s", self.enabled.name, message.key, error)

    def _bury(self, message: Message, reason: str, trace: str, attempts: int) -> None:
        """Make a dead letter of *message*; return when it is kept, however long that takes: nothing is just skipped."""
        name, source = self.enabled.name, self._source
        pause, said_at = self._retry_pause, float("-inf")
        while True:
            try:
                source.dead.bury(
                    name,
                    message,
                    reason=reason,
                    traceback=trace,
                    attempts=attempts,
                    at_ms=int(source.clock.wall() * 1000),
                    most=self._options.dead_messages,
                    most_bytes=self._options.dead_bytes,
                )
            except Fenced as error:
                self._fenced(error)
            except FedbusError as error:
                self.failure = f"{message.key} has failed and cannot be made a dead letter: {error}"
                if source.clock.monotonic() - said_at > _SAID_AGAIN:
                    said_at = source.clock.monotonic()
                    log.error("consumer %s waits: %s", name, self.failure)
                self._pause(pause)
                pause = min(_LONGEST_PAUSE, pause * 2)
                continue
            break
        self.failure = ""
        self._attempts[message.key] = Attempts(attempts, settled=True)
        self.stats.gave_up += 1
        log.error(
            "consumer %s: %s (%s): %s; gave up after %d attempts, it is a dead letter: see `fedbus dead list`",
            name,
            message.key,
            message.topic,
            reason,
            attempts,
        )

    def _work_on_requeued(self) -> None:
        """Give the consumer those of its dead letters that people have requeued."""
        self.requeue_asked = False
        name, dead = self.enabled.name, self._source.dead
        try:
            for letter in dead.requeued(name):
                if self._stopping:
                    raise _Stopped
                message = self._reopen(letter)
                if message is not None and self._work_on_letter(letter, message):
                    dead.resolve(letter)
        except Fenced as error:
            self._fenced(error)
        except FedbusError as error:
            log.error("consumer %s: dead letters that were requeued have to wait: %s", name, error)

    def _work_on_letter(self, letter: Letter, message: Message) -> bool:
        """Return whether the letter is done with; otherwise it is a dead letter again."""
        if letter.tries >= self.enabled.attempts:
            self._bury(message, "the hub ended while the consumer had it, again and again", "", letter.tries)
            return False
        if self._hand is not None:
            self._hand.stream(message.endpoint, message.epoch)
        self.stats.requeued += 1
        gave_up = self.stats.gave_up
        self.current = message
        self._slot[0] = message.sequence | REQUEUED
        try:
            self._settle(self._consume(message))
        except BaseException as error:
            if not self._failed(message, error, letter):
                return self.stats.gave_up == gave_up  # what the consumer drops is done with too
        finally:
            self.current = None
            self._slot[0] = 0
        self.stats.delivered += 1
        return True

    def _reopen(self, letter: Letter) -> Message | None:
        """Return the message of a dead letter, verified as of the time at which it died; None if it does not verify."""
        source = self._source
        found = source.dead.get(letter.id)
        if found is None:
            return None  # dropped in the meantime
        try:
            parcel = parcels.decode(found[1].parcel, parcel_bytes=len(found[1].parcel))
            identity = verify_parcel(source.verifier, parcel, at=letter.died_at_ms / 1000)
            refused: list[Refused] = []
            messages = list(open_parcel(parcel, identity.name, source.limits, refused.append))
            if refused:
                raise refused[0]
            (message,) = messages
        except Refused as error:
            log.error("consumer %s: dead letter %d is not delivered: %s", self.enabled.name, letter.id, error)
            source.dead.refuse(letter, f"requeued, but it does not verify: {error}")
            return None
        return message

    def _fenced(self, error: Fenced) -> NoReturn:
        log.error("consumer %s: %s", self.enabled.name, error)
        self._halt(Halt(1, str(error)))

    def _halt(self, halt: Halt) -> NoReturn:
        self._on_halt(self.enabled.name, halt)
        raise _Stopped

    def _pause(self, seconds: float) -> None:
        current, self.current = self.current, None  # nobody is busy with it meanwhile
        if self._stop_asked.wait(min(seconds, _FOREVER)):
            raise _Stopped
        self.current = current

    # --- async consumers ---------------------------------------------------------------------------------------

    def _settle(self, result: object) -> None:
        """Run what a hook or an ``async def`` has returned to its end, in this thread's own event loop."""
        if inspect.isawaitable(result):
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
            self._loop.run_until_complete(_await(result, self.enabled.timeout))


async def _await(result: Any, timeout: float) -> None:
    try:
        async with asyncio.timeout(timeout) as limit:
            await result
    except TimeoutError as error:
        if limit.expired():
            raise TimeoutError(f"it was not done within its timeout of {timeout:g} s, and was cancelled") from error
        raise


def _trace(error: BaseException) -> str:
    """Return the traceback's text; of an error in another process that which it had there."""
    return error.trace if isinstance(error, ChildFailed) else "".join(traceback.format_exception(error))


def _where(error: BaseException) -> str:
    """Return an error's class, text and the place in the consumer that raised it, for one line."""
    if isinstance(error, ChildFailed):
        return error.text
    frames = traceback.extract_tb(error.__traceback__)
    place = next((frame for frame in reversed(frames) if "/fedbus/hub/" not in frame.filename), None)
    at = f" ({place.filename}:{place.lineno})" if place else ""
    text = str(error)
    if len(text) > 500:
        text = text[:500] + "…"
    return f"{type(error).__name__}: {text}{at}"
