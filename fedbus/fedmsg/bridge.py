"""The bridge: both halves, and what holds them together."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fedbus.bell import Bell
from fedbus.clock import Clock
from fedbus.errors import FedbusError
from fedbus.fedmsg.inward import Inward
from fedbus.fedmsg.outward import Outward
from fedbus.transport.endpoint import Endpoint

_TICK = 0.25
_WATCH_SECONDS = 1.0


class Bridge:
    """Runs the halves that are given until it is stopped; either may be None.

    *watch* is asked now and then (with True: even if the files look the same) for a changed list of endpoints that
    speak fedmsg, and returns None where nothing has changed.
    """

    def __init__(
        self,
        inward: Inward | None,
        outward: Outward | None,
        *,
        drain_timeout: float,
        clock: Clock,
        watch: Callable[[bool], Iterable[Endpoint] | None] | None = None,
    ) -> None:
        self.inward = inward
        self.outward = outward
        self.beat_at = clock.monotonic()
        self.refused = ""  # why the configuration on disk is not in force
        self._drain_timeout = drain_timeout
        self._clock = clock
        self._watch = watch
        self._watch_at = 0.0
        self._stop_asked = False
        self._reload_asked = False
        self._bell = Bell()

    def run(self, *, seconds: float | None = None, on_ready: Callable[[], object] | None = None) -> None:
        """Carry until :meth:`stop`, or until *seconds* have passed; then bring what was taken to its end."""
        begun = self._clock.monotonic()
        halves = [half for half in (self.inward, self.outward) if half is not None]
        try:
            for half in halves:
                half.start()
            if on_ready is not None:
                on_ready()
            while not self._stop_asked:
                now = self.beat_at = self._clock.monotonic()
                if seconds is not None and now - begun >= seconds:
                    break
                if self._watch is not None and (self._reload_asked or now >= self._watch_at):
                    self._watch_at = now + _WATCH_SECONDS
                    forced, self._reload_asked = self._reload_asked, False
                    self._look(forced)
                self._bell.wait(_TICK)
        finally:
            self.close()

    def stop(self) -> None:
        """Ask :meth:`run` to end; safe in any thread and in a signal handler."""
        self._stop_asked = True
        self._bell.release()

    def reload(self) -> None:
        """Ask for the configuration to be read again; safe in any thread and in a signal handler."""
        self._reload_asked = True
        self._bell.release()

    def close(self) -> None:
        """End both halves; what was read is journaled, and the cursor of what was sent is written."""
        end = self._clock.monotonic() + self._drain_timeout
        if self.inward is not None:
            self.inward.stop(self._drain_timeout)
        if self.outward is not None:
            self.outward.stop()
        for half in (self.inward, self.outward):
            if half is not None and half.ident is not None:
                half.join(max(0.0, end - self._clock.monotonic()) + 1.0)
            elif isinstance(half, Inward):
                half.close()
            elif isinstance(half, Outward):
                half.subscriber.close()
        self._bell.close()

    def live(self, limit: float) -> bool:
        """Whether every thread has come round within *limit* seconds."""
        now = self._clock.monotonic()
        turns = [self.beat_at, *(half.turned_at for half in (self.inward, self.outward) if half is not None)]
        return all(now - at < limit for at in turns)

    def reasons(self) -> list[str]:
        """Return why the bridge is not ready, or is ready only in part; empty when all is well."""
        found = []
        if self.refused:
            found.append(f"configuration refused: {self.refused}")
        if self.inward is not None and self.inward.failure:
            found.append(f"carrying in: {self.inward.failure}")
        if self.inward is not None:
            found += [f"carrying in: {fault}" for fault in self.inward.feed.validator.authorities.faults()]
        if self.outward is not None and self.outward.failure:
            found.append(f"carrying out: {self.outward.failure}")
        if self._stop_asked:
            found.append("stopping")
        return found

    def _look(self, forced: bool) -> None:
        assert self._watch is not None
        try:
            endpoints = self._watch(forced)
        except FedbusError as error:
            self.refused = str(error)
            return
        if endpoints is not None:
            self.refused = ""
            if self.inward is not None:
                self.inward.update(endpoints)
