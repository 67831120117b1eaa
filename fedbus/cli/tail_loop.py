"""What `fedbus tail` does while it runs: where messages go, when it ends, and what is told of streams on stderr."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

import click

from fedbus.cli.common import counted
from fedbus.cli.escaping import escape
from fedbus.cli.signals import Stop
from fedbus.errors import DeadlineExceeded

if TYPE_CHECKING:
    from fedbus.cli.begin import CursorFile
    from fedbus.cli.follow import Follower
    from fedbus.cli.render import Renderer
    from fedbus.cli.top import Top
    from fedbus.model.message import Message
    from fedbus.transport.subscriber import Subscriber

_LOOK_SECONDS = 0.1  # how often the ends of --no-follow, --idle-exit and --timeout are looked at
_HANGUP_SECONDS = 0.5  # at most, from a SIGHUP to what it asks for
_MARK_SECONDS = 1.0  # between two looks at what is to be told of streams
_COLOURS = {"lost": "31", "refused": "31", "gap": "33", "duplicate": "33"}
log = logging.getLogger("fedbus.tail")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """When a tail ends by itself."""

    count: int | None = None
    idle_exit: float | None = None  # seconds
    no_follow: bool = False
    timeout: float | None = None  # seconds
    until: datetime | None = None


class Output(Protocol):
    """Where the messages that were chosen go."""

    def show(self, messages: Sequence[Message]) -> None:
        """Take some; on return whoever reads stdout has them, or will be told of them."""

    def tick(self, now: float) -> None:
        """Do what is due at *now*, monotonic."""

    def patience(self, now: float) -> float:
        """Return for how many seconds nothing will be due."""

    def end(self, now: float) -> None:
        """Say what is left to be said."""


class Lines:
    """Each message as a line, or as some."""

    def __init__(self, renderer: Renderer) -> None:
        self._render = renderer.render

    def show(self, messages: Sequence[Message]) -> None:
        render = self._render
        write("\n".join([render(message) for message in messages]) + "\n")

    def tick(self, now: float) -> None:
        pass

    def patience(self, now: float) -> float:
        return _HANGUP_SECONDS

    def end(self, now: float) -> None:
        pass


class Tables:
    """A table every *interval* seconds, in place of the one before where *live*, and one at the end."""

    def __init__(self, top: Top, *, interval: float, live: bool, as_json: bool) -> None:
        self._top = top
        self._interval = interval
        self._live = live
        self._as_json = as_json
        self._due = time.monotonic() + interval
        self._drawn = 0  # lines on the screen that the next table takes the place of
        self._changed = True

    def show(self, messages: Sequence[Message]) -> None:
        self._top.add(messages)
        self._changed = True

    def tick(self, now: float) -> None:
        if now >= self._due:
            self._due = now + self._interval
            # a table like the one before it tells nobody anything, but a live one shows that rates have fallen
            if self._changed or self._live:
                self._changed = False
                self._draw(now, final=False)

    def patience(self, now: float) -> float:
        return max(0.0, self._due - now)

    def end(self, now: float) -> None:
        self._draw(now, final=True)

    def interrupted(self) -> None:
        """Something else was written to the terminal; leave it there."""
        self._drawn = 0

    def _draw(self, now: float, *, final: bool) -> None:
        if self._as_json:
            write(self._top.json(now, final=final) + "\n")
            return
        lines = self._top.table(now, final=final)
        if self._live:
            back = f"\x1b[{self._drawn}F\x1b[J" if self._drawn else ""
            write(back + "\n".join(lines) + "\n")
            self._drawn = len(lines)
        else:
            stamp = "in all" if final else datetime.now(UTC).astimezone().strftime("at %H:%M:%S")
            write(f"{stamp}\n" + "\n".join(lines) + "\n\n")


class Marks:
    """Tells on stderr what a stream had that is not a message: ``lost:``, ``gap:``, ``duplicate:``, ``refused:``."""

    def __init__(self, *, quiet: bool, as_json: bool, told: Callable[[], object] | None = None) -> None:
        """*quiet*: only what is lost. *told* is called after each line."""
        self._quiet = quiet
        self._as_json = as_json
        self._told = told
        self._colour = is_terminal(sys.stderr) and not os.environ.get("NO_COLOR")
        self._seen: dict[str, tuple[int, int, int]] = {}  # gaps, duplicates, records read from the journal
        self._copies: dict[str, int] = {}
        self._look_at = 0.0

    def mark(self, kind: str, text: str) -> None:
        """Write one line."""
        if self._as_json:
            log.warning("%s: %s", kind, text, extra={"mark": kind})
        else:
            head = f"\x1b[{_COLOURS[kind]}m{kind}:\x1b[0m" if self._colour else f"{kind}:"
            try:
                click.echo(f"{head} {escape(text)}", err=True, color=self._colour)
            except OSError:
                pass  # nobody reads it, which must not stop the work
        if self._told is not None:
            self._told()

    def look(self, subscriber: Subscriber, now: float) -> None:
        """Tell what is new since it was looked at before, at most once a second."""
        if now < self._look_at or self._quiet:
            return
        self._look_at = now + _MARK_SECONDS
        for reader in subscriber.readers():
            stats, name = reader.stats, reader.endpoint
            figures = (stats.gaps, stats.duplicates, stats.fetched)
            before = self._seen.get(name, (0, 0, 0))
            if figures == before:
                continue
            self._seen[name] = figures
            gaps, copies, fetched = (new - old for new, old in zip(figures, before, strict=True))
            if gaps > 0:
                self.mark("gap", f"{name}: live traffic had {counted(gaps, 'hole')}; its journal is read for the rest")
            # what comes live while the journal is read comes twice by design
            elif copies > 0 and not fetched:
                self.mark("duplicate", f"{name}: {counted(copies, 'copy').replace('copys', 'copies')} came, not shown")

    def end(self, subscriber: Subscriber) -> None:
        """Tell how much of each stream was refused; the log said why when it happened."""
        if self._quiet:
            return
        self._look_at = 0.0
        self.look(subscriber, 0.0)
        for reader in subscriber.readers():
            stats = reader.stats
            if stats.refused:
                reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(stats.refusals.items()))
                self.mark("refused", f"{reader.endpoint}: {stats.refused} in all ({reasons})")


class Loop:
    """Shows messages until one of the ends is reached."""

    def __init__(
        self,
        subscriber: Subscriber,
        output: Output,
        stop: Stop,
        follower: Follower,
        marks: Marks,
        *,
        choose: Callable[[Message], bool] | None,
        ends: Ends,
        began: float,
        cursor_file: CursorFile | None = None,
    ) -> None:
        """*choose* None: all are shown. *began*: the monotonic time from which --timeout counts."""
        self._subscriber = subscriber
        self._output = output
        self._stop = stop
        self._follower = follower
        self._marks = marks
        self._choose = choose
        self._ends = ends
        self._began = began
        self._cursor_file = cursor_file
        self._until = None if ends.until is None else message_time(ends.until)
        self._beyond: set[str] = set()  # endpoints that have come to --until
        self.shown = 0

    def run(self, first: Sequence[Message] = ()) -> None:
        """Show *first*, which were chosen already, and then what comes; return when an end is reached or a signal came.

        Raises:
            DeadlineExceeded: The timeout came first.
            LossError: With strict, at a loss.
        """
        try:
            if not first or not self._show(list(first), chosen=True):
                self._follow()
        except BrokenPipeError:
            raise
        except BaseException:
            self._output.end(time.monotonic())
            raise
        self._output.end(time.monotonic())

    def _follow(self) -> None:
        subscriber, ends, output = self._subscriber, self._ends, self._output
        began, heard = self._began, time.monotonic()
        while not self._stop.signal:
            messages = subscriber.receive(self._patience(heard))
            now = time.monotonic()
            if not self._follower.look(now):
                self._stop.signal = signal.SIGHUP
            # what has to be asked for may take longer to come than somebody who is up to date wants to wait
            if messages or not subscriber.caught_up:
                heard = now
            if messages and self._show(messages):
                return
            output.tick(now)
            self._marks.look(subscriber, now)
            if self._cursor_file is not None:
                self._cursor_file.save(subscriber.positions(), now)
            if ends.timeout is not None and now - began >= ends.timeout:
                wanted = f"{self.shown} of {ends.count} messages" if ends.count else counted(self.shown, "message")
                raise DeadlineExceeded(f"the {ends.timeout:g} s of --timeout are over; {wanted} were shown")
            if ends.until is not None and self._is_past_until(idle=not messages):
                return
            if messages or self._stop.signal:
                continue
            if ends.idle_exit is not None and now - heard >= ends.idle_exit:
                return
            if ends.no_follow and subscriber.caught_up:
                return

    def _patience(self, heard: float) -> float:
        """Return for how long to wait for messages before looking at the ends again."""
        ends = self._ends
        if ends.no_follow or ends.timeout is not None or ends.until is not None:
            return _LOOK_SECONDS
        now = time.monotonic()
        wait = min(_HANGUP_SECONDS, self._output.patience(now))
        return wait if ends.idle_exit is None else min(wait, max(_LOOK_SECONDS, heard + ends.idle_exit - now))

    def _show(self, messages: list[Message], *, chosen: bool = False) -> bool:
        """Show those that are wanted; return True when the count is reached."""
        last = messages[-1]
        picked = messages if chosen or self._choose is None else [one for one in messages if self._choose(one)]
        if self._until is not None:
            picked = self._before_until(messages, picked)
        done = False
        count = self._ends.count
        if count is not None and self.shown + len(picked) >= count:
            picked = picked[: count - self.shown]
            last, done = picked[-1], True
        if picked:
            self._output.show(picked)
            self.shown += len(picked)
        # only now: a cursor must not pass what a broken pipe has swallowed
        self._subscriber.done(last)
        return done

    def _before_until(self, messages: list[Message], picked: list[Message]) -> list[Message]:
        until = self._until
        assert until is not None
        self._beyond.update(one.endpoint for one in messages if one.time >= until)
        return [one for one in picked if one.time < until]

    def _is_past_until(self, *, idle: bool) -> bool:
        """Whether nothing from before --until can come any more, unless from a publisher whose clock is behind.

        *idle*: nothing came just now.
        """
        until = self._ends.until
        if until is None or datetime.now(UTC) < until:
            return False
        if idle and self._subscriber.caught_up:
            return True
        return all(reader.endpoint in self._beyond for reader in self._subscriber.readers())


def message_time(moment: datetime) -> str:
    """Return *moment* as it is written in messages, so that comparing needs no parsing."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def write(text: str) -> None:
    """Write to stdout and flush; where there is no stdout, nowhere.

    Raises:
        BrokenPipeError: Nobody reads it any more.
        OSError: It cannot be written, and "stdout" is the name of the file.
    """
    if sys.stdout is None:
        return
    encoding = sys.stdout.encoding or "utf-8"
    binary: Any = getattr(sys.stdout, "buffer", None)
    try:
        if binary is None:
            sys.stdout.write(text)
        else:
            binary.write(_encode(text, encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, "stdout") from error


def _encode(text: str, encoding: str) -> bytes:
    """Encode *text*; what *encoding* does not have is written as in JSON, so that JSON is JSON in any locale."""
    try:
        return text.encode(encoding)
    except UnicodeEncodeError:
        return b"".join(_letter(one, encoding) for one in text)


def _letter(letter: str, encoding: str) -> bytes:
    try:
        return letter.encode(encoding)
    except UnicodeEncodeError:
        units = letter.encode("utf-16-be", "surrogatepass").hex()
        return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4)).encode()


def is_terminal(stream: Any) -> bool:
    """Whether *stream*, which may be None, is a terminal."""
    return stream is not None and stream.isatty()
