"""The publishing end in the format of fedmsg: signed messages on a PUB socket, and no journal behind it."""

from __future__ import annotations

import atexit
import logging
import os
import select
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, overload
from uuid import uuid4

import zmq

from fedbus.clock import Clock, SystemClock
from fedbus.errors import DeadlineExceeded, ForkedError, MessageError, PublisherClosed, QueueFull, Reason
from fedbus.fedmsg.codec import TOPIC_BYTES
from fedbus.fedmsg.options import FedmsgOptions
from fedbus.fedmsg.signer import FedmsgSigner
from fedbus.model.limits import Limits
from fedbus.model.receipt import Receipt
from fedbus.model.topic import Naming
from fedbus.schemas.registry import Schemas
from fedbus.transport import sockets
from fedbus.transport.endpoint import Endpoint
from fedbus.transport.zap import Gate, Subscriptions
from fedbus.wire import strict
from fedbus.wire.envelope import rfc3339

log = logging.getLogger(__name__)

_NOBLOCK = int(zmq.NOBLOCK)
_QUEUE = 10_000  # signed messages that wait for the socket
_TURN = 256
_OVERHEAD = 6144  # bytes of a message around its body: certificate and signature of an RSA key of 4096 bits
_NO_MARK = b"\xff no reader of ours comes here"


@dataclass(frozen=True, slots=True)
class FedmsgReceipt(Receipt):
    """A receipt for a message that was given to the socket; what nobody was there to hear is lost.

    ``sequence`` is its ``i``, ``id`` its ``msg_id``, and ``epoch`` the UUID in that. ``subscriptions`` were held by
    readers when it was sent.
    """

    subscriptions: int


@dataclass(slots=True)
class FedmsgPublisherStats:
    """Counters since the publisher was opened, and gauges."""

    published: int = 0
    bytes: int = 0
    subscribers: int = 0  # subscriptions that readers hold; most readers of fedmsg hold one
    beats: int = 0  # this format has none


class FedmsgPending:
    """A signed message on its way to the socket; what :meth:`FedmsgPublisher.enqueue` returns."""

    __slots__ = ("_sent", "data", "error", "receipt", "topic")

    def __init__(self, topic: bytes, data: bytes, receipt: FedmsgReceipt) -> None:
        self.topic = topic
        self.data = data
        self.receipt = receipt
        self.error: PublisherClosed | None = None
        self._sent = threading.Event()

    @property
    def done(self) -> bool:
        """Whether it was given to the socket."""
        return self._sent.is_set()

    def result(self, timeout: float | None = 30.0) -> FedmsgReceipt:
        """Wait until the message was given to the socket.

        Raises:
            DeadlineExceeded: Not within *timeout* seconds.
            PublisherClosed: The publisher has ended before.
        """
        if not self._sent.wait(timeout):
            raise DeadlineExceeded(f"not sent within {timeout} s; it still may be")
        if self.error is not None:
            raise self.error
        return self.receipt

    def finish(self, subscriptions: int, error: PublisherClosed | None = None) -> None:
        """Say that it is sent, or why not; called once, by the publisher's thread."""
        if subscriptions:
            first = self.receipt
            self.receipt = FedmsgReceipt(
                first.topic, first.endpoint, first.epoch, first.sequence, first.id, first.time, subscriptions
            )
        self.error = error
        self._sent.set()


def _close_at_exit(reference: weakref.ref[FedmsgPublisher]) -> None:
    """Send what a program has published that forgot to close."""
    publisher = reference()
    if publisher is not None:
        publisher.close(5.0)


