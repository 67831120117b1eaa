"""The relay: takes messages from short-lived and many processes of this host, and publishes them durably.

One thread serves a socket in the file system. It answers for a message when the publisher's synced journal has it, so
whoever got a receipt may end. doc/relay.rst specifies what passes over the socket.
"""

from __future__ import annotations

import errno
import logging
import queue
import select
import socket
import threading
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from fedbus.bell import Bell
from fedbus.clock import Clock, SystemClock
from fedbus.errors import FedbusError, QueueFull, Reason, TrustError, WireError
from fedbus.journal import spool
from fedbus.model.limits import Limits
from fedbus.model.receipt import RelayReceipt
from fedbus.transport import relay_protocol as protocol
from fedbus.transport.options import RelayOptions, RelayRule
from fedbus.transport.publisher import Publisher
from fedbus.transport.refusals import RefusalLog
from fedbus.transport.relay_door import Door, Doorman, Peer, peer_of, prepare_folder
from fedbus.transport.relay_outlet import Drain, Outlet
from fedbus.transport.relay_protocol import Request, Unavailable

log = logging.getLogger(__name__)

_TICK = 0.25  # seconds between two looks at deadlines
_SPOOL_SECONDS = 1.0  # between two looks into a spool
_OPEN_SECONDS = 5.0  # until an endpoint that could not be opened is tried again
_STUCK_SECONDS = 30.0  # until a spool that cannot be sent is tried again
_DELAYED_SECONDS = 1.0  # the same where the disk refused
_LOCKED_SECONDS = 0.05  # the same where somebody is just adding to it
_WATCH_SECONDS = 1.0
_READ_BYTES = 64 * 1024
_SMALL_BYTES = 64 * 1024  # a request up to this size needs no room of its own
_OUT_BYTES = 256 * 1024  # answers that a client has not read, beyond which its requests wait
_ACCEPT_AT_ONCE = 64


class Dropped(StrEnum):
    """Why the relay has closed a connection; the word of the metric."""

    SLOW = "slow"  # it began a request, and did not end it
    DEAF = "deaf"  # it does not read its answers
    IDLE = "idle"
    CONNECTIONS = "connections"  # it made room for another
    DESCRIPTORS = "descriptors"  # the same, where the process had no more descriptors
    FULL = "full"  # nobody could make room for it


class _Connection:
    """A client."""

    __slots__ = (
        "active_at",
        "begun_at",
        "closing",
        "ended",
        "fd",
        "interest",
        "out",
        "peer",
        "reserved",
        "socket",
        "splitter",
        "stalled",
        "starved",
        "unanswered",
        "written_at",
    )

    def __init__(self, connection: socket.socket, peer: Peer, most: int, now: float) -> None:
        self.socket: socket.socket | None = connection
        self.fd = connection.fileno()
        self.peer = peer
        self.splitter = protocol.Splitter(most)
        self.out = bytearray()
        self.unanswered = 0
        self.stalled: Request | None = None  # waits for room, or for the spool to be sent
        self.reserved = 0  # bytes of the room for large requests
        self.starved = False  # waits for some of it
        self.closing = False  # what comes is not looked at any more
        self.ended = False  # nothing more comes
        self.active_at = now
        self.begun_at = 0.0  # when the request under way began to come; 0.0: none is
        self.written_at = now
        self.interest = 0

    @property
    def finished(self) -> bool:
        """Whether it waits for nothing."""
        return not self.unanswered and self.stalled is None and not self.out

    @property
    def idle(self) -> bool:
        """Whether it could be closed, and the client would lose nothing."""
        return self.finished and not self.begun_at


class RelayStats:
    """Counters since the relay was started."""

    def __init__(self) -> None:
        self.connections = 0
        self.refused: dict[str, int] = {}  # requests, by the word of the answer
        self.dropped: dict[str, int] = {}  # connections that the relay has closed, by reason

    def count(self, counters: dict[str, int], word: str) -> None:
        """Add one to the counter *word*."""
        counters[word] = counters.get(word, 0) + 1


