"""A local HTTP port that shows how a program is: read-only, one request a connection, bounded in every way.

There is no password, so it belongs on the loopback. Requests whose ``Host`` is a name that this port was not configured
with are refused: a page in somebody's browser whose name suddenly means 127.0.0.1 must not read it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from fedbus.errors import BindError
from fedbus.monitor.process import of_process
from fedbus.monitor.text import CONTENT_TYPE, Family, exposition

if TYPE_CHECKING:
    from tornado.web import RequestHandler

log = logging.getLogger(__name__)

_START_SECONDS = 10.0
_REQUEST_SECONDS = 10.0  # for a whole connection, whoever is slow
_CONNECTIONS = 32  # at once; more are closed as they come
_HEADER_BYTES = 8192
_LINGER_SECONDS = 2.0  # for a client whose request is too long to take the answer
_TOO_LONG = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nServer: fedbus\r\nContent-Type: application/json\r\n"
    b"Content-Length: 44\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    b'{"error": "Request Header Fields Too Large"}'
)
_METHODS = ("GET", "HEAD")


class Answer(NamedTuple):
    """What a page says."""

    status: int
    content_type: str
    text: str


Page = Callable[[bool], Answer]
"""Makes an answer; it is told whether whoever asks is on this host. Called in the port's thread."""


def json_answer(status: int, content: object) -> Answer:
    """Return *content* as JSON."""
    return Answer(status, "application/json", json.dumps(content) + "\n")


def daemon_pages(
    *,
    live: Callable[[], bool],
    reasons: Callable[[], list[str]],
    metrics: Callable[[], str | list[Family]],
) -> dict[str, Page]:
    """Return the pages that every daemon serves: /live, /ready and /metrics.

    *live* says whether the daemon's own loop comes round; *reasons*, why it is not ready or is ready only in part. They
    may quote topics, messages and errors of consumers, so they are told on this host only. *metrics* must name none of
    these; what this process uses is added to them.
    """

    def show_live(here: bool) -> Answer:
        alive = live()
        return json_answer(200 if alive else 503, {"live": alive})

    def show_ready(here: bool) -> Answer:
        found = reasons()
        shown = found if here else [f"{len(found)}, told on this host only"] if found else []
        return json_answer(503 if found else 200, {"ready": not found, "reasons": shown})

    def show_metrics(here: bool) -> Answer:
        found = metrics()
        text = found if isinstance(found, str) else exposition(found)
        return Answer(200, CONTENT_TYPE, text + exposition(of_process()))

    return {"/live": show_live, "/ready": show_ready, "/metrics": show_metrics}


def host_allowed(header: str, configured: str) -> bool:
    """Say whether a request with this ``Host`` (NAME[:PORT]) may be answered on a port bound to the host *configured*.

    An address is always allowed, as nobody can make it mean another host; of names only ``localhost``, the configured
    one and the name of this machine are.
    """
    name = header.strip().lower()
    if name.startswith("["):
        name, bracket, rest = name[1:].partition("]")
        if not bracket or (rest and not _is_port(rest)):
            return False
    elif ":" in name:
        name, _, port = name.partition(":")
        if not _is_port(":" + port):
            return False
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        pass
    own = socket.gethostname().lower()
    return name.rstrip(".") in {"localhost", configured.strip("[]").lower(), own} - {""}


def _is_port(text: str) -> bool:
    return text[:1] == ":" and text[1:].isascii() and text[1:].isdigit() and len(text) <= 6


