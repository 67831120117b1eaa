"""`fedbus tail`: the bus, as it happens or from the past."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from fedbus.cli.common import (
    COLOUR_HELP,
    complete_cursor,
    complete_endpoint,
    complete_filter,
    examples,
    watch_settings,
)
from fedbus.cli.signals import Noted, Stop

if TYPE_CHECKING:
    from fedbus.bus import SinceLike
    from fedbus.cli.choose import Chooser
    from fedbus.cli.patterns import Patterns
    from fedbus.cli.render import Look
    from fedbus.cli.tail_loop import Output
    from fedbus.texts.texts import Texts

_ROWS = 20  # of a table of --top where there is no terminal
_PATHS = (
    *("topic", "endpoint", "epoch", "sequence", "id", "time", "signer", "wire", "body."),
    *("text.title", "text.summary", "text.link", "text.agent", "text.packages", "text.users"),
)

_EXAMPLES = examples(
    "fedbus tail                                     everything, from now on",
    "fedbus tail koji.package bodhi.update.#         topics by prefix; * is one field, # any number",
    "fedbus tail --last 20                           the last 20 messages, then go on",
    "fedbus tail --since 'yesterday 14:00' --until 'yesterday 15:00' koji",
    "fedbus tail --where build.status=failed --where 'build.tries>2' --signer koji.build01",
    "fedbus tail -g 'kernel|glibc' --exclude 'scratch' --package bash",
    "fedbus tail --since beginning --json | jq .body",
    "fedbus tail --since 1h --no-follow -o wide --fields package,text.summary",
    "fedbus tail --cursor nightly --idle-exit 5      go on where the last run of this name ended",
    "fedbus tail -o '{time} {endpoint} {body.package}'",
    "fedbus tail --count 1 --timeout 60 koji.package.build.complete",
    "fedbus tail --top                               rates by topic, live",
    "fedbus tail --top --by service --since 1d --no-follow --json",
)


def _complete_path(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Offer the paths that every message has; of --fields, behind the last comma."""
    before, comma, last = begun.rpartition(",")
    return [CompletionItem(before + comma + path) for path in _PATHS if path.startswith(last)]


