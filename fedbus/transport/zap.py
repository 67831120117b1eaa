"""Who may connect to what this process binds: libzmq's questions (ZAP, RFC 27), watched connections, bans.

One thread for each ZeroMQ context. It is asked about every connection when its handshake ends, encrypted or not, and
sees when one is accepted and when it ends. What cannot be said over ZAP is said to the connection itself: it is shut.
"""

from __future__ import annotations

import logging
import os
import re
import select
import socket as bsd
import struct
import threading
import time
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count
from typing import Any

import zmq

from fedbus.clock import Clock
from fedbus.errors import KeysError
from fedbus.transport import sockets
from fedbus.transport.endpoint import Address, Endpoint
from fedbus.transport.options import LinkOptions
from fedbus.transport.refusals import RefusalLog
from fedbus.trust import curve
from fedbus.trust.curve import CurvePair
from fedbus.trust.files import Mark, file_mark

log = logging.getLogger(__name__)

_NOBLOCK = int(zmq.NOBLOCK)
_EVENT = struct.Struct("=hi")  # of a monitor's first frame: zmq_socket_monitor(3)
_CREDENTIALS = struct.Struct("iII")  # struct ucred of unix(7)
_ACCEPTED = int(zmq.EVENT_ACCEPTED)
_DISCONNECTED = int(zmq.EVENT_DISCONNECTED)
_STOPPED = int(zmq.EVENT_MONITOR_STOPPED)
_FAILED_PROTOCOL = int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
_FAILED_AUTH = int(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
_FAILED = int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
_SUCCEEDED = int(zmq.EVENT_HANDSHAKE_SUCCEEDED)
_EVENTS = _ACCEPTED | _DISCONNECTED | _FAILED | _FAILED_PROTOCOL | _FAILED_AUTH
_CLOSED = int(zmq.EVENT_CLOSED)  # of a side that connects: nobody takes connections there
_CONNECT_EVENTS = _SUCCEEDED | _FAILED | _FAILED_PROTOCOL | _FAILED_AUTH

_MISMATCH = int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH)
_CRYPTOGRAPHIC = int(zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC)

# A connection that we have dropped in its first seconds, after its handshake and while the peer was still there, has
# broken the protocol: it is too young for heartbeats or the handshake's own limit to have ended it.
_PROBATION_SECONDS = 4.0
_ON_PROBATION = 64  # connections at most, as each needs a second descriptor
_JUDGE_SECONDS = 0.2  # after which libzmq has closed what it dropped
_LOOK_SECONDS = 1.0  # between two looks at the list of clients
_MAPPED = re.compile(r"^tcp://\[::ffff:([0-9.]+)\]")  # how a socket for both families calls an IPv4 address
_EVENTS_A_TURN = 1000
_BANS = 10_000
_UNCLEAR_SECONDS = 1.0
_LEFT_AGAIN_SECONDS = 120.0  # one that always leaves is tried again after 30 s, and has 20 s for its handshake
_MOST_LEFT = 10_000  # endpoints
_WINDOW_SECONDS = 10.0
_FRAMES_FOR_EACH = 10  # subscriptions and their ends in one window, for each that a connection may hold


class LinkFault(StrEnum):
    """Why a connection was refused or ended; each has a counter of its own."""

    KEY = "key"  # the client's key is not in the list, or it does not know the endpoint's
    MECHANISM = "mechanism"  # one side encrypts and the other does not
    HANDSHAKE = "handshake"  # garbage, cut short, or too slow
    CONNECTIONS = "connections"  # too many, of one address or of all
    BANNED = "banned"
    SUBSCRIPTIONS = "subscriptions"  # too many, of one connection; leads to a ban
    PROTOCOL = "protocol"  # a frame beyond all bounds, or no frame, after the handshake; leads to a ban


@dataclass(slots=True)
class LinkStats:
    """Counters since the first publisher was opened, and gauges."""

    admitted: int = 0
    refused: Counter[LinkFault] = field(default_factory=Counter)
    bans: Counter[LinkFault] = field(default_factory=Counter)  # by what led to them
    banned: int = 0  # addresses now
    connections: int = 0  # now


