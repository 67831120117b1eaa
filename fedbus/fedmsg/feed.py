"""The reading end for publishers, relays and gateways of fedmsg: a SUB socket for each, checked as it comes in."""

from __future__ import annotations

import logging
import select
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import zmq

from fedbus.clock import Clock
from fedbus.errors import Reason, Refused, TrustError, WireError
from fedbus.fedmsg.codec import Envelope, parse
from fedbus.fedmsg.message import to_message
from fedbus.fedmsg.options import FedmsgOptions
from fedbus.fedmsg.recent import Counter, Counters, Recent
from fedbus.fedmsg.topics import subscriptions
from fedbus.fedmsg.validator import Validator
from fedbus.model.limits import Limits
from fedbus.model.message import Message
from fedbus.model.topic import TopicFilter
from fedbus.transport import sockets
from fedbus.transport.endpoint import Endpoint
from fedbus.transport.foreign import ForeignStream
from fedbus.transport.names import Names
from fedbus.transport.refusals import RefusalLog
from fedbus.transport.zap import HandshakeLog, HandshakeWatch, explain
from fedbus.trust.expiry import stamp
from fedbus.trust.verifier import SKEW

log = logging.getLogger(__name__)

_NOBLOCK = int(zmq.NOBLOCK)
_RCVMORE = int(zmq.RCVMORE)
_TURN = 32  # messages of one endpoint before another gets its turn
_MOST = 256  # messages of one drain
_FRAMES = 3  # of one message that are kept; a third one is reason enough to refuse it
_WATCH_SECONDS = 1.0
_LOST_EVERY = 10.0  # seconds between two lines about what is missing from one endpoint


@dataclass(slots=True)
class FedmsgStats:
    """Counters of one endpoint."""

    messages: int = 0
    duplicates: int = 0  # that were taken before, by their id
    missing: int = 0  # as far as `i` tells
    refused: dict[str, int] = field(default_factory=dict)  # by reason
    faults: dict[str, int] = field(default_factory=dict)  # handshakes that failed, by fault
    reconnects: int = 0
    heard_at: float | None = None  # monotonic time of the last message that was taken


