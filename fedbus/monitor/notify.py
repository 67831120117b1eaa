"""What a daemon tells the service manager that started it: ready, reloading, stopping, how it is, and that it turns.

The protocol is that of sd_notify(3): datagrams of ``NAME=value`` lines to the AF_UNIX socket that ``NOTIFY_SOCKET``
names (a path, or ``@name`` in the abstract namespace), and ``WATCHDOG_USEC`` and ``WATCHDOG_PID`` of
sd_watchdog_enabled(3). A library would add nothing: the whole of it is one ``sendto``.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, MutableMapping

from fedbus.bell import Bell

log = logging.getLogger(__name__)

_NAMES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_SEND_SECONDS = 2.0  # the manager reads its socket all the time; a daemon does not hang where it does not
_STATUS_LETTERS = 200
_STATUS_SECONDS = 5.0  # between two looks whether what `systemctl status` shows has changed
_RELOAD_SECONDS = 0.05  # between two looks whether the files have been read
_RELOAD_PATIENCE = 60.0  # after which a reload counts as done, lest the manager wait for ever


class Notifier:
    """Sends notifications; does nothing where no manager listens.

    The variables are taken out of *environment*, so that no child of the daemon speaks in its name.
    """

    def __init__(self, environment: MutableMapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        path, usec, pid = (environment.pop(name, "") for name in _NAMES)
        self._socket: socket.socket | None = None
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self.watchdog_seconds = 0.0  # within which the manager wants a sign of life; 0.0: it wants none
        if not path.startswith(("/", "@")) or len(path) < 2:
            return
        # opened now: what there is to say about a lack of descriptors must not need one
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(_SEND_SECONDS)
        if usec.isascii() and usec.isdigit() and pid in ("", str(os.getpid())):
            self.watchdog_seconds = int(usec) / 1e6

    @property
    def listening(self) -> bool:
        """Whether there is somebody to tell."""
        return self._socket is not None

    def send(self, **assignments: str | int) -> bool:
        """Send *assignments* in one datagram; say whether they were taken. Safe in a signal handler.

        Values that come from elsewhere must not bring assignments of their own, so each stays on one line.
        """
        if self._socket is None:
            return False
        lines = [f"{name}={_one_line(str(value))}" for name, value in assignments.items()]
        try:
            self._socket.sendto("\n".join(lines).encode("utf-8", "replace"), self._address)
        except OSError as error:
            log.debug("the service manager takes no notification: %s", error)
            return False
        return True

    def close(self) -> None:
        """Free the socket; what is sent later goes nowhere."""
        if self._socket is not None:
            taken, self._socket = self._socket, None
            taken.close()


def _one_line(text: str) -> str:
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return shown if len(shown) <= _STATUS_LETTERS else shown[: _STATUS_LETTERS - 1] + "…"


class Keeper(threading.Thread):
    """Keeps the service manager informed about a daemon while it is entered; without a manager it does nothing.

    A sign of life is sent only where *turned_at*, the monotonic time of the last round of the daemon's own loop, has
    moved since the one before, and only while *live* says that its other threads come round too: a loop that hangs is
    killed and started again by the manager (``WatchdogSec=``), however well this thread may be. *reasons* say why the
    daemon is not ready, and are what ``systemctl status`` shows.
    """

    def __init__(
        self,
        *,
        turned_at: Callable[[], float],
        reasons: Callable[[], list[str]],
        live: Callable[[], bool] = lambda: True,
        notifier: Notifier | None = None,
    ) -> None:
        super().__init__(name="fedbus-notify", daemon=True)
        self._notifier = notifier or Notifier()
        self._turned_at = turned_at
        self._live = live
        self._reasons = reasons
        self._ended = False
        self._bell = Bell()
        self._is_ready = False
        self._ready_text = self._shown = ""
        self._reload_at: float | None = None  # monotonic time of the last request to reload that is not done yet
        self._stopping = False

    @property
    def watched(self) -> bool:
        """Whether the manager ends the daemon when it hangs."""
        return self._notifier.watchdog_seconds > 0

    def ready(self, text: str) -> None:
        """Say that the daemon is at work; *text* is what it is doing, such as ``consumers=irc endpoints=12``."""
        self._is_ready = True
        self._ready_text = text
        self._shown = self._status()
        self._notifier.send(READY=1, STATUS=self._shown)
        self._bell.release()

    def reloading(self) -> None:
        """Say that the configuration is being read again; safe in a signal handler, and in a storm of signals.

        When the loop has come round twice since, it has been, and the manager is told.
        """
        if not self._is_ready or self._stopping:
            return
        now = time.monotonic()
        if self._reload_at is None:
            # MONOTONIC_USEC is what Type=notify-reload (systemd 253) asks for
            self._notifier.send(RELOADING=1, MONOTONIC_USEC=int(now * 1e6))
        self._reload_at = now
        self._bell.release()

    def stopping(self, seconds: float) -> None:
        """Say that the daemon ends, within *seconds* where all goes well; safe in a signal handler."""
        if not self._stopping:
            self._stopping = True
            self._notifier.send(STOPPING=1, STATUS="stopping", EXTEND_TIMEOUT_USEC=int(seconds * 1e6))

    def run(self) -> None:
        turned, seen = self._turned_at(), 0
        reload_at: float | None = None
        looked_at = 0.0
        pause = min(_STATUS_SECONDS, self._notifier.watchdog_seconds / 4) if self.watched else _STATUS_SECONDS
        while not self._ended:
            self._bell.wait(_RELOAD_SECONDS if self._reload_at is not None else pause)
            now = time.monotonic()
            before, turned = turned, self._turned_at()
            if self.watched and turned > before and self._live():
                self._notifier.send(WATCHDOG=1)
            asked = self._reload_at
            if asked is not None:
                if asked != reload_at:
                    reload_at, seen = asked, 0
                if turned > max(before, asked):
                    seen += 1
                if seen >= 2 or now - asked > _RELOAD_PATIENCE:
                    self._reload_at = None if self._reload_at == asked else self._reload_at
                    if self._reload_at is None and not self._stopping:
                        self._notifier.send(READY=1)
            if self._is_ready and not self._stopping and now - looked_at >= _STATUS_SECONDS:
                looked_at = now
                if (status := self._status()) != self._shown:
                    self._shown = status
                    self._notifier.send(STATUS=status)

    def _status(self) -> str:
        reasons = self._reasons()
        if not reasons:
            return self._ready_text
        return f"degraded, {len(reasons)} reason{'s' * (len(reasons) > 1)}: {'; '.join(reasons)}"

    def __enter__(self) -> Keeper:
        if self._notifier.listening:
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._bell.release()
        if self.is_alive():
            self.join(5.0)
        self._notifier.close()
        self._bell.close()
