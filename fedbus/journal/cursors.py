"""Where readers have come to: cursors by name, in one SQLite database that many readers share."""

from __future__ import annotations

import sqlite3
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from fedbus.errors import Fenced, JournalError
from fedbus.failpoints import ARMED, hit
from fedbus.journal.segment import make_directory
from fedbus.model.position import Position

_SCHEMA = """
CREATE TABLE IF NOT EXISTS cursor (
    name TEXT NOT NULL, endpoint TEXT NOT NULL, epoch TEXT NOT NULL, sequence INTEGER NOT NULL, checksum INTEGER,
    PRIMARY KEY (name, endpoint)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS holder (name TEXT PRIMARY KEY, token INTEGER NOT NULL) WITHOUT ROWID;
"""
# UnicodeDecodeError: what SQLite says of a damaged schema quotes it, and the module decodes that as UTF-8
DATABASE_ERRORS = (sqlite3.Error, UnicodeDecodeError, OSError)
_COLUMNS = "name, endpoint, epoch, sequence, checksum"  # by name: damage may make others of them
_BUSY_SECONDS = 10.0
_LARGEST = 2**63 - 1  # what SQLite's integers hold


class CursorStore:
    """Named cursors, each a place in every stream that its reader has met.

    Any thread may use it, and so may several processes. On return of :meth:`save` the places outlive the machine.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = connection
        self._turn = threading.Lock()
        self._patience = _BUSY_SECONDS  # as the connection has it

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the database at *path*, or create it with mode 0600, and its folder with 0700.

        Raises:
            JournalError: It cannot be opened, or is not (any more) a database of cursors.
        """
        connection = None
        try:
            make_directory(path.parent)
            path.touch(mode=0o600)
            connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            # SQLite finds much damage only where it reads; a cursor from a damaged page would skip messages in silence
            verdict = connection.execute("PRAGMA quick_check(1)").fetchone()
            if verdict is None or verdict[0] != "ok":
                raise sqlite3.DatabaseError(str(verdict and verdict[0]))
            connection.executescript(_SCHEMA)
            _add_checksums(connection)
            _check_rows(connection.execute(f"SELECT {_COLUMNS} FROM cursor"))
        except DATABASE_ERRORS as error:
            if connection is not None:
                connection.close()
            raise _failed(path, "open", error) from error
        return cls(path, connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self, doing: str, begin: str, patience: float | None = None) -> Iterator[sqlite3.Connection]:
        with self._turn:
            connection = self._connection
            if connection is None:
                raise JournalError(f"the cursors in {self.path} are closed; open them again")
            try:
                wanted = _BUSY_SECONDS if patience is None else patience
                if wanted != self._patience:
                    connection.execute(f"PRAGMA busy_timeout = {int(wanted * 1000)}")
                    self._patience = wanted
                connection.execute(begin)
                try:
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
            except DATABASE_ERRORS as error:
                raise _failed(self.path, doing, error) from error

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

    def close(self) -> None:
        """Let go of the database; again is harmless."""
        with self._turn:
            if self._connection is not None:
                self._connection.close()
                self._connection = None


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


def _failed(path: Path, doing: str, error: Exception) -> JournalError:
    damaged = isinstance(error, (sqlite3.DatabaseError, UnicodeDecodeError))
    damaged = damaged and not isinstance(error, sqlite3.OperationalError)
    if damaged:
        advice = (
            f"it is damaged or no database of cursors: move it away together with {path.name}-wal and {path.name}-shm, "
            "and restore a backup; without one, readers begin where their `since` says and may see messages again"
        )
    elif "locked" in str(error) or "busy" in str(error):
        advice = "another process keeps it locked; find it with `fuser`, and try again"
    else:
        advice = "check the disk, and the mode of the file and its folder"
    return JournalError(f"cannot {doing} the cursors in {path}: {error}; {advice}")
