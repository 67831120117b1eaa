"""What failed: how often each message was tried, and the dead letters, in one SQLite database beside the cursors.

A dead letter is a message that a consumer was given as often as it may be and did not take. It is kept with the exact
bytes that were signed, so it can be verified, read, and given to the consumer again. Attempts are written before the
pause that follows them, so that a crash does not make a message begin anew; both are forgotten once the cursor has
passed the message.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedbus.errors import FedbusError, Fenced
from fedbus.failpoints import ARMED, hit
from fedbus.journal.database import Database
from fedbus.model.message import Message, MessageKey
from fedbus.model.position import Position

_SCHEMA = """
CREATE TABLE IF NOT EXISTS attempt (
    consumer TEXT NOT NULL, endpoint TEXT NOT NULL, epoch TEXT NOT NULL, sequence INTEGER NOT NULL,
    count INTEGER NOT NULL, settled INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (consumer, endpoint, epoch, sequence)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS letter (
    id INTEGER PRIMARY KEY AUTOINCREMENT, consumer TEXT NOT NULL,
    endpoint TEXT NOT NULL, epoch TEXT NOT NULL, sequence INTEGER NOT NULL,
    topic TEXT NOT NULL, parcel BLOB NOT NULL, reason TEXT NOT NULL, traceback TEXT NOT NULL,
    attempts INTEGER NOT NULL, died_at_ms INTEGER NOT NULL,
    requeued INTEGER NOT NULL DEFAULT 0, tries INTEGER NOT NULL DEFAULT 0,
    UNIQUE (consumer, endpoint, epoch, sequence)
);
CREATE TABLE IF NOT EXISTS holder (consumer TEXT PRIMARY KEY, token INTEGER NOT NULL) WITHOUT ROWID;
"""
_TEXT = 20_000  # characters of a reason or traceback that are kept
_COLUMNS = (
    "id, consumer, endpoint, epoch, sequence, topic, reason, attempts, died_at_ms, requeued, tries, length(parcel)"
)


class LettersFull(FedbusError):
    """There is no room for another dead letter; nothing was given up."""


@dataclass(frozen=True, slots=True)
class Attempts:
    """How often a message was given to a consumer in vain; *settled*: it is not given again.

    It is a dead letter then, or was taken while one before it was not.
    """

    count: int
    settled: bool = False


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter as lists show it.

    ``attempts`` are those in vain until it died, ``tries`` those since it was requeued. ``died_at_ms`` is Unix time,
    ``parcel_bytes`` the size of the signed parcel that holds it alone.
    """

    id: int
    consumer: str
    key: MessageKey
    topic: str
    reason: str
    attempts: int
    died_at_ms: int
    requeued: bool
    tries: int
    parcel_bytes: int


@dataclass(frozen=True, slots=True)
class LetterBody:
    """The rest of a dead letter: the signed parcel that holds it alone, and where it failed."""

    parcel: bytes
    traceback: str


@dataclass(frozen=True, slots=True)
class Held:
    """What one consumer has of dead letters."""

    count: int
    size: int  # bytes of parcels and texts
    requeued: int


class DeadLetters(Database):
    """Attempts and dead letters of the consumers of this host. See :class:`Database` for who may use it.

    What a hub writes takes its fencing token; what people do by hand (``requeue``, ``drop``) does not.
    """

    WHAT = "the dead letters"
    SCHEMA = _SCHEMA
    DAMAGED = "a hub makes a new one"

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        super().__init__(path, connection)
        self._written = 0

    @contextmanager
    def _transaction(
        self, doing: str, begin: str = "BEGIN IMMEDIATE", patience: float | None = None
    ) -> Iterator[sqlite3.Connection]:
        with super()._transaction(doing, begin, patience) as connection:
            yield connection
            self._written += doing == "write"

    # --- for hubs: attempts --------------------------------------------------------------------------------------

    def attempts(self, consumer: str, cursor: Mapping[str, Position]) -> dict[MessageKey, Attempts]:
        """Return what is known of messages that *consumer* has not done with; forget those that *cursor* has passed."""
        found: dict[MessageKey, Attempts] = {}
        with self._transaction("read") as connection:
            rows = connection.execute(
                "SELECT endpoint, epoch, sequence, count, settled FROM attempt WHERE consumer = ?", (consumer,)
            ).fetchall()
            for endpoint, epoch, sequence, count, settled in rows:
                key = MessageKey(endpoint, epoch, sequence)
                if is_behind(key, cursor):
                    self._forget(connection, consumer, key)
                else:
                    found[key] = Attempts(count, bool(settled))
        return found

    def tried(self, consumer: str, key: MessageKey, count: int, token: int = 0) -> None:
        """Note that the message *key* was given to *consumer* in vain *count* times.

        Raises:
            Fenced: A hub with a newer lease has written here; step down.
            JournalError: The database refused.
        """
        with self._transaction("write") as connection:
            self._fence(connection, consumer, token)
            connection.execute(
                "INSERT INTO attempt (consumer, endpoint, epoch, sequence, count) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET count = excluded.count",
                (consumer, *key, count),
            )
        if ARMED:
            hit("dead.tried")

    def forget(self, consumer: str, keys: Iterable[MessageKey], token: int = 0) -> None:
        """The messages *keys* are done with, one way or another: forget their attempts.

        Raises:
            Fenced, JournalError: As above.
        """
        with self._transaction("write") as connection:
            self._fence(connection, consumer, token)
            for key in keys:
                self._forget(connection, consumer, key)

    def settle(self, consumer: str, keys: Iterable[MessageKey], token: int = 0) -> None:
        """Note that the messages *keys* are done with, though others before them are not: they are not given again.

        Raises:
            Fenced, JournalError: As above.
        """
        with self._transaction("write") as connection:
            self._fence(connection, consumer, token)
            connection.executemany(
                "INSERT INTO attempt VALUES (?, ?, ?, ?, 0, 1) ON CONFLICT DO UPDATE SET settled = 1",
                [(consumer, *key) for key in keys],
            )

    @staticmethod
    def _forget(connection: sqlite3.Connection, consumer: str, key: MessageKey) -> None:
        connection.execute(
            "DELETE FROM attempt WHERE (consumer, endpoint, epoch, sequence) = (?, ?, ?, ?)", (consumer, *key)
        )

    # --- for hubs: dead letters ----------------------------------------------------------------------------------

    def bury(
        self,
        consumer: str,
        message: Message,
        *,
        reason: str,
        traceback: str,
        attempts: int,
        at_ms: int,
        most: int,
        most_bytes: int,
        again: bool = False,
        token: int = 0,
    ) -> bool:
        """Make *message* a dead letter of *consumer*, in one step with the note that it is not to be given again.

        One that is there already (it was requeued, and has failed again) stays one letter, with the new reason and the
        attempts of both times. With *again* it was there, and nothing is done, and False returned, where people have
        dropped it meanwhile.

        Raises:
            LettersFull: There would be more than *most* letters of this consumer, or *most_bytes* of them.
            Fenced, JournalError: As above.
        """
        parcel, reason, traceback = message.sealed, _storable(reason), _storable(traceback)
        key = message.key
        with self._transaction("write") as connection:
            self._fence(connection, consumer, token)
            known = connection.execute(
                "SELECT id FROM letter WHERE (consumer, endpoint, epoch, sequence) = (?, ?, ?, ?)", (consumer, *key)
            ).fetchone()
            if known is None and again:
                return False
            if known is not None:
                connection.execute(
                    "UPDATE letter SET reason = ?, traceback = ?, attempts = attempts + ?, died_at_ms = ?, "
                    "requeued = 0, tries = 0 WHERE id = ?",
                    (reason, traceback, attempts, at_ms, known[0]),
                )
            else:
                held = self._held(connection, consumer)
                size = len(parcel) + len(reason) + len(traceback)
                if held.count >= most or held.size + size > most_bytes:
                    raise LettersFull(
                        f"consumer {consumer!r} has {held.count} dead letters with {held.size} bytes, and no more fit "
                        f"(hub.dead_messages {most}, hub.dead_bytes {most_bytes}); mend what fails, then use `fedbus "
                        "dead requeue` or `fedbus dead drop`"
                    )
                connection.execute(
                    "INSERT INTO letter (consumer, endpoint, epoch, sequence, topic, parcel, reason, traceback, "
                    "attempts, died_at_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (consumer, *key, message.topic, parcel, reason, traceback, attempts, at_ms),
                )
            connection.execute(
                "INSERT INTO attempt VALUES (?, ?, ?, ?, ?, 1) ON CONFLICT DO UPDATE SET count = excluded.count, "
                "settled = 1",
                (consumer, *key, attempts),
            )
            if ARMED:
                hit("dead.buried.inside")
        if ARMED:
            hit("dead.buried.after")
        return True

    def requeued(self, consumer: str, limit: int = 100) -> list[Letter]:
        """Return letters that people want *consumer* to be given once more, the oldest first."""
        with self._transaction("read", "BEGIN") as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM letter WHERE consumer = ? AND requeued = 1 ORDER BY id LIMIT ?",
                (consumer, limit),
            ).fetchall()
        return [_letter(row) for row in rows]

    def tried_again(self, letter: Letter, tries: int, token: int = 0) -> bool:
        """Note that a requeued *letter* was given to its consumer in vain *tries* times.

        Return False where people have dropped it meanwhile.

        Raises:
            Fenced, JournalError: As above.
        """
        with self._transaction("write") as connection:
            self._fence(connection, letter.consumer, token)
            return connection.execute("UPDATE letter SET tries = ? WHERE id = ?", (tries, letter.id)).rowcount > 0

    def resolve(self, letter: Letter, token: int = 0) -> None:
        """A requeued *letter* was taken by its consumer: it is no more.

        Raises:
            Fenced, JournalError: As above.
        """
        with self._transaction("write") as connection:
            self._fence(connection, letter.consumer, token)
            connection.execute("DELETE FROM letter WHERE id = ?", (letter.id,))

    def refuse(self, letter: Letter, reason: str, token: int = 0) -> None:
        """A requeued *letter* cannot be given to its consumer: it stays, for this *reason*.

        Raises:
            Fenced, JournalError: As above.
        """
        with self._transaction("write") as connection:
            self._fence(connection, letter.consumer, token)
            connection.execute(
                "UPDATE letter SET requeued = 0, reason = ? WHERE id = ?", (_storable(reason), letter.id)
            )

    @property
    def version(self) -> tuple[int, int]:
        """Changes whenever somebody has written, here or in another process; cheap to ask.

        Raises:
            JournalError: The database refused.
        """
        with self._transaction("read", "BEGIN") as connection:
            return connection.execute("PRAGMA data_version").fetchone()[0], self._written

    def held(self, consumer: str) -> Held:
        """Return what *consumer* has of dead letters."""
        with self._transaction("read", "BEGIN") as connection:
            return self._held(connection, consumer)

    @staticmethod
    def _held(connection: sqlite3.Connection, consumer: str) -> Held:
        row = connection.execute(
            "SELECT count(*), coalesce(sum(length(parcel) + length(reason) + length(traceback)), 0), "
            "coalesce(sum(requeued), 0) FROM letter WHERE consumer = ?",
            (consumer,),
        ).fetchone()
        return Held(*row)

    @staticmethod
    def _fence(connection: sqlite3.Connection, consumer: str, token: int) -> None:
        row = connection.execute("SELECT token FROM holder WHERE consumer = ?", (consumer,)).fetchone()
        highest = row[0] if row else 0
        if token < highest:
            raise Fenced(
                f"token {token} is older than {highest}, which has written dead letters of {consumer!r}; step down"
            )
        if token > highest:
            connection.execute("INSERT OR REPLACE INTO holder VALUES (?, ?)", (consumer, token))

    # --- for people ----------------------------------------------------------------------------------------------

    def list(self, consumer: str | None = None) -> list[Letter]:
        """Return the dead letters, of all consumers or of one, the oldest first."""
        where, values = ("WHERE consumer = ?", (consumer,)) if consumer is not None else ("", ())
        with self._transaction("read", "BEGIN") as connection:
            rows = connection.execute(f"SELECT {_COLUMNS} FROM letter {where} ORDER BY id", values).fetchall()
        return [_letter(row) for row in rows]

    def get(self, number: int) -> tuple[Letter, LetterBody] | None:
        """Return the letter with that id; None when there is none."""
        with self._transaction("read", "BEGIN") as connection:
            row = connection.execute(
                f"SELECT {_COLUMNS}, parcel, traceback FROM letter WHERE id = ?", (number,)
            ).fetchone()
        return None if row is None else (_letter(row[:-2]), LetterBody(bytes(row[-2]), row[-1]))

    def requeue(self, number: int) -> bool:
        """Have the letter given to its consumer once more, by the hub that runs or the next; False: there is none."""
        with self._transaction("write") as connection:
            done = connection.execute(
                "UPDATE letter SET requeued = 1, tries = CASE requeued WHEN 1 THEN tries ELSE 0 END WHERE id = ?",
                (number,),
            )
            return done.rowcount > 0

    def drop(self, number: int) -> bool:
        """Throw the letter away, for good; return False when there is none."""
        with self._transaction("write") as connection:
            return connection.execute("DELETE FROM letter WHERE id = ?", (number,)).rowcount > 0


def is_behind(key: MessageKey, cursor: Mapping[str, Position]) -> bool:
    """Return whether *cursor* has passed the message: it will not come again from its stream.

    An epoch is a UUID of version 7 (RFC 9562, 5.7), so the later one is the greater: a cursor that still stands in an
    older epoch has not come to the message.
    """
    place = cursor.get(key.endpoint)
    if place is None:
        return False
    return place.sequence >= key.sequence if place.epoch == key.epoch else place.epoch > key.epoch


def _letter(row: tuple[int, str, str, str, int, str, str, int, int, int, int, int]) -> Letter:
    number, consumer, endpoint, epoch, sequence, topic, reason, attempts, died_at_ms, requeued, tries, size = row
    key = MessageKey(endpoint, epoch, sequence)
    return Letter(number, consumer, key, topic, reason, attempts, died_at_ms, bool(requeued), tries, size)


def _storable(text: str) -> str:
    """Return what SQLite can keep and a person would read: no lone surrogates, no megabytes."""
    cut = text if len(text) <= _TEXT else text[:_TEXT] + "…"
    return cut.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")
