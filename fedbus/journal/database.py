"""A SQLite file that several processes share: how it is opened, written, and found damaged."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Self

from fedbus.errors import JournalError
from fedbus.journal.segment import make_directory

# UnicodeDecodeError: what SQLite says of a damaged schema quotes it, and the module decodes that as UTF-8
DATABASE_ERRORS = (sqlite3.Error, UnicodeDecodeError, OSError)
_BUSY_SECONDS = 10.0


class Database:
    """Base of the stores of a host. Any thread may use one, and so may several processes.

    On return of what writes, what it wrote outlives the machine.
    """

    WHAT: ClassVar[str]
    """What it holds, for errors: "the cursors"."""

    SCHEMA: ClassVar[str]
    """SQL that makes what is missing."""

    DAMAGED: ClassVar[str]
    """What becomes of those who need it where a damaged file is moved away."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = connection
        self._turn = threading.Lock()
        self._patience = _BUSY_SECONDS  # as the connection has it

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the database at *path*, or create it with mode 0600, and its folder with 0700.

        Raises:
            JournalError: It cannot be opened, is damaged, or is something else.
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
            connection.executescript(cls.SCHEMA)
            cls._look_over(connection)
        except DATABASE_ERRORS as error:
            if connection is not None:
                connection.close()
            raise cls._failed(path, "open", error) from error
        return cls(path, connection)

    @classmethod
    def _look_over(cls, connection: sqlite3.Connection) -> None:
        """Bring an older file up to date, and find damage that SQLite does not; raises sqlite3.DatabaseError."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database; again is harmless."""
        with self._turn:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    @contextmanager
    def _transaction(
        self, doing: str, begin: str = "BEGIN IMMEDIATE", patience: float | None = None
    ) -> Iterator[sqlite3.Connection]:
        """All or nothing of what is done inside; *patience* is how many seconds to wait for others, if not ten.

        Raises:
            JournalError: The database refused.
        """
        with self._turn:
            connection = self._connection
            if connection is None:
                raise JournalError(f"{self.WHAT} in {self.path} are closed; open them again")
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
                raise self._failed(self.path, doing, error) from error

    @classmethod
    def _failed(cls, path: Path, doing: str, error: Exception) -> JournalError:
        damaged = isinstance(error, (sqlite3.DatabaseError, UnicodeDecodeError))
        damaged = damaged and not isinstance(error, sqlite3.OperationalError)
        if damaged:
            advice = (
                f"it is damaged or no database of {cls.WHAT.removeprefix('the ')}: move it away together with "
                f"{path.name}-wal and {path.name}-shm, and restore a backup; {cls.DAMAGED}"
            )
        elif "locked" in str(error) or "busy" in str(error):
            advice = "another process keeps it locked; find it with `fuser`, and try again"
        else:
            advice = "check the disk, and the mode of the file and its folder"
        return JournalError(f"cannot {doing} {cls.WHAT} in {path}: {error}; {advice}")
