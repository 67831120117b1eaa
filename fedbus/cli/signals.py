"""SIGTERM and SIGINT, the same for all commands: the first one ends the work in order, a later one ends it at once."""

from __future__ import annotations

import atexit
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

ENDING = (signal.SIGTERM, signal.SIGINT)
_BURST_SECONDS = 1.0  # signals so soon after the first are the same wish: a shell and its terminal both pass it on


class Finished(int):
    """The exit code of a command that has closed all it opened: the interpreter need not take itself apart.

    That takes 15 ms, and hooks wait for them.
    """


class Stop:
    """While it is entered, SIGTERM and SIGINT are noted instead of killing: look at :attr:`signal`, or :meth:`wait`.

    *on_stop* is called in the handler, so it must only do what is safe there (set a flag, write to an eventfd). A
    signal more than a second after the first ends the process at once, without cleaning up, with 128 + its number,
    unless *insist* is false. *also* are signals to treat like these. Enter it in the main thread.
    """

    def __init__(
        self, on_stop: Callable[[], object] | None = None, *, also: tuple[signal.Signals, ...] = (), insist: bool = True
    ) -> None:
        self.signal = 0  # the number of the first one, or 0
        self.on_stop = on_stop
        self._signals = (*ENDING, *also)
        self._insist = insist
        self._since = 0.0
        self._wake = -1
        self._before: dict[int, Any] = {}

    @property
    def code(self) -> int:
        """The exit code to end with: 128 + the signal's number, or 0 when there was none."""
        return 128 + self.signal if self.signal else 0

    @property
    def descriptor(self) -> int:
        """Becomes readable when a signal has come."""
        return self._wake

    def wait(self, seconds: float) -> bool:
        """Return True as soon as there was a signal, False after *seconds*."""
        if not self.signal and seconds > 0:
            poll = select.poll()
            poll.register(self._wake, select.POLLIN)
            # rounded up, or the last part of a millisecond would spin
            poll.poll(int(seconds * 1000) + 1)
        return self.signal != 0

    def __enter__(self) -> Stop:
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        for number in self._signals:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            # once it has come, what is left of the process (flushing, joining threads) must not be cut by a burst
            signal.signal(number, self._late if self.signal else handler)
        if self.signal:
            # the interpreter takes handlers away before it is gone, and what is left of a burst would kill it then
            atexit.register(_ignore, self._signals)
        os.close(self._wake)
        self._wake = -1

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            self._late(number, frame)
            return
        # in this order: the next signal of a burst may come between any two lines here
        self._since = time.monotonic()
        self.signal = number
        os.eventfd_write(self._wake, 1)
        if self.on_stop is not None:
            self.on_stop()

    def _late(self, number: int, frame: FrameType | None) -> None:
        if self._insist and time.monotonic() - self._since > _BURST_SECONDS:
            os._exit(128 + number)


def _ignore(numbers: tuple[signal.Signals, ...]) -> None:
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


class Noted:
    """While it is entered, the signal *number* is only noted: :meth:`take` says whether it has come.

    Enter it in the main thread, and first of all where the default would end the process.
    """

    def __init__(self, number: signal.Signals) -> None:
        self._number = number
        self._come = False
        self._before: Any = None

    def take(self) -> bool:
        """Return whether the signal has come since this was asked before."""
        come, self._come = self._come, False
        return come

    def __enter__(self) -> Noted:
        self._before = signal.signal(self._number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(self._number, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._come = True


def guard_standard_streams() -> None:
    """Open /dev/null where stdin, stdout or stderr is closed, so that no socket or journal gets their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
            if null != number:
                os.dup2(null, number)
                os.close(null)


def silence_stdout() -> None:
    """Nobody reads stdout any more: let the rest, and the flush at exit, go nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 1)
    finally:
        os.close(null)
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError:
            pass