class Relay:
    """Serves until it is stopped; all but :meth:`stop` and :meth:`reload` in one thread.

    *open_publisher* opens an endpoint. *watch*, if given, is asked for changed endpoints and rules (with True: even if
    the files look the same), and returns None where nothing has changed.
    """

    def __init__(
        self,
        endpoints: Mapping[str, Any],
        *,
        options: RelayOptions,
        spools: Path,
        limits: Limits,
        open_publisher: Callable[[str], Publisher],
        clock: Clock | None = None,
        watch: Callable[[bool], tuple[Mapping[str, Any], tuple[RelayRule, ...]] | None] | None = None,
    ) -> None:
        """Prepare; nothing is opened yet.

        *endpoints* are by name; where the value changes, the endpoint is opened anew. *spools* is the folder in which
        each has that of its spool.
        """
        self.options = options
        self.stats = RelayStats()
        self.outlets: dict[str, Outlet] = {}
        self.connections: dict[int, _Connection] = {}
        self.refused = ""  # why the configuration on disk is not in force
        self.stopping = False
        self._clock = clock or SystemClock()
        self.beat_at = self._clock.monotonic()  # of the last round of the relay's thread
        self._endpoints = endpoints
        self._spools = spools
        self._limits = limits
        self._open_publisher = open_publisher
        self._doorman = Doorman(options.allow)
        self._watch = watch
        self._watch_at = 0.0
        self._tick_at = 0.0
        self._reload_asked = False
        self._bell = Bell()
        self._epoll = select.epoll()
        self._door: Door | None = None
        self._listening = False
        self._room = options.queue_bytes
        self._most = limits.message_bytes + protocol.HEADER_BYTES + 4
        self._parked: dict[str, list[_Connection]] = {}
        self._starved: list[_Connection] = []  # large requests that wait for room
        self._dirty: dict[int, _Connection] = {}  # have new answers, or requests that had to wait for something
        self._jobs: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._worker = threading.Thread(target=self._work, name="fedbus-relay-worker", daemon=True)
        self._opening: dict[str, threading.Event] = {}
        self._singly: set[Path] = set()
        self._refusals = RefusalLog(log)

    # --- its life ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen, and open the endpoints.

        Raises:
            BindError: Another relay has the socket.
            FedbusError: None of the endpoints can be opened; the first one's error.
        """
        self._door = Door(self.options)
        errors = []
        for name in self._endpoints:
            outlet = self._outlet(name)
            try:
                outlet.open()
            except FedbusError as error:
                log.error("endpoint %s cannot be opened: %s", name, error)
                outlet.retry_at = self._clock.monotonic() + _OPEN_SECONDS
                errors.append(error)
        if errors and len(errors) == len(self._endpoints):
            raise errors[0]
        self._worker.start()
        self._epoll.register(self._bell.descriptor, select.EPOLLIN)
        self._listen()

    def run(self, *, seconds: float | None = None, on_ready: Callable[[], object] | None = None) -> None:
        """Start, serve until :meth:`stop` or for so many *seconds*, and close."""
        clock = self._clock
        try:
            self.start()
            if on_ready is not None:
                on_ready()
            end = None if seconds is None else clock.monotonic() + seconds
            while not self.stopping and (end is None or clock.monotonic() < end):
                self.serve(_TICK if end is None else max(0.0, min(_TICK, end - clock.monotonic())))
        finally:
            self.close()

    def stop(self) -> None:
        """Ask :meth:`run` to end; safe in any thread and in a signal handler."""
        self.stopping = True
        self._bell.release()

    def reload(self) -> None:
        """Ask for the configuration to be read again; safe in any thread and in a signal handler."""
        self._reload_asked = True
        self._bell.release()

    def close(self) -> None:
        """Take nothing more, bring what was taken into the journals within ``drain_timeout``, and close all."""
        if self._epoll.closed:
            return
        self.stopping = True
        deadline = self._clock.monotonic() + self.options.drain_timeout
        self._stop_listening()
        if self._door is not None:
            self._door.close()
        for name in self._parked:
            self._give_up_parked(name, "the relay is being stopped")
        for connection in list(self.connections.values()):
            self._update(connection)
        while self._clock.monotonic() < deadline and self._owing():
            self._flush()
            self._poll(0.05)
            self._settle()
        self._flush()
        for connection in list(self.connections.values()):
            self._drop(connection)
        if self._worker.ident is not None:
            self._jobs.put(None)
            self._worker.join(max(0.1, deadline - self._clock.monotonic()))
        for outlet in self.outlets.values():
            self._close_outlet(outlet, max(0.1, deadline - self._clock.monotonic()))
        self._epoll.close()
        self._bell.close()

    def _owing(self) -> bool:
        """Say whether somebody waits for an answer that can still be given."""
        return (
            any(outlet.waiting for outlet in self.outlets.values())
            or bool(self._dirty)
            or any(connection.out for connection in self.connections.values())
        )

    def _work(self) -> None:
        """In a thread of its own: what may take long."""
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:
                log.exception("unexpected")
            self._bell.release()

    # --- how it is ---------------------------------------------------------------------------------------------

    def live(self, patience: float) -> bool:
        """Say whether its thread has come round within *patience* seconds."""
        return self._clock.monotonic() - self.beat_at < patience

    def reasons(self) -> list[str]:
        """Return why it is not ready, or is ready only in part; empty when all is well."""
        found = []
        if self.refused:
            found.append(f"configuration refused: {self.refused}")
        if self.stopping:
            found.append("stopping")
        for name, outlet in list(self.outlets.items()):
            if outlet.problem:
                found.append(f"endpoint {name}: {outlet.problem}")
            if outlet.spool_problem:
                found.append(f"spool of {name}: {outlet.spool_problem}")
        return found

    # --- endpoints ---------------------------------------------------------------------------------------------

    def _outlet(self, name: str) -> Outlet:
        """Make the outlet of an endpoint, which is not open yet."""
        folder = self._spools / name
        outlet = Outlet(
            name,
            open_publisher=self._open_publisher,
            folder=folder,
            remember=self.options.remember,
            limits=self._limits,
            bell=self._bell,
            allows=lambda uid: self._doorman.allows_user(name, uid),
        )
        try:
            prepare_folder(folder, self.options, self._door.group if self._door is not None else -1)
        except OSError as error:
            outlet.spool_problem = f"cannot make {folder}: {error.strerror}"
            log.error("endpoint %s: %s", name, outlet.spool_problem)
        self.outlets[name] = outlet
        self._parked.setdefault(name, [])
        return outlet

    def _open_soon(self, outlet: Outlet) -> None:
        done = self._opening[outlet.name] = threading.Event()

        def job() -> None:
            try:
                outlet.open()
                log.info("endpoint %s is open", outlet.name)
            except FedbusError as error:
                log.error("endpoint %s cannot be opened: %s", outlet.name, error)
            finally:
                done.set()

        self._jobs.put(job)

    def _retry(self, outlet: Outlet, now: float) -> None:
        """Open an endpoint that could not be opened before, or whose publisher has failed."""
        under_way = self._opening.get(outlet.name)
        if under_way is None or under_way.is_set():
            outlet.retry_at = now + _OPEN_SECONDS
            self._open_soon(outlet)

    @staticmethod
    def _close_outlet(outlet: Outlet, timeout: float) -> None:
        try:
            outlet.close(timeout)
        except FedbusError as error:
            log.error("endpoint %s: %s", outlet.name, error)

    def _look_at_configuration(self, forced: bool) -> None:
        assert self._watch is not None
        try:
            found = self._watch(forced)
            if found is None:
                return
            endpoints, rules = found
            self._doorman = Doorman(rules)
        except FedbusError as error:
            self.refused = str(error)
            log.error("the changed configuration is refused as a whole, the old one stays in force: %s", error)
            return
        self.refused = ""
        before, self._endpoints = self._endpoints, endpoints
        gone = before.keys() - endpoints.keys()
        moved = {name for name in endpoints.keys() & before.keys() if endpoints[name] != before[name]}
        added = endpoints.keys() - before.keys()
        for name in gone | moved:
            self._give_up_parked(name, "it was taken out of the configuration, or changed there")
            self._close_outlet(self.outlets.pop(name), self.options.drain_timeout)
        for name in added | moved:
            self._open_soon(self._outlet(name))
        log.info(
            "the configuration was read again; endpoints added: %d, removed: %d, moved: %d",
            len(added),
            len(gone),
            len(moved),
        )

    # --- one round ---------------------------------------------------------------------------------------------

    def serve(self, timeout: float) -> None:
        """Do what is due, waiting at most *timeout* seconds for something to do."""
        eager = any(outlet.drain is not None and outlet.drain.eager for outlet in self.outlets.values())
        self._poll(0.0 if eager else timeout)
        self.beat_at = now = self._clock.monotonic()
        self._settle()
        for outlet in list(self.outlets.values()):
            if outlet.publisher is not None and outlet.publisher.failure is not None:
                outlet.fail(f"its publisher has failed: {outlet.publisher.failure}")
            if outlet.publisher is None and now >= outlet.retry_at and outlet.drain is None:
                self._retry(outlet, now)
            self._look_at_spool(outlet, now)
            self._unpark(outlet)
        self._flush()
        if now >= self._tick_at:
            self._tick_at = now + _TICK
            self._check_deadlines(now)
            self._listen()
        if self._watch is not None and (self._reload_asked or now >= self._watch_at):
            self._watch_at = now + _WATCH_SECONDS
            forced, self._reload_asked = self._reload_asked, False
            self._look_at_configuration(forced)

    def _poll(self, timeout: float) -> None:
        door = self._door.socket.fileno() if self._door is not None and self._listening else -1
        for fd, events in self._epoll.poll(timeout):
            if fd == self._bell.descriptor:
                self._bell.hush()
            elif fd == door:
                self._accept()
            elif (connection := self.connections.get(fd)) is not None:
                self._on_ready(connection, events)

    def _settle(self) -> None:
        for outlet in list(self.outlets.values()):
            outlet.settle()

    def _flush(self) -> None:
        """Write the answers there are, and go on with requests that had to wait for that."""
        while self._dirty:
            dirty, self._dirty = self._dirty, {}
            for connection in dirty.values():
                self._write(connection)
                self._pump(connection)

    # --- the spool ---------------------------------------------------------------------------------------------

    def _look_at_spool(self, outlet: Outlet, now: float) -> None:
        drain = outlet.drain
        if drain is not None:
            if not drain.ready.is_set() or (drain.claimed and not drain.step()):
                return
            self._drained(outlet, drain, now)
        if outlet.publisher is None or now < outlet.not_before:
            return
        if now < outlet.look_at and not self._parked[outlet.name]:
            return
        outlet.look_at = now + _SPOOL_SECONDS
        if now >= outlet.stuck_until:
            outlet.stuck.clear()
        try:
            waiting = [one for one in spool.list_waiting(outlet.folder) if one.uid not in outlet.stuck]
        except FedbusError as error:
            outlet.spool_problem = str(error)
            return
        if not waiting:
            if not outlet.stuck:
                outlet.spool_problem = ""
            return
        # somebody who keeps his spool locked must not keep those of others from being sent
        chosen = next((one for one in waiting if one.uid not in outlet.locked), waiting[0])
        if chosen.uid in outlet.locked:
            outlet.locked.clear()
        outlet.drain = drain = Drain(outlet, chosen, singly=chosen.path in self._singly)
        self._jobs.put(drain.prepare)

    def _drained(self, outlet: Outlet, drain: Drain, now: float) -> None:
        """A file of the spool is done with, or cannot be sent now."""
        outlet.drain = None
        error, uid = drain.failure, drain.owner
        if error is None:
            self._singly.discard(drain.waiting.path)
            outlet.delayed.discard(uid)
            if drain.claimed:
                outlet.look_at = 0.0  # perhaps there is more
                log.info("endpoint %s: what user %d had spooled is published", outlet.name, uid)
            else:
                outlet.locked.add(uid)
                outlet.not_before = now + _LOCKED_SECONDS
            return
        outlet.spool_problem = str(error)
        if drain.claimed:
            # the disk, or the publisher, refused; later messages of this user wait behind these
            outlet.delayed.add(uid)
            outlet.not_before = now + _DELAYED_SECONDS
            self._singly.add(drain.waiting.path)
        else:
            outlet.stuck.add(uid)
            outlet.stuck_until = now + _STUCK_SECONDS
        log.error("endpoint %s: what user %d has spooled waits: %s", outlet.name, uid, error)

    # --- connections -------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        if self._door is not None and not self.stopping and not self._listening:
            self._epoll.register(self._door.socket, select.EPOLLIN)
            self._listening = True

    def _stop_listening(self) -> None:
        if self._door is not None and self._listening:
            self._epoll.unregister(self._door.socket)
            self._listening = False

    def _accept(self) -> None:
        assert self._door is not None
        for _ in range(_ACCEPT_AT_ONCE):
            try:
                accepted, _address = self._door.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    continue  # the client is gone already
                if not self._make_room(Dropped.DESCRIPTORS):
                    # nothing to give up: look again at the next tick, and do not spin until then
                    log.error("cannot accept a connection: %s", error.strerror)
                    self._stop_listening()
                    return
            else:
                self._welcome(accepted)

    def _welcome(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        try:
            peer = peer_of(accepted)
        except OSError:
            accepted.close()
            return
        if len(self.connections) >= self.options.connections and not self._make_room(Dropped.CONNECTIONS):
            self.stats.count(self.stats.dropped, Dropped.FULL)
            accepted.close()
            return
        self.stats.connections += 1
        connection = _Connection(accepted, peer, self._most, self._clock.monotonic())
        self.connections[connection.fd] = connection
        self._epoll.register(connection.fd, 0)
        self._update(connection)

    def _make_room(self, why: Dropped) -> bool:
        """Close the connection that has asked nothing for longest, of the user who has most; clients connect anew."""
        total: dict[int, int] = {}
        idle: dict[int, _Connection] = {}
        for connection in self.connections.values():
            uid = connection.peer.uid
            total[uid] = total.get(uid, 0) + 1
            if connection.idle and (uid not in idle or connection.active_at < idle[uid].active_at):
                idle[uid] = connection
        if not idle:
            return False
        self.stats.count(self.stats.dropped, why)
        self._drop(idle[max(idle, key=lambda uid: total[uid])])
        return True

    def _check_deadlines(self, now: float) -> None:
        patience = self.options.request_timeout
        for connection in list(self.connections.values()):
            if connection.begun_at and not connection.starved and now - connection.begun_at > patience:
                self._give_up(connection, Dropped.SLOW, f"a request was not complete within {patience:g} s", now)
            elif connection.out and now - connection.written_at > patience:
                self._give_up(connection, Dropped.DEAF, f"its answers were not read for {patience:g} s", now)
            elif connection.idle and now - connection.active_at > self.options.idle_timeout:
                self.stats.count(self.stats.dropped, Dropped.IDLE)
                self._drop(connection)

    def _give_up(self, connection: _Connection, why: Dropped, text: str, now: float) -> None:
        self.stats.count(self.stats.dropped, why)
        self._refusals.refused(str(connection.peer), why, text, now)
        self._drop(connection)

    def _drop(self, connection: _Connection) -> None:
        if connection.socket is None:
            return
        self._release_room(connection)
        self._dirty.pop(connection.fd, None)
        del self.connections[connection.fd]
        self._epoll.unregister(connection.fd)
        connection.socket.close()
        connection.socket = None
        connection.stalled = None

    def _may_take(self, connection: _Connection) -> bool:
        """Say whether another request of *connection* may be worked on now."""
        return (
            connection.socket is not None
            and not connection.closing
            and not self.stopping
            and connection.stalled is None
            and connection.unanswered < self.options.window
            and len(connection.out) < _OUT_BYTES
        )

    def _update(self, connection: _Connection) -> None:
        """Have epoll look for what may happen next."""
        if connection.socket is None:
            return
        if (connection.closing or connection.ended) and connection.finished:
            self._drop(connection)
            return
        interest = select.EPOLLOUT if connection.out else 0
        if self._may_take(connection) and not connection.ended and not connection.starved:
            interest |= select.EPOLLIN
        if interest != connection.interest:
            connection.interest = interest
            self._epoll.modify(connection.fd, interest)

    def _on_ready(self, connection: _Connection, events: int) -> None:
        if events & select.EPOLLOUT:
            self._dirty[connection.fd] = connection
        if events & select.EPOLLIN:
            self._read(connection)
        elif events & (select.EPOLLHUP | select.EPOLLERR):
            # nobody is there to read an answer; what was handed in is on its way all the same
            self._drop(connection)

    def _read(self, connection: _Connection) -> None:
        assert connection.socket is not None
        try:
            data = connection.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            # perhaps only its own half is closed, and it waits for answers
            connection.ended = True
            connection.begun_at = 0.0
            self._update(connection)
            return
        connection.active_at = self._clock.monotonic()
        connection.splitter.feed(data)
        self._pump(connection)

    def _write(self, connection: _Connection) -> None:
        out = connection.out
        if connection.socket is None or not out:
            return
        try:
            done = connection.socket.send(out)
        except BlockingIOError:
            return
        except OSError:
            self._drop(connection)
            return
        del out[:done]
        connection.written_at = connection.active_at = self._clock.monotonic()

    # --- requests ----------------------------------------------------------------------------------------------

    def _pump(self, connection: _Connection) -> None:
        """Work on the requests that have come, as far as that is possible now."""
        if connection.socket is None:
            return
        frames = connection.splitter.frames()
        try:
            while self._may_take(connection):
                content = next(frames, None)
                if content is None:
                    break
                connection.begun_at = 0.0  # what is held behind it is another request
                self._release_room(connection)
                self._take(connection, content)
        except WireError as error:
            # what came is no request: say so, and hear no more
            self.stats.count(self.stats.refused, protocol.error_word(error))
            self._refusals.refused(str(connection.peer), error.reason, str(error), self._clock.monotonic())
            self._send(connection, protocol.encode_error(error))
            connection.closing = True
        finally:
            frames.close()
        self._note_progress(connection)
        self._update(connection)

    def _note_progress(self, connection: _Connection) -> None:
        """See whether a request is under way, since when, and whether there is room for it."""
        splitter = connection.splitter
        if not splitter.held or connection.ended or not self._may_take(connection):
            connection.begun_at = 0.0
            return
        if not connection.begun_at:
            connection.begun_at = self._clock.monotonic()
        wanted = splitter.wanted
        if wanted > _SMALL_BYTES and not connection.reserved and not connection.starved:
            if wanted <= self._room or self._room == self.options.queue_bytes:
                self._room -= wanted
                connection.reserved = wanted
            else:
                connection.starved = True
                self._starved.append(connection)

    def _release_room(self, connection: _Connection) -> None:
        if connection.starved:
            connection.starved = False
            self._starved.remove(connection)
        if not connection.reserved:
            return
        self._room += connection.reserved
        connection.reserved = 0
        while self._starved and self._starved[0].splitter.wanted <= self._room:
            fed = self._starved.pop(0)
            fed.starved = False
            fed.reserved = fed.splitter.wanted
            self._room -= fed.reserved
            fed.begun_at = self._clock.monotonic()
            self._update(fed)

    def _take(self, connection: _Connection, content: bytes) -> None:
        request = protocol.decode_request(content)
        peer, name = connection.peer, request.endpoint
        outlet = self.outlets.get(name)
        if not self._doorman.allows(name, peer.uid, peer.groups):
            text = f"{peer} may not hand in messages for {name}; add a rule to relay.allow if it should"
            self._refusals.refused(str(peer), Reason.POLICY, text, self._clock.monotonic())
            self._answer_error(connection, request, TrustError(Reason.POLICY, text))
        elif request.do == "status":
            self._send(connection, protocol.encode_status(self._status(outlet)))
        elif outlet is None:
            text = f"the relay of this host does not publish as {name}"
            self._answer_error(connection, request, Unavailable(text))
        else:
            self._hand_in(connection, outlet, request)

    def _status(self, outlet: Outlet | None) -> dict[str, Any]:
        if outlet is None or outlet.publisher is None:
            return {"problem": outlet.problem if outlet is not None else "it is none of the endpoints of this relay"}
        publisher = outlet.publisher
        return {"epoch": publisher.epoch, "head": publisher.head, "subscribers": publisher.stats.subscribers}

    def _hand_in(self, connection: _Connection, outlet: Outlet, request: Request) -> bool:
        """Give a message to its publisher; return False where it has to wait."""
        if outlet.publisher is not None and outlet.has_spooled(connection.peer.uid):
            self._park(connection, outlet, request)
            return False
        connection.unanswered += 1
        try:
            outlet.submit(request, lambda outcome: self._on_outcome(connection, request, outcome))
        except QueueFull:
            connection.unanswered -= 1
            self._park(connection, outlet, request)
            return False
        return True

    def _park(self, connection: _Connection, outlet: Outlet, request: Request) -> None:
        connection.stalled = request
        self._parked[outlet.name].append(connection)
        self._update(connection)

    def _unpark(self, outlet: Outlet) -> None:
        """Try once more to hand in what has waited, first come, first served."""
        waiting = self._parked[outlet.name]
        if not waiting:
            return
        self._parked[outlet.name] = parked = []
        full = False
        for connection in waiting:
            request = connection.stalled
            if connection.socket is None or request is None:
                continue
            if full:
                parked.append(connection)
                continue
            connection.stalled = None
            if self._hand_in(connection, outlet, request):
                self._dirty[connection.fd] = connection
            else:
                full = not outlet.has_spooled(connection.peer.uid)

    def _give_up_parked(self, name: str, why: str) -> None:
        waiting, self._parked[name] = self._parked[name], []
        for connection in waiting:
            request, connection.stalled = connection.stalled, None
            if connection.socket is not None and request is not None:
                self._answer_error(connection, request, Unavailable(f"the relay does not publish as {name} now: {why}"))

    # --- answers -----------------------------------------------------------------------------------------------

    def _on_outcome(self, connection: _Connection, request: Request, outcome: RelayReceipt | FedbusError) -> None:
        connection.unanswered -= 1
        if isinstance(outcome, RelayReceipt):
            self._send(connection, protocol.encode_receipt(outcome))
        else:
            self._answer_error(connection, request, outcome)

    def _answer_error(self, connection: _Connection, request: Request, error: FedbusError) -> None:
        self.stats.count(self.stats.refused, protocol.error_word(error))
        self._send(connection, protocol.encode_error(error, request.submission))

    def _send(self, connection: _Connection, content: bytes) -> None:
        """Have an answer written at the end of this round."""
        if connection.socket is None:
            return
        if not connection.out:
            connection.written_at = self._clock.monotonic()
        connection.out += protocol.frame(content)
        self._dirty[connection.fd] = connection
