"""What the commands of `fedbus history` share: which history, and what is looked for in it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from fedbus.cli.common import complete_endpoint, complete_filter

if TYPE_CHECKING:
    from fedbus.config.settings import Settings
    from fedbus.history.options import HistoryOptions
    from fedbus.history.query import HistoryQuery
    from fedbus.history.store import HistoryStore
    from fedbus.trust.verifier import Verifier

CONSUMER = "fedbus_consumers.history"
TRUST = 4  # the exit code for signatures and policy

F = TypeVar("F", bound=Callable[..., Any])


def _complete_when(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    times = ("10m", "1h", "1d", "7d", "today", "yesterday")
    return [CompletionItem(when) for when in times if when.startswith(begun)]


store_option = click.option(
    "--store",
    metavar="PLACE",
    help="Another history than that of the configuration: a folder, or a postgresql:// URL.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="The result as JSON.")

_WANTED = (
    click.argument("filters", metavar="[FILTER]...", nargs=-1, shell_complete=complete_filter),
    click.option(
        "--since",
        metavar="WHEN",
        shell_complete=_complete_when,
        help="From then on: how long ago (10m, 2h, 7d, '2 hours ago'), a time (2026-11-21T10:00:00Z, 14:30, "
        "'yesterday 14:00'), beginning, or behind ENDPOINT/EPOCH/SEQUENCE.",
    ),
    click.option(
        "--until",
        metavar="WHEN",
        shell_complete=_complete_when,
        help="Before then, as of --since; up to and with a message ENDPOINT/EPOCH/SEQUENCE.",
    ),
    click.option(
        "--text",
        metavar="WORDS",
        help='With all these words, whatever their case and accents; begin* for beginnings, "some words" in a row.',
    ),
    click.option(
        "--field",
        "fields",
        multiple=True,
        metavar="PATH=VALUE",
        help="Where a member of the body (build.id), or topic, signer and the like is VALUE, or has it in a list; may "
        "be repeated.",
    ),
    click.option(
        "--user", "users", multiple=True, metavar="NAME", help="Of or about this user; repeated: any of them."
    ),
    click.option(
        "--package", "packages", multiple=True, metavar="NAME", help="About this package; repeated: any of them."
    ),
    click.option(
        "--endpoint",
        "endpoints",
        multiple=True,
        metavar="NAME",
        shell_complete=complete_endpoint,
        help="Of this endpoint; repeated: any of them.",
    ),
    click.option("--service", "services", multiple=True, metavar="NAME", help="Of this service's endpoints."),
    store_option,
)


def wanted(seconds: float) -> Callable[[F], F]:
    """Give a command the options that say what is looked for; *seconds* is how long it may take if not said."""
    limit = click.option(
        "--time-limit",
        "seconds",
        type=click.FloatRange(0.0, 86400.0),
        default=seconds,
        show_default=True,
        metavar="S",
        help="Give up after S seconds, with exit code 6; 0: never.",
    )

    def add(command: F) -> F:
        for option in reversed((*_WANTED, limit)):
            command = option(command)
        return command

    return add


def parse_fields(texts: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Return paths and values.

    Raises:
        UsageError: There is no "=", or nothing before it.
    """
    found = []
    for text in texts:
        path, equals, value = text.partition("=")
        if not equals or not path.strip():
            raise click.UsageError(f"--field {text!r}: write PATH=VALUE, such as build.id=12345 or package=bash")
        found.append((path.strip(), value))
    return tuple(found)


