"""`fedbus dead`: messages that a consumer of the hub has failed to take as often as it may."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from fedbus.cli.common import examples, load_settings, notice
from fedbus.cli.escaping import escape

if TYPE_CHECKING:
    from fedbus.config.settings import Settings
    from fedbus.hub.dead import DeadLetters, Letter, LetterBody

_json_option = click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
_all_option = click.option("--all", "everything", is_flag=True, help="All letters, or with --consumer all of one.")
_consumer_option = click.option("--consumer", metavar="NAME", help="Only those of this consumer.")
_numbers = click.argument("numbers", metavar="[ID]...", nargs=-1, type=click.IntRange(1))


@click.group(
    "dead",
    epilog=examples("fedbus dead list", "fedbus dead show 7", "fedbus dead requeue 7", "fedbus dead drop 7"),
)
def dead() -> None:
    """See which messages consumers have failed to take, and give them out again.

    A message that a consumer has failed as often as it may (`attempts`) is kept as a dead letter, with the exact bytes
    that were signed, and the consumer goes on with the next one. Once the cause is mended, requeue it.
    """


@dead.command("list", epilog=examples("fedbus dead list", "fedbus dead list --consumer irc --json | jq '.[].id'"))
@_consumer_option
@_json_option
@click.pass_context
def list_letters(context: click.Context, consumer: str | None, as_json: bool) -> None:
    """List the dead letters of this host's hub, the oldest first."""
    settings = load_settings(context)
    found: list[Letter] = []
    with _existing(settings) as store:
        if store is not None:
            found = store.list(consumer)
    if as_json:
        click.echo(json.dumps([_facts(one) for one in found], indent=2))
        return
    if not found:
        notice("there are no dead letters" if consumer is None else f"consumer {consumer!r} has no dead letters")
        return
    rows = [
        (
            str(one.id),
            escape(one.consumer),
            _stamp(one),
            str(one.attempts),
            _short(one.topic, settings),
            _first_line(one.reason),
        )
        for one in found
    ]
    header = ("ID", "CONSUMER", "DIED", "ATTEMPTS", "TOPIC", "REASON")
    widths = [max(len(row[place]) for row in (header, *rows)) for place in range(5)]
    for row, letter in zip((header, *rows), (None, *found), strict=True):
        line = "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[5]])
        click.echo(line + ("  (requeued)" if letter is not None and letter.requeued else ""))


@dead.command("show", epilog=examples("fedbus dead show 7", "fedbus dead show 7 --raw > letter.parcel"))
@click.argument("number", metavar="ID", type=click.IntRange(1))
@click.option("--raw", is_flag=True, help="Write the parcel with the exact signed bytes to stdout, and nothing else.")
@_json_option
@click.pass_context
def show(context: click.Context, number: int, raw: bool, as_json: bool) -> None:
    """Show one dead letter: the message, why it failed, and where."""
    with _existing(load_settings(context)) as store:
        found = None if store is None else store.get(number)
    if found is None:
        raise _no_such(number)
    letter, body = found
    if raw:
        sys.stdout.buffer.write(body.parcel)
        return
    if as_json:
        facts = {**_facts(letter), "traceback": body.traceback, "message": _message(body)}
        click.echo(json.dumps(facts, indent=2))
        return
    click.echo(f"consumer  {escape(letter.consumer)}")
    click.echo(f"message   {escape(str(letter.key))}")
    click.echo(f"topic     {escape(letter.topic)}")
    click.echo(f"died      {_stamp(letter)}, after {letter.attempts} attempts")
    if letter.requeued:
        click.echo(f"requeued  it waits for its consumer; {letter.tries} attempts since")
    click.echo(f"reason    {escape(letter.reason)}")
    for line in body.traceback.splitlines():
        click.echo(f"  {escape(line)}")
    click.echo("body")
    for line in json.dumps(_message(body).get("data"), indent=2, ensure_ascii=False).splitlines():
        click.echo(f"  {escape(line)}")


