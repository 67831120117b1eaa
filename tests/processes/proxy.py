"""A TCP proxy that misbehaves when told to: a process of its own between publishers and readers.

``python -m tests.processes.proxy PORT:TARGET …`` listens on each PORT of the loopback and passes on to TARGET. Lines on
stdin say how: ``pass``, ``cut`` (close, and refuse to connect), ``stall`` (take nothing and say nothing, as a link that
has died quietly), ``reset`` (RST, then pass), ``garbage`` (random bytes into what the readers get, then pass), each
followed by the ports that it is for. Ends with stdin.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import sys
from collections.abc import Coroutine
from typing import Any

_CHUNK = 64 * 2**10


class Link:
    """One port: its listening socket, its connections, and what it does to them."""

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self.target = target
        self.server: asyncio.Server | None = None
        self.open = asyncio.Event()  # bytes may flow
        self.open.set()
        self.readers: set[asyncio.StreamWriter] = set()  # towards those who connected
        self.tasks: set[asyncio.Task[None]] = set()

    async def listen(self) -> None:
        if self.server is None:
            self.server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._begin(self._serve(reader, writer))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.readers.add(writer)
        try:
            await self.open.wait()
            try:
                behind, before = await asyncio.open_connection("127.0.0.1", self.target)
            except OSError:
                return
            try:
                ways = [asyncio.ensure_future(self._pump(*way)) for way in ((reader, before), (behind, writer))]
                _, rest = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in rest:
                    way.cancel()
            finally:
                before.transport.abort()
        finally:
            self.readers.discard(writer)
            writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while True:
                await self.open.wait()
                data = await reader.read(_CHUNK)
                await self.open.wait()
                if not data:
                    return
                writer.write(data)
                await writer.drain()

    async def become(self, mode: str) -> None:
        """Behave like *mode* from now on."""
        if mode == "stall":
            self.open.clear()
        elif mode == "cut":
            if self.server is not None:
                self.server.close()
                self.server = None
            self._drop()
        else:
            self.open.set()
            if mode == "reset":
                for writer in self.readers:
                    peer: socket.socket = writer.get_extra_info("socket")
                    with contextlib.suppress(OSError):  # it may be closing already
                        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self._drop()
            elif mode == "garbage":
                for writer in self.readers:
                    writer.write(random.randbytes(random.randrange(1, 5000)))
            await self.listen()

    def _drop(self) -> None:
        self.open.set()
        for task in list(self.tasks):
            task.cancel()


async def main() -> None:
    """Serve the links that the command line names until stdin ends."""
    links = {}
    for argument in sys.argv[1:]:
        port, _, target = argument.partition(":")
        links[port] = Link(int(port), int(target))
        await links[port].listen()
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    print("ready", flush=True)
    while line := await lines.readline():
        mode, *ports = line.decode().split()
        for port in ports:
            await links[port].become(mode)


if __name__ == "__main__":
    asyncio.run(main())
