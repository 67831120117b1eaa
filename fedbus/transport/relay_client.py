"""The publishing end for endpoints that the relay of this host publishes for: hand in, or spool.

Scripts and hooks import this each time they run, so what takes long to import is imported where it is needed.
"""

from __future__ import annotations

import atexit
import errno
import os
import select
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

from fedbus.clock import Clock, SystemClock
from fedbus.errors import (
    ConnectError,
    DeadlineExceeded,
    FedbusError,
    ForkedError,
    MessageError,
    PublisherClosed,
    QueueFull,
    Reason,
    TrustError,
    WireError,
)
from fedbus.model.receipt import RelayReceipt
from fedbus.model.topic import check_topic
from fedbus.transport import relay_protocol as protocol
from fedbus.transport.relay_protocol import Request, Unavailable

if TYPE_CHECKING:
    from fedbus.model.limits import Limits
    from fedbus.model.topic import Naming
    from fedbus.schemas.registry import Schemas
    from fedbus.transport.endpoint import Endpoint
    from fedbus.transport.options import RelayOptions

_READ_BYTES = 64 * 1024
_OUT_BYTES = 2**20  # that the kernel has not taken yet
_UNANSWERED = 10_000  # messages at most
_AGAIN_SECONDS = 0.5  # after the relay could not be reached, until that is tried again
_LOSSES = 3  # of the connection, without an answer between them, until messages are spooled
_SLICE = 0.1  # seconds for which one thread watches the connection for all, at most
_SPOOL_SECONDS = 30.0  # for the turn at the spool: what does not get there is not published
_FULL_PAUSE = 0.005  # between two tries while the relay has too many callers at its door


class RelayStats:
    """Counters since the publisher was opened."""

    __slots__ = ("failures", "published", "spooled")

    def __init__(self) -> None:
        self.published = 0  # messages that the relay has journaled
        self.spooled = 0
        self.failures = 0


class _Status:
    """An answer that is waited for."""

    __slots__ = ("facts",)

    def __init__(self) -> None:
        self.facts: dict[str, Any] | None = None


class RelayPending:
    """A message on its way; what :meth:`RelayPublisher.enqueue` returns."""

    __slots__ = ("_publisher", "checked", "error", "receipt", "request", "told")

    def __init__(self, publisher: RelayPublisher, request: Request, *, checked: bool) -> None:
        self._publisher = publisher
        self.request = request
        self.checked = checked  # the body is known to be one that can be published
        self.receipt: RelayReceipt | None = None
        self.error: FedbusError | None = None
        self.told = False  # whether somebody was told of the error

    @property
    def done(self) -> bool:
        """Whether its fate is known."""
        return self.receipt is not None or self.error is not None

    def result(self, timeout: float | None = 30.0) -> RelayReceipt:
        """Wait until the message is journaled, or spooled, and return its receipt.

        Raises:
            DeadlineExceeded: Not within *timeout* seconds; it still may be.
            FedbusError: Why it is not published, as for :meth:`RelayPublisher.publish`.
        """
        if not self.done:
            self._publisher._wait_for(self, timeout)
        if self.receipt is not None:
            return self.receipt
        assert self.error is not None
        self.told = True
        raise self.error

    def settle(self, timeout: float = 30.0) -> RelayReceipt:
        """Like :meth:`result`, but what the relay has not answered for in time is spooled.

        Raises:
            FedbusError: Why it is not published, as for :meth:`RelayPublisher.publish`.
        """
        return self._publisher._finish(self, timeout)


