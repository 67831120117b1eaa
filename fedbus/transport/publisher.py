"""The publishing end of an endpoint: queue, seal, journal, send, and answer replay requests.

One thread owns both sockets and the journal. Callers of any thread put messages on a bounded queue; whatever is queued
when the thread comes round is one batch: one Merkle tree and one signature, one write and at most one sync, then the
parcels go out. It never waits for a batch to fill; only the number of signatures a second is limited, so that those who
verify keep up.
"""

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
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, overload

import zmq

from fedbus.clock import Clock, SystemClock
from fedbus.errors import (
    DeadlineExceeded,
    FedbusError,
    ForkedError,
    JournalError,
    JournalWriteError,
    MessageError,
    PublisherClosed,
    QueueFull,
    Reason,
)
from fedbus.failpoints import ARMED, hit
from fedbus.journal.journal import Journal, JournalOptions
from fedbus.model.limits import Limits
from fedbus.model.receipt import Receipt
from fedbus.model.stream import StreamHome
from fedbus.model.topic import Naming, check_topic
from fedbus.schemas.registry import Schemas
from fedbus.transport import sockets
from fedbus.transport.batch import Pending, SealedBatch, Sealer, Topic, Watcher, without_traceback
from fedbus.transport.commit import Committer
from fedbus.transport.endpoint import Endpoint
from fedbus.transport.options import PublisherOptions
from fedbus.transport.replay import ReplayServer
from fedbus.transport.zap import Gate, Subscriptions
from fedbus.trust.signer import Signer
from fedbus.wire import beat, strict
from fedbus.wire.envelope import optional_attributes

log = logging.getLogger(__name__)

_NOBLOCK = int(zmq.NOBLOCK)  # as a plain number, which pyzmq need not turn into one for each call
_BEATS_IN_WINDOW = 10  # a beat names the topics of the last ten to twenty beats
_RETAIN_SECONDS = 60.0  # between two looks at what the journal need not keep
# So many messages must wait for it to pay that the disk works on a batch while the next is sealed: the batch is sent
# only then, and under a moderate load that would be half a millisecond later.
_OVERLAP = 256
_BEAT_TICK = 0.05  # seconds
_TOPICS_IN_BEAT = 1000


@dataclass(slots=True)
class PublisherStats:
    """Counters since the publisher was opened, and gauges."""

    published: int = 0
    bytes: int = 0
    batches: int = 0
    parcels: int = 0
    beats: int = 0
    failures: int = 0  # messages whose batch the journal refused
    unsent: int = 0  # parcels journaled but not sent live
    subscribers: int = 0
    queued: int = 0


class _Forks:
    """Counts the forks that lie between a process and the one that first opened a publisher.

    Asking the kernel for the process id would cost a system call for each message.
    """

    def __init__(self) -> None:
        self.count = 0
        self._watching = False

    def watch(self) -> int:
        """Return the count, which is another in every child from now on."""
        if not self._watching:
            self._watching = True
            os.register_at_fork(after_in_child=self._forked)
        return self.count

    def _forked(self) -> None:
        self.count += 1


_forks = _Forks()


@dataclass(slots=True)
class _Recent:
    """Which topics got messages lately: two generations, so that the older always covers a whole window."""

    window: int
    older: dict[str, int] = field(default_factory=dict)
    newer: dict[str, int] = field(default_factory=dict)
    turn: int = 0
    beats: int = 0

    def facts(self) -> tuple[int, dict[str, int]]:
        """Return ``window`` and ``topics`` of a beat."""
        topics = {**self.older, **self.newer}
        window = self.window
        if len(topics) > _TOPICS_IN_BEAT:
            latest = sorted(topics.items(), key=lambda item: item[1], reverse=True)
            window = max(window, latest[_TOPICS_IN_BEAT][1])
            topics = dict(latest[:_TOPICS_IN_BEAT])
        return window, topics

    def turned(self, head: int) -> None:
        """Count one beat, and start a new generation after ten."""
        self.beats += 1
        if self.beats >= _BEATS_IN_WINDOW:
            self.window, self.turn, self.beats = self.turn, head, 0
            self.older, self.newer = self.newer, {}


