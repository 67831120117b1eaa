"""What the commands of `fedbus journal` share: options, the folders of this host, and reading what was asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedbus.cli.common import complete_filter, notice

if TYPE_CHECKING:
    from fedbus.config.settings import Settings
    from fedbus.journal.audit import Fault, Kept
    from fedbus.journal.reader import JournalReader
    from fedbus.trust.verifier import Verifier

TRUST = 4  # the exit code for signatures and policy
SHOWN_FAULTS = 50  # lines about one journal on stderr; --json has all

json_option = click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
from_option = click.option("--from", "first", type=click.IntRange(1), metavar="SEQ", help="From this sequence on.")
to_option = click.option("--to", "last", type=click.IntRange(1), metavar="SEQ", help="Up to this sequence.")
topic_option = click.option(
    "--topic", "topics", multiple=True, metavar="FILTER", shell_complete=complete_filter,
    help="Only messages below this topic, as `fedbus tail` takes it; may be repeated.",
)  # fmt: skip


class Reading:
    """The messages of one journal that were asked for, and what was wrong with the others."""

    def __init__(
        self,
        settings: Settings,
        reader: JournalReader,
        topics: tuple[str, ...],
        first: int | None,
        last: int | None,
    ) -> None:
        from fedbus.errors import MessageError
        from fedbus.model.topic import TopicFilter

        try:
            filters = [TopicFilter.parse(text, settings.naming) for text in topics]
        except MessageError as error:
            raise click.UsageError(f"--topic: {error}") from error
        if first is not None and last is not None and last < first:
            raise click.UsageError(f"--to {last} is before --from {first}")
        self._settings = settings
        self._reader = reader
        self._after = (first or 1) - 1
        self._last = last
        self._wanted: Callable[[str], bool] | None = None
        if filters:
            self._wanted = lambda topic: any(one.matches(topic) for one in filters)
        self.refused = 0
        self.lost = 0

    @property
    def code(self) -> int:
        """The exit code for what was wrong."""
        return TRUST if self.refused else 1 if self.lost else 0

    def messages(self) -> Iterator[Kept]:
        """Yield the messages."""
        from fedbus.journal.audit import kept_messages

        if self._after + 1 < self._reader.start and self._after:
            notice(
                f"{self._reader.endpoint}: the journal begins at {self._reader.start}; retention took what was before"
            )
        return kept_messages(
            self._reader,
            verifier_of(self._settings),
            self._settings.limits,
            after=self._after,
            through=self._last,
            wanted=self._wanted,
            refuse=self._refuse,
            lost=self._lose,
        )

    def _refuse(self, fault: Fault) -> None:
        self.refused += 1
        notice(f"refused: {fault}")

    def _lose(self, first: int, last: int) -> None:
        self.lost += 1
        notice(f"{self._reader.endpoint}: sequences {first} to {last} cannot be read")


def journals(settings: Settings) -> dict[str, Path]:
    """Return the folders of the journals on this host by name: of configured endpoints, and of others that are left."""
    from fedbus.journal.state import journals_in

    folders = {name: options.directory for name, options in settings.journals.items()}
    with contextlib.suppress(OSError):
        for folder in (settings.state / "journal").iterdir():
            if folder.is_dir() and not folder.name.startswith("."):
                folders.setdefault(folder.name, folder)
    present = set(journals_in(folders.values()))
    return {name: folder for name, folder in sorted(folders.items()) if folder in present}


def chosen(settings: Settings, names: tuple[str, ...]) -> dict[str, Path]:
    """Return the folders of the journals of *names*; of all where there are none."""
    known = journals(settings)
    return {name: known[name] if name in known else _missing(settings, name) for name in names} if names else known


def _missing(settings: Settings, name: str) -> Path:
    """Raise, since there is no journal of *name* here."""
    options = settings.journal_for(name)  # which tells what there is where that is no endpoint at all
    raise click.ClickException(
        f"there is no journal of {name!r} on this host: nothing in {options.directory}; its publisher makes it when it "
        "first starts"
    )


@contextmanager
def opened(settings: Settings, name: str) -> Iterator[JournalReader]:
    """Open the journal of *name* to be read."""
    from fedbus.journal.reader import JournalReader

    with JournalReader.open(chosen(settings, (name,))[name]) as reader:
        check_owner(settings, name, reader.endpoint)
        yield reader


def check_owner(settings: Settings, name: str, owner: str) -> None:
    """Raise where the folder of the endpoint *name* holds the journal of *owner*, another one.

    Its seals are good, and prove nothing of *name*. In folders that are of no endpoint somebody may keep what he likes.

    Raises:
        JournalError: It does.
    """
    from fedbus.errors import JournalError

    if owner != name and name in settings.journals:
        raise JournalError(
            f"the journal in {settings.journals[name].directory} belongs to endpoint {owner!r}, not {name!r}; move it "
            "away, or to where that endpoint's journal is kept"
        )


def verifier_of(settings: Settings) -> Verifier:
    """Return what checks seals by the keys and the policy of *settings*."""
    from fedbus.trust.keyring import Keyring
    from fedbus.trust.verifier import Verifier

    return Verifier(Keyring.load(settings.keyring), settings.policy)


def size_of(count: int) -> str:
    """Return so many bytes with a unit."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f}{unit}" if unit == "B" else f"{size:.1f}{unit}"
        size /= 1024
    return ""