@dataclass(slots=True, eq=False)
class _Connection:
    """One accepted connection; ``handle`` is a descriptor of our own for it while it is on probation."""

    address: str  # of the peer, without its port; of an ipc socket, its process
    names: tuple[Any, Any]  # what getsockname() and getpeername() say: a descriptor's number alone may be reused
    since: float
    handle: bsd.socket | None


@dataclass(slots=True, eq=False)
class _Guarded:
    """One bound socket, as its monitor shows it."""

    name: str
    monitor: zmq.Socket[bytes]
    connections: dict[int, _Connection] = field(default_factory=dict)  # by descriptor
    of_address: Counter[str] = field(default_factory=Counter)
    failed: LinkFault | None = None  # the handshake whose end comes next


class Gate:
    """Decides about connections to the sockets of one context; thread-safe, for one process.

    Give :meth:`guard` to what binds. Close it when those sockets are closed, before the context ends.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], options: LinkOptions, *, clock: Clock) -> None:
        """Start the thread.

        Raises:
            KeysError: The list of clients cannot be used.
            zmq.ZMQError: The context has a gate already.
        """
        self.options = options
        self.stats = LinkStats()
        self._context = context
        self._clock = clock
        self._pid = os.getpid()
        self._mutex = threading.Lock()
        self._bans: dict[str, float] = {}  # address -> monotonic time at which it ends
        self._refusals = RefusalLog(log)
        self._ids = count(1)
        self._clients_mark: Mark = None
        self._clients: dict[bytes, str] | None = None
        if options.clients is not None:
            self._clients_mark = file_mark(options.clients)
            self._clients = curve.load_clients(options.clients)
        self._guarded: dict[zmq.Socket[bytes], _Guarded] = {}
        self._probation: deque[_Connection] = deque()
        self._suspects: deque[tuple[float, str, _Connection, int]] = deque()
        self._new: deque[_Guarded] = deque()
        self._stopping = False
        self._zap = sockets.zap_socket(context)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="fedbus-gate", daemon=True)
        self._thread.start()

    def guard(self, socket: zmq.Socket[bytes], name: str) -> None:
        """Watch *socket* of the endpoint *name*; call this in its own thread before it is bound."""
        sockets.guard(socket, name)
        self._new.append(_Guarded(name, sockets.monitor(self._context, socket, _EVENTS)))
        os.eventfd_write(self._wake, 1)

    def drop(self, endpoint: Endpoint, frame: zmq.Frame, fault: LinkFault, text: str) -> None:
        """End the connection that *frame* came over, and ban its address."""
        address = _property(frame, "Peer-Address")
        self._ban(endpoint.name, address, fault, text)
        bound = [endpoint.publish] if endpoint.also is None else [endpoint.publish, endpoint.also.publish]
        with _opened(int(frame.get(zmq.SRCFD))) as connection:
            # the number may be another descriptor's by now
            if connection is not None and connection.address == address and any(map(connection.is_at, bound)):
                connection.shut()

    def banned(self, address: str) -> bool:
        """Whether connections from *address* are refused now."""
        with self._mutex:
            end = self._bans.get(address)
        return end is not None and self._clock.monotonic() < end

    def close(self) -> None:
        """End the thread; calling it again does nothing."""
        if self._pid != os.getpid() or self._stopping:
            return
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        self._thread.join(10.0)
        if not self._thread.is_alive():
            os.close(self._wake)

    # --- in the gate's thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._loop()
        except zmq.ContextTerminated:
            pass  # somebody has ended the context under us; it waits for these sockets
        finally:
            for guarded in (*self._guarded.values(), *self._new):
                self._forget(guarded)
            self._zap.close(0)

    def _loop(self) -> None:
        poller = zmq.Poller()
        poller.register(self._wake, select.POLLIN)
        poller.register(self._zap, zmq.POLLIN)
        look_at = self._clock.monotonic() + _LOOK_SECONDS
        while not self._stopping:
            ready = poller.poll(int(1000 * (_JUDGE_SECONDS if self._suspects else _LOOK_SECONDS)))
            try:
                self._take_new(poller)
                for one, _ in ready:
                    if one is self._zap:
                        self._answer(poller)
                    else:
                        self._look_at(one, poller)
                now = self._clock.monotonic()
                self._judge(now)
                if now >= look_at:
                    look_at = now + _LOOK_SECONDS
                    self._look(now)
            except zmq.ContextTerminated:
                raise
            except Exception:  # nobody could connect any more without this thread
                log.exception("the gate has failed over one connection and goes on")

    def _take_new(self, poller: zmq.Poller) -> None:
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            return
        while self._new:
            guarded = self._new.popleft()
            self._guarded[guarded.monitor] = guarded
            poller.register(guarded.monitor, zmq.POLLIN)

    def _look_at(self, monitor: zmq.Socket[bytes], poller: zmq.Poller) -> None:
        """Take in what *monitor* has; it may have been forgotten meanwhile."""
        guarded = self._guarded.get(monitor)
        if guarded is not None and not self._read_events(guarded):
            poller.unregister(monitor)
            self._forget(self._guarded.pop(monitor))

    def _forget(self, guarded: _Guarded) -> None:
        guarded.monitor.close(0)
        for connection in guarded.connections.values():
            self.stats.connections -= 1
            _release(connection)

    # ZAP: one request, one answer

    def _answer(self, poller: zmq.Poller) -> None:
        requests: list[list[bytes]] = []
        while len(requests) < _EVENTS_A_TURN:
            try:
                requests.append(self._zap.recv_multipart(_NOBLOCK))
            except zmq.Again:
                break
        # A peer may break the protocol as soon as it has its answer, and nothing could be said of a connection that is
        # closed before it was looked at. The event of its coming is older than the request.
        self._take_new(poller)
        for monitor in list(self._guarded):
            self._look_at(monitor, poller)
        for frames in requests:
            if len(frames) < 8:
                continue  # RFC 27 has eight and more, and it is libzmq that asks
            asker, empty, version, request, domain, address, _, mechanism, *credentials = frames
            fault, text = self._decide(address.decode("ascii", "replace"), mechanism, credentials)
            if fault is None:
                self.stats.admitted += 1
                # the name of the user is what tells one connection from another, as every frame of it carries it
                reply = [b"200", b"OK", b"%d" % next(self._ids), b""]
            else:
                # with 400 a peer that uses libzmq does not come back by itself
                reply = [b"400", fault.encode("ascii"), b"", b""]
                self._refused(domain.decode("ascii", "replace"), address.decode("ascii", "replace"), fault, text)
            self._zap.send_multipart([asker, empty, version, request, *reply])

    def _decide(self, address: str, mechanism: bytes, credentials: list[bytes]) -> tuple[LinkFault | None, str]:
        if self.banned(address):
            return LinkFault.BANNED, "its address is banned for a while"
        if mechanism == b"CURVE" and self._clients is not None:
            key = credentials[0] if credentials else b""
            if key not in self._clients:
                return LinkFault.KEY, f"its key is not in {self.options.clients}"
        return None, ""

    def _refused(self, endpoint: str, address: str, fault: LinkFault, text: str) -> None:
        source = f"{address} at endpoint {endpoint}"
        with self._mutex:  # publishers' threads come here too
            self.stats.refused[fault] += 1
            # monitoring that only connects is no reason for alarm
            level = logging.INFO if fault is LinkFault.HANDSHAKE else logging.WARNING
            self._refusals.refused(source, fault, text, self._clock.monotonic(), level=level)

    def _ban(self, endpoint: str, address: str, fault: LinkFault, text: str) -> None:
        self._refused(endpoint, address, fault, text)
        if not address or not self.options.ban:
            return
        now = self._clock.monotonic()
        with self._mutex:
            if now >= self._bans.get(address, 0.0):
                self.stats.bans[fault] += 1
                log.warning("%s is banned for %g s (%s)", address, self.options.ban, fault.value)
            self._bans[address] = now + self.options.ban
            if len(self._bans) > _BANS:
                del self._bans[next(iter(self._bans))]
            self.stats.banned = len(self._bans)

    # connections: opened, ended

    def _read_events(self, guarded: _Guarded) -> bool:
        """Take in what the monitor has; return False when its socket is closed."""
        for _ in range(_EVENTS_A_TURN):
            try:
                frames = guarded.monitor.recv_multipart(_NOBLOCK)
            except zmq.Again:
                return True
            event, value = _EVENT.unpack(frames[0])
            event &= 0xFFFF
            if event == _STOPPED:
                return False
            if event == _ACCEPTED:
                self._accepted(guarded, value, frames[1].decode("ascii", "replace"))
            elif event == _DISCONNECTED:
                self._disconnected(guarded, value)
            elif event == _FAILED_AUTH:
                guarded.failed = LinkFault.BANNED  # counted when it was refused
            else:
                guarded.failed = _handshake_fault(event, value)
        return True

    def _accepted(self, guarded: _Guarded, descriptor: int, bound: str) -> None:
        guarded.failed = None
        opened = _opened(descriptor)
        if opened.socket is None or not opened.is_at(bound):
            opened.close()
            return
        connection = _Connection(
            opened.address, (opened.own, opened.peer), self._clock.monotonic(), handle=opened.socket
        )
        old = guarded.connections.get(descriptor)
        if old is not None:
            self._gone(guarded, old)
        guarded.connections[descriptor] = connection
        guarded.of_address[connection.address] += 1
        self.stats.connections += 1
        options = self.options
        if guarded.of_address[connection.address] > options.connections_per_address:
            self._too_many(guarded, connection, f"{options.connections_per_address} of that address")
        elif len(guarded.connections) > options.connections:
            self._too_many(guarded, connection, f"{options.connections} of all addresses")
        else:
            self._probation.append(connection)
            if len(self._probation) > _ON_PROBATION:
                _release(self._probation.popleft())

    def _too_many(self, guarded: _Guarded, connection: _Connection, limit: str) -> None:
        self._refused(guarded.name, connection.address, LinkFault.CONNECTIONS, f"there are {limit} already")
        if connection.handle is not None:
            _shut(connection.handle)
        _release(connection)

    def _disconnected(self, guarded: _Guarded, descriptor: int) -> None:
        failed, guarded.failed = guarded.failed, None
        connection = guarded.connections.pop(descriptor, None)
        if connection is None:
            if failed is not None and failed is not LinkFault.BANNED:
                self._refused(guarded.name, "a peer that left at once", failed, _SERVER_TEXTS[failed])
            return
        self._gone(guarded, connection, release=False)
        if failed is not None:
            if failed is not LinkFault.BANNED:
                self._refused(guarded.name, connection.address, failed, _SERVER_TEXTS[failed])
        elif connection.handle is not None and _peer_is_there(connection.handle):
            self._suspects.append((self._clock.monotonic() + _JUDGE_SECONDS, guarded.name, connection, descriptor))
            return
        _release(connection)

    def _gone(self, guarded: _Guarded, connection: _Connection, *, release: bool = True) -> None:
        self.stats.connections -= 1
        guarded.of_address[connection.address] -= 1
        if guarded.of_address[connection.address] <= 0:
            del guarded.of_address[connection.address]
        if release:
            _release(connection)

    def _judge(self, now: float) -> None:
        """Ban those whose connections libzmq has dropped."""
        while self._suspects and self._suspects[0][0] <= now:
            _, name, connection, descriptor = self._suspects.popleft()
            handle = connection.handle
            # Events tell numbers only. Where it stays open, we took a connection for another one; so we did where the
            # peer has left by now: of one that libzmq has dropped, this handle keeps our side open.
            if handle is not None and _is_same(descriptor, handle):
                if now - connection.since < 2 * _PROBATION_SECONDS:  # or a busy machine has kept libzmq from closing it
                    self._suspects.append((now + _JUDGE_SECONDS, name, connection, descriptor))
                    continue
            elif handle is not None and _peer_is_there(handle):
                self._ban(name, connection.address, LinkFault.PROTOCOL, "it sent a frame that is far too long, or none")
            _release(connection)
        while self._probation and now - self._probation[0].since > _PROBATION_SECONDS:
            _release(self._probation.popleft())

    def _look(self, now: float) -> None:
        """Forget bans that have ended; read the list of clients when it has changed."""
        with self._mutex:
            self._bans = {address: end for address, end in self._bans.items() if end > now}
            self.stats.banned = len(self._bans)
        path = self.options.clients
        if path is None:
            return
        mark = file_mark(path)
        if mark == self._clients_mark:
            return
        self._clients_mark = mark
        try:
            clients = curve.load_clients(path)
        except KeysError as error:
            log.error("the list of clients stays as it was: %s", error)
            return
        removed = (self._clients or {}).keys() - clients.keys()
        self._clients = clients
        log.info("%s was read again: %d clients", path, len(clients))
        if removed:
            # Nothing says which connection is whose. They all come back by themselves, those of the list at once.
            for guarded in self._guarded.values():
                for descriptor, connection in guarded.connections.items():
                    with _opened(descriptor) as opened:
                        if opened is not None and (opened.own, opened.peer) == connection.names:
                            opened.shut()


class Subscriptions:
    """Counts what each connection to one publish socket subscribes to; belongs to that socket's thread."""

    def __init__(self, gate: Gate | None, endpoint: Endpoint, mark: bytes, *, clock: Clock) -> None:
        """*mark* is the subscription by which readers are counted; without a *gate* nobody is dropped."""
        self._gate = gate
        self._endpoint = endpoint
        self._mark = mark
        self._clock = clock
        options = LinkOptions() if gate is None else gate.options
        self._most = options.subscriptions
        self._peers: OrderedDict[str, _Peer] = OrderedDict()
        self._most_peers = 2 * options.connections

    def take(self, frame: zmq.Frame) -> int:
        """Take note of one subscription, or its end; return 1 for a reader that came, -1 for one that went, else 0."""
        data = frame.bytes
        sign = 1 if data[:1] == b"\1" else -1 if data[:1] == b"\0" else 0
        is_mark = data[1:] == self._mark
        who = _property(frame, "User-Id")
        if not who:
            return sign if is_mark else 0  # the connection has ended: libzmq takes back what it held
        peer = self._peers.get(who)
        if peer is None:
            peer = self._peers[who] = _Peer()
            if len(self._peers) > self._most_peers:
                self._peers.popitem(last=False)
        self._peers.move_to_end(who)
        self._count(peer, sign, frame)
        if is_mark and sign and peer.reads != (sign > 0):
            peer.reads = sign > 0
            return sign
        return 0

    def _count(self, peer: _Peer, sign: int, frame: zmq.Frame) -> None:
        now = self._clock.monotonic()
        if now - peer.window_at > _WINDOW_SECONDS:
            peer.window_at, peer.frames = now, 0
        peer.frames += 1
        peer.held = max(0, peer.held + sign)
        if peer.dropped or self._gate is None:
            return
        if peer.held > self._most:
            text = f"more than {self._most} subscriptions on one connection"
        elif peer.frames > self._most * _FRAMES_FOR_EACH:
            text = f"more than {self._most * _FRAMES_FOR_EACH} changes of subscriptions in {_WINDOW_SECONDS:g} s"
        else:
            return
        peer.dropped = True
        self._gate.drop(self._endpoint, frame, LinkFault.SUBSCRIPTIONS, text)


