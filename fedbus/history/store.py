"""What every store of a history offers, and how one is opened."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from fedbus.clock import Clock, SystemClock
from fedbus.history.errors import HistoryError
from fedbus.history.incoming import Written
from fedbus.history.options import HistoryOptions
from fedbus.history.query import HistoryQuery
from fedbus.history.stored import StoredMessage
from fedbus.model.message import Message, MessageKey
from fedbus.model.position import FencingToken
from fedbus.texts.texts import Texts

NO_TOKEN = FencingToken(0)


@dataclass(frozen=True, slots=True)
class PartitionState:
    """One partition as lists show it; ``messages`` and ``size`` (bytes) as far as they can be told quickly."""

    name: str
    messages: int
    size: int
    fault: str = ""


@dataclass(frozen=True, slots=True)
class StoreFault:
    """Something that is wrong with a store; *aside*: the partition ``where`` has to be set aside to mend it."""

    where: str
    text: str
    aside: bool


class HistoryStore(Protocol):
    """Messages, each once, kept and found again. Any thread may use it; close it with ``with``."""

    @property
    def shown(self) -> str:
        """Where it is, for people."""

    @property
    def token(self) -> int:
        """The highest fencing token that was written with."""

    def write(self, messages: Iterable[Message], *, texts: Texts | None = None, token: int = NO_TOKEN) -> Written:
        """Keep those of *messages* that are not here yet; on return they outlive the machine.

        A crash within it may have kept some of them; the same call again keeps the others.

        Raises:
            Fenced: A writer with a higher *token* was here; step down.
            HistoryUnavailable: Not now; call again with the same.
            HistoryDamaged: The store has to be mended first.
        """

    def place_of(self, key: MessageKey) -> int | None:
        """Return the place of the message with that key; None where it is not in the history.

        Raises:
            HistoryError: The store cannot be read.
        """

    def find(self, query: HistoryQuery) -> Iterator[StoredMessage]:
        """Yield what *query* wants, by time. A message that cannot be read is among them.

        Raises:
            DeadlineExceeded: It takes longer than the query says.
            HistoryError: The store cannot be read.
        """

    def count(self, query: HistoryQuery) -> int:
        """Return how many messages *query* wants; its limit does not matter.

        Raises:
            DeadlineExceeded, HistoryError: As :meth:`find`.
        """

    def statistics(self, query: HistoryQuery) -> dict[tuple[str, int], int]:
        """Return how many messages *query* wants, by topic and hour (a count of hours since 1970).

        What has no credible time stands at hours below zero.

        Raises:
            DeadlineExceeded, HistoryError: As :meth:`find`.
        """

    def partitions(self) -> list[PartitionState]:
        """Return the partitions, the oldest first."""

    def drop_before(self, before_ms: int, *, token: int = NO_TOKEN) -> list[str]:
        """Drop the partitions that hold nothing as young as that (milliseconds since 1970); return their names.

        Raises:
            Fenced, HistoryError: As :meth:`write`.
        """

    def faults(self) -> Iterator[StoreFault]:
        """Yield what is wrong with the store as such; reads all of it. Seals are not looked at."""

    def settle(self) -> None:
        """Forget what was noted of damage: what was missing was read again."""

    def set_aside(self, where: str) -> Iterator[StoredMessage]:
        """Take a damaged partition out of the store, and yield what of it can still be read."""

    def close(self) -> None:
        """Let go of it; again is harmless."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_history(options: HistoryOptions | str, *, writable: bool = False, clock: Clock | None = None) -> HistoryStore:
    """Open the history that *options* describe, or name: a folder, or a ``postgresql://`` URL.

    A writer makes what is missing. Where there is nothing, a reader finds nothing.

    Raises:
        HistoryError: It cannot be opened, or psycopg is not installed.
    """
    chosen = HistoryOptions(store=options) if isinstance(options, str) else options
    if not chosen.postgres:
        from fedbus.history.sqlite import SqliteHistory

        return SqliteHistory(chosen, writable=writable, clock=clock or SystemClock())
    try:
        from fedbus.history.postgres import PostgresHistory
    except ImportError as error:
        raise HistoryError(
            f"a history in PostgreSQL needs psycopg, which cannot be imported ({error}); pip install 'fedbus[postgres]'"
        ) from error
    return PostgresHistory(chosen, writable=writable, clock=clock or SystemClock())