class RelayPublisher:
    """Publishes the messages of one endpoint by way of the relay of this host; any thread may use it.

    It is used like a :class:`~fedbus.Publisher`, and binds nothing: any number of processes may have one for the same
    endpoint at the same time. It works across a fork, too: the child connects anew. Where the relay cannot be reached,
    messages are spooled (see :attr:`RelayReceipt.spooled`).
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        naming: Naming,
        limits: Limits,
        options: RelayOptions,
        spool: Path,
        clock: Clock | None = None,
        may_publish: Callable[[str], None] | None = None,
        schemas: Schemas | None = None,
    ) -> None:
        """*spool* is the folder for what cannot be handed in now. Nothing is opened yet."""
        self.endpoint = endpoint
        self.stats = RelayStats()
        self._naming = naming
        self._limits = limits
        self._options = options
        self._spool = spool
        self._clock = clock or SystemClock()
        self._may_publish = may_publish
        self._schemas = schemas
        self._topics: dict[str, str] = {}
        self._checks: dict[str, Callable[[Any], None] | None] = {}
        self._closed = False
        self._again_at = 0.0  # when to try again to connect
        self._down = ""  # why the relay could not be reached
        self._begin()
        _forks.watch(self)
        atexit.register(_close_at_exit, weakref.ref(self))

    def _begin(self) -> None:
        """Be as if nothing had been sent; also in a child, where locks may be held by threads that are not there."""
        self._socket: socket.socket | None = None
        self._turn = threading.Condition(threading.Lock())
        self._watching = False  # some thread waits for the connection, on behalf of all
        self._out = bytearray()
        self._answers = protocol.Splitter(protocol.ANSWER_BYTES)
        self._unanswered: dict[str, RelayPending] = {}
        self._statuses: deque[_Status] = deque()
        self._failed: list[RelayPending] = []
        self._losses = 0

    def _forked(self) -> None:
        inherited, left = self._socket, self._unanswered
        self._begin()
        if inherited is not None:
            inherited.close()  # only this process's copy; the parent's connection goes on
        for pending in left.values():
            pending.error = ForkedError("the message was handed in before a fork; its receipt goes to the parent")
            pending.told = True

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
    ) -> RelayReceipt: ...

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
    ) -> RelayPending: ...

    def publish(
        self,
        topic: str,
        body: dict[str, Any],
        *,
        wait: bool = True,
        timeout: float = 30.0,
        dataschema: str | None = None,
        traceparent: str | None = None,
    ) -> RelayReceipt | RelayPending:
        """Publish *body* under *topic* and return once the relay has journaled it, or it is spooled.

        A relay that does not answer within *timeout* seconds counts as one that cannot be reached: the message is
        spooled, and published once, even if the relay has it already.

        Raises:
            MessageError: The topic or the body cannot be published.
            TrustError: The policy does not let this endpoint publish the topic, or the relay does not take messages
                for this endpoint from this user.
            JournalWriteError: The disk refused the message, the relay's or ours; it is not published.
            QueueFull: There is no relay, and the spool holds ``relay.spool_bytes``.
            PublisherClosed: Open a new publisher.
        """
        pending = self.enqueue(topic, body, timeout=timeout, dataschema=dataschema, traceparent=traceparent)
        return self._finish(pending, timeout) if wait else pending

    def enqueue(
        self,
        topic: str,
        body: dict[str, Any],
        *,
        timeout: float = 30.0,
        dataschema: str | None = None,
        traceparent: str | None = None,
    ) -> RelayPending:
        """Like :meth:`publish`, but return as soon as the message is on its way; its ``result()`` waits.

        Where very much is on its way this blocks, up to *timeout* seconds. :meth:`flush` and :meth:`close` wait for
        all.
        """
        from fedbus.wire import strict

        name = self._topics.get(topic) or self._learn(topic)
        data = strict.encode(body, self._limits)
        self._check_body(name, body)
        request = self._request(name, data, dataschema, traceparent)
        self._check_size(request)
        return self._hand_in(RelayPending(self, request, checked=True), timeout)

    def publish_json(
        self,
        topic: str,
        data: bytes,
        *,
        timeout: float = 30.0,
        dataschema: str | None = None,
        traceparent: str | None = None,
    ) -> RelayReceipt:
        """Like :meth:`publish`, with a body that is JSON already; the relay says what is wrong with it."""
        name = self._topics.get(topic) or self._learn(topic)
        self._check_body(name, data)
        request = self._request(name, data, dataschema, traceparent)
        return self._finish(self._hand_in(RelayPending(self, request, checked=False), timeout), timeout)

    def forget_topics(self) -> None:
        """Look again what the policy and the schemas say of each topic; any thread may call this."""
        self._topics, self._checks = {}, {}

    def _check_body(self, name: str, body: Any) -> None:
        """Raise SchemaError for a *body*, or the JSON of one, that would be refused: here it can still be told."""
        if self._schemas is None:
            return
        checks = self._checks
        if name not in checks:
            checks[name] = self._schemas.publishing(name)
        check = checks[name]
        if check is not None:
            if isinstance(body, bytes):
                from fedbus.wire import strict

                body = strict.decode(body, self._limits)
            check(body)

    def flush(self, timeout: float = 30.0) -> None:
        """Return when all that was handed in before is journaled or spooled; raise the first error nobody was told of.

        What the relay has not answered for within *timeout* seconds is spooled.
        """
        waiting = list(self._unanswered.values())
        if waiting and not self._wait(lambda: all(one.done for one in waiting), timeout):
            with self._turn:
                self._abandon("the relay did not answer in time")
        untold = [one for one in self._failed if not one.told]
        self._failed.clear()
        for one in untold:
            one.told = True
        if untold:
            error = untold[0].error
            assert error is not None
            if len(untold) > 1:
                error.add_note(f"{len(untold)} messages were not published")
            raise error

    def close(self, timeout: float = 30.0) -> None:
        """Flush, and let go of the connection; calling it again does nothing."""
        if self._closed:
            return
        try:
            self.flush(timeout)
        finally:
            self._closed = True
            with self._turn:
                self._disconnect()

    def wait_for_subscribers(self, count: int = 1, timeout: float = 10.0) -> bool:
        """Return True once *count* subscribers are connected to the endpoint, False after *timeout* seconds."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                if int(self._status(max(0.1, deadline - time.monotonic()))["subscribers"]) >= count:
                    return True
            except ConnectError:
                pass
            if time.monotonic() + _SLICE > deadline:
                return False
            time.sleep(_SLICE)

    @property
    def problem(self) -> str:
        """Why messages were spooled lately; empty where none was."""
        return self._down

    @property
    def position(self) -> tuple[str, int]:
        """Epoch and head of the journal, as the relay says.

        Raises:
            ConnectError: It cannot be asked.
        """
        status = self._status(10.0)
        return str(status["epoch"]), int(status["head"])

    @property
    def epoch(self) -> str:
        """The identity of the journal, as the relay says."""
        return self.position[0]

    @property
    def head(self) -> int:
        """The last sequence in the journal, as the relay says."""
        return self.position[1]

    def __enter__(self) -> RelayPublisher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- making requests ---------------------------------------------------------------------------------------

    def _learn(self, short: str) -> str:
        """Return the full topic for *short*, once it is known that it may be published."""
        check_topic(short)
        name = short
        if not short.startswith(self._naming.root + "."):
            name = self._naming.expand(self.endpoint.service, short)
        check_topic(name)
        if self._may_publish is not None:
            self._may_publish(name)
        if len(self._topics) >= 10_000:
            self._topics.clear()
        self._topics[short] = name
        return name

    def _request(self, topic: str, data: bytes, dataschema: str | None, traceparent: str | None) -> Request:
        if len(data) > self._limits.message_bytes:
            raise MessageError(
                Reason.OVERSIZE, f"the body has {len(data)} bytes, the limit is {self._limits.message_bytes}"
            )
        submission = protocol.new_submission(self._clock.wall())
        return Request("publish", self.endpoint.name, topic, submission, False, dataschema, traceparent, data)

    def _check_size(self, request: Request) -> None:
        from fedbus.wire import envelope

        extra = envelope.submission_attribute(request.submission) + envelope.optional_attributes(
            dataschema=request.dataschema, traceparent=request.traceparent
        )
        writer = envelope.EnvelopeWriter(request.endpoint, request.topic, "0" * 36)
        size = len(envelope.write(b"0" * 24, 0, writer.middle("0" * 27), 0, extra, request.body))
        if size > self._limits.message_bytes:
            raise MessageError(Reason.OVERSIZE, f"the message has {size} bytes, limit {self._limits.message_bytes}")

    # --- the connection: all of this with `_turn` held, unless it says otherwise -------------------------------------

    def _hand_in(self, pending: RelayPending, timeout: float) -> RelayPending:
        """Send a message, or spool it; `_turn` is not held."""
        content = protocol.encode_request(pending.request)
        deadline = time.monotonic() + timeout
        if len(self._unanswered) >= _UNANSWERED or len(self._out) >= _OUT_BYTES:
            roomy = self._wait(lambda: len(self._unanswered) < _UNANSWERED and len(self._out) < _OUT_BYTES, timeout)
            if not roomy:
                raise QueueFull(
                    f"{len(self._unanswered)} messages wait for the relay's answer (waited {timeout:g} s): it does not "
                    "keep up"
                )
        with self._turn:
            if self._closed:
                raise PublisherClosed(f"the publisher of {self.endpoint.name!r} is closed")
            if self._socket is None and not self._connect(deadline):
                self._put_into_spool([pending])
                return pending
            self._unanswered[pending.request.submission] = pending
            self._out += protocol.frame(content)
            self._send()
        return pending

    def _finish(self, pending: RelayPending, timeout: float) -> RelayReceipt:
        try:
            return pending.result(timeout)
        except DeadlineExceeded:
            if pending.done:
                raise
        with self._turn:
            if not pending.done:
                self._abandon(f"the relay did not answer within {timeout:g} s")
        return pending.result(0.0)

    def _wait_for(self, pending: RelayPending, timeout: float | None) -> None:
        if not self._wait(lambda: pending.done, 10.0**9 if timeout is None else timeout):
            raise DeadlineExceeded(f"the relay did not answer within {timeout} s; the message may still be published")

    def _wait(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Keep the connection going until *condition* holds; return whether it does. `_turn` is not held."""
        deadline = time.monotonic() + timeout
        with self._turn:
            while not condition():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                if self._watching:
                    self._turn.wait(min(left, _SLICE))
                    continue
                if self._socket is None:
                    return condition()
                self._watching = True
                poll = select.poll()
                poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._out else 0))
                self._turn.release()
                try:
                    poll.poll(int(min(left, _SLICE) * 1000) + 1)
                finally:
                    self._turn.acquire()
                    self._watching = False
                self._send()
                self._receive()
                self._turn.notify_all()
            return True

    def _connect(self, deadline: float) -> bool:
        """Connect if the relay is there; return whether it is.

        Raises:
            TrustError: The modes of the socket, or of a folder above it, do not let this user in.
        """
        now = time.monotonic()
        if now < self._again_at:
            return False
        path = str(self._options.socket)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            while True:
                try:
                    connection.connect(path)
                    break
                except BlockingIOError:
                    # its queue of new connections is full for a moment; the kernel has no way to wait for this one
                    if time.monotonic() > deadline:
                        raise TimeoutError(errno.ETIMEDOUT, "it has too many callers") from None
                    time.sleep(_FULL_PAUSE)
        except PermissionError as error:
            connection.close()
            raise TrustError(
                Reason.POLICY,
                f"user {os.geteuid()} may not use the relay's socket {path}; see its owner, group and mode "
                "(relay.group, relay.mode)",
            ) from error
        except OSError as error:
            connection.close()
            self._down = f"no relay answers at {path}: {error.strerror or error}"
            self._again_at = time.monotonic() + _AGAIN_SECONDS
            return False
        self._socket = connection
        self._answers = protocol.Splitter(protocol.ANSWER_BYTES)
        return True

    def _disconnect(self) -> None:
        connection, self._socket = self._socket, None
        self._out.clear()
        self._statuses.clear()
        if connection is not None:
            connection.close()

    def _send(self) -> None:
        """Give the kernel what it takes now."""
        out = self._out
        while out and self._socket is not None:
            try:
                with memoryview(out) as view:
                    done = self._socket.send(view[:_OUT_BYTES])
                del out[:done]
            except BlockingIOError:
                return
            except OSError as error:
                # the relay may have said why before it closed
                self._receive()
                if self._socket is not None:
                    self._lost(error.strerror or str(error))
                return

    def _receive(self) -> None:
        """Take what has come, without waiting for more."""
        while self._socket is not None:
            try:
                data = self._socket.recv(_READ_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                self._lost(error.strerror or str(error))
                return
            if not data:
                self._lost("it closed the connection")
                return
            self._answers.feed(data)
            try:
                for content in self._answers.frames():
                    self._take(protocol.decode_answer(content))
                    if self._socket is None:
                        return
            except WireError as error:
                self._losses = _LOSSES
                self._lost(f"its answer cannot be read: {error}")
                return

    def _take(self, answer: protocol.Answer) -> None:
        self._losses = 0
        if answer.status is not None:
            if self._statuses:
                self._statuses.popleft().facts = answer.status
            return
        if not answer.submission:
            # it is about the connection as a whole, and the relay closes it now
            error = answer.error or FedbusError("an answer to nothing")
            if isinstance(error, WireError):
                self._losses = _LOSSES
            self._lost(str(error))
            return
        if isinstance(answer.error, Unavailable):
            if answer.submission in self._unanswered:
                self._abandon(str(answer.error))
            return
        pending = self._unanswered.pop(answer.submission, None)
        if pending is None:
            return
        if answer.receipt is not None:
            self.stats.published += 1
            pending.receipt = answer.receipt
        else:
            self._fail(pending, answer.error or FedbusError("the relay refused it"))

    def _fail(self, pending: RelayPending, error: FedbusError) -> None:
        self.stats.failures += 1
        pending.error = error
        if len(self._failed) < 1000:
            self._failed.append(pending)

    def _lost(self, why: str) -> None:
        """The connection has ended: send what was not answered again over a new one, else spool it."""
        self._disconnect()
        self._losses += 1
        if not self._unanswered:
            return
        try:
            if self._losses <= _LOSSES and self._connect(time.monotonic() + 1.0):
                for pending in self._unanswered.values():
                    pending.request = pending.request._replace(again=True)
                    self._out += protocol.frame(protocol.encode_request(pending.request))
                self._send()
                return
        except TrustError as error:
            self._down = str(error)
        self._abandon(f"the connection to the relay was lost: {why}")

    def _abandon(self, why: str) -> None:
        """Spool all that was not answered; the relay finds out by itself what of it is published already."""
        self._disconnect()
        self._down = why
        self._again_at = time.monotonic() + _AGAIN_SECONDS
        left = list(self._unanswered.values())
        self._unanswered.clear()
        for pending in left:
            pending.request = pending.request._replace(again=True)
        if left:
            self._put_into_spool(left)
        self._turn.notify_all()

    def _put_into_spool(self, messages: list[RelayPending]) -> None:
        """Spool *messages*, all or none; each then has its receipt or its error."""
        from fedbus.journal.spool import Spool
        from fedbus.wire import strict
        from fedbus.wire.envelope import rfc3339

        good = []
        for pending in messages:
            try:
                if not pending.checked:
                    # nobody has looked at the body yet, and in the spool there is nobody to be told
                    strict.encode(strict.decode(pending.request.body, self._limits), self._limits)
                    self._check_size(pending.request)
                good.append((pending, protocol.encode_request(pending.request)))
            except WireError as error:
                self._fail(pending, MessageError(error.reason, str(error)))
            except MessageError as error:
                self._fail(pending, error)
        if not good:
            return
        try:
            spool = Spool(self._spool, most_bytes=self._options.spool_bytes)
            spool.append([content for _, content in good], timeout=_SPOOL_SECONDS)
        except FedbusError as error:
            failure = type(error)(f"{self._down}; {error}")
            unknown = DeadlineExceeded(f"{failure}; what was handed in before that may be published all the same")
            for pending, _ in good:
                self._fail(pending, unknown if pending.request.again else failure)
            return
        stamp = rfc3339(self._clock.wall())
        for pending, _ in good:
            self.stats.spooled += 1
            request = pending.request
            pending.receipt = RelayReceipt(request.topic, request.endpoint, "", 0, "", stamp, request.submission)

    def _status(self, timeout: float) -> dict[str, Any]:
        """Ask the relay about the endpoint; `_turn` is not held.

        Raises:
            ConnectError: It is not there, or does not answer within *timeout* seconds.
        """
        with self._turn:
            if self._socket is None and not self._connect(time.monotonic() + timeout):
                raise ConnectError(self._down)
            asked = _Status()
            self._statuses.append(asked)
            self._out += protocol.frame(protocol.encode_request(Request("status", self.endpoint.name)))
            self._send()
        self._wait(lambda: asked.facts is not None or asked not in self._statuses, timeout)
        status = asked.facts
        if status is None:
            raise ConnectError(f"the relay did not answer within {timeout:g} s")
        if "head" not in status:
            raise ConnectError(f"the relay does not publish as {self.endpoint.name}: {status.get('problem')}")
        return status


# --- forks and exits -----------------------------------------------------------------------------------------------


class _Forks:
    """Tells the publishers of a process that they are in a child now."""

    def __init__(self) -> None:
        self._publishers: weakref.WeakSet[RelayPublisher] = weakref.WeakSet()
        self._watching = False

    def watch(self, publisher: RelayPublisher) -> None:
        self._publishers.add(publisher)
        if not self._watching:
            self._watching = True
            os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        for publisher in list(self._publishers):
            publisher._forked()


_forks = _Forks()


def _close_at_exit(reference: weakref.ref[RelayPublisher]) -> None:
    publisher = reference()
    if publisher is not None:
        try:
            publisher.close()
        except FedbusError as error:
            import logging

            logging.getLogger(__name__).error("at exit: %s", error)
