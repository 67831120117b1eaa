"""The one module that makes ZeroMQ sockets and sets their options."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import zmq

from fedbus.errors import BindError, KeysError
from fedbus.transport.endpoint import Address, Endpoint, bind_address
from fedbus.trust import curve
from fedbus.trust.curve import CurvePair

SUBSCRIPTION_BYTES = 1024  # a topic has at most 255; a larger subscription drops only the peer that sent it
# Subscriptions of one peer that wait to be read. libzmq reads them all before it returns, and with more of them the I/O
# thread refills the queue as fast as it is read: whoever floods then keeps the publisher's thread for as long as it
# pleases (seconds with 1000 of them, none with 16).
SUBSCRIPTION_HWM = 16
# ZMTP pings, of sockets that bind: a half-open connection is given up after two of them. Those that connect send none:
# a connection whose queue is full is not read, so no answer is seen, it is given up as dead, and when the queue then
# has room again libzmq 4.3 ends the process ("Assertion failed: _input_stopped", zeromq/libzmq#3937). A reader has the
# endpoint's beats to tell by.
HEARTBEAT_MS = 5_000
HANDSHAKE_MS = 10_000  # a handshake over a link of 2 s delay takes 8
CONNECT_HANDSHAKE_MS = 20_000  # the side that connects has begun earlier, and nobody can tie up its descriptors
CONNECT_MS = 10_000  # left to itself, a kernel tries for two minutes, with a minute between its last two tries
BACKLOG = 512
ZAP_ADDRESS = "inproc://zeromq.zap.01"  # where libzmq asks who may connect: RFC 27
_MONITOR_EVENTS = 65_536  # waiting to be read, of one socket; with more, new connections wait too
_RELEASE_SECONDS = 2.0  # libzmq gives up an address some time after close() has returned, so a restart may be quicker


BeforeBind = Callable[[zmq.Socket[bytes]], None]
_names = count()


@dataclass(frozen=True, slots=True)
class Offer:
    """One pair of addresses that an endpoint binds, and the secret key that encrypts its links; empty for none."""

    publish: str
    replay: str
    secret: str = field(default="", repr=False)


def offers(endpoint: Endpoint) -> tuple[Offer, ...]:
    """Return what the publisher of *endpoint* binds; the secret keys are read from its files.

    Raises:
        KeysError: A key cannot be read, or is not the one that the endpoint's readers expect.
    """
    found = [Offer(endpoint.publish, endpoint.replay, _secret(endpoint, endpoint.curve, endpoint.curve_key))]
    also = endpoint.also
    if also is not None:
        found.append(Offer(also.publish, also.replay, _secret(endpoint, also.curve, also.curve_key)))
    return tuple(found)


def _secret(endpoint: Endpoint, public: str, path: Path | None) -> str:
    if not public:
        return ""
    if path is None:
        raise KeysError(f"endpoint {endpoint.name!r} is encrypted, and nothing says where its CURVE key is")
    pair = curve.load_pair(path)
    if pair.public != public:
        raise KeysError(
            f"{endpoint.origin}: readers of endpoint {endpoint.name!r} expect another key than that in {path}; write "
            f'curve: "{pair.public}" there, or bring the right file here'
        )
    return pair.secret


def _secure_server(socket: zmq.Socket[bytes], secret: str) -> None:
    """Let what is bound from now on be encrypted, or not; libzmq copies the options at each bind."""
    if secret:
        socket.curve_secretkey = secret.encode("ascii")
    socket.curve_server = bool(secret)  # sets the mechanism too: CURVE, or NULL


def secure_client(socket: zmq.Socket[bytes], server: str, pair: CurvePair | None) -> None:
    """Let what is connected from now on be encrypted for the public key *server*, or not where that is empty.

    libzmq copies the options at each connect, so connections of both kinds live side by side.
    """
    if not server:
        socket.curve_server = False  # the one way back to the mechanism NULL
        return
    pair = pair or curve.make()
    socket.curve_publickey = pair.public.encode("ascii")
    socket.curve_secretkey = pair.secret.encode("ascii")
    socket.curve_serverkey = server.encode("ascii")


def connect(socket: zmq.Socket[bytes], address: str, *, server: str, pair: CurvePair | None) -> None:
    """Connect to *address*, encrypted where *server*, the public key of the endpoint, is not empty.

    *pair* is this host's own; without one an encrypted link gets a pair of its own.
    """
    secure_client(socket, server, pair)
    socket.connect(address)


def probe_socket(context: zmq.Context[zmq.Socket[bytes]], kind: int) -> zmq.Socket[bytes]:
    """Make a socket that is connected to see whether a handshake succeeds; it says nothing more."""
    socket = context.socket(kind)
    socket.linger = 0
    socket.ipv6 = True
    socket.set(zmq.RECONNECT_IVL, 100)
    return socket


def zap_socket(context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    """Bind the socket that libzmq asks about every new connection; a context has one."""
    socket = context.socket(zmq.ROUTER)
    socket.linger = 0
    socket.bind(ZAP_ADDRESS)
    return socket


def guard(socket: zmq.Socket[bytes], domain: str) -> None:
    """Have libzmq ask about each connection to what *socket* binds later, and refuse it when nobody answers."""
    socket.set(zmq.ZAP_DOMAIN, domain.encode("ascii"))
    socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)


def monitor(context: zmq.Context[zmq.Socket[bytes]], socket: zmq.Socket[bytes], events: int) -> zmq.Socket[bytes]:
    """Return a PAIR that receives the *events* of *socket*: two frames each, u16 event and u32 value, and address."""
    address = f"inproc://fedbus-monitor-{next(_names)}"
    pair = context.socket(zmq.PAIR)
    try:
        pair.linger = 0
        pair.set(zmq.RCVHWM, _MONITOR_EVENTS)
        socket.monitor(address, events)
        pair.connect(address)
    except zmq.ZMQError:
        pair.close(0)
        raise
    return pair


def close_monitored(socket: zmq.Socket[bytes], pair: zmq.Socket[bytes]) -> None:
    """Close *socket* and what :func:`monitor` has returned for it.

    The order matters: a closed socket still has events, and libzmq's one thread for all connections would wait for ever
    for room in a monitor whose reader has gone.
    """
    socket.disable_monitor()
    pair.close(0)
    socket.close(0)


def _common(socket: zmq.Socket[bytes], address: str, *, linger: float) -> None:
    socket.linger = int(linger * 1000)
    socket.set(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.set(zmq.TCP_KEEPALIVE, 1)
    parsed = Address.parse(address)
    # a name may resolve to IPv6 only; with the option set libzmq tries both families
    if parsed.scheme == "tcp" and (parsed.is_ipv6 or not parsed.host.replace(".", "").isdigit()):
        socket.ipv6 = True


def _send_heartbeats(socket: zmq.Socket[bytes]) -> None:
    socket.set(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.set(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_MS)


def _bind(socket: zmq.Socket[bytes], address: str, endpoint: Endpoint) -> None:
    try:
        resolved = bind_address(address, endpoint=endpoint.name)
        deadline = time.monotonic() + _RELEASE_SECONDS
        while True:
            try:
                socket.bind(resolved)
                return
            except zmq.ZMQError as error:
                if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)
    except zmq.ZMQError as error:
        socket.close(0)
        hint = "stop whatever holds that address, or change the endpoint"
        if error.errno == errno.EADDRNOTAVAIL or error.errno == errno.ENODEV:
            hint = "this host does not have that address; change the endpoint"
        elif address.startswith("ipc://") and error.errno != errno.EADDRINUSE:
            folder = Path(Address.parse(address).path).parent
            hint = f"make the folder {folder}, and let this user write to it, or change the endpoint"
        where = f" in {endpoint.origin}" if endpoint.origin else ""
        raise BindError(
            f"cannot bind {address} for endpoint {endpoint.name!r}: {os.strerror(error.errno or 0)}; {hint}{where}",
            endpoint=endpoint.name,
            address=address,
            in_use=error.errno == errno.EADDRINUSE,
        ) from None
    except BindError:
        socket.close(0)
        raise


def publish_socket(
    context: zmq.Context[zmq.Socket[bytes]],
    endpoint: Endpoint,
    *,
    hwm: int,
    offers: Sequence[Offer],
    before_bind: BeforeBind | None = None,
) -> zmq.Socket[bytes]:
    """Bind the PUB side of *endpoint*. It is an XPUB, which tells who subscribes; peers see no difference.

    Raises:
        BindError: The address is taken, or not this host's.
    """
    socket = context.socket(zmq.XPUB)
    socket.set(zmq.XPUB_VERBOSER, 1)
    socket.set(zmq.MAXMSGSIZE, SUBSCRIPTION_BYTES)
    socket.set(zmq.SNDHWM, hwm)
    socket.set(zmq.RCVHWM, SUBSCRIPTION_HWM)
    socket.set(zmq.BACKLOG, BACKLOG)
    if before_bind is not None:
        before_bind(socket)
    for offer in offers:
        _common(socket, offer.publish, linger=1.0)
        _send_heartbeats(socket)
        _secure_server(socket, offer.secret)
        _bind(socket, offer.publish, endpoint)
    return socket


def replay_socket(
    context: zmq.Context[zmq.Socket[bytes]],
    endpoint: Endpoint,
    *,
    hwm: int,
    offers: Sequence[Offer],
    before_bind: BeforeBind | None = None,
) -> zmq.Socket[bytes]:
    """Bind the replay side of *endpoint*, a ROUTER; a send to a peer that does not keep up fails instead of dropping.

    Raises:
        BindError: The address is taken, or not this host's.
    """
    socket = context.socket(zmq.ROUTER)
    socket.set(zmq.ROUTER_MANDATORY, 1)
    socket.set(zmq.MAXMSGSIZE, 128 * 1024)
    socket.set(zmq.SNDHWM, hwm)
    socket.set(zmq.RCVHWM, 64)
    socket.set(zmq.BACKLOG, BACKLOG)
    if before_bind is not None:
        before_bind(socket)
    for offer in offers:
        _common(socket, offer.replay, linger=1.0)
        _send_heartbeats(socket)
        _secure_server(socket, offer.secret)
        _bind(socket, offer.replay, endpoint)
    return socket


def subscribe_socket(
    context: zmq.Context[zmq.Socket[bytes]], *, hwm: int, endpoints: int, frame_bytes: int
) -> zmq.Socket[bytes]:
    """Make the one SUB socket of a subscriber to so many *endpoints*; connect it with :func:`connect`."""
    socket = context.socket(zmq.SUB)
    socket.linger = 0
    socket.ipv6 = True
    socket.set(zmq.RCVHWM, hwm)
    socket.set(zmq.MAXMSGSIZE, frame_bytes)
    socket.set(zmq.HANDSHAKE_IVL, CONNECT_HANDSHAKE_MS)
    socket.set(zmq.CONNECT_TIMEOUT, CONNECT_MS)
    socket.set(zmq.TCP_KEEPALIVE, 1)
    # Many dead endpoints retried every 100 ms burn a tenth of a core for ever, so the pause grows with their number.
    socket.set(zmq.RECONNECT_IVL, 100)
    socket.set(zmq.RECONNECT_IVL_MAX, max(500, min(30_000, endpoints * 40)))
    return socket


def foreign_publish_socket(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: Endpoint, *, hwm: int, before_bind: BeforeBind | None = None
) -> zmq.Socket[bytes]:
    """Bind the PUB side of an *endpoint* whose readers are not fedbus, and may have a libzmq of long ago.

    These do not know the heartbeats of ZMTP 3.1, so TCP has to find out who is gone.

    Raises:
        BindError: The address is taken, or not this host's.
    """
    socket = context.socket(zmq.XPUB)
    socket.set(zmq.XPUB_VERBOSER, 1)
    socket.set(zmq.MAXMSGSIZE, SUBSCRIPTION_BYTES)
    socket.set(zmq.SNDHWM, hwm)
    socket.set(zmq.RCVHWM, SUBSCRIPTION_HWM)
    socket.set(zmq.BACKLOG, BACKLOG)
    if before_bind is not None:
        before_bind(socket)
    _common(socket, endpoint.publish, linger=1.0)
    _keep_alive(socket)
    _bind(socket, endpoint.publish, endpoint)
    return socket


def foreign_subscribe_socket(
    context: zmq.Context[zmq.Socket[bytes]], *, hwm: int, endpoints: int, frame_bytes: int
) -> zmq.Socket[bytes]:
    """Make the SUB socket for one of so many *endpoints* whose publishers are not fedbus, and beat for nobody.

    TCP has to find out when one is gone. Each has a socket of its own, since a frame does not say whence it came.
    """
    socket = subscribe_socket(context, hwm=hwm, endpoints=endpoints, frame_bytes=frame_bytes)
    _keep_alive(socket)
    return socket


def _keep_alive(socket: zmq.Socket[bytes]) -> None:
    """Have TCP ask after a minute of silence, and give up 15 s later: idle links between sites die quietly."""
    socket.set(zmq.TCP_KEEPALIVE, 1)
    socket.set(zmq.TCP_KEEPALIVE_IDLE, 60)
    socket.set(zmq.TCP_KEEPALIVE_CNT, 3)
    socket.set(zmq.TCP_KEEPALIVE_INTVL, 5)


def fetch_socket(
    context: zmq.Context[zmq.Socket[bytes]],
    address: str,
    *,
    frame_bytes: int,
    server: str = "",
    pair: CurvePair | None = None,
) -> zmq.Socket[bytes]:
    """Connect a DEALER to the replay side of an endpoint, as :func:`connect` does."""
    socket = context.socket(zmq.DEALER)
    try:
        _common(socket, address, linger=0.0)
        socket.set(zmq.HANDSHAKE_IVL, CONNECT_HANDSHAKE_MS)
        socket.set(zmq.CONNECT_TIMEOUT, CONNECT_MS)
        socket.set(zmq.RCVHWM, 64)
        socket.set(zmq.MAXMSGSIZE, frame_bytes)
        socket.set(zmq.RECONNECT_IVL, 100)
        socket.set(zmq.RECONNECT_IVL_MAX, 2_000)
        connect(socket, address, server=server, pair=pair)
    except zmq.ZMQError:
        socket.close(0)
        raise
    return socket


def process_pair(seconds: float) -> tuple[socket.socket, socket.socket]:
    """Return two connected ends, ours and that of a process of ours.

    Ours gives up with BlockingIOError when a read or write that has begun stands still for *seconds*: a process that is
    out of order must not hold us up.
    """
    ours, theirs = socket.socketpair()
    limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))  # struct timeval of the C library
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    return ours, theirs
