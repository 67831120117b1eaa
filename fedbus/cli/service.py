"""What all daemons do alike: their signals, and what they tell the service manager that has started them."""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import sys
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from fedbus.cli.signals import Stop
from fedbus.monitor.notify import Keeper


class Service:
    """The frame of a daemon. Enter it first of all, in the main thread::

        with Service() as service:  # SIGHUP no longer ends the process
            daemon = open_all()
            with service.of(
                stop=daemon.stop,
                reload=daemon.reload,
                turned_at=lambda: daemon.beat_at,
                reasons=daemon.reasons,
                live=daemon.live,
                drain_seconds=options.drain_timeout,
            ):
                daemon.run(on_ready=lambda: service.ready("endpoints=3"))
        return 0

    SIGTERM and SIGINT call *stop*, SIGHUP calls *reload*. *turned_at* is the monotonic time of the last round of the
    daemon's own loop, which must come round at least once a second; *live* is that of ``/live``, and says whether its
    other threads come round too; *reasons* are those of ``/ready``. The pages of its HTTP port are
    :func:`fedbus.monitor.http.daemon_pages`.
    """

    def __init__(self) -> None:
        self._keeper: Keeper | None = None
        self._reload: Callable[[], object] | None = None
        self._before: Any = None

    def __enter__(self) -> Service:
        self._before = signal.signal(signal.SIGHUP, self._hangup)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGHUP, self._before)

    @contextlib.contextmanager
    def of(
        self,
        *,
        stop: Callable[[], object],
        reload: Callable[[], object],
        turned_at: Callable[[], float],
        reasons: Callable[[], list[str]],
        live: Callable[[], bool] = lambda: True,
        drain_seconds: float,
    ) -> Iterator[Stop]:
        """Let a daemon that has been opened have the signals, and the service manager know how it is."""
        keeper = Keeper(turned_at=turned_at, reasons=reasons, live=live)
        if keeper.watched and sys.stderr is not None:
            # the manager ends what hangs with SIGABRT, and then the log has where each thread stood
            with contextlib.suppress(OSError, ValueError, AttributeError):
                faulthandler.enable()

        def end() -> None:
            stop()
            keeper.stopping(drain_seconds)

        with keeper, Stop(on_stop=end) as ending:
            self._keeper, self._reload = keeper, reload
            try:
                yield ending
            finally:
                self._keeper = self._reload = None
                keeper.stopping(drain_seconds)

    def ready(self, text: str) -> None:
        """Tell the manager that the daemon is at work; *text* is what it does, for ``systemctl status``."""
        if self._keeper is not None:
            self._keeper.ready(text)

    def _hangup(self, number: int, frame: object) -> None:
        # before there is a daemon, what it is made from is being read anyhow, and a later change shows by itself
        if self._reload is not None:
            self._reload()
        if self._keeper is not None:
            self._keeper.reloading()
