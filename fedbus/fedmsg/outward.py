"""The other half of the bridge: what our endpoints publish goes out in the format of fedmsg."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime

from fedbus.clock import Clock
from fedbus.errors import FedbusError, MessageError
from fedbus.fedmsg.codec import MARKER
from fedbus.fedmsg.inward import came_in
from fedbus.fedmsg.publisher import FedmsgPending, FedmsgPublisher
from fedbus.fedmsg.topics import Mapping
from fedbus.model.message import Message
from fedbus.transport.refusals import RefusalLog
from fedbus.transport.subscriber import Subscriber

log = logging.getLogger(__name__)

_TICK = 0.5
_FAILED_PAUSE = 1.0


class Outward(threading.Thread):
    """Carries out what *subscriber* reads, in order, and moves its cursor once it is sent; a thread of its own.

    What came in from fedmsg stays here, so nothing goes round in circles. Ids are those of our messages, so one that is
    sent again after a crash can be known by its id.
    """

    def __init__(
        self,
        open_subscriber: Callable[[], Subscriber],
        publisher: FedmsgPublisher,
        *,
        mapping: Mapping,
        settle: float,
        clock: Clock,
    ) -> None:
        super().__init__(name="fedbus-bridge-out", daemon=True)
        self.carried = 0
        self.dropped: dict[str, int] = {}  # by reason
        self.failure = ""
        self.turned_at = clock.monotonic()
        self.subscriber = open_subscriber()
        self.publisher = publisher
        self._mapping = mapping
        self._settle = settle
        self._clock = clock
        self._refusals = RefusalLog(log, "not carried out from")
        self._stopping = False

    def stop(self) -> None:
        """Ask the thread to end; any thread may call this."""
        self._stopping = True
        self.subscriber.stop()

    def run(self) -> None:
        # what waits behind the cursor must not be sent before the readers of the last process have connected again
        end = self._clock.monotonic() + self._settle
        while not self._stopping and self._clock.monotonic() < end:
            self.turned_at = self._clock.monotonic()
            threading.Event().wait(0.05)
        while not self._stopping:
            try:
                self.turned_at = self._clock.monotonic()
                self._carry(self.subscriber.receive(_TICK))
                self.failure = ""
            except Exception as error:
                self.failure = f"{type(error).__name__}: {error}"
                log.exception("carrying out failed; it goes on in %s s", _FAILED_PAUSE)
                threading.Event().wait(_FAILED_PAUSE)
        try:
            self.subscriber.close()
        except FedbusError as error:
            log.error("the cursor of what was carried out is not written: %s", error)

    def _carry(self, messages: list[Message]) -> None:
        last: FedmsgPending | None = None
        sent = 0
        for message in messages:
            if message.wire != "native" or came_in(message):
                continue
            try:
                last = self._send(message)
                sent += 1
            except MessageError as error:
                reason = error.reason
                self.dropped[reason.value] = self.dropped.get(reason.value, 0) + 1
                now = self._clock.monotonic()
                self._refusals.refused(f"endpoint {message.endpoint}", reason, f"{message.key}: {error}", now)
        if last is not None:
            last.result()
        self.carried += sent

    def _send(self, message: Message) -> FedmsgPending:
        made = datetime.fromisoformat(message.time)
        return self.publisher.send(
            self._mapping.outward(message.topic),
            message.body,
            identifier=message.id,
            stamp=int(made.timestamp()),
            more={
                MARKER: {"endpoint": message.endpoint, "epoch": message.epoch, "sequence": message.sequence},
            },
        )
