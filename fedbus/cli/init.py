"""`fedbus init`: a working private set-up in one folder."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

from fedbus.config.init import check, create
from fedbus.errors import ConfigError
from fedbus.model.topic import ENVIRONMENTS

_EXAMPLES = """\b
Examples:
  fedbus init ~/bus --endpoint koji.build01
  fedbus init ~/bus --endpoint koji.build01 --endpoint bodhi.web01 \\
      --prefix org.fedoraproject --environment stg
  fedbus init ~/bus --endpoint koji.build01 --curve
"""


@click.command("init", epilog=_EXAMPLES)
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--endpoint", "endpoints", multiple=True, metavar="NAME", help="An endpoint, SERVICE.HOST; may be repeated."
)
@click.option("--prefix", default="org.example", show_default=True, help="What all topics begin with.")
@click.option(
    "--environment",
    type=click.Choice(ENVIRONMENTS),
    default="dev",
    show_default=True,
    help="The field behind the prefix in all topics; messages of another environment are refused.",
)
@click.option("--force", is_flag=True, help="Use a folder that is not empty: write its YAML files anew, keep its keys.")
@click.option("--curve", is_flag=True, help="Encrypt all links, and let nobody else connect.")
@click.option("--json", "as_json", is_flag=True, help="Say what was written as JSON.")
def init(
    directory: Path,
    endpoints: tuple[str, ...],
    prefix: str,
    environment: str,
    force: bool,
    curve: bool,
    as_json: bool,
) -> None:
    """Write a complete private set-up into DIRECTORY.

    A CA of its own, a certificate for each endpoint, and endpoints on free ports of the loopback; it works at once.
    """
    try:
        check(endpoints, prefix=prefix, environment=environment)
    except ConfigError as error:
        raise click.UsageError("\n".join(error.problems)) from error
    created = create(directory, endpoints, prefix=prefix, environment=environment, force=force, encrypted=curve)
    if as_json:
        report = {
            "directory": str(created.directory),
            "files": [str(path) for path in created.files],
            "endpoints": {
                name: {"publish": publish, "replay": replay} for name, (publish, replay) in created.endpoints.items()
            },
        }
        click.echo(json.dumps(report, indent=2))
        return
    click.echo(f"A bus for {', '.join(created.endpoints)} is in {created.directory}. To try it:\n")
    click.echo(f"  export FEDBUS_CONFIG={shlex.quote(str(created.directory))}")
    click.echo("  fedbus check config")
    click.echo("  fedbus tail --since beginning &")
    body = shlex.quote('{"package": "bash", "owner": "ralph"}')
    click.echo(f"  fedbus publish package.build.complete {body} --as {endpoints[0]}")
