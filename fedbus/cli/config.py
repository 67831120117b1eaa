"""`fedbus config`: the merged settings, and where each value came from."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from fedbus.cli.common import complete_key
from fedbus.config.files import KeyPath, dotted
from fedbus.config.settings import Settings, schema
from fedbus.config.units import format_duration, format_size
from fedbus.errors import ConfigError

_EXAMPLES = """\b
Examples:
  fedbus config                       every value that is set, and its file and line
  fedbus config --all                 those that are not set too, with their defaults
  fedbus config endpoints.koji.build01.publish
  fedbus config endpoints --json | jq
  fedbus config import-fedmsg /etc/fedmsg.d > /etc/fedbus.d/20-fedmsg.yaml
"""

_IMPORT_EXAMPLES = """\b
Examples:
  fedbus config import-fedmsg /etc/fedmsg.d
  fedbus config import-fedmsg /etc/fedmsg.d --write /etc/fedbus.d/20-fedmsg.yaml
  fedbus config import-fedmsg /etc/fedmsg.d --json | jq '.keys[] | select(.status == "needs a hand")'
"""

_SECRET = re.compile(r"password|passphrase|secret|token|credential", re.IGNORECASE)
_HIDDEN = "********"
_DEFAULT = "default"


class _Config(click.Group):
    """`fedbus config [KEY]` shows, as it always did; behind another word of its own it does something else."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if ctx.resilient_parsing and not args:
            return super().parse_args(ctx, args)  # what comes first is still to be completed: see below
        if not any(one in self.commands for one in args):
            # options of `show` stand there, or a KEY; --help is answered by the group, which names its commands
            args = args if args == ["--help"] else ["show", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        offered = super().shell_complete(ctx, incomplete)
        if not incomplete.startswith("-"):
            return offered + complete_key(ctx, None, incomplete)
        with show.make_context("show", [], parent=ctx, resilient_parsing=True) as below:
            known = {one.value for one in offered}
            return offered + [one for one in show.shell_complete(below, incomplete) if one.value not in known]


@click.group("config", cls=_Config, epilog=_EXAMPLES)
def config() -> None:
    """Show the merged configuration; translate one of fedmsg.

    `fedbus config [KEY]` is short for `fedbus config show [KEY]`.
    """


@config.command("show", epilog=_EXAMPLES)
@click.argument("key", required=False, shell_complete=complete_key)
@click.option("--json", "as_json", is_flag=True, help="The values as one JSON object.")
@click.option("--origins", is_flag=True, help="With --json or KEY: say file and line of each value too.")
@click.option("--all", "everything", is_flag=True, help="Show what is not set too, with its default.")
@click.pass_context
def show(ctx: click.Context, key: str | None, as_json: bool, origins: bool, everything: bool) -> None:
    """Show the merged configuration, or the part of it named KEY.

    Passwords, tokens and other secrets are shown as stars; durations and sizes with their units, in JSON as numbers of
    seconds and bytes unless they were written with a unit. Exit code 3 when the configuration cannot be used.
    """
    settings = Settings.load((ctx.obj or {}).get("config"))
    rows = list(_rows(settings, everything=everything or key is not None))
    if key is not None:
        rows = _below(rows, key, settings)
    if as_json:
        click.echo(json.dumps(_tree(rows, origins=origins), indent=2, default=str))
    elif key is not None and len(rows) == 1 and dotted(rows[0][0]) == key and not origins:
        click.echo(_text(_in_units(*rows[0][:2]), bare=True))
    else:
        lines = [(f"{dotted(path)}: {_text(_in_units(path, value))}", origin) for path, value, origin in rows]
        width = min(60, max((len(line) for line, _ in lines), default=0))
        for line, origin in lines:
            click.echo(f"{line:<{width}}  # {_short(origin, settings.directory)}")


def keys_of(settings: Settings) -> set[str]:
    """Return all keys that :func:`show` has a value for."""
    return {dotted(path) for path, _, _ in _rows(settings, everything=True)}


@config.command("import-fedmsg", epilog=_IMPORT_EXAMPLES)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--write",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the YAML to a new file instead of stdout.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object: the YAML as text, and a row for each key.")
@click.pass_context
def import_fedmsg(ctx: click.Context, folder: Path, target: Path | None, as_json: bool) -> int:
    """Translate a fedmsg.d folder, without running what is in it.

    Its files are Python; they are parsed, and what is plain in them (texts, numbers, lists, dicts, and what is put
    together from these) is taken. Whatever else stands there is named with its file and line. The YAML goes to stdout,
    and a line for each key to stderr: translated, no counterpart (and why), or needs a hand.

    Exit codes: 0 nothing is left to do by hand, 1 something is, 3 there is no configuration of fedmsg.
    """
    from fedbus.cli.common import notice
    from fedbus.cli.escaping import escape
    from fedbus.fedmsg.evaluate import read_folder
    from fedbus.fedmsg.translate import translate

    found = read_folder(folder)
    if not found.keys:
        problems = [f"{folder}/{problem}" for problem in found.problems]
        raise ConfigError([*problems, f"{folder}: no *.py file there sets `config`, so there is nothing to translate"])
    translation = translate(found)
    text = translation.yaml()
    rows = [*translation.rows, *_refused_rows(translation.values)]
    code = 0 if translation.whole and len(rows) == len(translation.rows) else 1
    if target is not None:
        with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(text)
    if as_json:
        keys = [dataclasses.asdict(row) for row in rows]
        click.echo(json.dumps({"yaml": text, "keys": keys, "files": found.files}, indent=2))
        return code
    if target is None:
        click.echo(text, nl=False)
    if not (ctx.obj or {}).get("quiet"):
        width = min(40, max(len(row.key) for row in rows))
        for row in rows:
            where = f" ({row.origin})" if row.origin else ""
            notice(f"{row.status:<14} {escape(row.key):<{width}} {escape(row.text)}{where}")
    return code


