"""Where readers have come to: cursors by name, in one SQLite database that many readers share."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable, Mapping

from fedbus.errors import Fenced, JournalError
from fedbus.failpoints import ARMED, hit
from fedbus.journal.database import Database
from fedbus.model.position import Position

_SCHEMA = """
CREATE TABLE IF NOT EXISTS cursor (
    name TEXT NOT NULL, endpoint TEXT NOT NULL, epoch TEXT NOT NULL, sequence INTEGER NOT NULL, checksum INTEGER,
    PRIMARY KEY (name, endpoint)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS holder (name TEXT PRIMARY KEY, token INTEGER NOT NULL) WITHOUT ROWID;
"""
_COLUMNS = "name, endpoint, epoch, sequence, checksum"  # by name: damage may make others of them
_LARGEST = 2**63 - 1  # what SQLite's integers hold


class CursorStore(Database):
    """Named cursors, each a place in every stream that its reader has met. See :class:`Database` for who may use it."""

    WHAT = "the cursors"
    SCHEMA = _SCHEMA
    DAMAGED = "without one, readers begin where their `since` says and may see messages again"

    @classmethod
    def _look_over(cls, connection: sqlite3.Connection) -> None:
        _add_checksums(connection)
        _check_rows(connection.execute(f"SELECT {_COLUMNS} FROM cursor"))

    def load(self, name: str) -> dict[str, Position]:
        """The places of cursor *name* by endpoint; empty when it has none yet."""
        with self._transaction("read", "BEGIN") as connection:
            rows = connection.execute(f"SELECT {_COLUMNS} FROM cursor WHERE name = ?", (name,)).fetchall()
            _check_rows(rows)
        return {endpoint: Position(epoch, sequence) for _, endpoint, epoch, sequence, _ in rows}

    def save(
        self,
        name: str,
        positions: Mapping[str, Position],
        token: int = 0,
        *,
        force: bool = False,
        patience: float | None = None,
    ) -> None:
        """Keep *positions* (by endpoint) for cursor *name*, all or none; other endpoints' places stay.

        Within an epoch a place never moves back, unless *force* says that it should. *patience* is how many seconds to
        wait for another process that is writing, if not ten.

        Raises:
            Fenced: A holder of a higher token has saved this cursor; step down.
            JournalError: The database refused; nothing was saved.
        """
        for endpoint, position in positions.items():
            if not 0 <= position.sequence <= _LARGEST:
                raise JournalError(f"cursor {name!r}: {position.sequence} is no sequence of endpoint {endpoint!r}")
        keep = "" if force else "WHERE excluded.epoch <> cursor.epoch OR excluded.sequence > cursor.sequence"
        with self._transaction("write", "BEGIN IMMEDIATE", patience) as connection:
            if ARMED:
                hit("cursor.commit.before")
            self._fence(connection, name, token)
            connection.executemany(
                "INSERT INTO cursor VALUES (?, ?, ?, ?, ?) ON CONFLICT (name, endpoint) "
                "DO UPDATE SET epoch = excluded.epoch, sequence = excluded.sequence, checksum = excluded.checksum "
                f"{keep}",
                [
                    (
                        name,
                        endpoint,
                        place.epoch,
                        place.sequence,
                        _checksum(name, endpoint, place.epoch, place.sequence),
                    )
                    for endpoint, place in positions.items()
                ],
            )
            if ARMED:
                hit("cursor.commit.inside")
        if ARMED:
            hit("cursor.commit.after")

    def delete(self, name: str, token: int = 0) -> bool:
        """Forget the places of cursor *name*; whether there were any. Its token stays known: a late holder is fenced.

        Raises:
            Fenced: A holder of a higher token has saved this cursor.
        """
        with self._transaction("write", "BEGIN IMMEDIATE") as connection:
            self._fence(connection, name, token)
            return connection.execute("DELETE FROM cursor WHERE name = ?", (name,)).rowcount > 0

    @staticmethod
    def _fence(connection: sqlite3.Connection, name: str, token: int) -> None:
        row = connection.execute("SELECT token FROM holder WHERE name = ?", (name,)).fetchone()
        highest = row[0] if row else 0
        if token < highest:
            raise Fenced(f"token {token} is older than {highest}, which has saved cursor {name!r}; step down")
        if token > highest:
            connection.execute("INSERT OR REPLACE INTO holder VALUES (?, ?)", (name, token))

    def list(self) -> list[str]:
        """The names of all cursors that have a place, sorted."""
        with self._transaction("read", "BEGIN") as connection:
            return [row[0] for row in connection.execute("SELECT DISTINCT name FROM cursor ORDER BY name")]


def _checksum(name: str, endpoint: str, epoch: str, sequence: int) -> int:
    return zlib.crc32(f"{name}\0{endpoint}\0{epoch}\0{sequence}".encode())


def _check_rows(rows: Iterable[tuple[str, str, str, int, int | None]]) -> None:
    """Find a place that is not the one that was saved: it would skip messages in silence.

    SQLite has no checksums, so it notices a changed page only where its structure suffers.

    Raises:
        sqlite3.DatabaseError: There is one.
    """
    for name, endpoint, epoch, sequence, checksum in rows:
        if checksum is not None and checksum != _checksum(name, endpoint, epoch, sequence):
            raise sqlite3.DatabaseError(f"the place of cursor {name!r} in {endpoint!r} is not as it was saved")


def _add_checksums(connection: sqlite3.Connection) -> None:
    """Bring a database of release 0.1.0 up to date; places that it has saved go without a checksum until they move."""
    columns = [row[1] for row in connection.execute("PRAGMA table_info(cursor)")]
    if "checksum" in columns:
        return
    try:
        connection.execute("ALTER TABLE cursor ADD COLUMN checksum INTEGER")
    except sqlite3.OperationalError as error:
        if "duplicate" not in str(error):  # another process was quicker
            raise