def _complete_by(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    return [CompletionItem(path) for path in ("service", *_PATHS) if path.startswith(begun)]


def _complete_form(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    forms = ("short", "wide", "pretty", "json", "{time} {topic} {text.summary}")
    return [CompletionItem(form) for form in forms if form.startswith(begun)]


def _complete_when(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    times = ("now", "beginning", "10m", "1h", "1d", "today", "yesterday")
    return [CompletionItem(when) for when in times if when.startswith(begun)]


@click.command("tail", epilog=_EXAMPLES)
@click.argument("filters", metavar="[FILTER]...", nargs=-1, shell_complete=complete_filter)
@click.option(
    "--since",
    metavar="WHEN",
    shell_complete=_complete_when,
    help="now (else), beginning, how long ago (10m, 2h, 7d, '2 hours ago'), a time (2026-11-21T10:00:00Z, 14:30, "
    "'yesterday 14:00'), or ENDPOINT/EPOCH/SEQUENCE.",
)
@click.option(
    "--until",
    metavar="WHEN",
    shell_complete=_complete_when,
    help="Only what was published before that time, and end once it is over; a time as of --since.",
)
@click.option(
    "--last",
    type=click.IntRange(1),
    metavar="N",
    help="Begin with the last N messages that are chosen, of those since --since where that is given too.",
)
@click.option(
    "--last-per-topic",
    type=click.IntRange(1),
    metavar="N",
    help="Begin with the last N of each topic; all since --since (else the beginning) is read for it.",
)
@click.option(
    "--cursor",
    metavar="NAME",
    shell_complete=complete_cursor,
    help="Keep the place under NAME on this host; --since then counts only once.",
)
@click.option(
    "--cursor-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Keep the place in FILE instead, as lines ENDPOINT/EPOCH/SEQUENCE.",
)
@click.option(
    "--endpoint",
    "endpoints",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_endpoint,
    help="Read only this endpoint; may be repeated.",
)
@click.option(
    "--signer",
    "signers",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_endpoint,
    help="Only what this name has signed; may be repeated.",
)
@click.option(
    "-w",
    "--where",
    multiple=True,
    metavar="PATH=VALUE",
    shell_complete=_complete_path,
    help="Only where a field is so: PATH=VALUE, !=, <, <=, >, >=, ~REGEX, !~REGEX, PATH (is there), !PATH. PATH is as "
    "in --fields. Repeated: all of them.",
)
@click.option("--package", "packages", multiple=True, metavar="NAME", help="Only what is about it; may be repeated.")
@click.option("--user", "users", multiple=True, metavar="NAME", help="Only what is of or about them; may be repeated.")
@click.option(
    "-g", "--include", multiple=True, metavar="REGEX", help="Only what one of these fits: topic, space, JSON."
)
@click.option("--exclude", multiple=True, metavar="REGEX", help="Not what one of these fits.")
@click.option("-H", "--highlight", multiple=True, metavar="REGEX", help="Let it stand out in colour, like --include.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N messages.")
@click.option(
    "--idle-exit",
    type=click.FloatRange(0.0),
    metavar="S",
    help="End when everything there is was shown and nothing came for S seconds.",
)
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
    shell_complete=_complete_form,
    help="short, wide, pretty, json, or a template with {topic}, {endpoint}, {body.package}, {time} and the like.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as -o json: one object a line.")
@click.option(
    "--fields",
    metavar="A,B.C",
    shell_complete=_complete_path,
    help="Show only these: members of the body, or topic, time, body.topic, text.summary, ….",
)
@click.option("--delta", is_flag=True, help="Show how many seconds after the one before each was published.")
@click.option("--top", is_flag=True, help="Count instead: a table of how many messages there are of what, and rates.")
@click.option(
    "--by",
    metavar="PATH",
    shell_complete=_complete_by,
    help="What --top counts by: service, or a path as in --fields; else topic.",
)
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 86400.0),
    metavar="S",
    help="Seconds from one table of --top to the next; else 1 on a terminal, 10 elsewhere.",
)
@click.option(
    "--color", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True, help=COLOUR_HELP
)
@click.option("--utc", is_flag=True, help="Show times in UTC; otherwise in the time zone here. JSON has UTC always.")
@click.pass_context
def tail(
    context: click.Context,
    filters: tuple[str, ...],
    since: str | None,
    until: str | None,
    last: int | None,
    last_per_topic: int | None,
    cursor: str | None,
    cursor_file: Path | None,
    endpoints: tuple[str, ...],
    signers: tuple[str, ...],
    where: tuple[str, ...],
    packages: tuple[str, ...],
    users: tuple[str, ...],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    highlight: tuple[str, ...],
    count: int | None,
    idle_exit: float | None,
    no_follow: bool,
    timeout: float | None,
    strict: bool,
    form: str,
    as_json: bool,
    fields: str | None,
    delta: bool,
    top: bool,
    by: str | None,
    interval: float | None,
    color: str,
    utc: bool,
) -> int:
    """Show the messages whose topic is below one of the FILTERs, or all; every signature was verified.

    A FILTER without the prefix is taken within PREFIX.ENVIRONMENT. Messages of one endpoint come in its order; across
    endpoints there is none. Messages go to stdout; what was lost or refused, and gaps and copies, are told on stderr.
    What a terminal could obey is shown escaped.

    It goes on with the endpoints that are added to the configuration, moved or removed; SIGHUP has it read at once.
    Ends on Ctrl-C or SIGTERM with 128 + the signal's number, its cursor kept; quietly when nobody reads its output.
    """
    from fedbus.cli.render import FORMATS, Look
    from fedbus.cli.tail_loop import Ends, is_terminal

    if as_json and form not in ("short", "json"):
        raise click.UsageError("--json and -o exclude each other")
    form = "json" if as_json else form
    _exclude_each_other(last=last, last_per_topic=last_per_topic, cursor=cursor, cursor_file=cursor_file)
    # a cursor would come to stand behind the first message that was not shown
    _exclude_each_other(until=until, cursor=cursor)
    _exclude_each_other(until=until, cursor_file=cursor_file)
    for name, given in (("fields", fields), ("delta", delta), ("highlight", highlight)):
        _exclude_each_other(top=top, **{name: given})
    if top and form not in ("short", "json"):
        raise click.UsageError("--top is shown as a table, or with --json; -o is for messages")
    if not top and (by is not None or interval is not None):
        raise click.UsageError("--by and --interval are for --top")
    chosen = tuple(part.strip() for part in (fields or "").split(",") if part.strip())
    if fields is not None and not chosen:
        raise click.UsageError("--fields names no field")
    if chosen and form not in FORMATS:
        raise click.UsageError("--fields is not for templates; name the fields in the template")
    begin = _begin(since, "beginning" if last or last_per_topic else "now")
    ends = Ends(count=count, idle_exit=idle_exit, no_follow=no_follow, timeout=timeout, until=_moment(until))
    hangup = context.with_resource(Noted(signal.SIGHUP))  # before anything slow: its default would end us
    watcher = watch_settings(context)
    colour = color == "always" or (color == "auto" and is_terminal(sys.stdout) and not os.environ.get("NO_COLOR"))
    _patterns("--include", include)  # named by its own option, where one is no good
    marked = _patterns("--highlight", (*include, *highlight))
    look = Look(
        form=form,
        fields=chosen,
        colour=colour,
        utc=utc,
        columns=shutil.get_terminal_size().columns if is_terminal(sys.stdout) else 0,
        root=watcher.settings.naming.root,
        delta=delta,
        marked=marked if colour else None,
    )
    from fedbus.bus import Bus
    from fedbus.cli.tail_run import Reading

    with Stop() as stop, Bus(watcher) as bus:
        reading = Reading(
            context,
            bus,
            stop,
            choose=_chooser(bus.texts, where, signers, packages, users, include, exclude),
            output=_tables(bus.texts, look, by or "topic", interval) if top else _lines(bus.texts, look),
            filters=filters,
            begin=begin,
            endpoints=endpoints,
            cursor=cursor,
            cursor_file=cursor_file,
            strict=strict,
        )
        return reading.run(hangup, ends, last=last, last_per_topic=last_per_topic)