def _refused_rows(values: dict[str, Any]) -> Iterator[Any]:
    """Yield what our own loader has to say against the translation; that it has no endpoints was told before."""
    import tempfile

    import yaml

    from fedbus.fedmsg.keys import HAND
    from fedbus.fedmsg.translate import Row

    values = {"endpoints": {"other.file": {"publish": "tcp://127.0.0.1:1", "wire": "fedmsg"}}, **values}
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "translation.yaml"
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(values))
        try:
            Settings.load(place, {})
        except ConfigError as error:
            for problem in error.problems:
                told = problem.removeprefix(f"{place}: ").replace(f"{place}/", "")
                yield Row("", HAND, f"our own loader refuses it: {told}", "")


Row = tuple[KeyPath, Any, str]


def _rows(settings: Settings, *, everything: bool) -> Iterator[Row]:
    """Yield each value that is no mapping, with its key and origin, in the order of the files."""
    seen = set()
    stack: list[tuple[KeyPath, Any]] = [((), settings.values)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, dict) and value:
            stack += [((*path, key), inner) for key, inner in reversed(value.items())]
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            stack += [((*path, place), inner) for place, inner in reversed(list(enumerate(value)))]
        elif path:
            seen.add(path)
            secret = any(isinstance(part, str) and _SECRET.search(part) for part in path)
            origin = settings.origins.get(dotted(path), "")
            if written := settings.variables.get(dotted(path)):
                origin += f" ({written})"
            yield path, _HIDDEN if secret and value is not None else value, origin
    if everything:
        for path, value in _defaults(settings):
            if path not in seen:
                yield path, value, _DEFAULT


def _defaults(settings: Settings) -> Iterator[tuple[KeyPath, Any]]:
    yield ("state",), settings.state
    yield ("keys", "directory"), settings.keys
    for field in dataclasses.fields(settings.keyring):
        yield ("keys", field.name), getattr(settings.keyring, field.name)
    sections: dict[str, Any] = {
        "journal": settings.journal,
        "publisher": settings.publisher,
        "subscriber": settings.subscriber,
        "limits": settings.limits,
        "relay": settings.relay,
        "fedmsg": settings.fedmsg,
        "metrics": settings.metrics,
        "hub": settings.hub,
        "log": settings.log,
    }
    for name, section in sections.items():
        for field in dataclasses.fields(section):
            if (name, field.name) != ("journal", "directory"):
                yield (name, field.name), getattr(section, field.name)
    for field in dataclasses.fields(settings.bridge):
        yield ("bridge", "fedmsg", field.name), getattr(settings.bridge, field.name)
    yield ("discovery", "look_interval"), settings.discovery.look_interval
    dns = settings.discovery.dns
    for field in dataclasses.fields(dns) if dns is not None else ():
        yield ("discovery", "dns", field.name), getattr(dns, field.name)
    for name, endpoint in settings.endpoints.items():
        for key in ("wire", "certificate", "key"):
            yield ("endpoints", name, key), getattr(endpoint, key)


def _below(rows: list[Row], key: str, settings: Settings) -> list[Row]:
    found = [row for row in rows if (name := dotted(row[0])) == key or name.startswith((f"{key}.", f"{key}["))]
    if found or key in settings.origins:
        return found
    known = {name for path, _, _ in rows for end in range(1, len(path) + 1) if (name := dotted(path[:end]))}
    near = difflib.get_close_matches(key, sorted(known), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "`fedbus config --all` lists all keys"
    raise ConfigError(f"{settings.directory}: nothing is called {key!r}; {hint}")


def _tree(rows: list[Row], *, origins: bool) -> dict[str, Any]:
    """Nest *rows* again; lists of mappings come out as lists."""
    root: dict[Any, Any] = {}
    for path, value, origin in rows:
        place = root
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = {"value": value, "origin": origin} if origins else value
    return {key: _lists(value) for key, value in root.items()}


def _lists(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if value and all(isinstance(key, int) for key in value):
        return [_lists(inner) for inner in value.values()]
    return {key: _lists(inner) for key, inner in value.items()}


def _in_units(path: KeyPath, value: Any) -> Any:
    """Return a number that is a duration or a size with its unit, anything else as it is."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        kind = _kind(path)
        if kind == "duration":
            return format_duration(value)
        if kind == "size" and isinstance(value, int):
            return format_size(value)
    return value


def _kind(path: KeyPath) -> str:
    """Return the name under which the schema defines what stands at *path*, or nothing."""
    root = schema()
    part: Any = root
    kind = ""
    for key in path:
        part = (
            part.get("items", {})
            if isinstance(key, int)
            else part.get("properties", {}).get(key, part.get("additionalProperties") or {})
        )
        kind = ""
        if reference := part.get("$ref"):
            kind = reference.removeprefix("#/$defs/")
            part = root["$defs"][kind]
    return kind


def _text(value: Any, *, bare: bool = False) -> str:
    if isinstance(value, (str, Path)):
        text = str(value)
        return text if text.isprintable() and (text or bare) else json.dumps(text)
    return json.dumps(value, default=str)


def _short(origin: str, folder: Path) -> str:
    return origin.removeprefix(f"{folder}/")
