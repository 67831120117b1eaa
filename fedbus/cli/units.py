"""`fedbus systemd`: units for hub, relay and checks, and what sysusers and tmpfiles need; files of ``fedbus/data``."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

import click

import fedbus
from fedbus.cli.common import examples, notice

CONFIG = Path("/etc/fedbus.d")
STATE = Path("/var/lib/fedbus")  # what StateDirectory=fedbus means
_HOMES = (Path("/home"), Path("/root"), Path("/run/user"))  # what ProtectHome= hides (systemd.exec(5))
# name -> place below the folder that is written to, and what it is for
UNITS: dict[str, tuple[str, str]] = {
    "fedbus-hub.service": ("systemd/system", "the hub with all consumers of the configuration"),
    "fedbus-hub@.service": ("systemd/system", "a hub for one consumer: fedbus-hub@irc"),
    "fedbus-relay.service": ("systemd/system", "the relay of this host"),
    "fedbus-bridge-fedmsg.service": ("systemd/system", "carries a fedmsg bus into this one, and out"),
    "fedbus-check.service": ("systemd/system", "writes /run/fedbus-check/fedbus.prom for Prometheus"),
    "fedbus-check.timer": ("systemd/system", "does so each minute"),
    "sysusers.conf": ("sysusers.d/fedbus.conf", "the user and its group"),
    "tmpfiles.conf": ("tmpfiles.d/fedbus.conf", "folders of configuration, keys and state"),
}


def template(name: str) -> str:
    """Return the text of a unit, with its placeholders."""
    return (resources.files("fedbus") / "data" / "systemd" / name).read_text("utf-8")


def rendered(
    name: str,
    *,
    program: Path,
    config: Path = CONFIG,
    user: str = "fedbus",
    state: Path = STATE,
    needs: Iterable[Path] = (),
) -> str:
    """Return the text of a unit for *program*, the absolute path of the command ``fedbus``.

    *needs* are further folders and files without which it does not start.
    """
    used = (program, config, state, *needs)
    hidden = any(one.is_relative_to(home) for one in used for home in _HOMES)
    writable = "" if state.is_relative_to(STATE) else f"\nReadWritePaths={_quoted(f'-{state}')}"
    places = {
        "VERSION": fedbus.__version__,
        "PROGRAM": _quoted(str(program)).replace("$", "$$"),
        "CONFIG": _quoted(str(config)),
        "ENVIRONMENT": _quoted(f"FEDBUS_CONFIG={config}"),
        "USER": user,
        "HOME": "read-only" if hidden else "yes",
        "WRITABLE": writable,
    }
    return re.sub("@([A-Z]+)@", lambda match: places[match[1]], template(name))


def _quoted(text: str) -> str:
    """Return *text* as one word of a unit (systemd.syntax(7)), in which nothing is a specifier."""
    text = text.replace("%", "%%")
    if re.fullmatch(r"[A-Za-z0-9_./:=@%+,-]+", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _path(context: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and (not value.is_absolute() or not str(value).isprintable()):
        raise click.BadParameter("write an absolute path")
    return value


def _user(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if not re.fullmatch("[a-z_][a-z0-9_-]{0,30}", value):
        raise click.BadParameter("write the name of a user")
    return value


@click.command(
    "systemd",
    epilog=examples(
        "fedbus systemd                               what there is",
        "fedbus systemd fedbus-hub.service            one of them, on stdout",
        "fedbus systemd --write /etc                  all, below /etc/systemd/system and beside it",
        "fedbus systemd --write pkg/usr/lib           for a package",
    ),
)
@click.argument("names", nargs=-1, type=click.Choice(list(UNITS)), metavar="[UNIT]...")
@click.option(
    "--write",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write them below DIR: DIR/systemd/system, DIR/sysusers.d and DIR/tmpfiles.d.",
)
@click.option("--user", default="fedbus", show_default=True, callback=_user, help="Whom the daemons run as.")
@click.option(
    "--program",
    type=click.Path(path_type=Path),
    callback=_path,
    metavar="PATH",
    help="The command fedbus; otherwise the one that is running now.",
)
@click.pass_context
def systemd(ctx: click.Context, names: tuple[str, ...], folder: Path | None, user: str, program: Path | None) -> None:
    """Print or write units for systemd: hub, relay, checks, and what sysusers and tmpfiles need.

    The daemons tell systemd when they are ready, and are started again when they end or hang; they may do no more than
    their work needs. Units are written anew by every release, so change them with drop-ins (systemctl edit).
    """
    config = (ctx.obj or {}).get("config") or CONFIG
    config = Path(config).absolute()
    # a virtual environment may stand on an interpreter in somebody's home
    needs = () if program is not None else (Path(sys.executable).resolve(), Path(sys.base_prefix).resolve())
    program = program or _program()
    state = _state(config)

    def text_of(name: str) -> str:
        return rendered(name, program=program, config=config, user=user, state=state, needs=needs)

    if folder is None:
        if not names:
            width = max(map(len, UNITS))
            for name, (_, text) in UNITS.items():
                click.echo(f"{name:<{width}}  {text}")
        for name in names:
            click.echo(text_of(name), nl=False)
        return
    if not names and config == CONFIG and not config.exists():
        notice(f"there is no {config} yet; the daemons need one (fedbus init makes one to begin with)")
    for name in names or UNITS:
        place = UNITS[name][0]
        path = folder / place if place.endswith(".conf") else folder / place / name
        text = text_of(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and path.read_text("utf-8", "replace") == text:
            click.echo(f"{path}: as it was")
            continue
        fresh = path.with_name(f".{path.name}.new")
        fresh.write_text(text, "utf-8")
        fresh.chmod(0o644)  # systemd warns of units that others may not read
        fresh.replace(path)
        click.echo(str(path))
    if folder.absolute() == Path("/etc"):
        notice(
            "next: systemd-sysusers; systemd-tmpfiles --create; systemctl daemon-reload; "
            "systemctl enable --now fedbus-hub"
        )


def _program() -> Path:
    """Return the path of the command that is running, or of the one beside this Python."""
    called = Path(sys.argv[0])
    if called.name == "fedbus" and called.is_file():
        return called.absolute()
    beside = Path(sys.executable).parent / "fedbus"
    found = beside if beside.is_file() else Path(shutil.which("fedbus") or "/usr/bin/fedbus")
    return found.absolute()


def _state(config: Path) -> Path:
    """Return the folder of state that the configuration names; the usual one where it cannot be read here."""
    from fedbus.config.settings import Settings
    from fedbus.errors import FedbusError

    try:
        return Settings.load(config).state.absolute()
    except (FedbusError, OSError):
        return STATE
