"""What all commands share: options that stand before or after the subcommand, settings, logs, completion."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from fedbus.cli.escaping import escape_lines

if TYPE_CHECKING:
    from fedbus.bus import Bus
    from fedbus.config.settings import ConfigWatcher, Settings


def examples(*lines: str) -> str:
    """Return an epilog for ``--help``."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def shared_options() -> list[click.Option]:
    """Return the options that every command takes; what they are given ends up in the context's ``obj``."""
    return [
        click.Option(
            ["--config"],
            type=click.Path(path_type=Path, file_okay=False),
            metavar="DIR",
            expose_value=False,
            callback=_note("config"),
            help="The configuration folder; otherwise $FEDBUS_CONFIG, /etc/fedbus.d, or ./etc/fedbus.d.",
        ),
        click.Option(
            ["-v", "--verbose"],
            count=True,
            expose_value=False,
            callback=_note("verbose"),
            help="Say more on stderr, and where errors come from; twice: even more.",
        ),
        click.Option(
            ["-q", "--quiet"],
            is_flag=True,
            expose_value=False,
            callback=_note("quiet"),
            help="Say nothing on stderr but errors.",
        ),
        click.Option(
            ["--log-format"],
            type=click.Choice(["text", "json"]),
            expose_value=False,
            callback=_note("log_format"),
            help="How notices are written to stderr; otherwise log.format of the configuration.",
        ),
    ]


def _note(key: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def note(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        # a subcommand that was not given the option must not undo what stood before it
        if value:
            if context.obj is None:
                context.obj = {}
            context.obj[key] = value

    return note


_ADDRESS = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])?:[0-9]{1,5}")