@dataclass(slots=True, eq=False)
class _Peer:
    held: int = 0
    frames: int = 0
    window_at: float = float("-inf")
    reads: bool = False  # whether it counts as a reader
    dropped: bool = False


# --- the side that connects ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Handshake:
    """How a handshake with *address*, as it was connected to, went. ``final``: libzmq does not try again by itself."""

    address: str
    fault: LinkFault | None
    final: bool = False


class HandshakeWatch:
    """Tells how the handshakes of one connecting socket went; belongs to that socket's thread."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], socket: zmq.Socket[bytes], *, closed: bool = False
    ) -> None:
        """With *closed*, that nobody takes connections is told as a handshake that failed, too."""
        self._socket = socket
        self._monitor = sockets.monitor(context, socket, _CONNECT_EVENTS | (_CLOSED if closed else 0))

    def take(self, wait: float = 0.0) -> list[Handshake]:
        """Return those since the last call, a bounded number; with *wait*, wait so many seconds for the first."""
        found: list[Handshake] = []
        if wait:
            self._monitor.poll(int(wait * 1000) + 1)
        while len(found) < _EVENTS_A_TURN:
            try:
                frames = self._monitor.recv_multipart(_NOBLOCK)
            except zmq.Again:
                break
            event, value = _EVENT.unpack(frames[0])
            event &= 0xFFFF
            address = _MAPPED.sub(r"tcp://\1", frames[1].decode("ascii", "replace"))
            if event == _SUCCEEDED:
                found.append(Handshake(address, None))
            elif event == _CLOSED:
                found.append(Handshake(address, LinkFault.CONNECTIONS))
            elif event != _STOPPED:
                fault = LinkFault.BANNED if event == _FAILED_AUTH else _handshake_fault(event, value)
                found.append(Handshake(address, fault, final=event != _FAILED))
        return found

    def close(self) -> None:
        """Stop watching; the socket must be open still."""
        self._socket.disable_monitor()
        self._monitor.close(0)


class HandshakeLog:
    """Says why endpoints cannot be heard; belongs to the thread that connects to them.

    A peer that goes away in the middle of a handshake without a word is ordinary life: a program that publishes one
    message ends while others are still connecting to it. Only when that happens again, and no handshake has succeeded
    meanwhile, it is worth a warning. What names its reason is told at once.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._refusals = RefusalLog(log, "no connection to")
        self._left_at: dict[str, float] = {}  # when an endpoint last left like that, since it was last connected

    def succeeded(self, endpoint: str) -> None:
        """Note that a handshake with *endpoint* has succeeded."""
        self._left_at.pop(endpoint, None)

    def failed(self, endpoint: str, one: Handshake, text: str, now: float) -> None:
        """Note the failed handshake *one* at the monotonic time *now*; *text* says what to do."""
        fault = one.fault
        assert fault is not None
        if fault is LinkFault.HANDSHAKE and not one.final:
            before = self._left_at.get(endpoint, float("-inf"))
            if len(self._left_at) > _MOST_LEFT:
                self._left_at.clear()
            self._left_at[endpoint] = now
            if now - before > _LEFT_AGAIN_SECONDS:
                self._log.debug("endpoint %s went away in the middle of a handshake", endpoint)
                return
        self._refusals.refused(f"endpoint {endpoint}", fault, text, now)


