"""`fedbus history rebuild`: fills in what a history lacks, from journals and from what damaged files still hold."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from fedbus.cli.common import complete_endpoint, complete_filter, counted, examples, load_settings, notice, verbosity
from fedbus.cli.history_options import json_option, open_store, store_option, verifier_of
from fedbus.cli.signals import Stop

if TYPE_CHECKING:
    from fedbus.config.settings import Settings
    from fedbus.history.store import HistoryStore
    from fedbus.model.message import Message
    from fedbus.texts.texts import Texts

_BATCH = 2000
_LOOK_SECONDS = 0.1


@click.command(
    "rebuild",
    epilog=examples(
        "fedbus history rebuild",
        "fedbus history rebuild koji --since 7d",
        "fedbus history rebuild --skip-journals    only move damaged files aside, and save what they hold",
    ),
)
@click.argument("filters", metavar="[FILTER]...", nargs=-1, shell_complete=complete_filter)
@click.option(
    "--since",
    default="beginning",
    show_default=True,
    metavar="WHEN",
    help="Read the journals from there on, as tail does.",
)
@click.option(
    "--endpoint",
    "endpoints",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_endpoint,
    help="Read only this endpoint's journal; may be repeated.",
)
@click.option(
    "--idle-exit",
    type=click.FloatRange(1.0),
    default=30.0,
    show_default=True,
    metavar="S",
    help="Give up on endpoints that do not answer when nothing came for S seconds.",
)
@click.option("--skip-journals", is_flag=True, help="Read no journals.")
@store_option
@json_option
@click.pass_context
def rebuild(
    context: click.Context,
    filters: tuple[str, ...],
    since: str,
    endpoints: tuple[str, ...],
    idle_exit: float,
    skip_journals: bool,
    store: str | None,
    as_json: bool,
) -> int:
    """Move damaged parts of the history aside, save what can be read of them, and read the rest from the journals.

    What is there already stays, each message once; so it may be done at any time, while a hub writes too. Messages
    that no journal has any more come back only from a damaged file, and only if their seal holds. The files that were
    moved aside are left for you to delete.
    """
    from fedbus.bus import Bus
    from fedbus.cli.begin import parse_begin

    settings = load_settings(context)
    try:
        begin = parse_begin(since)
    except ValueError as error:
        raise click.UsageError(f"--since: {error}") from error
    result: dict[str, Any] = {"set_aside": [], "saved": 0, "lost_in_files": 0, "read": 0, "new": 0}
    with Stop() as stop, Bus.open(settings) as bus, open_store(settings, store, writable=True) as opened:
        _mend(opened, settings, bus.texts, result)
        silent: list[str] = []
        if not skip_journals and not stop.signal:
            subscriber = bus.subscribe(*filters, since=begin, endpoints=list(endpoints) or None)
            stop.on_stop = subscriber.stop
            heard = time.monotonic()
            while not stop.signal:
                messages = subscriber.receive(_LOOK_SECONDS)
                if messages:
                    heard = time.monotonic()
                    result["read"] += len(messages)
                    result["new"] += _write(opened, messages, bus.texts)
                elif subscriber.caught_up or time.monotonic() - heard > idle_exit:
                    break
            silent = sorted(one.endpoint for one in subscriber.readers() if not one.epoch)
            stop.on_stop = None
        if not silent and not stop.signal and not filters and not endpoints and since == "beginning":
            opened.settle()
    result["not_read"] = silent
    if as_json:
        click.echo(json.dumps(result, indent=2))
    elif verbosity(context) >= 0:
        for name in result["set_aside"]:
            notice(f"{name} was damaged and is moved aside")
        if silent:
            names = ", ".join(silent)
            notice(f"not read, since they do not answer and have no journal on this host that could be read: {names}")
        click.echo(
            f"{counted(result['new'], 'message')} added of {result['read']} in the journals; {result['saved']} saved "
            f"from damaged files, {result['lost_in_files']} there do not verify"
        )
    return stop.code or (1 if silent else 0)


def _mend(opened: HistoryStore, settings: Settings, texts: Texts, result: dict[str, Any]) -> None:
    from fedbus.errors import WireError
    from fedbus.history.verify import SealCheck, State

    check = SealCheck(verifier_of(settings))
    for fault in list(opened.faults()):
        where = fault.where
        notice(f"{where}: {fault.text}")
        if not fault.aside or where in result["set_aside"]:
            continue
        saved: list[Message] = []
        for stored in opened.set_aside(where):
            try:
                if check.check(stored).state is State.GOOD:
                    saved.append(stored.message())
                else:
                    result["lost_in_files"] += 1
            except WireError:
                result["lost_in_files"] += 1
            if len(saved) >= _BATCH:
                result["saved"] += _write(opened, saved, texts)
                saved = []
        result["saved"] += _write(opened, saved, texts)
        result["set_aside"].append(where)


def _write(opened: HistoryStore, messages: list[Message], texts: Texts) -> int:
    """Write, for as long as the store says that it may do so later; it may be used by a hub meanwhile."""
    if not messages:
        return 0
    written = 0
    for start in range(0, len(messages), _BATCH):
        written += opened.write(messages[start : start + _BATCH], texts=texts, token=opened.token).new
    return written
