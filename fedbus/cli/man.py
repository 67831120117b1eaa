"""`fedbus man`: the manual pages, made from the commands themselves."""

from __future__ import annotations

from pathlib import Path

import click

import fedbus
from fedbus.cli.common import examples

_CODES = [
    ("0", "All is well."),
    ("1", "Failure."),
    ("2", "Usage."),
    ("3", "Configuration or keys of our own."),
    ("4", "Signature or policy."),
    ("5", "Connection: an address that cannot be bound, an endpoint that does not answer."),
    ("6", "Timeout."),
    ("7", "A gap under --strict, or a loss that a check has found."),
    ("128+n", "Ended by signal n."),
]
_ENVIRONMENT = [
    ("FEDBUS_CONFIG", "The configuration folder."),
    ("NO_COLOR", "No colours where it is set."),
]
_FILES = [
    ("/etc/fedbus.d", "The configuration: all *.yaml files, merged in the order of their names."),
    ("/var/lib/fedbus", "State: journals, cursors, dead letters, spooled messages."),
]


def pages() -> dict[str, str]:
    """Return the manual pages by the names of their files; the same commands make the same bytes."""
    from fedbus.cli.main import COMMANDS, fedbus_command, load
    from fedbus.cli.roff import page

    version = fedbus.__version__
    # that page lists the others, so that a new command does not change the pages of all
    also = [("", "fedbus(1)")]
    common = {"EXIT STATUS": _CODES, "ENVIRONMENT": _ENVIRONMENT, "FILES": _FILES}
    commands = [(f"fedbus {name}", f"{text} See fedbus-{name}(1).") for name, (_, _, text) in COMMANDS.items()]
    found = {
        "fedbus.1": page(
            "fedbus",
            fedbus_command,
            "a decentralized, signed and durable message bus",
            version=version,
            sections={"COMMANDS": commands, **common},
        )
    }
    for name, (_, _, text) in COMMANDS.items():
        sections = {**common, "SEE ALSO": also}
        found[f"fedbus-{name}.1"] = page(f"fedbus {name}", load(name), text, version=version, sections=sections)
    return found


@click.command(
    "man",
    epilog=examples(
        "fedbus man                        the pages that there are",
        "fedbus man hub | man -l -         read one",
        "fedbus man --write /usr/local/share/man",
    ),
)
@click.argument("name", required=False, metavar="[COMMAND]")
@click.option(
    "--write",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write all pages below DIR, into DIR/man1.",
)
def man(name: str | None, folder: Path | None) -> None:
    """Print the manual page of a command, or write all pages into a folder.

    They say what --help says, and need nothing but the commands themselves.
    """
    found = pages()
    if folder is not None:
        place = folder / "man1"
        place.mkdir(parents=True, exist_ok=True)
        for file, text in found.items():
            (place / file).write_text(text, "utf-8")
        click.echo(f"{len(found)} pages in {place}")
        return
    if name is None:
        for file in sorted(found):
            click.echo(file)
        return
    file = "fedbus.1" if name == "fedbus" else f"fedbus-{name.removeprefix('fedbus-')}.1"
    if file not in found:
        raise click.BadParameter(f"there is no page for {name!r}", param_hint="COMMAND")
    click.echo(found[file], nl=False)