def probe(
    context: zmq.Context[zmq.Socket[bytes]],
    address: str,
    *,
    replay: bool,
    server: str,
    pair: CurvePair | None,
    timeout: float,
) -> Handshake | None:
    """Shake hands with *address* as a reader would.

    Return None where nobody takes connections, and where it is not decided after *timeout* seconds.

    *replay* says which of the two sockets of an endpoint it is; *server* is the endpoint's public key, empty for none.
    """
    end = time.monotonic() + timeout
    unclear: Handshake | None = None
    with sockets.probe_socket(context, zmq.DEALER if replay else zmq.SUB) as socket:
        watch = HandshakeWatch(context, socket, closed=True)
        try:
            sockets.connect(socket, address, server=server, pair=pair)
            while (left := end - time.monotonic()) > 0:
                for one in watch.take(left):
                    if one.fault is None or one.final:
                        return one
                    if one.fault is LinkFault.CONNECTIONS:
                        return unclear
                    if unclear is None:
                        # the next try may say more: which side ends a handshake is chance
                        unclear, end = one, min(end, time.monotonic() + _UNCLEAR_SECONDS)
        finally:
            watch.close()
    return unclear


def explain(fault: LinkFault, encrypted: bool) -> str:
    """Say what a connecting side can make of *fault*, and what to do."""
    if fault is LinkFault.BANNED:
        return (
            "it refuses this host; have the public key of this host (fedbus keys link) put into its list of clients, "
            "or wait until a ban has ended: its log says which"
        )
    if fault is LinkFault.MECHANISM:
        if encrypted:
            return "it does not encrypt yet, and its entry here has a `curve` key; restart its publisher with that key"
        return "it is encrypted, and its entry here has no `curve` key; bring the endpoints file up to date"
    if encrypted:
        return (
            "it ended the handshake; see whether `curve` in its entry is the public key in its key file, and whether "
            "it is fedbus that has that port"
        )
    return "it ended the handshake; see whether it is fedbus that has that port, and whether it is encrypted"