def is_loopback(address: str) -> bool:
    """Say whether *address* is of the loopback."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback


class StatusServer(threading.Thread):
    """Serves *pages*, by path, on ``HOST:PORT`` from a thread of its own; port 0 takes a free one."""

    def __init__(self, address: str, pages: Mapping[str, Page], *, owner: str, setting: str) -> None:
        """*owner* is whose state it is, and *setting* what people change to have it elsewhere; both for errors."""
        super().__init__(name="fedbus-http", daemon=True)
        host, _, port = address.rpartition(":")
        self.port = int(port)
        self._configured = address
        self._host = host.strip("[]") or "127.0.0.1"
        self._shown_host = host or "127.0.0.1"
        self._pages = dict(pages)
        self._owner = owner
        self._setting = setting
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self._bound = threading.Event()
        self._error: OSError | None = None

    @property
    def address(self) -> str:
        """Where it is served, HOST:PORT."""
        return f"{self._shown_host}:{self.port}"

    def start(self) -> None:
        """Bind the port and serve.

        Raises:
            BindError: It is taken, or not this host's.
        """
        super().start()
        self._bound.wait(_START_SECONDS)
        if self._error is not None:
            raise BindError(
                f"cannot bind {self._configured} for {', '.join(self._pages)}: {self._error.strerror or self._error}; "
                f"stop what holds that port, or choose another with {self._setting}",
                endpoint=self._owner,
                address=self._configured,
            )

    def stop(self) -> None:
        """End the thread and free the port; does nothing where it never began."""
        if self._loop is not None and self._end is not None and self.is_alive():
            self._loop.call_soon_threadsafe(self._end.set)
            self.join(5.0)

    def run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception:  # nothing that is asked here may end the program
            log.exception("the HTTP port %s has failed", self.address)
        finally:
            self._bound.set()

    async def _serve(self) -> None:
        # tornado is needed only by those that serve this
        from tornado.netutil import bind_sockets
        from tornado.web import Application

        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        application = Application(
            [(r"/.*", _handler(self._pages, self._host))], log_function=lambda handler: None, default_handler_class=None
        )
        try:
            sockets = bind_sockets(self.port, self._host)
        except OSError as error:
            self._error = error
            return
        beyond = {one.getsockname()[0] for one in sockets if not is_loopback(one.getsockname()[0])}
        if beyond:
            log.warning(
                "the HTTP port of %s is open to other hosts on %s, without a password; %s on the loopback is safer",
                self._owner,
                ", ".join(sorted(beyond)),
                self._setting,
            )
        self.port = sockets[0].getsockname()[1]
        server = _server(application)
        server.add_sockets(sockets)
        self._bound.set()
        await self._end.wait()
        server.stop()
        await server.close_all_connections()
        server.lingering.close()


class _Lingering:
    """Connections that were answered before all of their request was read.

    Closed at once, the kernel would send a reset for what is still coming, and with that take the answer away. So what
    comes is read and thrown away for a moment.
    """

    def __init__(self) -> None:
        self._held: dict[socket.socket, asyncio.TimerHandle] = {}

    def refuse(self, connection: socket.socket) -> None:
        """Say that the request is too long; whoever owns *connection* closes it then."""
        try:
            connection.send(_TOO_LONG)
            connection.shutdown(socket.SHUT_WR)
            if len(self._held) >= _CONNECTIONS:
                return
            copy = connection.dup()
        except OSError:
            return
        copy.setblocking(False)
        loop = asyncio.get_running_loop()
        self._held[copy] = loop.call_later(_LINGER_SECONDS, self._end, copy)
        loop.add_reader(copy, self._discard, copy)

    def close(self) -> None:
        """Close all of them."""
        for connection in list(self._held):
            self._end(connection)

    def _discard(self, connection: socket.socket) -> None:
        try:
            if connection.recv(65536):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._end(connection)

    def _end(self, connection: socket.socket) -> None:
        self._held.pop(connection).cancel()
        asyncio.get_running_loop().remove_reader(connection)
        connection.close()


def _server(application: Any) -> Any:
    from tornado.httpserver import HTTPServer
    from tornado.iostream import IOStream, UnsatisfiableReadError

    class Server(HTTPServer):
        """Takes one request of each connection, a bounded number of connections, and none for long."""

        def initialize(self, *arguments: Any, **options: Any) -> None:
            super().initialize(*arguments, **options)
            self._taken = 0
            self.lingering = _Lingering()

        def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
            if self._taken >= _CONNECTIONS:
                stream.close()
                return
            self._taken += 1
            # closing a closed one does nothing
            asyncio.get_running_loop().call_later(_REQUEST_SECONDS, stream.close)
            self._answer_what_is_too_long(stream)
            super().handle_stream(stream, address)

        def _answer_what_is_too_long(self, stream: IOStream) -> None:
            """Have *stream* say why, where tornado would close it without a word."""
            close = stream.close

            def say_and_close(exc_info: Any = False) -> None:
                if isinstance(exc_info, UnsatisfiableReadError) and not stream.closed():
                    self.lingering.refuse(stream.socket)
                close(exc_info)

            stream.close = say_and_close  # type: ignore[method-assign]

        def on_close(self, server_conn: object) -> None:
            self._taken -= 1
            super().on_close(server_conn)

    return Server(
        application,
        no_keep_alive=True,
        max_header_size=_HEADER_BYTES,
        max_body_size=0,
        idle_connection_timeout=_REQUEST_SECONDS,
        body_timeout=_REQUEST_SECONDS,
    )


def _handler(pages: Mapping[str, Page], host: str) -> type[RequestHandler]:
    from tornado.web import HTTPError, RequestHandler

    class Handler(RequestHandler):
        def set_default_headers(self) -> None:
            self.set_header("Server", "fedbus")
            self.set_header("Cache-Control", "no-store")
            self.set_header("X-Content-Type-Options", "nosniff")
            self.set_header("Content-Security-Policy", "default-src 'none'")

        def write_error(self, status_code: int, **_: object) -> None:
            self.set_header("Content-Type", "application/json")
            if status_code == 405:
                self.set_header("Allow", ", ".join(_METHODS))
            self.finish(json.dumps({"error": self._reason}) + "\n")

        def prepare(self) -> None:
            if not host_allowed(self.request.host, host):
                raise HTTPError(421, reason="Misdirected Request")
            if self.request.method not in _METHODS:
                raise HTTPError(405)
            if self.request.path not in pages:
                raise HTTPError(404)

        def get(self) -> None:
            status, content_type, text = pages[self.request.path](is_loopback(self.request.remote_ip or ""))
            self.set_status(status)
            self.set_header("Content-Type", content_type)
            self.finish(text)

        head = get

        def log_exception(self, *arguments: Any) -> None:
            if not isinstance(arguments[1], HTTPError):
                log.error("GET %s failed", self.request.path, exc_info=arguments)

    return Handler
