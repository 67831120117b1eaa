"""The reading end: one SUB socket for all endpoints, a replay connection to each that something is missing from.

Nothing here runs by itself: whoever iterates drives the sockets, in one thread, so a message costs no hand-over between
threads. While the user is busy frames wait in the socket; what does not fit there is read from the journals later.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from types import TracebackType

import zmq

from fedbus.clock import Clock
from fedbus.errors import FedbusError, ForkedError, JournalError, KeysError, LossError, Reason, Refused, WireError
from fedbus.journal.cursors import CursorStore
from fedbus.model.limits import Limits
from fedbus.model.message import Message
from fedbus.model.position import Cursor
from fedbus.model.stream import StreamHome
from fedbus.model.topic import TopicFilter, common_prefix
from fedbus.schemas.registry import Schemas
from fedbus.transport import sockets
from fedbus.transport.endpoint import Endpoint
from fedbus.transport.fetch import Fetcher
from fedbus.transport.foreign import ForeignFeed, ForeignStream
from fedbus.transport.link import Link
from fedbus.transport.names import Names
from fedbus.transport.options import SubscriberOptions
from fedbus.transport.reader import Ready, StreamReader
from fedbus.transport.refusals import RefusalLog
from fedbus.transport.state import Loss, Mode, Since
from fedbus.transport.zap import Handshake, HandshakeLog, HandshakeWatch, explain
from fedbus.trust.curve import CurvePair
from fedbus.trust.verifier import Verifier
from fedbus.wire import beat as beats
from fedbus.wire import parcel as parcels

log = logging.getLogger(__name__)

_NOBLOCK = int(zmq.NOBLOCK)
_RCVMORE = int(zmq.RCVMORE)
_DRAIN = 128  # frames taken from a socket before something else gets its turn
_MESSAGES = 256  # returned by one receive(), at most
_LISTENED_SECONDS = 1.0  # one look at the sockets is worth no more, however long the user was busy before it
_OVERTIME = 1.0  # seconds beyond its time that receive() goes on while frames come one upon the other
_WATCH_SECONDS = 0.5
_SHAKE_SECONDS = (1.0, 8.0)  # between two tries of a connection whose handshake the other side has refused
_COMMIT_PATIENCE = 0.25  # seconds that reading waits for a cursor store that another process keeps busy
_COMMIT_AGAIN = 5.0  # the longest pause, besides commit_interval, until a store that refused is tried again
_PARKED = 1000  # readers of endpoints that were removed, at most


@dataclass(slots=True)
class SubscriberStats:
    """Counters of one subscriber."""

    frames: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    link_faults: dict[str, int] = field(default_factory=dict)  # handshakes that failed, by `LinkFault`


class Subscriber:
    """Reads the streams of some endpoints from where a cursor or *since* says. Iterate it, or call :meth:`receive`.

    Every message was verified; those of one stream come in order, each once, unless told otherwise by *on_loss* (or,
    with *strict*, by :class:`~fedbus.errors.LossError`). Belongs to one thread; :meth:`stop` may be called from any.
    """

    def __init__(
        self,
        endpoints: Iterable[Endpoint],
        filters: Iterable[TopicFilter],
        *,
        since: Since,
        verifier: Verifier,
        limits: Limits,
        options: SubscriberOptions,
        context: zmq.Context[zmq.Socket[bytes]],
        clock: Clock,
        positions: Cursor | None = None,
        store: CursorStore | None = None,
        cursor: str | None = None,
        local: Callable[[str], StreamHome | None] | None = None,
        on_loss: Callable[[Loss], None] | None = None,
        strict: bool = False,
        names: Names | None = None,
        follow: Callable[[], Iterable[Endpoint] | None] | None = None,
        pair: CurvePair | None = None,
        foreign: Callable[[], ForeignFeed] | None = None,
        schemas: Schemas | None = None,
    ) -> None:
        """Connect to *endpoints*, and later to those that *follow* returns: it is asked now and then, and returns None
        where the list has not changed. *names* looks up hosts; the subscribers of one bus share it. *pair* is who we
        are to endpoints whose links are encrypted. *foreign* opens what reads endpoints of another format, once there
        are any; without it they are left out.
        """
        self.filters = list(filters)
        self.stats = SubscriberStats()
        self.cursor = cursor
        self._since = since
        self._verifier = verifier
        self._limits = limits
        self._options = options
        self._context = context
        self._clock = clock
        self._store = store
        self._on_loss = on_loss
        self._strict = strict
        self._names = names or Names(clock)
        self._follow = follow
        self._pair = pair
        self._schemas = schemas
        self._pid = os.getpid()
        self._parcel_bytes = 4 * limits.message_bytes + 2**16
        self._frame_bytes = 8 * limits.message_bytes + 2**20  # beyond it libzmq drops the connection
        self._prefix = ".".join(common_prefix(self.filters))
        self._refusals = RefusalLog(log)
        self._handshake_log = HandshakeLog(log)
        self._ready: deque[Ready] = deque()
        self._open_foreign = foreign
        self._foreign: ForeignFeed | None = None
        self._current: tuple[StreamReader | ForeignStream, int] | None = None
        self._rest: Iterator[Message] | None = None  # what an iteration has still to yield of the current entry
        self._given = 0  # the last sequence of it that receive() has returned
        self._links: dict[str, Link] = {}
        self._parked: dict[str, StreamReader] = {}  # of endpoints that are not configured any more
        self._nowhere: dict[str, Link] = {}  # whose host is not known, or not yet
        self._look_up_at = 0.0
        self._next_timer = 0.0
        self._watched_at = clock.monotonic()
        self._watch_seconds = min(_WATCH_SECONDS, options.silence / 4)
        self._refresh_at = clock.monotonic() + options.refresh_interval
        self._committed: Cursor = {}
        self._commit_failures = 0  # in a row, in passing
        self._commit_at = clock.monotonic() + options.commit_interval
        self.turned_at = clock.monotonic()  # of the last look at the sockets, for whoever watches over the thread
        self._stopped = False
        self._closed = False
        self._closing = threading.RLock()  # reentrant: a signal handler may stop what is being closed
        if store is not None and cursor is not None:
            self._committed = store.load(cursor)
            positions = {**(positions or {}), **self._committed}
        self._positions = positions or {}
        wanted = list(endpoints)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._socket = sockets.subscribe_socket(
            context, hwm=options.receive_hwm, endpoints=len(wanted), frame_bytes=self._frame_bytes
        )
        self._handshakes = HandshakeWatch(context, self._socket)
        self._shaken: dict[str, _Shaken] = {}  # of endpoints whose handshakes fail
        self._socket.subscribe(beats.MARK)
        if self._prefix:
            self._socket.subscribe(self._prefix.encode("ascii") + b".")
            self._socket.subscribe(self._prefix.encode("ascii") + b"\0")
        else:
            self._socket.subscribe(b"")
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._wake, select.POLLIN)
        self._fetcher = Fetcher(
            context=context,
            poller=self._poller,
            ready=self._ready,
            concurrent=options.concurrent_fetches,
            frame_bytes=self._frame_bytes,
            local=local,
            names=self._names,
            pair=pair,
            refused=self._refused_answer,
            clock=clock,
        )
        self._hungry = self._fetcher.hungry
        self._running = False
        try:
            self.update(wanted)
        except BaseException:
            self._positions = {}
            self.cursor = None
            self.close()
            raise
        self._running = True

    # --- for users ---------------------------------------------------------------------------------------------

    def receive(self, timeout: float | None = None) -> list[Message]:
        """Return some messages of one stream, in order, or an empty list after *timeout* seconds or :meth:`stop`.

        Asking again says that the messages returned before have been worked on: the position moves behind them.

        Raises:
            LossError: With ``strict``, messages are known to be lost.
        """
        deadline = None if timeout is None else self._clock.monotonic() + timeout
        while True:
            if self._rest is None:
                if not self._await_ready(deadline):
                    return []
                reader, entry, through = self._ready.popleft()
                if isinstance(entry, Loss):
                    reader.finished(through)
                    self._report(entry)
                    continue
                self._current = (reader, through)
                self._rest = reader.open(entry)
            elif self._given:
                assert self._current is not None
                reader = self._current[0]
                if not reader.left_behind:
                    reader.handed = max(reader.handed, self._given)
            # some at a time: thousands of decoded messages at once would keep the garbage collector busy
            messages = list(islice(self._rest, _MESSAGES))
            if messages:
                self._given = messages[-1].sequence
                return messages
            self._rest = None
            self._given = 0

    def _await_ready(self, deadline: float | None) -> bool:
        """Drive the sockets until something is ready; return False at the monotonic time *deadline*, or when stopped.

        Whatever was handed out before has now been worked on.
        """
        self._finish_current()
        if self._closed and not self._stopped:
            raise FedbusError("this subscriber is closed; subscribe again")
        while not self._ready and not self._stopped:
            now = self._clock.monotonic()
            more = self._advance(now)
            if self._ready:
                continue
            if more:
                # a flood of what is refused, or is nothing of ours, must not hold up whoever gave a time for ever
                if deadline is None or now < deadline + _OVERTIME:
                    continue
                return False
            wait = self._next_timer - now
            if deadline is not None:
                if now >= deadline:
                    return False
                wait = min(wait, deadline - now)
            self._wait(max(0.0, wait))
        return bool(self._ready)

    def __iter__(self) -> Iterator[Message]:
        """Yield messages for ever, or until :meth:`stop`; asking for the next one says that the last was worked on.

        An iteration that was left goes on with the next message when the subscriber is iterated again.
        """
        while self._rest is not None or self._await_ready(None):
            if self._rest is None:
                reader, entry, through = self._ready.popleft()
                if isinstance(entry, Loss):
                    reader.finished(through)
                    self._report(entry)
                    continue
                self._current = (reader, through)
                self._rest = reader.open(entry)
            assert self._current is not None
            reader = self._current[0]
            if reader.left_behind:
                for message in self._rest:  # "yield from" would close it with this iteration
                    yield message
            else:
                for message in self._rest:
                    yield message
                    reader.handed = message.sequence
            self._rest = None
            self._given = 0

    def done(self, message: Message) -> None:
        """Say that *message*, and all before it in its stream, was worked on, without asking for the next one."""
        link = self._links.get(message.endpoint)
        reader = self._parked.get(message.endpoint) if link is None else link.reader
        if reader is not None and reader.epoch == message.epoch:
            reader.handed = max(reader.handed, message.sequence)

    def positions(self) -> Cursor:
        """Return, for each stream that was joined, up to where its messages have been worked on."""
        found: Cursor = {}
        # those of endpoints that were removed too: what was worked on of them must not come again after a restart
        for reader in (*self._parked.values(), *self.readers()):
            position = reader.position
            if position is not None:
                found[reader.endpoint] = position
        return found

    def commit(self) -> None:
        """Write the named cursor, if there is one, and return when it is on disk.

        Raises:
            JournalError: The store cannot be written.
            Fenced: A hub with a newer lease has written it.
        """
        self._commit(None)

    def _commit(self, patience: float | None) -> None:
        self._commit_at = self._clock.monotonic() + self._options.commit_interval
        if self._store is None or self.cursor is None:
            return
        moved = {name: place for name, place in self.positions().items() if self._committed.get(name) != place}
        if moved:
            self._store.save(self.cursor, moved, patience=patience)
            self._committed.update(moved)
            if self._commit_failures:
                self._commit_failures = 0
                log.warning("cursor %s is written again", self.cursor)

    def _commit_in_passing(self) -> None:
        """Write the cursor if that is possible now; if not, there is no reason to stop reading."""
        try:
            self._commit(_COMMIT_PATIENCE)
        except JournalError as error:
            interval = self._options.commit_interval
            self._commit_failures += 1
            self._commit_at += min(_COMMIT_AGAIN, interval * 2.0 ** min(self._commit_failures, 10))
            if self._commit_failures == 1:
                log.error("cursor %s is not written, so a crash now would repeat messages: %s", self.cursor, error)

    @property
    def caught_up(self) -> bool:
        """Whether every endpoint that answers has been read up to its head."""
        return not self._ready and all(
            link.reader.mode is Mode.LIVE or link.reader.quarantined or link.failures for link in self._links.values()
        )

    @property
    def foreign(self) -> ForeignFeed | None:
        """What reads the endpoints that do not speak our format; None while there are none."""
        return self._foreign

    def readers(self) -> list[StreamReader]:
        """Return the state of each stream, for status and metrics."""
        return [link.reader for link in list(self._links.values())]  # another thread may look on

    def stop(self) -> None:
        """End the iteration, from any thread or a signal handler; what was received stays to be read again later."""
        self._stopped = True
        with self._closing:
            if not self._closed:  # the number of a closed descriptor may be somebody else's by now
                os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Commit the cursor and close the sockets; calling it again does nothing."""
        if self._closed or self._pid != os.getpid():
            return
        with self._closing:
            self._closed = True
        try:
            self.commit()
        finally:
            for link in self._links.values():
                self._fetcher.close_home(link)
            self._fetcher.close()
            if self._foreign is not None:
                self._foreign.close()
            self._handshakes.close()
            self._socket.close(0)
            with self._closing:
                os.close(self._wake)

    def update(self, endpoints: Iterable[Endpoint]) -> None:
        """Take up a changed list of endpoints; those that stay the same are not touched."""
        listed = list(endpoints)
        wanted = {one.name: one for one in listed if one.wire == "native"}
        self._update_foreign([one for one in listed if one.wire != "native"])
        for name, link in list(self._links.items()):
            new = wanted.get(name)
            if new is None or not new.is_where(link.endpoint):
                self._park(link.reader)
                self._fetcher.drop(link)
                del self._links[name]
                self._nowhere.pop(name, None)
                self._disconnect(link)
        for name, endpoint in wanted.items():
            if name in self._links:
                continue
            reader = self._parked.pop(name, None)
            if reader is not None:
                reader.read_again()
            else:
                reader = self._new_reader(name)
            link = self._links[name] = Link(
                endpoint, reader, self._options.silence, self._options.fetch_bytes, self._clock.monotonic()
            )
            self._hungry[name] = link
            self._connect(link)
        self._next_timer = 0.0

    def _update_foreign(self, endpoints: list[Endpoint]) -> None:
        if self._foreign is None:
            if not endpoints or self._open_foreign is None:
                return
            try:
                self._foreign = self._open_foreign()
            except KeysError as error:
                if not self._running:
                    raise
                log.error("endpoints that do not speak our format are not read: %s", error)
                return
            self._poller.register(self._foreign.descriptor, select.POLLIN)
        self._foreign.update(endpoints)

    def _park(self, reader: StreamReader) -> None:
        """Keep *reader*, which knows what was handed on, should its endpoint come back."""
        self._parked[reader.endpoint] = reader
        if len(self._parked) > _PARKED:
            self.commit()
            del self._parked[next(iter(self._parked))]

    def _connect(self, link: Link) -> None:
        """Connect to where the endpoint is now, in place of where it was; wait while nobody knows its host."""
        addresses = self._names.addresses(link.endpoint.publish)
        if not addresses:
            self._nowhere[link.endpoint.name] = link
            return
        self._nowhere.pop(link.endpoint.name, None)
        # a second connect() to the same address does nothing
        self._disconnect(link)
        link.choices = len(addresses)
        link.address = addresses[link.attempt % len(addresses)]
        link.attempt += 1
        sockets.connect(self._socket, link.address, server=link.endpoint.curve, pair=self._pair)

    def _disconnect(self, link: Link) -> None:
        if link.address:
            try:
                self._socket.disconnect(link.address)
            except zmq.ZMQError:
                pass  # libzmq has given it up by itself
            link.address = ""

    def _new_reader(self, name: str) -> StreamReader:
        position = self._positions.get(name)
        return StreamReader(
            name,
            prefix=self._prefix,
            chosen=self._chosen,
            since=self._since if position is None else Since(position),
            verifier=self._verifier,
            limits=self._limits,
            pending_bytes=self._options.pending_bytes,
            parcel_bytes=self._parcel_bytes,
            ready=self._ready,
            schemas=self._schemas,
        )

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- driving -----------------------------------------------------------------------------------------------

    def _finish_current(self) -> None:
        current = self._current
        if current is not None:
            current[0].finished(current[1])
            self._current = None
            if self._store is not None and self._clock.monotonic() >= self._commit_at:
                self._commit_in_passing()

    def _report(self, loss: Loss) -> None:
        if self._strict:
            raise LossError(str(loss))
        if self._on_loss is not None:
            self._on_loss(loss)
        else:
            log.warning("%s", loss)

    def _chosen(self, topic: str) -> bool:
        return not self.filters or any(one.matches(topic) for one in self.filters)

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    @property
    def stopped(self) -> bool:
        """Whether :meth:`stop` was called."""
        return self._stopped

    def descriptors(self) -> list[int]:
        """Return the file descriptors that become readable when :meth:`receive` may find something."""
        own = [self._wake] if self._foreign is None else [self._wake, self._foreign.descriptor]
        return [*own, *(int(socket.getsockopt(zmq.FD)) for socket in (self._socket, *self._fetcher.sockets))]

    def next_timer(self) -> float:
        """Return in how many seconds :meth:`receive` should be called even if no descriptor becomes readable."""
        return max(0.0, self._next_timer - self._clock.monotonic())

    def _wait(self, seconds: float) -> None:
        # rounded up: a poll of 0 ms for the last half millisecond would spin
        self._poller.poll(int(seconds * 1000) + 1)

    def _advance(self, now: float) -> bool:
        """Take in what the sockets have, do what is due; return whether there may be more right away."""
        if self._pid != os.getpid():
            raise ForkedError("the subscriber was opened before a fork; open a Bus and subscribe in the child")
        self.turned_at = now
        more = self._drain_live(now)
        if self._foreign is not None:
            found, waiting = self._foreign.drain(now)
            self._ready.extend((stream, self._fitting(messages), 0) for stream, messages in found)
            more |= waiting
        for socket, link in list(self._fetcher.sockets.items()):
            more |= self._fetcher.drain(socket, link, now)
        if now >= self._next_timer:
            self._on_timer(now)
        return more

    def _fitting(self, messages: list[Message]) -> list[Message]:
        """Return those of another format's *messages* that fit their schemas, as far as that is asked for."""
        schemas = self._schemas
        if schemas is None:
            return messages
        checked = ((message, schemas.receiving(message.topic)) for message in messages)
        return [message for message, fits in checked if fits is None or fits(message)]

    def _drain_live(self, now: float) -> bool:
        recv = self._socket.recv
        take = self._take_live
        for _ in range(_DRAIN):
            try:
                frame = recv(_NOBLOCK)
            except zmq.Again:
                return False
            try:
                if self._socket.getsockopt(_RCVMORE):
                    while self._socket.getsockopt(_RCVMORE):
                        recv(_NOBLOCK)
                    raise WireError(Reason.FRAMES, "more than one frame where a parcel or a beat is one")
                take(frame, now)
            except Refused as error:
                self._refused(frame, error, now)
            if self._ready:
                return True  # hand it on before looking for more
        return True

    def _take_live(self, frame: bytes, now: float) -> None:
        self.stats.frames += 1
        if not frame:
            raise WireError(Reason.FRAMES, "an empty frame")
        if frame[0] == 2:
            beat = beats.decode(frame)
            link = self._links.get(beat.facts.endpoint)
            if link is None:
                raise WireError(Reason.UNKNOWN_ENDPOINT, f"a beat of {beat.facts.endpoint!r}, which is not configured")
            link.reader.on_beat(beat, now, self._clock.wall())
        else:
            parcel = parcels.decode(frame, parcel_bytes=self._parcel_bytes)
            link = self._links.get(parcel.endpoint)
            if link is None:
                raise WireError(Reason.UNKNOWN_ENDPOINT, f"a parcel of {parcel.endpoint!r}, which is not configured")
            link.reader.on_live(parcel, now)
        if link.home is not None:
            self._fetcher.close_home(link)  # it is alive: what its files hold, its replay socket has
        if link.reader.wants_fetch and link.request == 0:
            # hearing from it is reason to ask again at once
            if link.failures and link.reader.heard_at != link.heard_at_failure:
                link.failures = 0
                link.next_try_at = now
            self._hungry[link.endpoint.name] = link
            if link.next_try_at <= now:
                self._next_timer = now

    def _refused(self, frame: bytes, error: Refused, now: float, source: str | None = None) -> None:
        self._verifier.reject(error.reason)
        counts = self.stats.refused
        counts[error.reason.value] = counts.get(error.reason.value, 0) + 1
        if source is None:
            source = _claimed_endpoint(frame)
        link = self._links.get(source)
        if link is not None:
            link.reader.count_refusal(error.reason)
        self._refusals.refused(source, error.reason, str(error), now)

    def _refused_answer(self, error: Refused, endpoint: str, now: float) -> None:
        self._refused(b"", error, now, endpoint)

    # --- timers ------------------------------------------------------------------------------------------------

    def _on_timer(self, now: float) -> None:
        """Drive the requests to journals, connect anew what is silent, look at files that may have changed."""
        if self._follow is not None:
            changed = self._follow()
            if changed is not None:
                self.update(changed)
        if self._nowhere and now >= self._look_up_at:
            # hundreds of hosts that nobody knows must not keep us busy
            self._look_up_at = now + 0.002 * len(self._nowhere)
            for link in list(self._nowhere.values()):
                self._connect(link)
        if self._foreign is not None:
            self._foreign.tick(now)
        again = self._fetcher.on_timer(now)
        self._next_timer = now if again else now + (0.05 if self._hungry else 0.5)
        if now >= self._refresh_at:
            self._refresh_at = now + self._options.refresh_interval
            self._verifier.refresh()
        if now - self._watched_at >= self._watch_seconds:
            listened = min(_LISTENED_SECONDS, now - self._watched_at)
            self._watched_at = now
            self._watch_handshakes(now)
            for link in self._links.values():
                if link.home is not None and link.request == 0:
                    self._fetcher.follow_home(link, now)
                if link.look(listened, now):
                    self._connect(link)
                elif link.may_have_moved and link.address not in self._names.addresses(link.endpoint.publish):
                    self._connect(link)  # the question that the last attempt has asked has an answer now
        if self._store is not None and self._current is None and now >= self._commit_at:
            self._commit_in_passing()

    def _watch_handshakes(self, now: float) -> None:
        """Tell why an endpoint cannot be heard, and connect it anew where libzmq has given up: it may change its mind.

        That is so while links are being encrypted one endpoint after the other.
        """
        found = self._handshakes.take()
        if found:
            links = {link.address: link for link in self._links.values()}
            for one in found:
                link = links.get(one.address)
                if link is not None:
                    self._shook(link, one, now)
        for name, shaken in list(self._shaken.items()):
            if now >= shaken.again_at:
                shaken.again_at = float("inf")
                if name in self._links:
                    self._connect(self._links[name])
                else:
                    del self._shaken[name]

    def _shook(self, link: Link, one: Handshake, now: float) -> None:
        name = link.endpoint.name
        if one.fault is None:
            self._shaken.pop(name, None)
            self._handshake_log.succeeded(name)
            return
        for faults in (self.stats.link_faults, link.reader.stats.link_faults):
            faults[one.fault.value] = faults.get(one.fault.value, 0) + 1
        self._handshake_log.failed(name, one, explain(one.fault, bool(link.endpoint.curve)), now)
        if one.final:
            shaken = self._shaken.setdefault(name, _Shaken())
            least, most = _SHAKE_SECONDS
            shaken.again_at = now + min(most, least * 2.0 ** min(shaken.times, 10))
            shaken.times += 1


@dataclass(slots=True)
class _Shaken:
    times: int = 0
    again_at: float = float("inf")


def _claimed_endpoint(frame: bytes) -> str:
    """Return whom an unverified frame says it is from, for the log."""
    end = frame.find(b"\0", 0, 257)
    if end < 0:
        return "unknown"
    if frame[:1] == beats.MARK:
        name = frame[1:end]
    else:
        length = frame[end + 2] if len(frame) > end + 2 else 0
        name = frame[end + 3 : end + 3 + length]
    text = name.decode("ascii", "replace")
    return text if text.isprintable() and text else "unknown"
