"""`fedbus history`: what the history store holds."""

from __future__ import annotations

import json
import os
import shutil
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from fedbus.cli.common import COLOUR_HELP, counted, examples, load_settings, notice
from fedbus.cli.history_export import export
from fedbus.cli.history_options import (
    build_query,
    json_option,
    open_store,
    wanted,
)
from fedbus.cli.history_rebuild import rebuild
from fedbus.cli.history_rows import Doubts, message_of, seal_check, verify_option
from fedbus.cli.history_verify import verify

if TYPE_CHECKING:
    from fedbus.model.message import Message

_APART = 0  # hours below stand for messages without a credible time


@click.group(
    "history",
    epilog=examples(
        "fedbus history search koji.package --since 1d --text 'bash complete'",
        "fedbus history count --package bash --json",
        "fedbus history stats --since 7d",
        "fedbus history export --sealed -o november.jsonl --since 2026-11-01 --until 2026-12-01",
        "fedbus history verify --since 1d",
        "fedbus history rebuild",
    ),
)
def history() -> None:
    """Search, count, export and verify what the history holds.

    It is written by the consumer `fedbus_consumers.history` of a hub: every message once, with the exact bytes that
    were signed, and their seal. A FILTER is a topic prefix, as `fedbus tail` takes it.
    """


# --- search --------------------------------------------------------------------------------------------------------


@history.command(
    "search",
    epilog=examples(
        "fedbus history search                                     the newest hundred",
        "fedbus history search koji.package --since yesterday --limit 0",
        "fedbus history search --text '\"build complete\" python*' --user ralph",
        "fedbus history search --field build.id=12345 --json | jq .body",
        "fedbus history search --package bash --reverse -o '{time} {text.summary}'",
    ),
)
@wanted(60.0)
@click.option(
    "--limit", type=click.IntRange(0), default=100, show_default=True, metavar="N", help="The newest N; 0: all."
)
@click.option("-r", "--reverse", is_flag=True, help="Show the newest first.")
@verify_option
@click.option(
    "-o",
    "--format",
    "form",
    default="short",
    show_default=True,
    metavar="FORM",
    help="short, wide, pretty, json, or a template with {topic}, {body.package}, {text.summary} and the like.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as -o json: one object a line.")
@click.option("--fields", "shown", metavar="A,B.C", help="Show only these: members of the body, or topic, time, ….")
@click.option(
    "--color", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True, help=COLOUR_HELP
)
@click.option("--utc", is_flag=True, help="Show times in UTC; otherwise in the time zone here. JSON has UTC always.")
@click.pass_context
def search(
    context: click.Context,
    /,
    limit: int,
    reverse: bool,
    verify: bool,
    form: str,
    as_json: bool,
    shown: str | None,
    color: str,
    utc: bool,
    store: str | None,
    **wanted: Any,
) -> int:
    """Show the messages that are wanted, by time, as `fedbus tail` shows them.

    Exit code 1 when one cannot be read, 4 with --verify when one does not verify, 6 when it takes too long.
    """
    from fedbus.cli.render import FORMATS, Look, Renderer
    from fedbus.cli.tail_loop import is_terminal, write
    from fedbus.texts.texts import Texts

    if as_json and form not in ("short", "json"):
        raise click.UsageError("--json and -o exclude each other")
    form = "json" if as_json else form
    fields = tuple(part.strip() for part in (shown or "").split(",") if part.strip())
    if fields and form not in FORMATS:
        raise click.UsageError("--fields is not for templates; name the fields in the template")
    settings = load_settings(context)
    look = Look(
        form=form,
        fields=fields,
        colour=color == "always" or (color == "auto" and is_terminal(sys.stdout) and not os.environ.get("NO_COLOR")),
        utc=utc,
        columns=shutil.get_terminal_size().columns if is_terminal(sys.stdout) else 0,
        root=settings.naming.root,
    )
    texts = Texts(root=settings.naming.root)
    if "text." in form or any(one.startswith("text.") for one in fields):
        from fedbus.bus import Bus

        with Bus.open(settings) as bus:
            texts = bus.texts
    try:
        renderer = Renderer(look, texts)
    except ValueError as error:
        raise click.UsageError(f"--format: {error}") from error
    doubts = Doubts()
    with open_store(settings, store) as opened:
        # one more than is shown says whether there are others
        newest = bool(limit) or reverse
        query = build_query(settings, opened, limit=limit + 1 if limit else 0, newest=newest, **wanted)
        check = seal_check(settings) if verify else None
        found = opened.find(query)
        lines: list[str] = []
        held: list[Message] = []
        rows = 0
        for stored in found:
            rows += 1
            if limit and rows > limit:
                notice(f"only the newest {limit} {'is' if limit == 1 else 'are'} shown; --limit 0 shows all")
                break
            message = message_of(stored, check, doubts)
            if message is None:
                continue
            if newest and not reverse:
                held.append(message)
                continue
            lines.append(renderer.render(message))
            if len(lines) >= 100:
                write("\n".join(lines) + "\n")
                lines.clear()
        lines += [renderer.render(message) for message in reversed(held)]
        if lines:
            write("\n".join(lines) + "\n")
    return doubts.finish()


