"""What becomes of a message that a consumer did not take: another try, a dead letter, or nothing more."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from typing import NoReturn

from fedbus.errors import FedbusError, Fenced, Refused
from fedbus.hub.calls import Stopped, trace_of, where
from fedbus.hub.consumer import Drop, Halt, Retry
from fedbus.hub.dead import Attempts, Held, Letter, is_behind
from fedbus.hub.enabled import DeliveryStats, Enabled
from fedbus.hub.inhand import InHand, notes
from fedbus.hub.isolated import ChildEnded
from fedbus.hub.options import HubOptions
from fedbus.hub.source import Source
from fedbus.hub.vain import Vain
from fedbus.model.message import Message, MessageKey
from fedbus.model.position import Cursor
from fedbus.trust.proof import verify_parcel
from fedbus.wire import parcel as parcels
from fedbus.wire.envelope import open_parcel

log = logging.getLogger(__name__)

LONGEST_PAUSE = 60.0  # seconds between two tries
_SAID_AGAIN = 30.0  # seconds between two lines about dead letters that cannot be kept
_FOREVER = 365 * 86400.0  # what an event can wait is bounded


class Trying:
    """The attempts and dead letters of one consumer; the workers of that consumer may use it at the same time."""

    def __init__(
        self,
        enabled: Enabled,
        source: Source,
        options: HubOptions,
        stats: DeliveryStats,
        on_halt: Callable[[str, Halt], None],
    ) -> None:
        self.enabled = enabled
        self.options = options
        self.stats = stats
        self.turn = threading.Lock()  # for the counters, where there are several workers
        self.stopping = False
        self._stop_asked = threading.Event()
        self.attempts: dict[MessageKey, Attempts] = {}  # of messages that may come again
        self.suspects: set[MessageKey] = set()  # were in a batch when the last hub died
        self.held = Held(0, 0, 0)  # dead letters, as of the hub's last look
        self.vain = Vain(source.clock)  # what is tried again, for those who ask how the consumer is
        self._source = source
        self._dead = source.dead
        self._on_halt = on_halt
        self._waiting: dict[MessageKey, str] = {}  # failed, and cannot be made dead letters
        self._tries: dict[int, int] = {}  # of requeued letters that were given in vain, by their id

    @property
    def failure(self) -> str:
        """Why a worker waits; empty when none does."""
        return next(iter(list(self._waiting.values())), "")

    def reasons(self) -> list[str]:
        """Return in words what the consumer does not get on with; empty while that is within what is usual."""
        if self._waiting:
            return []  # `failure` tells
        return self.vain.reasons(self.options, dead=self.held.count)

    def stop(self) -> None:
        """Nothing else is begun, and pauses end; any thread may call this."""
        self.stopping = True
        self._stop_asked.set()

    # --- at the start ------------------------------------------------------------------------------------------

    def take_stock(self, cursor: Cursor) -> None:
        """Learn what was tried before, and count as tried what the last hub had in hand when it died.

        Raises:
            JournalError: The store, or a note of what was in hand, cannot be used.
        """
        name = self.enabled.name
        self.attempts = self._dead.attempts(name, cursor)
        self.held = self._dead.held(name)
        for path in notes(self._source.hands, name):
            note = InHand(path)
            left = note.left()
            if left is not None and len(left.keys) > 1:
                # one of these may have ended it: given one by one, it shows which
                self.suspects.update(key for key in left.keys if not is_behind(key, cursor))
                log.warning("consumer %s: the last hub ended while it had a batch of %d in hand", name, len(left.keys))
            elif left is not None:
                self._count(left.keys[0], left.requeued, cursor)
            note.close()

    def _count(self, key: MessageKey, requeued: bool, cursor: Cursor) -> None:
        name = self.enabled.name
        if requeued:
            for letter in self._dead.requeued(name):
                if letter.key == key:
                    self._dead.tried_again(letter, letter.tries + 1)
        elif not is_behind(key, cursor):
            known = self.attempts.get(key, Attempts(0))
            if known.settled:
                return
            self._dead.tried(name, key, known.count + 1)
            self.attempts[key] = Attempts(known.count + 1)
        log.warning("consumer %s: the last hub ended while it had %s in hand; that counts as an attempt", name, key)

    # --- one message -------------------------------------------------------------------------------------------

    def may_try(self, message: Message) -> bool:
        """Return whether a message, perhaps one that was tried by a hub before this one, is to be given at all."""
        known = self.attempts.get(message.key)
        if known is None:
            return True
        if known.settled:
            return False
        if known.count >= self.enabled.attempts:
            reason = f"the hub ended, or was killed, while the consumer had it, for the last of {known.count} times"
            self._bury(message, reason, "", known.count)
            return False
        return True

    def failed(self, message: Message, error: BaseException, letter: Letter | None = None) -> float | None:
        """Do what *error* calls for; return after how many seconds to give the message again, None for never.

        *letter* is the dead letter that the message comes from, if it was requeued.

        Raises:
            Stopped: The hub ends, perhaps because the consumer wants it.
        """
        name, stats = self.enabled.name, self.stats
        if self.stopping and isinstance(error, ChildEnded):
            raise Stopped  # it was we who ended it, at the deadline
        if isinstance(error, Stopped):
            raise error
        if isinstance(error, Retry):
            with self.turn:
                stats.retried += 1
            log.info("consumer %s: %s again in %.3g s: %s", name, message.key, error.after, error.reason)
            self.vain.tried(message, error.reason, error.after)
            return error.after
        if isinstance(error, Drop):
            with self.turn:
                stats.dropped += 1
            log.warning("consumer %s dropped %s (%s): %s", name, message.key, message.topic, error.reason)
            self.taken(message, letter)
            return None
        if isinstance(error, Halt):
            self.halt(error)
        with self.turn:
            stats.failed += 1
        reason = where(error)
        self.vain.failed(reason)
        attempt = self._count_of(message, letter) + 1
        if attempt >= self.enabled.attempts:
            self._bury(message, reason, trace_of(error), attempt, again=letter is not None)
            if letter is not None:
                self._tries.pop(letter.id, None)
            return None
        if not self._note_attempt(message, letter, attempt):
            self._was_dropped(message)
            return None
        # jitter, so that many consumers do not come back to a weak server in step
        pause = min(LONGEST_PAUSE, self.options.retry_pause * 2.0 ** min(attempt - 1, 30)) * random.uniform(0.75, 1.25)
        log.warning(
            "consumer %s: %s (%s): %s; attempt %d of %d, again in %.3g s",
            name,
            message.key,
            message.topic,
            reason,
            attempt,
            self.enabled.attempts,
            pause,
        )
        log.debug("%s", trace_of(error))
        self.vain.tried(message, reason, pause)
        return pause

    def _count_of(self, message: Message, letter: Letter | None) -> int:
        if letter is not None:
            return self._tries.get(letter.id, letter.tries)
        return self.attempts.get(message.key, Attempts(0)).count

    def _note_attempt(self, message: Message, letter: Letter | None, count: int) -> bool:
        """Write down that the message was tried in vain *count* times, so that a restart does not begin anew.

        Return False for a letter that people have dropped meanwhile.
        """
        try:
            if letter is not None:
                self._tries[letter.id] = count
                if not self._dead.tried_again(letter, count):
                    del self._tries[letter.id]
                    return False
            else:
                self.attempts[message.key] = Attempts(count)
                self._dead.tried(self.enabled.name, message.key, count)
        except Fenced as error:
            self.fenced(error)
        except FedbusError as error:
            log.error("consumer %s: a restart would try %s anew: %s", self.enabled.name, message.key, error)
        return True

    def _was_dropped(self, message: Message) -> None:
        self.vain.over(message.key)
        log.info("consumer %s: %s was dropped by hand, it is not tried again", self.enabled.name, message.key)

    def taken(self, message: Message, letter: Letter | None = None) -> None:
        """The message, which was tried before or was a dead letter, is done with."""
        self.vain.taken(message.key)
        try:
            if letter is not None:
                self._tries.pop(letter.id, None)
                self._dead.resolve(letter)
            elif self.attempts.pop(message.key, None) is not None:
                self._dead.forget(self.enabled.name, [message.key])
        except Fenced as error:
            self.fenced(error)
        except FedbusError as error:
            log.error("consumer %s: it is not noted that %s is done with: %s", self.enabled.name, message.key, error)

    def _bury(self, message: Message, reason: str, trace: str, attempts: int, *, again: bool = False) -> None:
        """Make a dead letter of *message*; return when it is kept, however long that takes: nothing is just skipped."""
        name, source = self.enabled.name, self._source
        pause, said_at = self.options.retry_pause, float("-inf")
        try:
            while True:
                try:
                    kept = self._dead.bury(
                        name,
                        message,
                        reason=reason,
                        traceback=trace,
                        attempts=attempts,
                        at_ms=int(source.clock.wall() * 1000),
                        most=self.options.dead_messages,
                        most_bytes=self.options.dead_bytes,
                        again=again,
                    )
                    break
                except Fenced as error:
                    self.fenced(error)
                except FedbusError as error:
                    text = f"{message.key} has failed and cannot be made a dead letter: {error}"
                    self._waiting[message.key] = text
                    if source.clock.monotonic() - said_at > _SAID_AGAIN:
                        said_at = source.clock.monotonic()
                        log.error("consumer %s waits: %s", name, text)
                    self.pause(pause)
                    pause = min(LONGEST_PAUSE, pause * 2)
        finally:
            self._waiting.pop(message.key, None)
        if not kept:
            self._was_dropped(message)
            return
        self.vain.over(message.key)
        self.attempts[message.key] = Attempts(attempts, settled=True)
        with self.turn:
            self.stats.gave_up += 1
        log.error(
            "consumer %s: %s (%s): %s; gave up after %d attempts, it is a dead letter: see `fedbus dead list`",
            name,
            message.key,
            message.topic,
            reason,
            attempts,
        )

    # --- dead letters that were requeued -------------------------------------------------------------------------

    def requeued(self) -> list[tuple[Letter, Message]]:
        """Return dead letters that people have requeued, and that are to be given to the consumer once more.

        Raises:
            Stopped: Another hub has taken over.
        """
        found: list[tuple[Letter, Message]] = []
        try:
            for letter in self._dead.requeued(self.enabled.name):
                message = self._reopen(letter)
                if message is not None and self._may_try_letter(letter, message):
                    found.append((letter, message))
        except Fenced as error:
            self.fenced(error)
        except FedbusError as error:
            log.error("consumer %s: dead letters that were requeued have to wait: %s", self.enabled.name, error)
        return found

    def is_requeued(self, letter: Letter) -> bool:
        """Return whether people still want that *letter* to be given once more."""
        try:
            found = self._dead.get(letter.id)
        except FedbusError:
            return False  # the next look tells
        return found is not None and found[0].requeued

    def _may_try_letter(self, letter: Letter, message: Message) -> bool:
        if letter.tries < self.enabled.attempts:
            return True
        self._bury(message, "the hub ended while the consumer had it, again and again", "", letter.tries, again=True)
        return False

    def _reopen(self, letter: Letter) -> Message | None:
        """Return the message of a dead letter, verified as of the time at which it died; None if it does not verify."""
        source = self._source
        found = self._dead.get(letter.id)
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
            self._dead.refuse(letter, f"requeued, but it does not verify: {error}")
            return None
        return message

    # --- the end -----------------------------------------------------------------------------------------------

    def fenced(self, error: Fenced) -> NoReturn:
        log.error("consumer %s: %s", self.enabled.name, error)
        self.halt(Halt(1, str(error)))

    def halt(self, halt: Halt) -> NoReturn:
        self.stop()
        self._on_halt(self.enabled.name, halt)
        raise Stopped

    def pause(self, seconds: float) -> None:
        """Wait; raises Stopped as soon as the hub stops."""
        if self._stop_asked.wait(min(seconds, _FOREVER)):
            raise Stopped