@dead.command("requeue", epilog=examples("fedbus dead requeue 7 9", "fedbus dead requeue --all --consumer irc"))
@_numbers
@_all_option
@_consumer_option
@_json_option
@click.pass_context
def requeue(
    context: click.Context, numbers: tuple[int, ...], everything: bool, consumer: str | None, as_json: bool
) -> None:
    """Give dead letters to their consumer once more, with as many attempts as a new message.

    A hub that runs does so within a second or two, any other when it starts. What it takes is no dead letter any more.
    """
    done = _each(context, numbers, everything, consumer, "requeue")
    _tell("requeued", done, as_json)
    if done and not as_json:
        notice("the hub gives them to their consumer within two seconds, or when it starts")


@dead.command("drop", epilog=examples("fedbus dead drop 7", "fedbus dead drop --all --consumer irc"))
@_numbers
@_all_option
@_consumer_option
@_json_option
@click.pass_context
def drop(
    context: click.Context, numbers: tuple[int, ...], everything: bool, consumer: str | None, as_json: bool
) -> None:
    """Throw dead letters away, for good. The journals keep the messages for as long as their retention says."""
    _tell("dropped", _each(context, numbers, everything, consumer, "drop"), as_json)


def _each(
    context: click.Context, numbers: tuple[int, ...], everything: bool, consumer: str | None, action: str
) -> list[int]:
    """Do *action* to the letters that were asked for; return their ids.

    Raises:
        UsageError: It is not said which.
        ClickException: One of *numbers* is none; nothing was done then.
    """
    if everything == bool(numbers):
        raise click.UsageError("name ids as `fedbus dead list` shows them, or --all")
    if consumer is not None and not everything:
        raise click.UsageError("--consumer goes with --all")
    with _existing(load_settings(context)) as store:
        there = [] if store is None else [letter.id for letter in store.list(consumer)]
        for number in numbers:
            if number not in there:
                raise _no_such(number)
        if store is None:
            return []
        chosen = there if everything else list(dict.fromkeys(numbers))
        return [number for number in chosen if getattr(store, action)(number)]


def _tell(what: str, done: list[int], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({what: done}))
    else:
        click.echo(f"{what} {', '.join(map(str, done)) or 'none'}")


def _no_such(number: int) -> click.ClickException:
    return click.ClickException(f"there is no dead letter {number}; `fedbus dead list` lists them")


def _facts(letter: Letter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "consumer": letter.consumer,
        "endpoint": letter.key.endpoint,
        "epoch": letter.key.epoch,
        "sequence": letter.key.sequence,
        "topic": letter.topic,
        "reason": letter.reason,
        "attempts": letter.attempts,
        "died_at": _stamp(letter),
        "requeued": letter.requeued,
        "tries": letter.tries,
        "parcel_bytes": letter.parcel_bytes,
    }


def _message(body: LetterBody) -> dict[str, Any]:
    """The message's CloudEvents object. Whether its seal holds is looked at before a consumer gets it again."""
    from fedbus.wire import parcel as parcels

    parcel = parcels.decode(body.parcel, parcel_bytes=len(body.parcel))
    attributes: dict[str, Any] = json.loads(parcel.envelopes[0])
    return attributes


def _stamp(letter: Letter) -> str:
    when = datetime.fromtimestamp(letter.died_at_ms / 1000, UTC)
    return when.isoformat(timespec="seconds").replace("+00:00", "Z")


def _short(topic: str, settings: Settings) -> str:
    return escape(topic.removeprefix(f"{settings.naming.prefix}.{settings.naming.environment}."))


def _first_line(text: str) -> str:
    line = escape(text.splitlines()[0] if text else "")
    return line if len(line) <= 100 else line[:99] + "…"


@contextmanager
def _existing(settings: Settings) -> Iterator[DeadLetters | None]:
    """Open the store; None where no hub has made one, since looking must not create it."""
    if not settings.dead.exists():
        yield None
        return
    from fedbus.hub.dead import DeadLetters

    with DeadLetters.open(settings.dead) as store:
        yield store