def http_address(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Check an option that is HOST:PORT."""
    if value is not None and (not _ADDRESS.fullmatch(value) or int(value.rpartition(":")[2]) > 65535):
        raise click.BadParameter("write HOST:PORT, such as 127.0.0.1:9140")
    return value


COLOUR_HELP = "Whether to colour; auto: where stdout is a terminal and NO_COLOR is not set."


def share_options(command: click.Command) -> click.Command:
    """Give *command*, and the commands inside it, the shared options, unless it has one of that name itself."""
    taken = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
    for option in shared_options():
        if taken.isdisjoint(option.opts):
            command.params.append(option)
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            share_options(inner)
    return command


def load_settings(context: click.Context, *, daemon: bool = False) -> Settings:
    """Read the configuration that the options name, and set up logging as it says.

    Raises:
        ConfigError: It cannot be used.
    """
    from fedbus.config.settings import Settings

    settings = Settings.load((context.obj or {}).get("config"))
    set_up_logs(context.obj or {}, level=settings.log.level, form=settings.log.format, daemon=daemon)
    return settings


def watch_settings(context: click.Context) -> ConfigWatcher:
    """Like :func:`load_settings`, for a command that runs on and takes up what changes.

    Raises:
        ConfigError: It cannot be used.
    """
    from fedbus.config.settings import ConfigWatcher

    watcher = ConfigWatcher((context.obj or {}).get("config"))
    set_up_logs(context.obj or {}, level=watcher.settings.log.level, form=watcher.settings.log.format)
    return watcher


def take_up_endpoints(bus: Bus, after: Settings) -> None:
    """Let *bus*, which follows no files by itself, know the endpoints of *after*."""
    bus.settings = dataclasses.replace(bus.settings, endpoints=after.endpoints, journals=after.journals)


def waiting_for_restart(before: Settings, after: Settings, names: Iterable[str]) -> list[str]:
    """Return which of the sections *names* have changed."""
    from fedbus.config.discovery import differs

    return [name for name in names if differs(getattr(before, name), getattr(after, name))]


def set_up_logs(given: dict[str, Any], *, level: str = "info", form: str = "text", daemon: bool = False) -> None:
    """Set up logging: the options in *given* win over *level* and *form* of the configuration.

    A daemon logs from *level* up; a tool that somebody looks at, only warnings, unless asked for more.
    """
    from fedbus.cli import logs

    verbose = given.get("verbose", 0)
    if given.get("quiet"):
        level = "error"
    elif verbose:
        level = "debug" if verbose > 1 or level == "debug" else "info"
    elif not daemon:
        level = "error" if level == "error" else "warning"
    form = given.get("log_format") or form
    given["log_form"] = form
    logs.set_up(level=level, form=form, stamped=daemon, tracebacks=bool(verbose))


def counted(number: int, noun: str) -> str:
    """Return ``1 endpoint``, ``2 endpoints``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def verbosity(context: click.Context) -> int:
    """Return how often ``-v`` was given, or -1 with ``-q``."""
    given = context.obj or {}
    return -1 if given.get("quiet") else int(given.get("verbose", 0))


def notice(text: str, **fields: object) -> None:
    """Write a line to stderr, escaped; where there is none, nowhere.

    Where logs are JSON it is an object like theirs, which has *fields* too.
    """
    from fedbus.cli import logs

    if logs.tell_as_json(text, fields):
        return
    try:
        click.echo(escape_lines(text), err=True)
    except OSError:
        pass  # nobody reads it, which must not stop the work


# --- completion ------------------------------------------------------------------------------------------------


def complete_endpoint(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Offer the endpoints of the configuration."""
    settings = _settings_or_none(context)
    names = sorted(settings.endpoints) if settings is not None else []
    return [CompletionItem(name) for name in names if name.startswith(begun)]


def complete_cursor(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Offer the named cursors of this host."""
    from fedbus.errors import JournalError
    from fedbus.journal.cursors import CursorStore

    settings = _settings_or_none(context)
    if settings is None or not settings.cursors.exists():
        return []
    try:
        with CursorStore.open(settings.cursors) as store:
            return [CompletionItem(name) for name in store.list() if name.startswith(begun)]
    except (JournalError, OSError):
        return []


def complete_filter(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Offer services, and the topics in the journals of this host, field by field."""
    settings = _settings_or_none(context)
    if settings is None:
        return []
    root = settings.naming.root + "."
    names = {name.split(".", 1)[0] for name in settings.endpoints}
    names.update(topic.removeprefix(root) for topic in _topics_here(settings))
    return [CompletionItem(name) for name in _next_fields(names, begun)]


def complete_topic(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Offer what was published before, as publishing code says it."""
    settings = _settings_or_none(context)
    if settings is None:
        return []
    depth = settings.naming.root.count(".") + 2
    names = {".".join(topic.split(".")[depth:]) for topic in _topics_here(settings)}
    return [CompletionItem(name) for name in _next_fields(names, begun)]


def complete_key(context: click.Context, parameter: click.Parameter | None, begun: str) -> list[CompletionItem]:
    """Offer the keys of the configuration, field by field."""
    from fedbus.cli.config import keys_of

    settings = _settings_or_none(context)
    return [] if settings is None else [CompletionItem(name) for name in _next_fields(keys_of(settings), begun)]


def _next_fields(names: set[str], begun: str) -> list[str]:
    """Return *names* that begin with *begun*, cut behind the next dot where several go on differently."""
    found = {name for name in names if name.startswith(begun) and name}
    if len(found) <= 20:
        return sorted(found)
    cut = {name if (end := name.find(".", len(begun))) < 0 else name[: end + 1] for name in found}
    return sorted(cut)


def _settings_or_none(context: click.Context) -> Settings | None:
    from fedbus.config.settings import Settings
    from fedbus.errors import FedbusError

    try:
        return Settings.load((context.find_root().obj or {}).get("config") or os.environ.get("FEDBUS_CONFIG"))
    except (FedbusError, OSError):
        return None  # a shell that completes has no place for errors


def _topics_here(settings: Settings) -> set[str]:
    from fedbus.errors import JournalError
    from fedbus.journal.journal import JournalReader

    topics: set[str] = set()
    for name in settings.endpoints:
        try:
            with JournalReader.open(settings.journal_for(name).directory) as journal:
                topics.update(journal.heads)
        except (JournalError, OSError):
            continue
    return topics
