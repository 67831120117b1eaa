"""`fedbus journal`: what the endpoints of this host have published, and whether it is all there."""

from __future__ import annotations

import contextlib
import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from fedbus.cli.common import complete_endpoint, examples, load_settings, notice
from fedbus.cli.escaping import escape
from fedbus.cli.journal_archive import export, import_journal
from fedbus.cli.journal_options import (
    Reading,
    check_owner,
    from_option,
    journals,
    json_option,
    opened,
    size_of,
    to_option,
    topic_option,
)
from fedbus.cli.journal_verify import verify

if TYPE_CHECKING:
    from fedbus.config.settings import Settings
    from fedbus.journal.state import JournalState


@click.group(
    "journal",
    epilog=examples(
        "fedbus journal list",
        "fedbus journal show koji.build01 --last 5",
        "fedbus journal verify",
        "fedbus journal export koji.build01 -o koji.jsonl",
        "fedbus journal import koji.jsonl --check",
    ),
)
def journal() -> None:
    """Look at the journals of this host, verify them, and carry them elsewhere.

    All but import only read, and may be used while the publishers run.
    """


# --- list ---------------------------------------------------------------------------------------------------------


@journal.command("list", epilog=examples("fedbus journal list", "fedbus journal list --json | jq '.[].bytes'"))
@json_option
@click.pass_context
def list_journals(context: click.Context, as_json: bool) -> int:
    """List the journals of this host: how far they reach, how much of their limit they use, what is damaged.

    Exit code 1 when one of them cannot be read.
    """
    from fedbus.errors import JournalError
    from fedbus.journal.state import locked_inodes, look

    settings = load_settings(context)
    locked = locked_inodes()
    states: list[JournalState] = []
    unreadable: list[tuple[str, str]] = []
    for name, directory in journals(settings).items():
        try:
            state = look(directory, locked)
            check_owner(settings, name, state.endpoint)
            states.append(state)
        except JournalError as error:
            unreadable.append((name, str(error)))
    rows = [_facts(settings, state) for state in states]
    if as_json:
        failed = [{"endpoint": name, "error": text} for name, text in unreadable]
        click.echo(json.dumps([*rows, *failed], indent=2))
        return 1 if unreadable else 0
    if rows:
        columns = ("ENDPOINT", "START", "HEAD", "SEGMENTS", "BYTES", "USED", "SYNC", "OLDEST", "NEWEST", "STATE")
        _table([columns, *(_row(row) for row in rows)])
    elif not unreadable:
        notice(f"there are no journals in {settings.state / 'journal'}")
    for row in rows:
        for text in [*row["damaged"], *(f"{name} was set aside" for name in row["aside"])]:
            notice(f"{row['endpoint']}: {text}")
    for name, text in unreadable:
        notice(f"{name}: {text}")
    return 1 if unreadable else 0


def _facts(settings: Settings, state: JournalState) -> dict[str, Any]:
    options = settings.journals.get(state.endpoint)
    limit = options.retain_bytes if options is not None else 0
    return {
        "endpoint": state.endpoint,
        "configured": options is not None,
        "epoch": state.epoch,
        "start": state.start,
        "head": state.head,
        "messages": state.messages,
        "bytes": state.bytes,
        "segments": state.segments,
        "oldest": _stamp(state.oldest_ms),
        "newest": _stamp(state.newest_ms),
        "sync": str(options.sync) if options is not None else None,
        "retain_bytes": limit,
        "retain_age": options.retain_age if options is not None else None,
        "used": round(state.bytes / limit, 4) if limit else None,
        "writing": state.writing,
        "damaged": list(state.damaged),
        "aside": list(state.aside),
        "directory": str(state.directory),
    }


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    state = {True: "open", False: "closed", None: "?"}[row["writing"]]
    if row["damaged"]:
        state += ", damaged"
    if not row["configured"]:
        state += ", not configured"
    return (
        escape(row["endpoint"]),
        str(row["start"]),
        str(row["head"]),
        str(row["segments"]),
        size_of(row["bytes"]),
        "-" if row["used"] is None else f"{row['used']:.0%}",
        row["sync"] or "-",
        (row["oldest"] or "-")[:19],
        (row["newest"] or "-")[:19],
        state,
    )


def _table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        numbers = (1, 2, 3, 4, 5)
        cells = [
            cell.rjust(width) if place in numbers else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())


def _stamp(time_ms: int | None) -> str | None:
    if time_ms is None:
        return None
    with contextlib.suppress(OverflowError, ValueError, OSError):
        return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return None


# --- show ---------------------------------------------------------------------------------------------------------


@journal.command(
    "show",
    epilog=examples(
        "fedbus journal show koji.build01 --last 5",
        "fedbus journal show koji.build01 --from 1000 --to 1010 --json",
        "fedbus journal show koji.build01 --topic koji.package --raw > envelopes.jsonl",
    ),
)
@click.argument("endpoint", metavar="ENDPOINT", shell_complete=complete_endpoint)
@from_option
@to_option
@click.option("--last", "tail", type=click.IntRange(1), metavar="N", help="Only the last N of these messages.")
@topic_option
@click.option("--json", "as_json", is_flag=True, help="One object a line, as `fedbus tail --json`.")
@click.option("--raw", is_flag=True, help="The signed envelopes, byte for byte, one on a line.")
@click.pass_context
def show(
    context: click.Context,
    endpoint: str,
    first: int | None,
    last: int | None,
    tail: int | None,
    topics: tuple[str, ...],
    as_json: bool,
    raw: bool,
) -> int:
    """Show what ENDPOINT has published, as it stands in its journal on this host; every seal is verified.

    What does not verify is left out and told on stderr, and the exit code is then 4; 1 when something is damaged.
    """
    from collections import deque

    from fedbus.cli.render import Look, Renderer

    if as_json and raw:
        raise click.UsageError("--json and --raw exclude each other")
    settings = load_settings(context)
    renderer = Renderer(Look(form="json" if as_json else "short", root=settings.naming.root))
    with opened(settings, endpoint) as reader:
        kept: Any
        reading = Reading(settings, reader, topics, first, last)
        kept = reading.messages()
        if tail is not None:
            kept = deque(kept, maxlen=tail)
        terminal = sys.stdout is not None and sys.stdout.isatty()
        for one in kept:
            if not raw:
                click.echo(renderer.render(one.message))
            elif terminal:  # what is raw must not command it
                click.echo(escape(one.message.envelope.decode("utf-8", "replace")))
            elif sys.stdout is not None:
                sys.stdout.buffer.write(one.message.envelope + b"\n")
    return reading.code


for one in (verify, export, import_journal):
    journal.add_command(one)
