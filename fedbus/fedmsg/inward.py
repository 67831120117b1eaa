"""One half of the bridge: what comes in over fedmsg goes into the journal of an endpoint of ours, each message once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import orjson

from fedbus.bell import Bell
from fedbus.clock import Clock
from fedbus.errors import (
    DeadlineExceeded,
    JournalWriteError,
    MessageError,
    QueueFull,
    Reason,
    TrustError,
    WireError,
)
from fedbus.fedmsg.codec import MARKER, Envelope
from fedbus.fedmsg.feed import FedmsgFeed
from fedbus.fedmsg.message import FedmsgParcel
from fedbus.fedmsg.recent import Recent
from fedbus.fedmsg.topics import Mapping
from fedbus.journal.journal import split_records
from fedbus.model.message import Message
from fedbus.model.stream import StreamHome
from fedbus.transport.batch import Pending
from fedbus.transport.endpoint import Endpoint
from fedbus.transport.publisher import Publisher
from fedbus.transport.refusals import RefusalLog
from fedbus.wire import parcel

log = logging.getLogger(__name__)

ID = "fedmsgid"  # an attribute of every message that came in so; no bridge carries it out again
_MARK = b'"fedmsgid":'
_READ_BYTES = 2**20
_ANY_PARCEL = 2**30
_LOOK_BACK = 20_000  # messages of the journal whose ids are known again after a restart, at most
_TICK = 0.5
_RETRY_SECONDS = (0.1, 5.0)  # between two tries of what the disk has refused
_WAIT = 0.5


def attributes_of(message: Message) -> bytes:
    """Return the part of our envelope that says what *message* was on the fedmsg side."""
    envelope = original(message)
    facts: dict[str, object] = {
        ID: envelope.id,
        "fedmsgtopic": envelope.topic,
        "fedmsgtime": message.time,
        "fedmsgsigner": message.signer,
        "fedmsgendpoint": message.endpoint,
        "fedmsgcount": envelope.count,
    }
    return b"," + orjson.dumps(facts)[1:-1]


def original(message: Message) -> Envelope:
    """Return the message of fedmsg as it came."""
    found = message.parcel
    assert isinstance(found, FedmsgParcel)
    return found.original


def came_in(message: Message) -> bool:
    """Whether one of our *message* was carried in from fedmsg, by whichever bridge."""
    return _MARK in message.envelope and ID in message.attributes


class Inward(threading.Thread):
    """Carries in what *feed* brings; a thread of its own, which also owns the feed's sockets.

    A message that the disk refuses is tried again until it is taken: nothing is read meanwhile, and what libzmq then
    drops shows in the publishers' counts.
    """

    def __init__(
        self,
        open_feed: Callable[[Recent, Callable[[Envelope], bool]], FedmsgFeed],
        publisher: Publisher,
        *,
        endpoints: Iterable[Endpoint],
        known: Callable[[], Iterable[str]],
        mapping: Mapping,
        remember: int,
        clock: Clock,
    ) -> None:
        """*known* are the names of our endpoints; what another bridge has sent for them is left out.

        Raises:
            KeysError: The CA of the fedmsg side, or its list, cannot be used.
            JournalError: The journal cannot be read.
        """
        super().__init__(name="fedbus-bridge-in", daemon=True)
        self.carried = 0
        self.echoes = 0  # that we, or another bridge, had sent out
        self.dropped: dict[str, int] = {}  # by reason
        self.failure = ""  # why nothing is carried at the moment
        self.turned_at = clock.monotonic()
        recent = Recent(remember)
        self.feed = open_feed(recent, self._is_ours)
        self._publisher = publisher
        self._known = known
        self._mapping = mapping
        self._clock = clock
        self._topics: dict[str, str] = {}
        self._refusals = RefusalLog(log, "not carried in from")
        self._stopping = False
        self._end = float("inf")  # when to give up what the disk refuses
        self._wanted: list[Endpoint] | None = list(endpoints)
        self._bell = Bell()
        self._learn(publisher.stored, recent, min(remember, _LOOK_BACK))

    def update(self, endpoints: Iterable[Endpoint]) -> None:
        """Ask the thread to take up a changed list of endpoints."""
        self._wanted = list(endpoints)
        self._bell.release()

    def stop(self, timeout: float) -> None:
        """Ask the thread to end, in *timeout* seconds at most; any thread may call this."""
        self._end = self._clock.monotonic() + timeout
        self._stopping = True
        self._bell.release()

    def run(self) -> None:
        more = False
        while not self._stopping:
            try:
                if not more:
                    self._bell.wait(_TICK, (self.feed.descriptor,))
                more = self._turn()
            except Exception as error:
                # nothing that comes from outside may end a daemon; if it is a fault of ours, the log shows where
                self.failure = f"{type(error).__name__}: {error}"
                log.exception("carrying in failed; it goes on")
                more = False
        self.close()

    def close(self) -> None:
        """Close what the thread reads from; it does so itself when it ends."""
        self.feed.close()
        self._bell.close()

    def _turn(self) -> bool:
        now = self.turned_at = self._clock.monotonic()
        wanted, self._wanted = self._wanted, None
        if wanted is not None:
            self.feed.update(wanted)
        found, more = self.feed.drain(now)
        for _, messages in found:
            self._carry(messages)
        self.feed.tick(now)
        return more

    # --- one message -------------------------------------------------------------------------------------------

    def _is_ours(self, envelope: Envelope) -> bool:
        marker = envelope.fields.get(MARKER)
        ours = isinstance(marker, dict) and marker.get("endpoint") in set(self._known())
        self.echoes += ours
        return ours

    def _carry(self, messages: list[Message]) -> None:
        """Put *messages* into the journal; return when they are there."""
        todo = messages
        pause, most = _RETRY_SECONDS
        while todo:
            pending = [(message, self._submit(message)) for message in todo]
            todo = [message for message, one in pending if one is not None and not self._settled(one)]
            if not todo:
                break
            if self._clock.monotonic() >= self._end:
                log.error("%d messages are not carried in: %s", len(todo), self.failure)
                self._count("journal", len(todo))
                return
            self._pause(pause)
            pause = min(most, 2 * pause)
        self.failure = ""

    def _submit(self, message: Message) -> Pending | None:
        """Queue *message*; None where it cannot be carried."""
        extra = attributes_of(message)
        while True:
            try:
                topic = self._topics.get(message.topic) or self._learn_topic(message.topic)
                return self._publisher.submit(topic, message.body, extra, _NOBODY)
            except QueueFull:
                self._pause(0.01)
            except (MessageError, TrustError) as error:
                self._refuse(message, error)
                return None

    def _settled(self, pending: Pending) -> bool:
        """Wait for one; return whether it is in the journal."""
        while True:
            try:
                pending.result(_WAIT)
            except DeadlineExceeded:
                self.turned_at = self._clock.monotonic()
                if self.turned_at >= self._end:
                    return False
            except JournalWriteError as error:
                if str(error) != self.failure:
                    log.error("what comes in is not journaled, and tried again: %s", error)
                self.failure = str(error)
                return False
            else:
                self.carried += 1
                return True

    def _pause(self, seconds: float) -> None:
        self.turned_at = self._clock.monotonic()
        threading.Event().wait(min(seconds, max(0.0, self._end - self.turned_at)))

    def _refuse(self, message: Message, error: MessageError | TrustError) -> None:
        reason = error.reason
        hint = ""
        if reason is Reason.POLICY:
            name = self._publisher.endpoint.name
            hint = f"; let the bridge speak for others, with a rule of the policy: signer {name}, topics ['#']"
        self._count(reason.value, 1)
        now = self._clock.monotonic()
        self._refusals.refused(f"endpoint {message.endpoint}", reason, f"{message.topic}: {error}{hint}", now)

    def _count(self, reason: str, number: int) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + number

    def _learn_topic(self, topic: str) -> str:
        if len(self._topics) > 10_000:
            self._topics.clear()
        found = self._topics[topic] = self._mapping.inward(topic)
        return found

    # --- the journal -------------------------------------------------------------------------------------------

    def _learn(self, home: StreamHome, recent: Recent, most: int) -> None:
        """Know again what was carried in before, and where the counts of the publishers stood."""
        last: dict[tuple[str, str], int] = {}
        for attributes in _read(home, max(home.head - most, home.start - 1, 0)):
            recent.remember(attributes[ID])
            signer, endpoint = attributes.get("fedmsgsigner"), attributes.get("fedmsgendpoint")
            if signer and endpoint:
                last[endpoint, signer] = attributes.get("fedmsgcount", 0)
        self.feed.begin_counts(last)


class _Nobody:
    """Who need not be told when a message is settled."""

    def release(self) -> None:
        """There is nothing to do."""


_NOBODY = _Nobody()


def _read(home: StreamHome, after: int) -> Iterator[dict[str, Any]]:
    """Yield the attributes of messages that were carried in, of those after the sequence *after*."""
    while True:
        found = home.read(after, _READ_BYTES)
        for record in split_records(found.data, verify=False):
            try:
                envelopes = parcel.decode(record.payload, parcel_bytes=_ANY_PARCEL).envelopes
            except WireError:
                continue  # told when the journal was opened
            for envelope in envelopes:
                if _MARK in envelope:
                    attributes = orjson.loads(envelope)
                    if ID in attributes:
                        yield attributes
        if found.end or found.through <= after:
            return
        after = found.through