def _exclude_each_other(**options: object) -> None:
    given = ["--" + name.replace("_", "-") for name, value in options.items() if value]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} exclude each other")


def _begin(since: str | None, default: str) -> SinceLike:
    from fedbus.cli.begin import parse_begin

    try:
        return parse_begin(since or default)
    except ValueError as error:
        raise click.UsageError(f"--since: {error}") from error


def _moment(until: str | None) -> datetime | None:
    from fedbus.cli.times import parse_time

    if until is None:
        return None
    try:
        return parse_time(until, future=True)
    except ValueError as error:
        raise click.UsageError(f"--until: {error}") from error


def _patterns(option: str, texts: tuple[str, ...]) -> Patterns | None:
    from fedbus.cli.patterns import PatternError, Patterns

    if not texts:
        return None
    try:
        return Patterns(texts)
    except PatternError as error:
        raise click.UsageError(f"{option}: {error}") from error


def _chooser(
    texts: Texts,
    where: tuple[str, ...],
    signers: tuple[str, ...],
    packages: tuple[str, ...],
    users: tuple[str, ...],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
) -> Chooser:
    from fedbus.cli.choose import Chooser, Where

    try:
        fields = [Where(text) for text in where]
    except ValueError as error:
        raise click.UsageError(f"--where: {error}") from error
    return Chooser(
        where=fields,
        signers=signers,
        packages=packages,
        users=users,
        include=_patterns("--include", include),
        exclude=_patterns("--exclude", exclude),
        texts=texts,
    )


def _lines(texts: Texts, look: Look) -> Output:
    from fedbus.cli.render import Renderer
    from fedbus.cli.tail_loop import Lines

    try:
        return Lines(Renderer(look, texts))
    except ValueError as error:
        raise click.UsageError(f"--format: {error}") from error


def _tables(texts: Texts, look: Look, by: str, interval: float | None) -> Output:
    from fedbus.cli.tail_loop import Tables, is_terminal
    from fedbus.cli.top import Top

    live = look.form != "json" and is_terminal(sys.stdout) and os.environ.get("TERM", "dumb") != "dumb"
    rows = max(5, shutil.get_terminal_size().lines - 5) if live else _ROWS
    top = Top(by, texts=texts, root=look.root, rows=rows, columns=look.columns, utc=look.utc)
    return Tables(top, interval=interval or (1.0 if live else 10.0), live=live, as_json=look.form == "json")