def build_query(
    settings: Settings,
    store: HistoryStore,
    *,
    filters: tuple[str, ...],
    since: str | None,
    until: str | None,
    text: str | None,
    fields: tuple[str, ...],
    users: tuple[str, ...],
    packages: tuple[str, ...],
    endpoints: tuple[str, ...],
    services: tuple[str, ...],
    seconds: float,
    limit: int = 0,
    newest: bool = False,
) -> HistoryQuery:
    """Return the query that the options mean.

    Raises:
        UsageError: One of them means nothing.
    """
    from fedbus.errors import MessageError
    from fedbus.history.query import HistoryQuery
    from fedbus.model.topic import TopicFilter

    now = datetime.now(UTC)
    since_ms, after = _moment("--since", since, store, now)
    until_ms, through = _moment("--until", until, store, now)
    if text is not None and not text.strip():
        raise click.UsageError("--text: there is no word to look for")
    try:
        return HistoryQuery(
            filters=tuple(TopicFilter.parse(one, settings.naming) for one in filters),
            since_ms=since_ms,
            after=after,
            until_ms=until_ms,
            through=through,
            text=text or "",
            fields=parse_fields(fields),
            users=users,
            packages=packages,
            endpoints=endpoints,
            services=services,
            seconds=seconds,
            limit=limit,
            newest=newest,
        )
    except MessageError as error:
        raise click.UsageError(f"FILTER: {error}") from error
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _moment(option: str, text: str | None, store: HistoryStore, now: datetime) -> tuple[int | None, int | None]:
    """Return a time in milliseconds since 1970, or the place of a message."""
    from fedbus.cli.begin import parse_begin
    from fedbus.cli.times import parse_time
    from fedbus.model.message import MessageKey

    if text is None or text == "beginning":
        return None, None
    try:
        begin = parse_begin(text, now=now)
        if option == "--until" and not isinstance(begin, str):
            begin = parse_time(text, now=now, future=True)
    except ValueError as error:
        raise click.UsageError(f"{option}: {error}") from error
    if begin == "now":
        begin = now
    if isinstance(begin, str):
        endpoint, epoch, sequence = begin.split("/")
        place = store.place_of(MessageKey(endpoint, epoch, int(sequence)))
        if place is None:
            raise click.UsageError(f"{option}: the history does not hold {begin}")
        return None, place
    moment = now - begin if isinstance(begin, timedelta) else begin
    return int(moment.timestamp() * 1000), None


def place_of_store(settings: Settings, store: str | None) -> HistoryOptions:
    """Return where the history is: as *store* says, or as the consumer of the hub is configured.

    Raises:
        ConfigError: The configuration names several.
    """
    from fedbus.config.units import parse_duration
    from fedbus.errors import ConfigError
    from fedbus.history.options import HistoryOptions

    if store:
        return HistoryOptions(store=store)
    found: dict[str, HistoryOptions] = {}
    for one in settings.consumers.values():
        if one.use.partition(":")[0] != CONSUMER:
            continue
        place = str(one.settings.get("store") or settings.state / "history")
        try:
            found[place] = HistoryOptions(
                store=place,
                period=str(one.settings.get("period", "month")),
                keep=parse_duration(one.settings.get("keep", 0.0)),
            )
        except ValueError as error:
            raise ConfigError(f"{one.origin}: consumer {one.name!r}: keep: {error}") from error
    if len(found) > 1:
        raise ConfigError(
            f"the configuration has {len(found)} histories: {', '.join(sorted(found))}; choose one with --store"
        )
    return next(iter(found.values()), HistoryOptions(store=str(settings.state / "history")))


def open_store(settings: Settings, store: str | None, *, writable: bool = False) -> HistoryStore:
    """Open the history for reading, unless it is to be *writable*.

    Raises:
        ConfigError: There is none, and none is configured.
        HistoryError: It cannot be opened.
    """
    from fedbus.cli.common import notice
    from fedbus.errors import ConfigError
    from fedbus.history.store import open_history

    options = place_of_store(settings, store)
    if not options.postgres and not options.folder.is_dir():
        configured = any(one.use.partition(":")[0] == CONSUMER for one in settings.consumers.values())
        if store or not configured:
            raise ConfigError(
                f"there is no history in {options.shown}; let a hub run the consumer {CONSUMER}, or name another place "
                "with --store"
            )
        notice(f"nothing is stored yet in {options.shown}; a hub that runs the consumer {CONSUMER} begins it")
    return open_history(options, writable=writable)


def verifier_of(settings: Settings) -> Verifier:
    """Return what checks seals.

    Raises:
        KeysError: The CA, or its list, cannot be used.
    """
    from fedbus.trust.keyring import Keyring
    from fedbus.trust.verifier import Verifier

    return Verifier(Keyring.load(settings.keyring), settings.policy)
