"""One run of `fedbus tail`: opens what is to be read, lets the loop show it, and says at the end what is to be said."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedbus.cli.begin import CursorFile, Last
from fedbus.cli.common import counted, notice, verbosity
from fedbus.cli.follow import Follower
from fedbus.cli.signals import Noted, Stop
from fedbus.cli.tail_loop import Ends, Loop, Marks, Output, Tables, is_terminal, message_time
from fedbus.errors import LossError, MessageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from fedbus.bus import Bus, SinceLike
    from fedbus.cli.choose import Chooser
    from fedbus.model.message import Message
    from fedbus.model.position import Cursor
    from fedbus.transport.state import Loss
    from fedbus.transport.subscriber import Subscriber


class Reading:
    """One run: opens what is read, lets the loop show it, and says at the end what is to be said."""

    def __init__(
        self,
        context: click.Context,
        bus: Bus,
        stop: Stop,
        *,
        choose: Chooser,
        output: Output,
        filters: tuple[str, ...],
        begin: SinceLike,
        endpoints: tuple[str, ...],
        cursor: str | None,
        cursor_file: Path | None,
        strict: bool,
    ) -> None:

        self._loud = verbosity(context)
        self._bus = bus
        self._stop = stop
        self._choose = choose
        self._output = output
        self._filters = filters
        self._begin = begin
        self._endpoints = endpoints
        self._cursor = cursor
        self._file = None if cursor_file is None else CursorFile(cursor_file)
        self._strict = strict
        self._last: Last | None = None
        told = output.interrupted if isinstance(output, Tables) else None
        as_json = (context.obj or {}).get("log_form") == "json"
        self._marks = Marks(quiet=self._loud < 0, as_json=as_json, told=told)

    def run(self, hangup: Noted, ends: Ends, *, last: int | None, last_per_topic: int | None) -> int:
        """Return the exit code.

        Raises:
            DeadlineExceeded, LossError: As the loop.
        """

        began = time.monotonic()
        bus, stop = self._bus, self._stop
        first: list[Message] = []
        if last or last_per_topic:
            until = None if ends.timeout is None else began + ends.timeout
            choose = self._choose if ends.until is None else _before(ends.until, self._choose)
            self._last = Last(self._subscribe, choose, stopped=lambda: stop.signal != 0, until=until)
            if last:
                subscriber, first = self._last.of_all(last, self._begin)
            else:
                subscriber, first = self._last.of_each_topic(last_per_topic or 1, self._begin)
        else:
            subscriber = self._subscribe(self._begin, self._places())
        if (is_terminal(sys.stderr) and self._loud >= 0) or self._loud > 0:
            names = list(self._endpoints) or list(bus.settings.endpoints)
            notice(_opening(names, [one.text for one in subscriber.filters], self._begin, self._cursor, last))
        follower = Follower(bus.discovery, hangup, now=time.monotonic(), only=self._endpoints, quiet=self._loud < 0)
        loop = Loop(
            subscriber,
            self._output,
            stop,
            follower,
            self._marks,
            choose=None if self._choose.everything else self._choose,
            ends=ends,
            began=began,
            cursor_file=self._file,
        )
        try:
            loop.run(first)
        finally:
            # before the bus closes: the cursor is written from what was shown
            stop.on_stop = None
            if self._file is not None:
                self._file.save(subscriber.positions(), time.monotonic(), at_once=True)
            self._marks.end(subscriber)
        if ends.no_follow and self._loud >= 0:
            _tell_silent(subscriber)
        if self._loud > 0:
            _tell_counts(subscriber, loop.shown)
        return stop.code

    def _places(self) -> Cursor | None:
        if self._file is None:
            return None
        try:
            return self._file.load()
        except ValueError as error:
            raise click.UsageError(f"--cursor-file: {error}") from error

    def _subscribe(self, since: SinceLike, positions: Cursor | None) -> Subscriber:

        try:
            subscriber = self._bus.subscribe(
                *self._filters,
                since=since,
                cursor=self._cursor,
                endpoints=list(self._endpoints) or None,
                on_loss=self._lost,
                positions=positions,
            )
        except MessageError as error:
            raise click.UsageError(f"FILTER: {error}") from error
        self._stop.on_stop = subscriber.stop
        if self._stop.signal:
            subscriber.stop()
        return subscriber

    def _lost(self, loss: Loss) -> None:
        if self._last is not None and self._last.collecting and loss.cause == "retention":
            return  # it was read from before what there is, to find the last messages
        if self._strict:
            raise LossError(str(loss))
        self._marks.mark("lost", str(loss))


def _before(until: datetime, choose: Callable[[Message], bool]) -> Callable[[Message], bool]:
    """Let *choose* decide of what was published before *until*, and of nothing else."""
    moment = message_time(until)
    return lambda message: message.time < moment and choose(message)


def _opening(names: list[str], filters: list[str], since: SinceLike, cursor: str | None, last: int | None) -> str:
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    where = f"from cursor {cursor}, at first from {since}" if cursor else f"since {since}"
    if last:
        where = f"the last {last}{'' if since == 'beginning' else f' since {since}'} and what follows"
    return f"reading {', '.join(filters) or 'everything'} of {shown}, {where}"


def _tell_silent(subscriber: Subscriber) -> None:
    """Say which endpoints were not read at all, so that nothing shown is not taken for nothing said."""
    silent = sorted(reader.endpoint for reader in subscriber.readers() if not reader.epoch)
    if silent:
        shown = ", ".join(silent[:8]) + (f" and {len(silent) - 8} more" if len(silent) > 8 else "")
        notice(f"not read, since they do not answer and have no journal on this host that could be read: {shown}")


def _tell_counts(subscriber: Subscriber, shown: int) -> None:
    refused = ", ".join(f"{reason} {count}" for reason, count in sorted(subscriber.stats.refused.items()))
    readers = subscriber.readers()
    lost = sum(reader.stats.lost for reader in readers)
    gaps = sum(reader.stats.gaps for reader in readers)
    notice(f"{counted(shown, 'message')} shown; gaps read again {gaps}, losses {lost}, refused: {refused or 'none'}")
