"""Peers that break rules on purpose: ZMTP by hand, from an address of the loopback that is not the readers'."""

from __future__ import annotations

import socket
import struct
import threading

from fedbus.transport.endpoint import Address

FOE = "127.0.0.66"
GREETING = b"\xff" + b"\0" * 8 + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" * 32  # ZMTP 3.0, RFC 23


def dial(address: str, source: str = FOE, timeout: float = 30.0) -> socket.socket:
    """Return a TCP connection to *address* over which nothing was said yet."""
    parsed = Address.parse(address)
    if parsed.scheme == "ipc":
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout)
        connection.connect(parsed.path)
        return connection
    return socket.create_connection((parsed.host, parsed.port), timeout, source_address=(source, 0))


def command(name: bytes, body: bytes) -> bytes:
    data = bytes([len(name)]) + name + body
    return bytes([4, len(data)]) + data


def frame(body: bytes) -> bytes:
    if len(body) < 256:
        return bytes([0, len(body)]) + body
    return b"\2" + struct.pack(">Q", len(body)) + body


def subscription(topic: bytes) -> bytes:
    return frame(b"\1" + topic)


def shake(address: str, kind: bytes = b"SUB", source: str = FOE) -> socket.socket:
    """Return a connection whose handshake is complete; OSError when it was refused."""
    connection = dial(address, source)
    try:
        connection.sendall(GREETING + command(b"READY", b"\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind))
        got = bytearray()
        while b"READY" not in got:
            more = connection.recv(4096)
            if not more or b"\5ERROR" in got + more:
                raise ConnectionRefusedError("the handshake was refused")
            got += more
        return connection
    except OSError:
        connection.close()
        raise


def ends(connection: socket.socket, timeout: float = 60.0) -> bool:
    """Whether the other side ends *connection* within *timeout* seconds."""
    connection.settimeout(timeout)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


class Flood:
    """Sends rows of frames over one connection after the other until it is stopped or refused so many times."""

    def __init__(self, address: str, row: bytes, *, tries: int = 3) -> None:
        self.refused = 0
        self.bytes = 0
        self._address = address
        self._row = row
        self._tries = tries
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set() and self.refused < self._tries:
            try:
                with shake(self._address) as connection:
                    while not self._stop.is_set():
                        connection.sendall(self._row)
                        self.bytes += len(self._row)
            except ConnectionRefusedError:
                self.refused += 1
            except OSError:
                pass  # dropped: come back at once

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()


__all__ = ["FOE", "GREETING", "Flood", "command", "dial", "ends", "frame", "shake", "subscription"]
