"""The one module that makes ZeroMQ sockets and sets their options."""

from __future__ import annotations

import errno
import os
import time

import zmq

from fedbus.errors import BindError
from fedbus.transport.endpoint import Address, Endpoint, bind_address

SUBSCRIPTION_BYTES = 1024  # a topic has at most 255; a larger subscription drops only the peer that sent it
HEARTBEAT_MS = 5_000  # ZMTP pings: a half-open connection is given up after two of them
HANDSHAKE_MS = 10_000  # a handshake over a link of 2 s delay takes 8
CONNECT_HANDSHAKE_MS = 20_000  # the side that connects has begun earlier, and nobody can tie up its descriptors
CONNECT_MS = 10_000  # left to itself, a kernel tries for two minutes, with a minute between its last two tries
BACKLOG = 512
_RELEASE_SECONDS = 0.5  # libzmq gives up an address some time after close() has returned, so a restart may be quicker


def _common(socket: zmq.Socket[bytes], address: str, *, linger: float) -> None:
    socket.linger = int(linger * 1000)
    socket.set(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.set(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_MS)
    socket.set(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.set(zmq.TCP_KEEPALIVE, 1)
    parsed = Address.parse(address)
    # a name may resolve to IPv6 only; with the option set libzmq tries both families
    if parsed.scheme == "tcp" and (parsed.is_ipv6 or not parsed.host.replace(".", "").isdigit()):
        socket.ipv6 = True


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
        where = f" in {endpoint.origin}" if endpoint.origin else ""
        raise BindError(
            f"cannot bind {address} for endpoint {endpoint.name!r}: {os.strerror(error.errno or 0)}; {hint}{where}",
            endpoint=endpoint.name,
            address=address,
        ) from None
    except BindError:
        socket.close(0)
        raise


def publish_socket(context: zmq.Context[zmq.Socket[bytes]], endpoint: Endpoint, *, hwm: int) -> zmq.Socket[bytes]:
    """Bind the PUB side of *endpoint*. It is an XPUB, which tells who subscribes; peers see no difference.

    Raises:
        BindError: The address is taken, or not this host's.
    """
    socket = context.socket(zmq.XPUB)
    _common(socket, endpoint.publish, linger=1.0)
    socket.set(zmq.XPUB_VERBOSER, 1)
    socket.set(zmq.MAXMSGSIZE, SUBSCRIPTION_BYTES)
    socket.set(zmq.SNDHWM, hwm)
    socket.set(zmq.BACKLOG, BACKLOG)
    _bind(socket, endpoint.publish, endpoint)
    return socket


def replay_socket(context: zmq.Context[zmq.Socket[bytes]], endpoint: Endpoint, *, hwm: int) -> zmq.Socket[bytes]:
    """Bind the replay side of *endpoint*, a ROUTER; a send to a peer that does not keep up fails instead of dropping.

    Raises:
        BindError: The address is taken, or not this host's.
    """
    socket = context.socket(zmq.ROUTER)
    _common(socket, endpoint.replay, linger=1.0)
    socket.set(zmq.ROUTER_MANDATORY, 1)
    socket.set(zmq.MAXMSGSIZE, 128 * 1024)
    socket.set(zmq.SNDHWM, hwm)
    socket.set(zmq.RCVHWM, 64)
    socket.set(zmq.BACKLOG, BACKLOG)
    _bind(socket, endpoint.replay, endpoint)
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
    socket.set(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.set(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_MS)
    socket.set(zmq.HANDSHAKE_IVL, CONNECT_HANDSHAKE_MS)
    socket.set(zmq.CONNECT_TIMEOUT, CONNECT_MS)
    socket.set(zmq.TCP_KEEPALIVE, 1)
    # Many dead endpoints retried every 100 ms burn a tenth of a core for ever, so the pause grows with their number.
    socket.set(zmq.RECONNECT_IVL, 100)
    socket.set(zmq.RECONNECT_IVL_MAX, max(500, min(30_000, endpoints * 40)))
    return socket


def fetch_socket(context: zmq.Context[zmq.Socket[bytes]], address: str, *, frame_bytes: int) -> zmq.Socket[bytes]:
    """Connect a DEALER to the replay side of an endpoint."""
    socket = context.socket(zmq.DEALER)
    _common(socket, address, linger=0.0)
    socket.set(zmq.HANDSHAKE_IVL, CONNECT_HANDSHAKE_MS)
    socket.set(zmq.CONNECT_TIMEOUT, CONNECT_MS)
    socket.set(zmq.RCVHWM, 64)
    socket.set(zmq.MAXMSGSIZE, frame_bytes)
    socket.set(zmq.RECONNECT_IVL, 100)
    socket.set(zmq.RECONNECT_IVL_MAX, 2_000)
    socket.connect(address)
    return socket