_SERVER_TEXTS = {
    LinkFault.KEY: "it expects another key of this endpoint; bring its endpoints file up to date",
    LinkFault.MECHANISM: "one side encrypts and the other does not; bring its endpoints file up to date",
    LinkFault.HANDSHAKE: "its handshake was cut short, too slow, or none",
}


def _handshake_fault(event: int, value: int) -> LinkFault:
    if event == _FAILED_PROTOCOL and value == _MISMATCH:
        return LinkFault.MECHANISM
    if event == _FAILED_PROTOCOL and value == _CRYPTOGRAPHIC:
        return LinkFault.KEY
    return LinkFault.HANDSHAKE


# --- descriptors that belong to libzmq -----------------------------------------------------------------------------


class _opened:
    """A descriptor of our own for the connection that has a number; ``socket`` is None where there is none."""

    def __init__(self, descriptor: int) -> None:
        self.socket: bsd.socket | None = None
        self.own: Any = None
        self.peer: Any = None
        try:
            copy = os.dup(descriptor)
        except OSError:
            return
        try:
            self.socket = bsd.socket(fileno=copy)
        except OSError:  # no socket at all
            os.close(copy)
            return
        try:
            self.own, self.peer = self.socket.getsockname(), self.socket.getpeername()
        except OSError:  # it has ended
            self.close()

    @property
    def address(self) -> str:
        """Where the peer is, as libzmq says it: an IP address, or of an ipc socket the peer's process."""
        if isinstance(self.peer, tuple):
            return str(self.peer[0])
        if self.socket is None:
            return ""
        process, user, group = _CREDENTIALS.unpack(
            self.socket.getsockopt(bsd.SOL_SOCKET, bsd.SO_PEERCRED, _CREDENTIALS.size)
        )
        return f"localhost:{user}:{group}:{process}"

    def is_at(self, bound: str) -> bool:
        """Whether it is a connection to the address *bound*, and not some other socket of this process."""
        try:
            address = Address.parse(bound)
        except Exception:  # whatever libzmq calls an address
            return False
        if address.scheme == "ipc":
            return isinstance(self.own, (str, bytes)) and os.fsdecode(self.own) == address.path
        return isinstance(self.own, tuple) and self.own[1] == address.port

    def shut(self) -> None:
        if self.socket is not None:
            _shut(self.socket)

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def __enter__(self) -> _opened | None:
        return None if self.socket is None else self

    def __exit__(self, *_: object) -> None:
        self.close()


def _shut(connection: bsd.socket) -> None:
    """End the connection; libzmq notices and closes its descriptor."""
    try:
        connection.shutdown(bsd.SHUT_RDWR)
    except OSError:
        pass  # it has ended by itself


def _release(connection: _Connection) -> None:
    handle, connection.handle = connection.handle, None
    if handle is not None:
        handle.close()


def _peer_is_there(handle: bsd.socket) -> bool:
    """Whether the peer has not ended the connection itself."""
    try:
        return handle.recv(1, bsd.MSG_PEEK | bsd.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def _is_same(descriptor: int, handle: bsd.socket) -> bool:
    try:
        return os.fstat(descriptor).st_ino == os.fstat(handle.fileno()).st_ino
    except OSError:
        return False


def _property(frame: zmq.Frame, name: str) -> str:
    try:
        return str(frame.get(name))
    except zmq.ZMQError:
        return ""
