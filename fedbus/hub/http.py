"""The hub's local HTTP port: /live, /ready and /metrics; served only where it is configured, and read-only."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from typing import TYPE_CHECKING

from fedbus.errors import BindError
from fedbus.hub import metrics

if TYPE_CHECKING:
    from fedbus.hub.hub import Hub

log = logging.getLogger(__name__)

_LIVE_SECONDS = 30.0  # after which a hub whose own thread does not come round counts as hanging
_START_SECONDS = 10.0


class StatusServer(threading.Thread):
    """Serves the state of *hub* on ``HOST:PORT`` from a thread of its own."""

    def __init__(self, hub: Hub, address: str) -> None:
        super().__init__(name="fedbus-http", daemon=True)
        host, _, port = address.rpartition(":")
        self.address = address
        self.port = int(port)
        self._host = host.strip("[]")
        self._hub = hub
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self._bound = threading.Event()
        self._error: OSError | None = None

    def start(self) -> None:
        """Bind the port and serve.

        Raises:
            BindError: It is taken, or not this host's.
        """
        super().start()
        self._bound.wait(_START_SECONDS)
        if self._error is not None:
            raise BindError(
                f"cannot bind {self.address} for /ready and /metrics: {self._error.strerror or self._error}; stop what "
                "holds that port, or choose another with hub.http or --http",
                endpoint="hub",
                address=self.address,
            )

    def stop(self) -> None:
        """End the thread and free the port; does nothing where it never began."""
        if self._loop is not None and self._end is not None and self.is_alive():
            self._loop.call_soon_threadsafe(self._end.set)
            self.join(5.0)

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        # tornado is needed only by hubs that serve this
        from tornado.httpserver import HTTPServer
        from tornado.netutil import bind_sockets
        from tornado.web import Application, RequestHandler

        hub = self._hub

        class Page(RequestHandler):
            def set_default_headers(self) -> None:
                self.set_header("Server", "fedbus")
                self.set_header("Cache-Control", "no-store")

            def write_error(self, status_code: int, **_: object) -> None:
                self.set_header("Content-Type", "application/json")
                self.finish(json.dumps({"error": self._reason}) + "\n")

            def answer(self, status: int, content: dict[str, object]) -> None:
                self.set_status(status)
                self.set_header("Content-Type", "application/json")
                self.finish(json.dumps(content) + "\n")

        class Live(Page):
            def get(self) -> None:
                silent = hub.source.clock.monotonic() - hub.beat_at
                self.answer(200 if silent < _LIVE_SECONDS else 503, {"live": silent < _LIVE_SECONDS})

        class Ready(Page):
            def get(self) -> None:
                reasons = hub.reasons()
                self.answer(503 if reasons else 200, {"ready": not reasons, "reasons": reasons})

        class Metrics(Page):
            def get(self) -> None:
                self.set_header("Content-Type", metrics.CONTENT_TYPE)
                self.finish(metrics.of_hub(hub))

        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        logging.getLogger("tornado.access").setLevel(logging.ERROR)
        application = Application(
            [("/live", Live), ("/ready", Ready), ("/metrics", Metrics)], default_handler_class=None
        )
        server = HTTPServer(application, max_header_size=16384, max_body_size=1024, idle_connection_timeout=30)
        try:
            sockets = bind_sockets(self.port, self._host or "127.0.0.1")
        except OSError as error:
            self._error = error
            self._bound.set()
            return
        self.port = sockets[0].getsockname()[1]
        server.add_sockets(sockets)
        self._bound.set()
        await self._end.wait()
        server.stop()
        await server.close_all_connections()
