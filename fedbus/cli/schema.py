"""`fedbus schema`: the JSON Schemas of the bus by topic."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from fedbus.cli.common import complete_filter, examples, load_settings, notice
from fedbus.cli.escaping import escape

if TYPE_CHECKING:
    from fedbus.config.schemas import Loaded
    from fedbus.config.settings import Settings
    from fedbus.schemas.registry import Schemas
    from fedbus.schemas.schema import Schema

_LINE_BYTES = 2**26  # of one line or file that is read; the limit of a message is told of more clearly below it
_json_option = click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
_topic = click.argument("topic", shell_complete=complete_filter)


@click.group(
    "schema",
    epilog=examples(
        "fedbus schema list",
        "fedbus schema show koji.package.build.complete",
        'fedbus schema check koji.package.build.complete \'{"package": "bash"}\'',
        "fedbus schema export > asyncapi.json",
    ),
)
def schema() -> None:
    """See which JSON Schema the messages of a topic obey, and hold messages against it.

    Schemas come from the folder `schemas` beside the configuration, from its section `schemas`, and from packages that
    have the entry point group fedbus.schemas.
    """


@schema.command("list", epilog=examples("fedbus schema list", "fedbus schema list --json | jq -r '.[].name'"))
@_json_option
@click.pass_context
def list_schemas(context: click.Context, as_json: bool) -> int:
    """List all schemas with their topics. Exit code 1: a package brings some that cannot be used."""
    settings, loaded, _ = _load(context)
    for problem in loaded.problems:
        notice(f"fedbus: {problem}")
    if as_json:
        click.echo(json.dumps([_facts(one) for one in loaded.schemas], indent=2))
        return int(bool(loaded.problems))
    if not loaded.schemas:
        notice(f"there are no schemas; put some into {settings.directory / 'schemas'}")
        return int(bool(loaded.problems))
    rows = [
        (
            escape(one.name) + (" (deprecated)" if one.deprecated else ""),
            escape(", ".join(_short(topic, settings) for topic in one.topics)),
            escape(one.origin),
        )
        for one in loaded.schemas
    ]
    header = ("NAME", "TOPICS", "FROM")
    widths = [max(len(row[place]) for row in (header, *rows)) for place in range(2)]
    for row in (header, *rows):
        click.echo("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[2]]))
    return int(bool(loaded.problems))


@schema.command("show", epilog=examples("fedbus schema show koji.package.build.complete", "fedbus schema show koji"))
@click.argument("topic", metavar="TOPIC|NAME", shell_complete=complete_filter)
@_json_option
@click.pass_context
def show(context: click.Context, topic: str, as_json: bool) -> None:
    """Print the schema that the messages of TOPIC obey; with --json, where it comes from too."""
    settings, loaded, schemas = _load(context)
    found = next((one for one in loaded.schemas if one.name == topic), None) or _of(topic, settings, schemas)
    if as_json:
        click.echo(json.dumps({**_facts(found), "schema": found.document}, indent=2))
        return
    notice(f"# {found.name}, from {found.origin}")
    click.echo(json.dumps(found.document, indent=2))


@schema.command(
    "check",
    epilog=examples(
        'fedbus schema check koji.package.build.complete \'{"package": "bash"}\'',
        "fedbus schema check git.push push.json",
        "fedbus schema check git.push --lines bodies.jsonl",
        "fedbus tail --since 1d --no-follow --json | fedbus schema check --with-topic -",
    ),
)
@click.argument("arguments", metavar="TOPIC [JSON|FILE|-]", nargs=-1)
@click.option("--lines", is_flag=True, help="One JSON body a line.")
@click.option(
    "--with-topic", is_flag=True, help='One {"topic": …, "body": …} a line, as `fedbus tail --json`; TOPIC is left out.'
)
@_json_option
@click.pass_context
def check(context: click.Context, arguments: tuple[str, ...], lines: bool, with_topic: bool, as_json: bool) -> int:
    """Hold a body, or each line of a file or of stdin, against the schema of TOPIC.

    Exit code 0: all fit. 1: one does not, is no JSON object, or there is no schema for its topic. 2: TOPIC is none.
    """
    settings, _, schemas = _load(context)
    most = 1 if with_topic else 2
    if len(arguments) > most or (not with_topic and not arguments):
        raise click.UsageError("write TOPIC and a body or a file" if not with_topic else "write a file, or - for stdin")
    topic = "" if with_topic else _asked(arguments[0], settings)
    source = arguments[-1] if len(arguments) == most else "-"
    several = lines or with_topic
    failed = False
    for number, data in _bodies(source, several):
        facts = _checked(topic, data, settings, schemas, with_topic)
        if several:
            facts = {"line": number, **facts}
        failed |= not facts["fits"]
        if as_json:
            click.echo(json.dumps(facts))
        else:
            _tell(facts)
    return int(failed)


def _export_options(command: Any) -> Any:
    for option in (
        click.option("--title", metavar="TEXT", help="Of the document; otherwise the prefix of the topics."),
        click.option("--api-version", metavar="TEXT", default="1.0.0", show_default=True, help="Of what is described."),
    ):
        command = option(command)
    return command


@schema.command("export", epilog=examples("fedbus schema export --asyncapi > asyncapi.json"))
@click.option("--asyncapi", is_flag=True, default=True, help="As AsyncAPI 3.0, which is the only format there is.")
@_export_options
@click.pass_context
def export(context: click.Context, asyncapi: bool, title: str | None, api_version: str) -> None:
    """Print all schemas as one AsyncAPI 3.0 document, in JSON."""
    _export(context, title, api_version)


@schema.command("asyncapi", epilog=examples("fedbus schema asyncapi --title 'Our bus' > asyncapi.json"))
@_export_options
@click.pass_context
def asyncapi(context: click.Context, title: str | None, api_version: str) -> None:
    """Print all schemas as one AsyncAPI 3.0 document, in JSON; the same as `export`."""
    _export(context, title, api_version)


def _export(context: click.Context, title: str | None, api_version: str) -> None:
    from fedbus.schemas.asyncapi import asyncapi as document

    settings, loaded, schemas = _load(context)
    # of two for the same topics, the one that counts
    used = [one for one in loaded.schemas if any(_wins(one, topic, schemas) for topic in one.topics)]
    found = document(used, shared=loaded.shared, title=title or settings.naming.root, version=api_version)
    click.echo(json.dumps(found, indent=2))


def _wins(one: Schema, topic: str, schemas: Schemas) -> bool:
    return not any(other.rank > one.rank and topic in other.topics for other in schemas)


# --- what they share -------------------------------------------------------------------------------------------


def _load(context: click.Context) -> tuple[Settings, Loaded, Schemas]:
    from fedbus.config.schemas import load
    from fedbus.schemas.registry import Schemas

    settings = load_settings(context)
    loaded = load(settings)
    return settings, loaded, Schemas(loaded.schemas, settings.schemas)


def _facts(one: Schema) -> dict[str, Any]:
    return {"name": one.name, "topics": list(one.topics), "origin": one.origin, "deprecated": one.deprecated}


def _full(topic: str, settings: Settings) -> str:
    """Return the full topic for what a person wrote.

    Raises:
        MessageError: It is none.
    """
    from fedbus.model.topic import check_topic

    naming = settings.naming
    full = topic if topic.startswith(naming.prefix + ".") else f"{naming.root}.{topic}"
    if full != topic:
        check_topic(topic)  # a fault is told in the words of whoever wrote it
    check_topic(full)
    return full


def _asked(topic: str, settings: Settings) -> str:
    """Return the full topic for an argument; one that is none is an error of usage."""
    from fedbus.errors import MessageError

    try:
        return _full(topic, settings)
    except MessageError as error:
        raise click.UsageError(escape(str(error))) from error


def _short(topic: str, settings: Settings) -> str:
    return topic.removeprefix(settings.naming.root + ".")


def _of(topic: str, settings: Settings, schemas: Schemas) -> Schema:
    from fedbus.errors import MessageError

    try:
        found = schemas.of(_full(topic, settings))
    except MessageError:
        found = None  # it may be the name of a schema, which need not look like a topic
    if found is None:
        raise click.ClickException(
            f"there is no schema for {escape(topic)}; `fedbus schema list` lists those there are"
        )
    return found


def _bodies(source: str, several: bool) -> Iterator[tuple[int, bytes]]:
    if _is_body(source):
        yield 1, source.encode("utf-8", "surrogateescape")
        return
    file = sys.stdin.buffer if source == "-" else open(source, "rb")  # noqa: SIM115, PTH123 - closed below
    try:
        if not several:
            yield 1, file.read(_LINE_BYTES)
            return
        number = 0
        while line := file.readline(_LINE_BYTES):
            number += 1
            if line.strip():
                yield number, line
    finally:
        if file is not sys.stdin.buffer:
            file.close()


def _is_body(source: str) -> bool:
    """Whether *source* is a body and no file: an object, whole or not, or other JSON after which no file is named."""
    if source.lstrip().startswith("{"):
        return True
    try:
        json.loads(source)
    except (ValueError, RecursionError):
        return False
    return not os.path.exists(source)  # noqa: PTH110 - a name may be too long, or hold what no name can


def _checked(topic: str, data: bytes, settings: Settings, schemas: Schemas, with_topic: bool) -> dict[str, Any]:
    from fedbus.errors import MessageError, WireError
    from fedbus.wire import strict

    facts: dict[str, Any] = {"topic": topic, "schema": None, "fits": False}
    try:
        body: Any = strict.decode(data.strip(), settings.limits)
    except WireError as error:
        return {**facts, "error": f"is no JSON object: {error}"}
    if with_topic:
        named, body = body.get("topic"), body.get("body")
        if not isinstance(named, str) or not isinstance(body, dict):
            return {**facts, "error": 'is not of the form {"topic": "…", "body": {…}}'}
        try:
            facts["topic"] = _full(named, settings)
        except MessageError as error:
            return {**facts, "error": str(error)}
    found = schemas.of(facts["topic"])
    if found is None:
        return {**facts, "error": "has no schema"}
    faults = found.faults(body, 100)
    warnings = [f"{name} is deprecated" for name in found.deprecated_in(body)]
    if found.deprecated:
        warnings.insert(0, f"the schema {found.name} is deprecated")
    return {
        **facts,
        "schema": found.name,
        "fits": not faults,
        "faults": [{"field": one.field, "rule": one.rule, "text": one.text} for one in faults],
        "warnings": warnings,
    }


def _tell(facts: dict[str, Any]) -> None:
    where = f"line {facts['line']}: " if "line" in facts else ""
    for warning in facts.get("warnings", ()):
        notice(f"{where}{warning}")
    if "error" in facts:
        click.echo(escape(f"{where}{facts['topic']} {facts['error']}".replace("  ", " ")))
    elif facts["fits"]:
        click.echo(escape(f"{where}{facts['topic']} fits {facts['schema']}"))
    for fault in facts.get("faults", ()):
        click.echo(escape(f"{where}{fault['field']}: {fault['text']} (rule {fault['rule']}, schema {facts['schema']})"))
