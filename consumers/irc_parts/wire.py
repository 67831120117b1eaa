"""The socket below a connection: lines of bounded length, TLS that verifies, and how a connection ends."""

from __future__ import annotations

import asyncio
import os
import ssl
from typing import Any

from pydle.connection import Connection

from .settings import NetworkOptions

READ_BYTES = 16 * 1024  # of one line; 512 and tags of 8191 are allowed


class Ended(Exception):
    """The connection is over; *cause* is one of the words that `Pauses` knows."""

    def __init__(self, cause: str, text: str) -> None:
        super().__init__(text)
        self.cause = cause


class Wire(Connection):  # type: ignore[misc]  # pydle has no types
    """A socket with a bound for lines, and with TLS as configured."""

    def __init__(self, options: NetworkOptions) -> None:
        super().__init__(options.server, options.port, tls=options.tls)
        self._options = options

    async def connect(self) -> None:
        options = self._options
        more: dict[str, Any] = {}
        if options.tls:
            self.tls_context = self.create_tls_context()
            more = {"ssl": self.tls_context, "server_hostname": options.tls_name}
        else:
            more = {"happy_eyeballs_delay": 0.25}
        self.reader, self.writer = await asyncio.open_connection(options.server, options.port, limit=READ_BYTES, **more)
        self.writer.transport.set_write_buffer_limits(high=4096)

    def unread(self) -> bytes:
        """Return what has come in and was not read yet, once a write has failed and until the loop closes the socket.

        A server that ends us says why and hangs up, however much we are saying. With TLS there is nothing to be had.
        """
        if self.tls or self.writer is None:
            return b""
        try:
            return os.read(self.writer.get_extra_info("socket").fileno(), READ_BYTES)
        except OSError:
            return b""

    def create_tls_context(self) -> ssl.SSLContext:
        """Verify the server's certificate and name, always; TLS 1.2 at least."""
        options = self._options
        try:
            context = ssl.create_default_context(cafile=options.tls_ca)
            if options.tls_certificate:
                context.load_cert_chain(options.tls_certificate, options.tls_key)
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(filter(None, [options.tls_ca, options.tls_certificate, options.tls_key]))
            raise Ended("tls", f"cannot use {files}: {error}") from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context