class FedmsgStream(ForeignStream):
    """One endpoint that speaks fedmsg, as it is read."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint.name)
        self.where = endpoint
        self.stats = FedmsgStats()
        self.counters = Counters()
        self.address = ""  # what its socket is connected to; empty while nobody knows its host
        self.attempt = 0
        self.again_at = float("inf")  # when to connect anew after a handshake that failed for good
        self.failures = 0
        self.untold = 0  # missing messages that were not logged yet
        self.told_at = float("-inf")
        self.socket: zmq.Socket[bytes] | None = None
        self.watch: HandshakeWatch | None = None


class FedmsgFeed:
    """Reads endpoints that speak fedmsg. Every message was validated, is fresh, and comes once; belongs to one thread.

    There is no journal to read again from: what libzmq drops, or what was sent while nobody listened, is lost. Where
    everything is read, the publishers' ``i`` tells of some of that: ``missing`` in the stats.
    """

    def __init__(
        self,
        *,
        validator: Validator,
        options: FedmsgOptions,
        filters: Iterable[TopicFilter],
        limits: Limits,
        context: zmq.Context[zmq.Socket[bytes]],
        clock: Clock,
        names: Names | None = None,
        recent: Recent | None = None,
        ours: Callable[[Envelope], bool] | None = None,
    ) -> None:
        """*filters* are full ones, none meaning everything. What *ours* says to be our own is left out."""
        self.streams: dict[str, FedmsgStream] = {}
        self.validator = validator
        self.recent = Recent(options.remember) if recent is None else recent
        self._options = options
        self._filters = list(filters)
        self._subscriptions = subscriptions(self._filters)
        self._counting = not self._filters
        self._limits = limits
        self._frame_bytes = 8 * limits.message_bytes + 2**20  # beyond it libzmq drops the connection
        self._context = context
        self._clock = clock
        self._names = names or Names(clock)
        self._ours = ours
        self._refusals = RefusalLog(log)
        self._handshakes = HandshakeLog(log)
        # One descriptor for hundreds of sockets. Those of libzmq tell of changes only, so a socket that has not been
        # read to its end stays in `_open`.
        self._epoll = select.epoll()
        self._by_descriptor: dict[int, FedmsgStream] = {}
        self._open: dict[str, FedmsgStream] = {}
        self._watch_at = 0.0
        self._before: dict[tuple[str, str], int] = {}

    def begin_counts(self, last: dict[tuple[str, str], int]) -> None:
        """Say where counts stood before we were started: (endpoint, signer) -> the last `i` that was taken."""
        self._before = last

    @property
    def descriptor(self) -> int:
        """Becomes readable when :meth:`drain` may find something."""
        return self._epoll.fileno()

    def update(self, endpoints: Iterable[Endpoint]) -> None:
        """Take up a changed list of endpoints; those that stay the same are not touched."""
        wanted = {one.name: one for one in endpoints}
        for name, stream in list(self.streams.items()):
            new = wanted.get(name)
            if new is None or not new.is_where(stream.where):
                self._close(stream)
                del self.streams[name]
        for name, endpoint in wanted.items():
            if name not in self.streams:
                stream = self.streams[name] = FedmsgStream(endpoint)
                for (owner, signer), count in self._before.items():
                    if owner == name:
                        stream.counters.by_signer[signer] = Counter(count)
                self._open_socket(stream, len(wanted))

    def drain(self, now: float) -> tuple[list[tuple[ForeignStream, list[Message]]], bool]:
        """Return what has come in, and whether there may be more right away."""
        for descriptor, _ in self._epoll.poll(0):
            stream = self._by_descriptor.get(descriptor)
            if stream is not None:
                self._open[stream.endpoint] = stream
        found: list[tuple[ForeignStream, list[Message]]] = []
        count = 0
        for name, stream in list(self._open.items()):
            messages: list[Message] = []
            for _ in range(_TURN):
                frames = self._receive(stream)
                if frames is None:
                    del self._open[name]
                    break
                message = self._take(stream, frames, now)
                if message is not None:
                    messages.append(message)
            if messages:
                found.append((stream, messages))
                count += len(messages)
            if count >= _MOST:
                break
        return found, bool(self._open)

    def tick(self, now: float) -> None:
        """Connect anew where libzmq has given up or a host has moved; look at the files of trust."""
        if now < self._watch_at:
            return
        self._watch_at = now + _WATCH_SECONDS
        self.validator.refresh()
        for stream in self.streams.values():
            self._look(stream, now)

    def close(self) -> None:
        """Close the sockets; calling it again does nothing."""
        for stream in self.streams.values():
            self._close(stream)
        self.streams.clear()
        if not self._epoll.closed:
            self._epoll.close()

    # --- messages ----------------------------------------------------------------------------------------------

    @staticmethod
    def _receive(stream: FedmsgStream) -> list[bytes] | None:
        socket = stream.socket
        if socket is None:
            return None
        frames: list[bytes] = []
        try:
            frames.append(socket.recv(_NOBLOCK))
            while socket.getsockopt(_RCVMORE):
                part = socket.recv(_NOBLOCK)
                if len(frames) < _FRAMES:
                    frames.append(part)
        except zmq.Again:
            return None
        return frames

    def _take(self, stream: FedmsgStream, frames: list[bytes], now: float) -> Message | None:
        """Return the message that *frames* are; None where it is refused, or is not for us."""
        stats = stream.stats
        try:
            envelope = parse(frames, self._limits)
            if self._filters and not any(one.matches(envelope.topic) for one in self._filters):
                return None
            signer = self.recent.known(envelope)
            again = bool(signer)
            if not again:
                self._check_age(envelope)
                envelope, identity = self.validator.accept(envelope)
                signer = identity.name
                again = not self.recent.take(envelope, signer)
        except Refused as error:
            self._refused(stream, error, now)
            return None
        if self._counting:
            self._count(stream, signer, envelope.count, again, now)
        stats.heard_at = now
        if again:
            stats.duplicates += 1
            return None
        if self._ours is not None and self._ours(envelope):
            return None
        stats.messages += 1
        return to_message(envelope, endpoint=stream.endpoint, signer=signer)

    def _check_age(self, envelope: Envelope) -> None:
        at = envelope.timestamp
        if not envelope.id or at is None:
            raise WireError(
                Reason.ENVELOPE, "/msg_id or /timestamp is missing, so it cannot be told from a replayed one"
            )
        if self._options.max_age:
            now = self._clock.wall()
            if not now - self._options.max_age <= at <= now + SKEW:
                raise TrustError(
                    Reason.STALE,
                    f"it was made at {stamp(at) if at < 253402300799 else at}, which fedmsg.max_age does not allow; it "
                    "was replayed, or a clock is wrong",
                )

    def _refused(self, stream: FedmsgStream, error: Refused, now: float) -> None:
        self.validator.reject(error.reason)
        counts = stream.stats.refused
        counts[error.reason.value] = counts.get(error.reason.value, 0) + 1
        self._refusals.refused(f"endpoint {stream.endpoint}", error.reason, str(error), now)

    def _count(self, stream: FedmsgStream, signer: str, count: int, again: bool, now: float) -> None:
        missing = stream.counters.follow(signer, count, again=again)
        if not missing:
            return
        stream.stats.missing += missing
        stream.untold += missing
        if now - stream.told_at >= _LOST_EVERY:
            stream.told_at = now
            log.warning(
                "endpoint %s: %d messages of %s did not come, by its count; fedmsg cannot send them again",
                stream.endpoint,
                stream.untold,
                signer,
            )
            stream.untold = 0

    # --- sockets -----------------------------------------------------------------------------------------------

    def _open_socket(self, stream: FedmsgStream, endpoints: int) -> None:
        socket = stream.socket = sockets.foreign_subscribe_socket(
            self._context, hwm=self._options.receive_hwm, endpoints=endpoints, frame_bytes=self._frame_bytes
        )
        stream.watch = HandshakeWatch(self._context, socket)
        for prefix in self._subscriptions:
            socket.subscribe(prefix)
        descriptor = int(socket.getsockopt(zmq.FD))
        self._by_descriptor[descriptor] = stream
        self._epoll.register(descriptor, select.EPOLLIN)
        self._open[stream.endpoint] = stream
        self._connect(stream)

    def _connect(self, stream: FedmsgStream) -> None:
        """Connect to where the endpoint is now, in place of where it was."""
        addresses = self._names.addresses(stream.where.publish)
        if not addresses or stream.socket is None:
            return
        if stream.address:
            try:
                stream.socket.disconnect(stream.address)
            except zmq.ZMQError:
                pass  # libzmq has given it up by itself
        stream.address = addresses[stream.attempt % len(addresses)]
        stream.attempt += 1
        sockets.connect(stream.socket, stream.address, server="", pair=None)
        self._open[stream.endpoint] = stream

    def _look(self, stream: FedmsgStream, now: float) -> None:
        """See how the handshakes of one endpoint went, and connect it anew where that is called for."""
        if not stream.address:
            self._connect(stream)  # its host may be known by now
            return
        assert stream.watch is not None
        for one in stream.watch.take():
            if one.fault is None:
                stream.failures, stream.again_at = 0, float("inf")
                self._handshakes.succeeded(stream.endpoint)
                continue
            faults = stream.stats.faults
            faults[one.fault.value] = faults.get(one.fault.value, 0) + 1
            self._handshakes.failed(stream.endpoint, one, explain(one.fault, False), now)
            if one.final:
                stream.again_at = now + min(30.0, 2.0 ** min(stream.failures, 5))
                stream.failures += 1
        addresses = self._names.addresses(stream.where.publish)
        if now >= stream.again_at or (addresses and stream.address not in addresses):
            stream.again_at = float("inf")
            stream.stats.reconnects += 1
            self._connect(stream)

    def _close(self, stream: FedmsgStream) -> None:
        socket, stream.socket = stream.socket, None
        self._open.pop(stream.endpoint, None)
        if socket is None:
            return
        descriptor = int(socket.getsockopt(zmq.FD))
        self._epoll.unregister(descriptor)
        del self._by_descriptor[descriptor]
        if stream.watch is not None:
            stream.watch.close()
        socket.close(0)
