"""What wakes a thread that waits: from any other thread, from a signal handler, and also while it ends."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Sequence


class Bell:
    """Wakes the thread that waits for ``descriptor`` to become readable: an eventfd, written once until that one looks.

    No :class:`threading.Event`: a signal handler may come while the thread that it interrupts holds the lock of one.
    """

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._rung = False
        # The number of a closed descriptor may be somebody else's at once. Reentrant: for handlers within `close`.
        self._lock = threading.RLock()

    def release(self) -> None:
        """Ring; it has the name of a lock's method because :meth:`Pending.watch` wants that."""
        if not self._rung:
            with self._lock:
                if self.descriptor >= 0:
                    self._rung = True
                    os.eventfd_write(self.descriptor, 1)

    def hush(self) -> None:
        """Make it ready to be rung again; look at what it was rung for only after this."""
        with self._lock:
            if self.descriptor >= 0:
                try:
                    os.eventfd_read(self.descriptor)
                except BlockingIOError:
                    pass
        self._rung = False

    def wait(self, seconds: float, others: Sequence[int] = ()) -> None:
        """Return when it was rung, when one of *others* (descriptors) is readable, or after *seconds*; and hush it."""
        poll = select.poll()
        if self.descriptor >= 0:
            poll.register(self.descriptor, select.POLLIN)
        for one in others:
            poll.register(one, select.POLLIN)
        # rounded up, or the last part of a millisecond would spin
        poll.poll(int(max(0.0, seconds) * 1000) + 1)
        self.hush()

    def close(self) -> None:
        """Free the descriptor; ringing it from now on does nothing."""
        with self._lock:
            descriptor, self.descriptor = self.descriptor, -1
            if descriptor >= 0:
                os.close(descriptor)
