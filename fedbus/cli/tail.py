"""`fedbus tail`: the bus, as it happens or from the past."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from fedbus.cli.common import (
    COLOUR_HELP,
    complete_endpoint,
    complete_filter,
    counted,
    examples,
    notice,
    verbosity,
    watch_settings,
)
from fedbus.cli.signals import Noted, Stop

if TYPE_CHECKING:
    from fedbus.cli.follow import Follower
    from fedbus.cli.render import Renderer
    from fedbus.model.message import Message
    from fedbus.transport.subscriber import Subscriber

_LOOK_SECONDS = 0.1  # how often the ends of --no-follow and --timeout are looked at
_HANGUP_SECONDS = 0.5  # at most, from a SIGHUP to what it asks for

_EXAMPLES = examples(
    "fedbus tail                                     everything, from now on",
    "fedbus tail koji.package bodhi.update.#         topics by prefix; * is one field, # any number",
    "fedbus tail --since 2h --no-follow koji         the last two hours, then end",
    "fedbus tail --since beginning --json | jq .body",
    "fedbus tail --cursor nightly --idle-exit 5      go on where the last run of this name ended",
    "fedbus tail -o '{time} {endpoint} {body.package}'",
    "fedbus tail --count 1 --timeout 60 koji.package.build.complete",
)


def _patterns(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> list[re.Pattern[str]]:
    try:
        return [re.compile(text) for text in texts]
    except re.error as error:
        raise click.BadParameter(f"not a regular expression: {error}") from error


@click.command("tail", epilog=_EXAMPLES)
@click.argument("filters", metavar="[FILTER]...", nargs=-1, shell_complete=complete_filter)
@click.option(
    "--since",
    default="now",
    show_default=True,
    metavar="WHEN",
    help="now, beginning, how long ago (10m, 2h, 7d), a time (2026-11-21T10:00:00Z), or ENDPOINT/EPOCH/SEQUENCE.",
)
@click.option("--cursor", metavar="NAME", help="Keep the place under NAME on this host; --since then counts only once.")
@click.option(
    "--endpoint",
    "endpoints",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_endpoint,
    help="Read only this endpoint; may be repeated.",
)
@click.option(
    "--include", multiple=True, metavar="REGEX", callback=_patterns, help="Only what fits: topic, space, JSON."
)
@click.option("--exclude", multiple=True, metavar="REGEX", callback=_patterns, help="Not what fits.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N messages.")
@click.option("--idle-exit", type=click.FloatRange(0.0), metavar="S", help="End when nothing came for S seconds.")
@click.option("--no-follow", is_flag=True, help="End once everything there is now was shown.")
@click.option(
    "--timeout",
    type=click.FloatRange(0.0),
    metavar="S",
    help="End after S seconds, with exit code 6: the other ways to end were not reached.",
)
@click.option("--strict", is_flag=True, help="End with exit code 7 at the first message that is known to be lost.")
@click.option(
    "-o",
    "--format",
    "form",
    default="short",
    show_default=True,
    metavar="FORM",
    help="short, wide, pretty, json, or a template with {topic}, {endpoint}, {body.package}, {time} and the like.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as -o json: one object a line.")
@click.option("--fields", metavar="A,B.C", help="Show only these: members of the body, or topic, time, body.topic, ….")
@click.option(
    "--color", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True, help=COLOUR_HELP
)
@click.option("--utc", is_flag=True, help="Show times in UTC; otherwise in the time zone here. JSON has UTC always.")
@click.pass_context
def tail(
    context: click.Context,
    filters: tuple[str, ...],
    since: str,
    cursor: str | None,
    endpoints: tuple[str, ...],
    include: list[re.Pattern[str]],
    exclude: list[re.Pattern[str]],
    count: int | None,
    idle_exit: float | None,
    no_follow: bool,
    timeout: float | None,
    strict: bool,
    form: str,
    as_json: bool,
    fields: str | None,
    color: str,
    utc: bool,
) -> int:
    """Show the messages whose topic is below one of the FILTERs, or all; every signature was verified.

    A FILTER without the prefix is taken within PREFIX.ENVIRONMENT. Messages of one endpoint come in its order; across
    endpoints there is none. Messages go to stdout; what was lost or refused is told on stderr. What a terminal could
    obey is shown escaped.

    It goes on with the endpoints that are added to the configuration, moved or removed; SIGHUP has it read at once.
    Ends on Ctrl-C or SIGTERM with 128 + the signal's number, its cursor kept; quietly when nobody reads its output.
    """
    from fedbus.bus import Bus
    from fedbus.cli.follow import Follower
    from fedbus.cli.render import FORMATS, Look, Renderer
    from fedbus.errors import MessageError

    if as_json and form not in ("short", "json"):
        raise click.UsageError("--json and -o exclude each other")
    form = "json" if as_json else form
    chosen = tuple(part.strip() for part in (fields or "").split(",") if part.strip())
    if fields is not None and not chosen:
        raise click.UsageError("--fields names no field")
    if chosen and form not in FORMATS:
        raise click.UsageError("--fields is not for templates; name the fields in the template")
    hangup = context.with_resource(Noted(signal.SIGHUP))  # before anything slow: its default would end us
    watcher = watch_settings(context)
    settings = watcher.settings
    look = Look(
        form=form,
        fields=chosen,
        colour=color == "always" or (color == "auto" and _is_terminal(sys.stdout) and not os.environ.get("NO_COLOR")),
        utc=utc,
        columns=shutil.get_terminal_size().columns if _is_terminal(sys.stdout) else 0,
        root=settings.naming.root,
    )
    try:
        renderer = Renderer(look)
    except ValueError as error:
        raise click.UsageError(f"--format: {error}") from error
    with Stop() as stop, Bus(watcher) as bus:
        try:
            subscriber = bus.subscribe(
                *filters,
                since=since,
                cursor=cursor,
                endpoints=list(endpoints) or None,
                strict=strict,
                on_loss=lambda loss: notice(f"lost: {loss}"),
            )
        except MessageError as error:
            raise click.UsageError(f"FILTER: {error}") from error
        except ValueError as error:
            raise click.UsageError(f"--since: {error}") from error
        stop.on_stop = subscriber.stop
        if stop.signal:
            subscriber.stop()
        if (_is_terminal(sys.stderr) and verbosity(context) >= 0) or verbosity(context) > 0:
            names = list(endpoints) or list(bus.settings.endpoints)
            notice(_opening(names, [one.text for one in subscriber.filters], since, cursor))
        follower = Follower(bus.discovery, hangup, now=time.monotonic(), only=endpoints, quiet=verbosity(context) < 0)
        loop = _Loop(
            subscriber,
            renderer,
            stop,
            follower,
            include=include,
            exclude=exclude,
            count=count,
            idle_exit=idle_exit,
            no_follow=no_follow,
            timeout=timeout,
        )
        try:
            loop.run()
        finally:
            # before the bus closes: the cursor is written from what was shown
            stop.on_stop = None
        if no_follow and verbosity(context) >= 0:
            _tell_silent(subscriber)
        if verbosity(context) > 0:
            _tell_counts(subscriber, loop.shown)
    return stop.code


class _Loop:
    """Shows messages until one of the ends is reached."""

    def __init__(
        self,
        subscriber: Subscriber,
        renderer: Renderer,
        stop: Stop,
        follower: Follower,
        *,
        include: list[re.Pattern[str]],
        exclude: list[re.Pattern[str]],
        count: int | None,
        idle_exit: float | None,
        no_follow: bool,
        timeout: float | None,
    ) -> None:
        self._subscriber = subscriber
        self._renderer = renderer
        self._stop = stop
        self._follower = follower
        self._include = include
        self._exclude = exclude
        self._count = count
        self._idle_exit = idle_exit
        self._no_follow = no_follow
        self._timeout = timeout
        self.shown = 0

    def run(self) -> None:
        """Show messages; return when an end is reached or a signal came.

        Raises:
            DeadlineExceeded: The timeout came first.
            LossError: With strict, at a loss.
        """
        from fedbus.errors import DeadlineExceeded

        subscriber = self._subscriber
        began = heard = time.monotonic()
        while not self._stop.signal:
            messages = subscriber.receive(self._patience(heard))
            now = time.monotonic()
            if not self._follower.look(now):
                self._stop.signal = signal.SIGHUP
            if messages:
                heard = now
                if self._show(messages):
                    return
            if self._timeout is not None and now - began >= self._timeout:
                wanted = f"{self.shown} of {self._count} messages" if self._count else counted(self.shown, "message")
                raise DeadlineExceeded(f"the {self._timeout:g} s of --timeout are over; {wanted} were shown")
            if messages or self._stop.signal:
                continue
            if self._idle_exit is not None and now - heard >= self._idle_exit:
                return
            if self._no_follow and subscriber.caught_up:
                return

    def _patience(self, heard: float) -> float:
        """Return for how long to wait for messages before looking at the ends again."""
        if self._no_follow or self._timeout is not None:
            return _LOOK_SECONDS
        if self._idle_exit is None:
            return _HANGUP_SECONDS
        return min(_HANGUP_SECONDS, max(0.0, heard + self._idle_exit - time.monotonic()))

    def _show(self, messages: list[Message]) -> bool:
        """Write some messages; return True when the count is reached."""
        from fedbus.cli.render import matches

        render = self._renderer.render
        picky = bool(self._include or self._exclude)
        lines = []
        done = False
        last = messages[-1]
        for message in messages:
            if picky and not matches(message, self._include, self._exclude):
                continue
            lines.append(render(message))
            self.shown += 1
            if self._count is not None and self.shown >= self._count:
                last, done = message, True
                break
        if lines:
            _write("\n".join(lines) + "\n")
        # only now: a cursor must not pass what a broken pipe has swallowed
        self._subscriber.done(last)
        return done


def _write(text: str) -> None:
    """Write to stdout and flush; where there is no stdout, nowhere.

    Raises:
        BrokenPipeError: Nobody reads it any more.
    """
    if sys.stdout is None:
        return
    encoding = sys.stdout.encoding or "utf-8"
    binary: Any = getattr(sys.stdout, "buffer", None)
    if binary is None:
        sys.stdout.write(text)
    else:
        binary.write(text.encode(encoding, "backslashreplace"))
    sys.stdout.flush()


def _is_terminal(stream: Any) -> bool:
    return stream is not None and stream.isatty()


def _opening(names: list[str], filters: list[str], since: str, cursor: str | None) -> str:
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    where = f"from cursor {cursor}, at first from {since}" if cursor else f"since {since}"
    return f"reading {', '.join(filters) or 'everything'} of {shown}, {where}"


def _tell_silent(subscriber: Subscriber) -> None:
    """Say which endpoints were not read at all, so that nothing shown is not taken for nothing said."""
    silent = sorted(reader.endpoint for reader in subscriber.readers() if not reader.epoch)
    if silent:
        shown = ", ".join(silent[:8]) + (f" and {len(silent) - 8} more" if len(silent) > 8 else "")
        notice(f"not read, since they do not answer and have no journal on this host: {shown}")


def _tell_counts(subscriber: Subscriber, shown: int) -> None:
    refused = ", ".join(f"{reason} {count}" for reason, count in sorted(subscriber.stats.refused.items()))
    readers = subscriber.readers()
    lost = sum(reader.stats.lost for reader in readers)
    gaps = sum(reader.stats.gaps for reader in readers)
    notice(f"{counted(shown, 'message')} shown; gaps read again {gaps}, losses {lost}, refused: {refused or 'none'}")