class Publisher:
    """Publishes the messages of one endpoint; safe to use from any thread of the process that opened it.

    Use it as a context manager, or call :meth:`close`: both return when all that was accepted is in the journal.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        naming: Naming,
        journal: Journal,
        signer: Signer,
        options: PublisherOptions,
        limits: Limits,
        context: zmq.Context[zmq.Socket[bytes]],
        clock: Clock,
        may_publish: Callable[[str], None] | None = None,
        gate: Gate | None = None,
        schemas: Schemas | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.stats = PublisherStats()
        self._naming = naming
        self._journal = journal
        self._signer = signer
        self._options = options
        self._limits = limits
        self._encode = strict.encoder(limits)
        self._clock = clock
        self._may_publish = may_publish
        self._schemas = schemas
        self._topics: dict[str, Topic] = {}
        self._sealer = Sealer(
            endpoint=endpoint.name,
            epoch=journal.epoch,
            head=journal.head,
            heads=journal.heads,
            signer=signer,
            parcel_bytes=options.parcel_bytes,
            parcel_messages=options.parcel_messages,
        )
        self._committer = Committer(journal, f"fedbus-{endpoint.name}")
        self._queue: deque[Pending] = deque()
        self._queued_bytes = 0
        self._most_messages = options.queue_messages
        self._most_bytes = options.queue_bytes
        self._mutex = threading.Lock()
        self._room = threading.Condition(self._mutex)
        self._crowded = 0  # callers waiting for room
        self._closing = False
        self._failure: BaseException | None = None
        self._failed: deque[Pending] = deque(maxlen=1000)  # messages that the journal refused
        self._close_error: JournalError | None = None
        self._asleep = False
        self._generation = _forks.watch()
        self._recent = _Recent(journal.head, turn=journal.head)
        self._retain_at = clock.monotonic() + _RETAIN_SECONDS
        self._tokens = float(options.signature_burst)
        self._tokens_at = clock.monotonic()
        offers = sockets.offers(endpoint)
        guard = None if gate is None else lambda socket: gate.guard(socket, endpoint.name)
        self._subscriptions = Subscriptions(gate, endpoint, beat.MARK, clock=clock)
        self._publish = sockets.publish_socket(
            context, endpoint, hwm=options.send_hwm, offers=offers, before_bind=guard
        )
        try:
            self._replay = sockets.replay_socket(context, endpoint, hwm=32, offers=offers, before_bind=guard)
        except FedbusError:
            self._publish.close(0)
            raise
        self._server = ReplayServer(
            self._replay,
            journal,
            frame_bytes=options.replay_bytes,
            sessions=options.replay_sessions,
            beat=self._sign_beat,
            clock=clock,
            recheck=journal.recheck,
        )
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # daemon: a program that forgets to close ends all the same; the exit handler below flushes first
        self._thread = threading.Thread(target=self._run, name=f"fedbus-{endpoint.name}", daemon=True)
        self._thread.start()
        self._at_exit = weakref.ref(self)
        atexit.register(_close_at_exit, self._at_exit)

    @classmethod
    def open(
        cls,
        endpoint: Endpoint,
        *,
        naming: Naming,
        journal: JournalOptions,
        signer: Signer,
        options: PublisherOptions,
        limits: Limits,
        context: zmq.Context[zmq.Socket[bytes]],
        clock: Clock | None = None,
        may_publish: Callable[[str], None] | None = None,
        gate: Gate | None = None,
        schemas: Schemas | None = None,
    ) -> Publisher:
        """Open the journal, bind both sockets, start the thread.

        Raises:
            JournalLocked: Another process publishes for this endpoint.
            BindError: An address is taken.
            KeysError: Its links are encrypted, and the key for it cannot be used.
        """
        clock = clock or SystemClock()
        opened = Journal.open(journal, endpoint=endpoint.name, clock=clock)
        try:
            return cls(
                endpoint,
                naming=naming,
                journal=opened,
                signer=signer,
                options=options,
                limits=limits,
                context=context,
                clock=clock,
                may_publish=may_publish,
                gate=gate,
                schemas=schemas,
            )
        except BaseException:
            opened.close()
            raise

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
    ) -> Receipt: ...

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
    ) -> Pending: ...

    def publish(
        self,
        topic: str,
        body: dict[str, Any],
        *,
        wait: bool = True,
        timeout: float = 30.0,
        dataschema: str | None = None,
        traceparent: str | None = None,
    ) -> Receipt | Pending:
        """Publish *body* under *topic* and return once it is journaled.

        *topic* is what follows the service: ``package.build.complete``. Where a rule of the policy lets this endpoint
        speak for another service, write the whole topic.


        With the default sync policy the message then survives a crash of the machine; in any case of the process.
        With ``wait=False`` this returns as :meth:`enqueue` does.

        Raises:
            MessageError: The topic or the body cannot be published; nothing was queued.
            SchemaError: The body does not fit the schema of its topic; nothing was queued.
            TrustError: The policy does not let this endpoint publish the topic; nothing was queued.
            JournalWriteError: The disk refused it; nothing was published, and trying again is safe.
            QueueFull, DeadlineExceeded: *timeout* seconds were not enough; after DeadlineExceeded it may still appear.
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
    ) -> Pending:
        """Like :meth:`publish`, but return as soon as the message is queued; its ``result()`` waits for the receipt.

        When the queue is full this blocks, up to *timeout* seconds. :meth:`flush` and :meth:`close` wait for all.
        """
        known = self._topics.get(topic) or self._learn(topic)
        data = self._encode(body)
        if known.check is not None:
            known.check(body)
        extra = b""
        if dataschema is not None or traceparent is not None:
            extra = optional_attributes(dataschema=dataschema, traceparent=traceparent)
        weight = len(data) + len(extra)
        if weight + known.overhead > self._limits.message_bytes:
            raise MessageError(
                Reason.OVERSIZE, f"the message has {weight + known.overhead} bytes, limit {self._limits.message_bytes}"
            )
        pending = Pending(known, data, extra)
        with self._mutex:
            if self._closing or self._generation != _forks.count:
                self._refuse()
            if len(self._queue) >= self._most_messages or self._queued_bytes >= self._most_bytes:
                self._wait_for_room(timeout)
            self._queue.append(pending)
            self._queued_bytes += weight
            if self._asleep:
                self._asleep = False
                os.eventfd_write(self._wake, 1)
        return pending

    def submit(self, topic: str, body: dict[str, Any], extra: bytes, watcher: Watcher) -> Pending:
        """Like :meth:`enqueue`, for one who takes messages for others: *extra* are attributes of the envelope.

        It never waits. *watcher* is told when messages are settled.

        Raises:
            QueueFull: There is no room now.
            MessageError, TrustError, PublisherClosed: As for :meth:`publish`.
        """
        known = self._topics.get(topic) or self._learn(topic)
        data = strict.encode(body, self._limits)
        if known.check is not None:
            known.check(body)
        weight = len(data) + len(extra)
        if weight + known.overhead > self._limits.message_bytes:
            raise MessageError(
                Reason.OVERSIZE, f"the message has {weight + known.overhead} bytes, limit {self._limits.message_bytes}"
            )
        pending = Pending(known, data, extra)
        pending.watch(watcher)
        # as in `enqueue`, which does not share it: a call more costs two messages in a hundred there
        with self._mutex:
            if self._closing or self._generation != _forks.count:
                self._refuse()
            if len(self._queue) >= self._most_messages or self._queued_bytes >= self._most_bytes:
                raise QueueFull(f"the queue of {self.endpoint.name!r} is full")
            self._queue.append(pending)
            self._queued_bytes += weight
            if self._asleep:
                self._asleep = False
                os.eventfd_write(self._wake, 1)
        return pending

    def flush(self, timeout: float = 30.0) -> None:
        """Return when all that was queued before is journaled; raise the first error since the last flush, if any."""
        with self._room:
            last = self._queue[-1] if self._queue else None
            busy = self._busy
        for pending in (last, busy):
            if pending is not None:
                told = pending.told
                try:
                    pending.result(timeout)
                except JournalError:
                    pending.told = told  # told of below, unless somebody was before
        self._raise_untold()

    def close(self, timeout: float = 30.0) -> None:
        """Journal and send all that was accepted, then close sockets and journal; calling it again does nothing.

        Raises:
            DeadlineExceeded: The thread did not end within *timeout* seconds.
            JournalWriteError: A message queued with :meth:`enqueue` was refused by the disk.
        """
        if self._generation != _forks.count:
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
        self._raise_untold()

    def _raise_untold(self) -> None:
        """Raise if the journal refused messages and nobody was told so by a receipt."""
        untold = [pending for pending in self._failed if not pending.told]
        self._failed.clear()
        if untold:
            raise JournalWriteError(f"{len(untold)} messages were not published: {untold[0].error}") from untold[
                0
            ].error
        error, self._close_error = self._close_error, None
        if error is not None:
            raise error

    def wait_for_subscribers(self, count: int = 1, timeout: float = 10.0) -> bool:
        """Return True once *count* subscribers are connected, False after *timeout* seconds."""
        deadline = self._clock.monotonic() + timeout
        with self._room:
            while self.stats.subscribers < count:
                left = deadline - self._clock.monotonic()
                if left <= 0 or self._closing:
                    return False
                self._room.wait(left)
        return True

    @property
    def epoch(self) -> str:
        """The identity of the journal."""
        return self._journal.epoch

    @property
    def head(self) -> int:
        """The last sequence in the journal."""
        return self._journal.head

    @property
    def failure(self) -> BaseException | None:
        """Why its thread has ended before it was closed; None while all is well."""
        return self._failure

    @property
    def stored(self) -> StreamHome:
        """The journal, to be read from in any thread while the publisher is open."""
        return self._journal

    @property
    def closed(self) -> bool:
        """Whether it takes no more messages, since it was closed or has failed."""
        return self._closing

    def facts(self) -> dict[str, float]:
        """Return gauges and counters that are not in ``stats``, for metrics; may be called from any thread."""
        journal, replay = self._journal, self._server.stats
        syncs = journal.syncs
        return {
            "queued_messages": len(self._queue),
            "queue_messages_limit": self._options.queue_messages,
            "replay_readers": replay.sessions,
            "replay_requests": replay.requests,
            "replay_refused": replay.refused,
            "replay_bytes": replay.bytes,
            "journal_start": journal.start,
            "journal_head": journal.head,
            "journal_bytes": journal.disk_bytes(),
            "journal_limit_bytes": journal.options.retain_bytes,
            "journal_topics": len(journal.heads),
            "syncs": syncs.count,
            "sync_seconds": syncs.seconds,
            "sync_longest_seconds": syncs.longest(self._clock.monotonic()),
            "certificate_expires_seconds": self._signer.expires_at - self._clock.wall(),
        }

    @property
    def position(self) -> tuple[str, int]:
        """Epoch and head."""
        return self._journal.epoch, self._journal.head

    def __enter__(self) -> Publisher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- in the caller's thread --------------------------------------------------------------------------------

    _busy: Pending | None = None  # the last message that the thread has taken

    def _learn(self, short: str) -> Topic:
        check_topic(short)
        # a whole topic is for those whom a rule of the policy lets speak for other services
        whole = short.startswith(self._naming.root + ".")
        name = short if whole else self._naming.expand(self.endpoint.service, short)
        check_topic(name)
        if self._may_publish is not None:
            self._may_publish(name)
        if not self._journal.has_room_for(name):
            raise MessageError(
                Reason.COUNT,
                f"{name} would be one topic too many for the journal of {self.endpoint.name!r}; names of things belong "
                "into the body, or raise journal.topics",
            )
        if len(self._topics) >= 10_000:
            self._topics.clear()
        check = None if self._schemas is None else self._schemas.publishing(name)
        known = Topic.make(name, self.endpoint.name, self._journal.epoch, check)
        self._topics[short] = known
        return known

    def forget_topics(self) -> None:
        """Look again what the policy and the schemas say of each topic; any thread may call this."""
        self._topics = {}

    def _refuse(self) -> None:
        if self._generation != _forks.count:
            raise ForkedError(
                f"the publisher of {self.endpoint.name!r} was opened before a fork; open a Bus and a publisher in the "
                "child, with an endpoint of its own, or publish only in the parent"
            )
        if self._failure is not None:
            raise PublisherClosed(f"the publisher of {self.endpoint.name!r} has failed: {self._failure}")
        raise PublisherClosed(f"the publisher of {self.endpoint.name!r} is closed")

    def _wait_for_room(self, timeout: float) -> None:
        deadline = self._clock.monotonic() + timeout
        self._crowded += 1
        try:
            while not self._has_room(1.0):
                left = deadline - self._clock.monotonic()
                if left <= 0:
                    raise QueueFull(
                        f"{len(self._queue)} messages wait for the journal of {self.endpoint.name!r}; the disk or the "
                        f"signer does not keep up (waited {timeout} s)"
                    )
                self._room.wait(left)
                if self._closing:
                    self._refuse()
        finally:
            self._crowded -= 1

    # --- in the publisher's thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._loop()
        except BaseException as error:  # the thread must never end silently
            log.exception("endpoint %s: the publisher's thread has failed", self.endpoint.name)
            self._failure = error
        finally:
            self._end()

    def _end(self) -> None:
        """Let nobody wait for ever, and release what the thread owns."""
        failed = PublisherClosed(f"the publisher of {self.endpoint.name!r} has failed: {self._failure}")
        with self._room:
            self._closing = True
            left = list(self._queue)
            self._queue.clear()
            self._room.notify_all()
        if self._committer.batch is not None:
            batch, refusal = self._committer.settle()
            for pending in batch.messages:
                # what the journal has taken is published, by replay, even if this thread cannot send it any more
                pending.finish(None if refusal is None else failed)
        for pending in left:
            pending.finish(failed)
        self._committer.close()
        self._publish.close()
        self._replay.close()
        try:
            self._journal.close()
        except JournalError as error:
            log.error("endpoint %s: %s", self.endpoint.name, error)
            self._close_error = error

    def _loop(self) -> None:
        poller = zmq.Poller()
        poller.register(self._wake, select.POLLIN)
        poller.register(self._publish, zmq.POLLIN)
        poller.register(self._replay, zmq.POLLIN)
        monotonic = self._clock.monotonic
        next_beat = monotonic()
        queue = self._queue
        while True:
            now = monotonic()
            if now >= next_beat:
                self._on_beat()
                next_beat = now + self._until_next_beat()
            if queue:
                shortage = self._token_shortage(now)
                if shortage > 0.0:
                    # half a millisecond at most; what arrives meanwhile joins the batch
                    time.sleep(shortage)
                self._tokens -= 1.0
                self._flush_batch()
                timeout = 0
            elif self._committer.batch is not None:
                self._settle()
                timeout = 0
            elif self._closing:
                break
            else:
                timeout = max(0, int((next_beat - now) * 1000) + 1)
            if self._server.busy:
                timeout = min(timeout, self._server.pause_ms)
            if timeout:
                self._asleep = True
                if queue or self._closing:
                    timeout = 0
            for ready, _ in poller.poll(timeout):
                if ready is self._publish:
                    self._read_subscriptions()
                elif ready is self._replay:
                    self._settle()
                    self._server.read_requests()
                else:
                    os.eventfd_read(self._wake)
            self._asleep = False
            if self._server.busy:
                self._settle()
                self._server.serve()
        self._send_beat()

    def _token_shortage(self, now: float) -> float:
        """Refill the bucket of signatures; return how many seconds until there is one."""
        options = self._options
        self._tokens = min(
            float(options.signature_burst), self._tokens + (now - self._tokens_at) * options.signatures_per_second
        )
        self._tokens_at = now
        if self._tokens >= 1.0:
            return 0.0
        return (1.0 - self._tokens) / options.signatures_per_second

    def _take_batch(self) -> list[Pending]:
        options = self._options
        queue = self._queue
        with self._room:
            count = len(queue)
            if count > options.batch_messages or self._queued_bytes > options.batch_bytes:
                # by the average weight: a batch's bytes need not be exact
                fitting = options.batch_bytes * count // max(1, self._queued_bytes)
                count = max(1, min(options.batch_messages, fitting))
                popleft = queue.popleft
                batch = [popleft() for _ in range(count)]
                self._queued_bytes -= sum([len(pending.data) + len(pending.extra) for pending in batch])
            else:
                batch = list(queue)
                queue.clear()
                self._queued_bytes = 0
            self._busy = batch[-1]
            # Callers that wait for room are let in when half of the queue is free. They and this thread share one
            # interpreter lock: letting one in for each batch would cost both of them a switch each time.
            if self._crowded and self._has_room(0.5):
                self._room.notify_all()
        return batch

    def _has_room(self, part: float) -> bool:
        options = self._options
        return len(self._queue) < options.queue_messages * part and self._queued_bytes < options.queue_bytes * part

    def _flush_batch(self) -> None:
        """Seal what is queued, and have it journaled and sent; under load while the batch before is being written."""
        messages = self._take_batch()
        try:
            batch = self._sealer.seal(messages, self._clock.wall())
            if not self._settle(batch):
                # the batch before was refused, so the numbers of this one are not the next any more
                batch = self._sealer.seal(messages, self._clock.wall())
        except BaseException as error:
            self._fail(messages, PublisherClosed(f"the publisher of {self.endpoint.name!r} has failed: {error}"))
            raise
        if len(self._queue) >= _OVERLAP:
            self._committer.begin(batch)
            return
        try:
            self._committer.append(batch)
        except JournalError as error:
            self._refused(batch, error)
        except BaseException as error:
            self._fail(messages, PublisherClosed(f"the publisher of {self.endpoint.name!r} has failed: {error}"))
            raise
        else:
            self._send(batch)

    def _settle(self, later: SealedBatch | None = None) -> bool:
        """Wait for the batch that is being written, and send it; return False if the disk refused it.

        *later* was sealed after it and is taken back with it, so that both their numbers are given out again.
        """
        if self._committer.batch is None:
            return True
        batch, error = self._committer.settle()
        if error is None:
            self._send(batch)
            return True
        if not isinstance(error, JournalError):
            self._fail(batch.messages, PublisherClosed(f"the publisher of {self.endpoint.name!r} has failed: {error}"))
            raise error
        if later is not None:
            self._sealer.take_back(later)
        self._refused(batch, error)
        return False

    def _refused(self, batch: SealedBatch, error: JournalError) -> None:
        """The journal is as it was before *batch*, the latest: tell those who wait."""
        self._sealer.take_back(batch)
        log.error("endpoint %s: %d messages refused: %s", self.endpoint.name, len(batch.messages), error)
        self._fail(batch.messages, error)

    def _fail(self, messages: list[Pending], error: FedbusError) -> None:
        without_traceback(error)
        self.stats.failures += len(messages)
        self._failed.extend(messages)
        for pending in messages:
            pending.finish(error)

    def _send(self, batch: SealedBatch) -> None:
        """Send a batch that is in the journal, and give the receipts."""
        if ARMED:
            hit("publisher.journaled")
        # Sent first: whoever waits for a receipt wakes up and takes the interpreter lock, and the message would stand
        # behind that.
        send = self._publish.send
        weight = 0
        for _, _, frame in batch.parcels:
            weight += len(frame)
            try:
                send(frame, _NOBLOCK)
            except zmq.Again:
                self.stats.unsent += 1
        if ARMED:
            hit("publisher.sent")
        self._recent.newer.update(batch.topics)
        # counted before the receipts: who has one finds its message counted
        stats = self.stats
        stats.published += len(batch.messages)
        stats.bytes += weight
        stats.batches += 1
        stats.parcels += len(batch.parcels)
        stats.queued = len(self._queue)
        for pending in batch.messages:
            pending.done = True
            if pending._lock is not None:
                pending._lock.release()
        if ARMED:
            hit("publisher.receipt")

    def _until_next_beat(self) -> float:
        """Return the seconds until the next beat: an interval, less what makes it fall on a tick of the wall clock.

        All publishers share these ticks, so a subscriber of hundreds wakes up twenty times a second for their beats
        and not once for each.
        """
        interval = self._options.beat_interval
        early = (self._clock.wall() + interval) % _BEAT_TICK
        return interval - early if early < interval / 2 else interval

    def _on_beat(self) -> None:
        self._signer.refresh()
        self._send_beat()
        now = self._clock.monotonic()
        if now >= self._retain_at:
            self._retain_at = now + _RETAIN_SECONDS
            try:
                self._journal.retain()
            except JournalError as error:
                log.error("endpoint %s: %s", self.endpoint.name, error)
        self._recent.turned(self._journal.head)
        self._server.tidy()

    def _sign_beat(self) -> bytes:
        # a beat must not speak of what was not sent before it
        self._settle()
        journal = self._journal
        window, topics = self._recent.facts()
        facts = beat.BeatFacts(
            endpoint=self.endpoint.name,
            epoch=journal.epoch,
            start=journal.start,
            head=journal.head,
            window=window,
            topics=topics,
            sent_at_ms=int(self._clock.wall() * 1000),
            interval_ms=int(self._options.beat_interval * 1000),
        )
        return beat.encode(facts, sign=self._signer.sign, certificate=self._signer.certificate)

    def _send_beat(self) -> None:
        try:
            self._publish.send(self._sign_beat(), zmq.NOBLOCK)
            self.stats.beats += 1
        except zmq.Again:
            pass

    def _read_subscriptions(self) -> None:
        """Count who is there: every subscriber asks for beats once, and those who come now get one at once."""
        came = False
        readers = self._subscriptions.take
        for _ in range(1000):
            try:
                frame = self._publish.recv(_NOBLOCK, copy=False)
            except zmq.Again:
                break
            change = readers(frame)
            if change:
                came = came or change > 0
                with self._room:
                    self.stats.subscribers += change
                    self._room.notify_all()
        if came:
            self._send_beat()


def _close_at_exit(reference: weakref.ref[Publisher]) -> None:
    publisher = reference()
    if publisher is not None:
        try:
            publisher.close()
        except FedbusError as error:
            log.error("at exit: %s", error)