# --- count and stats -----------------------------------------------------------------------------------------------


@history.command(
    "count", epilog=examples("fedbus history count koji --since 1h", "fedbus history count --text kernel --json")
)
@wanted(60.0)
@json_option
@click.pass_context
def count(context: click.Context, /, as_json: bool, store: str | None, **wanted: Any) -> None:
    """Say how many messages there are."""
    settings = load_settings(context)
    with open_store(settings, store) as opened:
        number = opened.count(build_query(settings, opened, **wanted))
    click.echo(json.dumps({"count": number}) if as_json else number)


@history.command(
    "stats",
    epilog=examples("fedbus history stats --since 7d", "fedbus history stats koji --json | jq .topics"),
)
@wanted(60.0)
@click.option(
    "--topics", "most", type=click.IntRange(1), default=20, show_default=True, help="How many topics to name."
)
@click.option("--utc", is_flag=True, help="Show hours in UTC; otherwise in the time zone here. JSON has UTC always.")
@json_option
@click.pass_context
def stats(context: click.Context, /, most: int, utc: bool, as_json: bool, store: str | None, **wanted: Any) -> None:
    """Count messages by topic and by hour, and show both as bars."""
    from fedbus.cli.history_plot import by_hour, by_topic
    from fedbus.cli.tail_loop import is_terminal

    settings = load_settings(context)
    with open_store(settings, store) as opened:
        found = opened.statistics(build_query(settings, opened, **wanted))
        partitions = opened.partitions()
        where = opened.shown
    topics: dict[str, int] = {}
    hours: dict[int, int] = {}
    apart = 0
    for (topic, hour), number in found.items():
        topics[topic] = topics.get(topic, 0) + number
        if hour < _APART:
            apart += number
        else:
            hours[hour] = hours.get(hour, 0) + number
    total = sum(topics.values())
    if as_json:
        click.echo(
            json.dumps(
                {
                    "count": total,
                    "topics": dict(sorted(topics.items(), key=lambda item: (-item[1], item[0]))),
                    "hours": [{"hour": _stamp(hour), "count": hours[hour]} for hour in sorted(hours)],
                    "without_credible_time": apart,
                    "by_topic_and_hour": [
                        {"topic": topic, "hour": _stamp(hour), "count": number}
                        for (topic, hour), number in sorted(found.items())
                        if hour >= _APART
                    ],
                    "store": where,
                    "partitions": [
                        {"name": one.name, "messages": one.messages, "bytes": one.size, "fault": one.fault}
                        for one in partitions
                    ],
                },
                indent=2,
            )
        )
        return
    for one in partitions:
        if one.fault:
            notice(f"{one.name}: {one.fault}")
    if not total:
        notice("there are no such messages")
        return
    root = settings.naming.root + "."
    columns = shutil.get_terminal_size((80, 24)).columns if is_terminal(sys.stdout) else _columns()
    plain = not _can_draw()
    short: dict[str, int] = {}
    for topic, number in topics.items():
        short[topic.removeprefix(root)] = number
    lines = [f"{total:,} messages of {counted(len(topics), 'topic')}", ""]
    lines += by_topic(short, columns, plain=plain, most=most)
    if hours:
        lines += ["", *by_hour(hours, columns, zone=UTC if utc else None, plain=plain)]
    if apart:
        lines += ["", f"{apart:,} of them state a time that cannot be right"]
    size = sum(one.size for one in partitions)
    lines += ["", f"in {where}: {counted(len(partitions), 'partition')}, {_size(size)}"]
    click.echo("\n".join(lines))


def _stamp(hour: int) -> str:
    return datetime.fromtimestamp(hour * 3600, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _columns() -> int:
    given = os.environ.get("COLUMNS", "")
    return int(given) if given.isdigit() and 0 < int(given) < 10_000 else 80


def _can_draw() -> bool:
    try:
        "█▁┤".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _size(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


for one in (export, verify, rebuild):
    history.add_command(one)