class FedmsgPublisher:
    """Publishes the messages of one endpoint in the format of fedmsg; any thread may use it.

    It is used like a :class:`~fedbus.Publisher`. But there is no journal: a reader that is not connected, or does not
    keep up, loses messages, as with fedmsg itself. :meth:`wait_for_subscribers` takes the place of fedmsg's
    ``post_init_sleep``.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        naming: Naming,
        signer: FedmsgSigner,
        options: FedmsgOptions,
        limits: Limits,
        context: zmq.Context[zmq.Socket[bytes]],
        clock: Clock | None = None,
        may_publish: Callable[[str], None] | None = None,
        gate: Gate | None = None,
        schemas: Schemas | None = None,
    ) -> None:
        """Bind the socket and start the thread.

        Raises:
            BindError: The address is taken, or not this host's.
        """
        self.endpoint = endpoint
        self.stats = FedmsgPublisherStats()
        self.signer = signer
        self._naming = naming
        self._options = options
        self._limits = limits
        self._encode = strict.encoder(limits)
        self._clock = clock or SystemClock()
        self._may_publish = may_publish
        self._schemas = schemas
        self._topics: dict[str, str] = {}
        self._checks: dict[str, Callable[[Any], None]] = {}
        self._queue: deque[FedmsgPending] = deque()
        self._room = threading.Condition()
        self._signing = threading.Lock()  # so that `i` counts in the order of sending
        self._count = 0
        self._closing = False
        self._pid = os.getpid()
        guard = None if gate is None else lambda socket: gate.guard(socket, endpoint.name)
        self._subscriptions = Subscriptions(gate, endpoint, _NO_MARK, clock=self._clock)
        self._socket = sockets.foreign_publish_socket(context, endpoint, hwm=options.send_hwm, before_bind=guard)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name=f"fedbus-{endpoint.name}", daemon=True)
        self._thread.start()
        atexit.register(_close_at_exit, weakref.ref(self))

    # --- for callers -------------------------------------------------------------------------------------------

    @overload
    def publish(
        self,
        topic: str,
        body: dict[str, Any],
        *,
        wait: Literal[True] = True,
        timeout: float = 30.0,
        dataschema: str | None = None,
        traceparent: str | None = None,
    ) -> FedmsgReceipt: ...

    @overload
    def publish(
        self,
        topic: str,
        body: dict[str, Any],
        *,
        wait: Literal[False],
        timeout: float = 30.0,
        dataschema: str | None = None,
        traceparent: str | None = None,
    ) -> FedmsgPending: ...

    def publish(
        self,
        topic: str,
        body: dict[str, Any],
        *,
        wait: bool = True,
        timeout: float = 30.0,
        dataschema: str | None = None,
        traceparent: str | None = None,
    ) -> FedmsgReceipt | FedmsgPending:
        """Sign *body* under *topic* and return once it was given to the socket; with ``wait=False``, at once.

        *topic* is what follows the service, as everywhere; ``PREFIX.ENV`` are ``fedmsg.topic_prefix`` and
        ``fedmsg.environment``. *dataschema* and *traceparent* go into ``headers``.

        Raises:
            MessageError: The topic or the body cannot be published.
            TrustError: The policy does not let this endpoint publish the topic.
            QueueFull, DeadlineExceeded: *timeout* seconds were not enough.
            PublisherClosed, ForkedError: Open a new publisher.
        """
        pending = self.enqueue(topic, body, timeout=timeout, dataschema=dataschema, traceparent=traceparent)
        return pending.result(timeout) if wait else pending

    def enqueue(
        self,
        topic: str,
        body: dict[str, Any],
        *,
        timeout: float = 30.0,
        dataschema: str | None = None,
        traceparent: str | None = None,
    ) -> FedmsgPending:
        """Like :meth:`publish`, but return as soon as the message is signed and queued."""
        whole = self._topics.get(topic) or self._learn(topic)
        check = self._checks.get(topic)
        if check is not None:
            check(body)
        stamp = int(self._clock.wall())
        headers = {"dataschema": dataschema, "traceparent": traceparent}
        chosen = {name: value for name, value in headers.items() if value is not None}
        identifier = str(uuid4())
        return self.send(
            whole, body, identifier=identifier, stamp=stamp, more={"headers": chosen} if chosen else {}, timeout=timeout
        )

    def send(
        self,
        topic: str,
        body: dict[str, Any],
        *,
        identifier: str,
        stamp: int,
        more: dict[str, Any],
        timeout: float = 30.0,
    ) -> FedmsgPending:
        """Sign and queue *body* under the full *topic*, with the UUID *identifier*, made at *stamp*.

        *more* are members of the message besides those that every one has.

        Raises:
            MessageError: It cannot be sent, or is too large.
            QueueFull, PublisherClosed, ForkedError: As for :meth:`publish`.
        """
        size = len(self._encode(body))
        if size + _OVERHEAD > self._limits.message_bytes:
            raise MessageError(
                Reason.OVERSIZE, f"the message has {size + _OVERHEAD} bytes, limit {self._limits.message_bytes}"
            )
        year = time.gmtime(stamp).tm_year
        fields: dict[str, Any] = {
            **more,
            "topic": topic,
            "msg": body,
            "msg_id": f"{year}-{identifier}",
            "timestamp": stamp,
            "username": self._options.username,
        }
        deadline = self._clock.monotonic() + timeout
        with self._signing:
            self._check()
            fields["i"] = self._count + 1
            data = self.signer.sign(fields)
            receipt = FedmsgReceipt(
                topic, self.endpoint.name, identifier, fields["i"], fields["msg_id"], rfc3339(stamp), 0
            )
            pending = FedmsgPending(topic.encode("ascii"), data, receipt)
            with self._room:
                while len(self._queue) >= _QUEUE:
                    left = deadline - self._clock.monotonic()
                    if left <= 0:
                        raise QueueFull(f"the queue of {self.endpoint.name!r} stayed full for {timeout} s")
                    self._room.wait(left)
                    self._check()
                self._count += 1
                self._queue.append(pending)
                os.eventfd_write(self._wake, 1)
        return pending

    def wait_for_subscribers(self, count: int = 1, timeout: float = 10.0) -> bool:
        """Return True once readers hold *count* subscriptions, False after *timeout* seconds."""
        deadline = self._clock.monotonic() + timeout
        with self._room:
            while self.stats.subscribers < count:
                left = deadline - self._clock.monotonic()
                if left <= 0 or self._closing:
                    return False
                self._room.wait(left)
        return True

    def flush(self, timeout: float = 30.0) -> None:
        """Return when all that was queued before was given to the socket."""
        with self._room:
            last = self._queue[-1] if self._queue else None
        if last is not None:
            last.result(timeout)

    def close(self, timeout: float = 30.0) -> None:
        """Send what was accepted and close the socket; calling it again does nothing.

        Raises:
            DeadlineExceeded: The thread did not end within *timeout* seconds.
        """
        if self._pid != os.getpid():
            return
        with self._room:
            self._closing = True
            self._room.notify_all()
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise DeadlineExceeded(f"endpoint {self.endpoint.name!r} did not close within {timeout} s")
        with self._room:
            wake, self._wake = self._wake, -1
        if wake >= 0:
            os.close(wake)

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closing

    def __enter__(self) -> FedmsgPublisher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _learn(self, topic: str) -> str:
        """Return the full topic for what publishing code says, if the policy allows it."""
        naming = self._naming
        short = topic.removeprefix(f"{naming.root}.{self.endpoint.service}.")
        native = topic if topic.startswith(naming.prefix + ".") and short == topic else ""
        native = native or naming.expand(self.endpoint.service, short)
        if self._may_publish is not None:
            self._may_publish(native)
        whole = f"{self._options.root}.{native.removeprefix(naming.root + '.')}"
        if len(whole) > TOPIC_BYTES:
            raise MessageError(Reason.TOPIC, f"a topic has at most {TOPIC_BYTES} bytes, {whole!r} has {len(whole)}")
        if len(self._topics) > 10_000:
            self.forget_topics()
        check = None if self._schemas is None else self._schemas.publishing(native)
        if check is not None:
            self._checks[topic] = check
        self._topics[topic] = whole
        return whole

    def forget_topics(self) -> None:
        """Look again what the policy and the schemas say of each topic; any thread may call this."""
        self._topics, self._checks = {}, {}

    def _check(self) -> None:
        if self._pid != os.getpid():
            raise ForkedError(
                f"the publisher of {self.endpoint.name!r} was opened before a fork; open one in the child"
            )
        if self._closing or not self._thread.is_alive():
            raise PublisherClosed(f"the publisher of {self.endpoint.name!r} is closed")

    # --- the thread that owns the socket -----------------------------------------------------------------------

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake, select.POLLIN)
        try:
            while True:
                poller.poll(1000)
                try:
                    os.eventfd_read(self._wake)
                except BlockingIOError:
                    pass
                self._take_subscriptions()
                while self._send_some():
                    pass
                if self._closing and not self._queue:
                    return
        except Exception:
            log.exception("endpoint %s: its thread has ended", self.endpoint.name)
        finally:
            self._socket.close()  # lingers for a second
            with self._room:
                left, self._queue = list(self._queue), deque()
                self._closing = True
                self._room.notify_all()
            for pending in left:
                pending.finish(0, PublisherClosed(f"the publisher of {self.endpoint.name!r} has ended"))

    def _take_subscriptions(self) -> None:
        change = 0
        for _ in range(_TURN):
            try:
                frame = self._socket.recv(_NOBLOCK, copy=False)
            except zmq.Again:
                break
            self._subscriptions.take(frame)
            kind = frame.bytes[:1]
            change += 1 if kind == b"\1" else -1 if kind == b"\0" else 0
        if change:
            with self._room:
                self.stats.subscribers = max(0, self.stats.subscribers + change)
                self._room.notify_all()

    def _send_some(self) -> bool:
        """Send some of what is queued; return whether there is more."""
        with self._room:
            batch = [self._queue.popleft() for _ in range(min(_TURN, len(self._queue)))]
            if batch:
                self._room.notify_all()
        for pending in batch:
            # an XPUB never blocks: for a reader that does not keep up libzmq drops
            self._socket.send_multipart((pending.topic, pending.data), _NOBLOCK)
            self.stats.published += 1
            self.stats.bytes += len(pending.data)
            pending.finish(self.stats.subscribers)
        return bool(self._queue)
