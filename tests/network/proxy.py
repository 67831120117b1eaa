"""A TCP proxy that misbehaves as it is told, in a process of its own, and the handle with which a test tells it.

It stands between a subscriber and the sockets of an endpoint, so that connections end as those of a real network do:
without a word, in one direction, in the middle of a frame, or into the arms of another service. Each route has a name
and a mode; a mode holds for the connections that are there and for those that come.
"""

from __future__ import annotations

import asyncio
import json
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

OVERSIZE = b"\x02" + struct.pack(">Q", 2**40)  # the head of a ZMTP frame of a tebibyte
GARBAGE = b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n" + bytes(range(256)) * 4
_CHUNK = 64 * 1024
_SLICE = 1024  # what a slow link passes on at a time
_IDLE = 0.03  # seconds without a byte, after which one stands between two frames


@dataclass(eq=False)
class Pipe:
    """One direction of one connection."""

    writer: asyncio.StreamWriter
    moved_at: float = 0.0
    dead: bool = False  # its bytes vanish, whatever is set later


@dataclass(eq=False)
class Route:
    """A port of ours and the port behind it."""

    name: str
    target: int
    port: int = 0
    mode: str = "pass"
    number: float = 0.0  # of the mode
    accepted: int = 0
    server: asyncio.Server | None = None
    writers: set[asyncio.StreamWriter] = field(default_factory=set)
    down: set[Pipe] = field(default_factory=set)  # towards those who connect
    up: set[Pipe] = field(default_factory=set)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def listen(self) -> None:
        """Accept connections, on the same port as before."""
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]

    async def set(self, mode: str, number: float) -> None:
        """Change how this route behaves; what each mode does is said in :class:`Proxy`."""
        if mode == "reset":
            self._reset()
            return
        if mode == "oversize":
            for pipe in list(self.down):
                while time.monotonic() - pipe.moved_at < _IDLE:
                    await asyncio.sleep(_IDLE / 3)
                pipe.writer.write(OVERSIZE)
            return
        self.mode, self.number = mode, number
        for pipe in self.down if mode in ("half-open", "deaf") else ():
            pipe.dead = True
        for pipe in self.up if mode in ("half-open", "mute") else ():
            pipe.dead = True
        if mode in ("refuse", "garbage", "vanish"):
            self._reset()
        if mode == "refuse" and self.server is not None:
            self.server.close()
            self.server = None
        elif mode != "refuse" and self.server is None:
            await self.listen()
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def _reset(self) -> None:
        for writer in list(self.writers):
            end: socket.socket = writer.get_extra_info("socket")
            if end.fileno() >= 0:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self.writers.add(writer)
        try:
            if self.mode == "garbage":
                writer.write(GARBAGE)
                while await reader.read(_CHUNK):
                    pass
                return
            if self.mode == "vanish":
                return
            try:
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
            except OSError:
                return
            self.writers.add(far_writer)
            try:
                tasks = [
                    asyncio.create_task(self._pump(reader, Pipe(far_writer), self.up, ("half-open", "mute"))),
                    asyncio.create_task(self._pump(far_reader, Pipe(writer), self.down, ("half-open", "deaf"))),
                ]
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
            finally:
                self.writers.discard(far_writer)
                far_writer.close()
        except OSError:
            pass  # reset by those who connected
        finally:
            self.writers.discard(writer)
            writer.close()

    async def _pump(self, reader: asyncio.StreamReader, pipe: Pipe, pipes: set[Pipe], deadly: tuple[str, ...]) -> None:
        pipes.add(pipe)
        pipe.dead = self.mode in deadly
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=1000)
        sender = asyncio.create_task(self._send(waiting, pipe))
        try:
            while chunk := await reader.read(_SLICE if self.mode == "rate" else _CHUNK):
                if pipe.dead:
                    continue
                due = time.monotonic() + (self.number if self.mode == "delay" else 0.0)
                if self.mode == "rate":
                    await waiting.join()  # what waits in here cannot be told from what waits in the network
                await waiting.put((due, chunk))
            await waiting.join()
        except OSError:
            pass
        finally:
            sender.cancel()
            pipes.discard(pipe)

    async def _send(self, waiting: asyncio.Queue[tuple[float, bytes]], pipe: Pipe) -> None:
        while True:
            due, chunk = await waiting.get()
            while self.mode == "hang":
                await self.changed.wait()
            pause = due - time.monotonic()
            if self.mode == "rate":
                pause = len(chunk) / self.number
            if pause > 0:
                await asyncio.sleep(pause)
            if not pipe.dead:
                pipe.moved_at = time.monotonic()
                pipe.writer.write(chunk)
                try:
                    await pipe.writer.drain()
                except OSError:
                    pipe.dead = True
            waiting.task_done()


async def serve(targets: Mapping[str, int]) -> None:
    """Run one route for each name, and obey the lines of stdin until it ends."""
    routes = {name: Route(name, port) for name, port in targets.items()}
    for route in routes.values():
        await route.listen()
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    _say({name: route.port for name, route in routes.items()})
    while line := await lines.readline():
        order = json.loads(line)
        if order.get("mode"):
            await routes[order["route"]].set(order["mode"], order["number"])
        _say({"accepted": routes[order["route"]].accepted})


def _say(values: Mapping[str, Any]) -> None:
    print(json.dumps(values), flush=True)


class Proxy:
    """Starts the process: ``Proxy({"publish": 3000, "replay": 3001})``; ``ports`` says where it listens.

    Modes: ``pass``; ``hang`` (bytes are kept until it is over); ``half-open`` (bytes vanish in both directions, and
    those connections never recover); ``deaf`` (only bytes towards those who connect vanish), ``mute`` (only those from
    them); ``delay`` (seconds, each way); ``rate`` (bytes a second); ``garbage`` (another service answers); ``vanish``
    (connections are accepted and closed); ``refuse`` (nobody listens). Of the last three, those that are there are
    reset. ``reset`` and ``oversize`` (a frame beyond all bounds) happen once and leave the mode as it is.
    """

    def __init__(self, targets: Mapping[str, int]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(dict(targets))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ports: dict[str, int] = self._hear()

    def set(self, mode: str, number: float = 0.0, *, route: str | None = None) -> None:
        """Change the mode of *route*, or of all, and return when it holds."""
        for name in self.ports if route is None else (route,):
            self._order(route=name, mode=mode, number=number)

    def accepted(self, route: str) -> int:
        """Return how many connections have come to *route* so far."""
        return int(self._order(route=route)["accepted"])

    def _order(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], 120.0)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise AssertionError("the proxy does not answer")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait(120.0)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


if __name__ == "__main__":
    asyncio.run(serve(json.loads(sys.argv[1])))
