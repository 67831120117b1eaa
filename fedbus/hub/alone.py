"""One worker: messages are given one by one, in the thread that reads them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from fedbus.failpoints import ARMED, hit
from fedbus.hub.calls import OwnLoop, Stopped, where
from fedbus.hub.consumer import Halt
from fedbus.hub.crew import Crew
from fedbus.hub.dead import Letter
from fedbus.hub.enabled import Enabled
from fedbus.hub.inhand import REQUEUED, InHand, note_of
from fedbus.hub.isolated import Isolated
from fedbus.hub.trying import Trying
from fedbus.model.message import Message, MessageKey
from fedbus.model.position import Cursor, Position
from fedbus.transport.state import Loss

log = logging.getLogger(__name__)


class Alone(Crew):
    """Works on what it is given before it returns; so what was read is what is done, but for the stretch in hand."""

    def __init__(self, enabled: Enabled, trying: Trying, hands: Path) -> None:
        """Raises JournalError where the note of what is in hand cannot be opened."""
        self.current: Message | None = None  # in the consumer's hands
        self._enabled = enabled
        self._trying = trying
        self._stats = trying.stats
        self._settle = OwnLoop(enabled.timeout)
        self._consume: Callable[[Message], object] = enabled.consumer.consume
        self._done: Message | None = None
        self._hand: InHand | None = InHand(note_of(hands, enabled.name, 0))
        self._slot: memoryview | list[int] = self._hand.slot  # the sequence in hand, where a crash leaves it

    # --- the life of a crew ------------------------------------------------------------------------------------

    def begin(self) -> None:
        self._settle(self._enabled.consumer.start())

    def end(self, *, started: bool) -> None:
        consumer = self._enabled.consumer
        try:
            # a process may be there, from when it was loaded
            if started or isinstance(consumer, Isolated):
                self._settle(consumer.stop())
        finally:
            self._settle.close()
            self._slot = [0]
            if self._hand is not None:
                self._hand.close()
                self._hand = None

    def stop(self) -> None:
        pass  # it looks by itself, before each message

    def adopt(self, *, messages: int, size: int) -> None:
        pass  # it has one message in hand

    def kill(self) -> None:
        if isinstance(self._enabled.consumer, Isolated):
            self._enabled.consumer.kill()

    # --- for the hub -------------------------------------------------------------------------------------------

    @property
    def failure(self) -> str:
        isolated = self._enabled.consumer
        return isolated.failure if isinstance(isolated, Isolated) else ""

    @property
    def currents(self) -> Sequence[Message | None]:
        return (self.current,)

    @property
    def in_hand(self) -> int:
        return int(self.current is not None)

    def places(self, read: Cursor) -> Cursor:
        done = self._done
        if done is not None:
            place = read.get(done.endpoint)
            if place is not None and place.epoch == done.epoch and done.sequence > place.sequence:
                read[done.endpoint] = Position(done.epoch, done.sequence)
        return read

    def ahead(self) -> Sequence[MessageKey]:
        return ()

    # --- work --------------------------------------------------------------------------------------------------

    def work(self, messages: Sequence[Message]) -> None:
        consume, slot, trying = self._consume, self._slot, self._trying
        attempts = trying.attempts
        delivered = told = 0
        if self._hand is not None:
            self._hand.stream(messages[0].endpoint, messages[0].epoch)
        try:
            for message in messages:
                if trying.stopping:
                    raise Stopped
                if attempts and not trying.may_try(message):
                    self._done = message
                    continue
                self.current = message
                slot[0] = message.sequence
                try:
                    result = consume(message)
                    if result is not None:
                        self._settle(result)
                except BaseException as error:
                    failed = error
                else:
                    delivered += 1
                    self._done = message
                    continue
                if delivered > told:
                    told = delivered
                    trying.vain.taken()  # what fails now is the first of its row
                # behind the handler: what a later attempt raises does not come from this
                delivered += self._again(message, failed)
                self._done = message
        finally:
            self.current = None
            slot[0] = 0
            self._stats.delivered += delivered
        if delivered > told and trying.vain.any:
            trying.vain.taken()
        if ARMED:
            hit("hub.consumed")

    def _again(self, message: Message, error: BaseException, letter: Letter | None = None) -> bool:
        """Try a message that has failed until it is done with; return whether the consumer took it in the end."""
        trying, slot = self._trying, self._slot
        in_hand = slot[0]
        while True:
            slot[0] = 0
            self.current = None  # nobody is busy with it meanwhile
            pause = trying.failed(message, error, letter)
            if pause is None:
                return False
            trying.pause(pause)
            self.current = message
            slot[0] = in_hand
            try:
                self._settle(self._consume(message))
            except BaseException as again:
                error = again
            else:
                slot[0] = 0
                trying.taken(message, letter)
                return True

    def letters(self, found: Sequence[tuple[Letter, Message]]) -> None:
        for letter, message in found:
            if self._trying.stopping:
                raise Stopped
            if self._hand is not None:
                self._hand.stream(message.endpoint, message.epoch)
            self._stats.requeued += 1
            self.current = message
            self._slot[0] = message.sequence | REQUEUED
            failed: BaseException | None = None
            try:
                try:
                    self._settle(self._consume(message))
                except BaseException as error:
                    failed = error
                if failed is None:
                    self._slot[0] = 0
                    self._trying.taken(message, letter)
                elif not self._again(message, failed, letter):
                    continue
            finally:
                self.current = None
                self._slot[0] = 0
            self._stats.delivered += 1

    def lost(self, loss: Loss) -> None:
        try:
            self._settle(self._enabled.consumer.lost(loss))
        except Halt as halt:
            self._trying.halt(halt)
        except BaseException as error:
            log.error("consumer %s: lost() raised %s; it was to hear: %s", self._enabled.name, where(error), loss)
