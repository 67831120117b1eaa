"""`fedbus cursor`: where the readers of this host have come to."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from fedbus.cli.common import examples, load_settings, notice
from fedbus.cli.escaping import escape

if TYPE_CHECKING:
    from fedbus.config.settings import Settings
    from fedbus.journal.cursors import CursorStore
    from fedbus.model.position import Cursor, Position

_OTHERS = "*"  # as fedbus.hub.delivery.SINCE, which would bring the whole hub along
_HUB = "hub."  # what the names of the hub's cursors begin with, one for each consumer
_json_option = click.option("--json", "as_json", is_flag=True, help="The result as JSON.")


@click.group(
    "cursor",
    epilog=examples("fedbus cursor list", "fedbus cursor show nightly", "fedbus cursor delete nightly"),
)
def cursor() -> None:
    """Look at the named cursors of this host, and forget one.

    A cursor is the place that a reader has come to in each stream: of `fedbus tail --cursor NAME`, of a program that
    subscribes with a cursor, or of a consumer in a hub (hub.CONSUMER).
    """


@cursor.command("list", epilog=examples("fedbus cursor list", "fedbus cursor list --json | jq -r '.[].name'"))
@_json_option
@click.pass_context
def list_cursors(context: click.Context, as_json: bool) -> None:
    """List the cursors of this host, and whose each is."""
    settings = load_settings(context)
    found = {}
    if settings.cursors.exists():  # looking must not create it
        with _open(settings) as store:
            found = {name: len(_places(store, name)[0]) for name in store.list()}
    if as_json:
        rows = [{"name": name, "owner": _owner(name), "endpoints": count} for name, count in found.items()]
        click.echo(json.dumps(rows, indent=2))
        return
    width = max([len("NAME"), *(len(escape(name)) for name in found)])
    if found:
        click.echo(f"{'NAME':{width}}  {'ENDPOINTS':>9}  OWNER")
    else:
        notice(f"there are no cursors in {settings.cursors}")
    for name, count in found.items():
        click.echo(f"{escape(name):{width}}  {count:>9}  {_owner(name)}")


@cursor.command("show", epilog=examples("fedbus cursor show nightly", "fedbus cursor show hub.announce --json"))
@click.argument("name", metavar="NAME")
@_json_option
@click.pass_context
def show(context: click.Context, name: str, as_json: bool) -> None:
    """Show the place of cursor NAME in each stream, in the form that --since of `fedbus tail` takes."""
    settings = load_settings(context)
    with _existing(settings, name) as store:
        places, others = _places(store, name)
    if as_json:
        positions = {
            endpoint: {"epoch": place.epoch, "sequence": place.sequence} for endpoint, place in sorted(places.items())
        }
        click.echo(json.dumps({"name": name, "owner": _owner(name), "positions": positions}, indent=2))
        return
    for endpoint, place in sorted(places.items()):
        gone = "" if endpoint in settings.endpoints else "  (not in the configuration)"
        click.echo(f"{escape(endpoint)}/{escape(place.epoch)}/{place.sequence}{gone}")
    if others is not None:
        notice(f"endpoints without a place here are read from {_time(others.sequence)} on")


@cursor.command("delete", epilog=examples("fedbus cursor delete nightly", "fedbus cursor delete hub.announce --json"))
@click.argument("name", metavar="NAME")
@_json_option
@click.pass_context
def delete(context: click.Context, name: str, as_json: bool) -> None:
    """Forget cursor NAME: its reader then begins where it would for the first time.

    Stop the reader first; one that runs writes its cursor again.
    """
    settings = load_settings(context)
    with _existing(settings, name) as store:
        store.delete(name)
    if as_json:
        click.echo(json.dumps({"deleted": name}))
    else:
        click.echo(f"deleted {escape(name)}")
    if name.startswith(_HUB):
        follows = (
            f"consumer {escape(name.removeprefix(_HUB))} begins where its `since` says at the next start of the hub "
            "(now, unless it declares another); a hub that runs writes this cursor again, so stop it first"
        )
    else:
        follows = (
            "the next reader of that name begins where its --since (or since=) says; one that runs now writes the "
            "cursor again, so stop it first"
        )
    notice(follows)


def _places(store: CursorStore, name: str) -> tuple[Cursor, Position | None]:
    """Return the places in streams, and where (Unix, milliseconds) a consumer of the hub begins with other ones."""
    places = dict(store.load(name))
    others = places.pop(_OTHERS, None)
    return places, others


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _open(settings: Settings) -> CursorStore:
    from fedbus.journal.cursors import CursorStore

    return CursorStore.open(settings.cursors)


def _owner(name: str) -> str:
    return "hub" if name.startswith(_HUB) else "reader"


@contextmanager
def _existing(settings: Settings, name: str) -> Iterator[CursorStore]:
    """Open the store that holds cursor *name*.

    Raises:
        ClickException: There is no such cursor.
    """
    names: list[str] = []
    if settings.cursors.exists():
        with _open(settings) as store:
            names = store.list()
            if name in names:
                yield store
                return
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "`fedbus cursor list` lists them"
    raise click.ClickException(f"there is no cursor {name!r} in {settings.cursors}; {hint}")
