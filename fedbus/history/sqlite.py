"""A history in SQLite: a folder with a file for each period, and one that says who may write."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

from fedbus.clock import Clock
from fedbus.errors import DeadlineExceeded, Fenced
from fedbus.failpoints import ARMED, hit
from fedbus.history.errors import HistoryDamaged, HistoryError, HistoryUnavailable
from fedbus.history.finding import find, is_wanted, tally, total
from fedbus.history.incoming import Row, Written, by_partition, keys_for, other_partitions, place, repeated
from fedbus.history.options import HistoryOptions
from fedbus.history.partition import Partition, connect, told
from fedbus.history.places import HOUR_MS, SLOT_BITS, bounds, is_over, kept_from
from fedbus.history.query import HistoryQuery
from fedbus.history.salvage import salvage
from fedbus.history.store import NO_TOKEN, PartitionState, StoreFault
from fedbus.history.stored import StoredMessage
from fedbus.journal.segment import make_directory, sync_directory
from fedbus.model.message import Message, MessageKey
from fedbus.texts.texts import Texts

log = logging.getLogger(__name__)

MAIN = "history.db"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS fact (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS partition (
    name TEXT PRIMARY KEY, writes INTEGER NOT NULL, fault TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
"""
_OPEN = 6  # partitions that a writer keeps open
_STEPS = 10_000  # of SQLite's machine between two looks at the clock
_LOOK_MS = HOUR_MS  # between two looks for partitions that are over


class SqliteHistory:
    """See :class:`~fedbus.history.store.HistoryStore`. Several processes may read and write the same folder.

    Who writes holds a lock on ``history.db``, in which the highest fencing token stands: so nobody with an older one
    gets in between, whichever file he writes to.
    """

    def __init__(self, options: HistoryOptions, *, writable: bool, clock: Clock) -> None:
        """Raises HistoryError."""
        self.folder = options.folder
        self._options = options
        self._writable = writable
        self._clock = clock
        self._turn = threading.RLock()
        self._open: dict[str, Partition] = {}
        self._main: sqlite3.Connection | None = None
        self._closed = False
        self._period = options.period
        self._looked_ms = 0
        if writable:
            self._open_main()

    # --- opening and closing ---------------------------------------------------------------------------------------

    @property
    def shown(self) -> str:
        return str(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        with self._turn:
            self._closed = True
            for part in self._open.values():
                part.close()
            self._open.clear()
            if self._main is not None:
                self._main.close()
                self._main = None

    def _open_main(self) -> None:
        path = self.folder / MAIN
        with told(path, "open"):
            make_directory(self.folder)
            path.touch(mode=0o600)
            connection = connect(path, writable=True)
            try:
                # what it says of the other files is only compared with them; the token is synced where it grows
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.executescript(_SCHEMA)
                connection.execute("INSERT OR IGNORE INTO fact VALUES ('token', '0')")
                connection.execute("INSERT OR IGNORE INTO fact VALUES ('period', ?)", (self._options.period,))
                (period,) = connection.execute("SELECT value FROM fact WHERE name = 'period'").fetchone()
            except BaseException:
                connection.close()
                raise
        if period != self._options.period:
            log.warning(
                "history %s: has partitions of a %s each, and keeps that; a %s is for new histories",
                self.folder,
                period,
                self._options.period,
            )
        self._period = period
        self._main = connection

    @contextmanager
    def _writing(self, token: int) -> Iterator[sqlite3.Connection]:
        """Hold the lock of all writers, with a token that nobody has passed."""
        if not self._writable:
            raise HistoryError(f"the history {self.folder} was opened for reading")
        with self._turn:
            if self._closed:
                raise HistoryError(f"the history {self.folder} is closed; open it again")
            path = self.folder / MAIN
            if self._main is None or not path.exists():
                if self._main is not None:
                    self._main.close()
                self._open_main()
            main = self._main
            assert main is not None
            with told(path, "lock"):
                main.execute("BEGIN IMMEDIATE")
            try:
                with told(path, "read"):
                    highest = _token(main)
                    if token > highest:
                        self._raise_token(main, token)
                        highest = _token(main)
                if token < highest:
                    raise Fenced(
                        f"token {token} is older than {highest}, which has written to the history {self.folder}; "
                        "step down"
                    )
                yield main
                with told(path, "write"):
                    main.execute("COMMIT")
            except BaseException:
                if main.in_transaction:
                    main.execute("ROLLBACK")
                raise

    @staticmethod
    def _raise_token(main: sqlite3.Connection, token: int) -> None:
        """Let *token* be known for good before anything is written with it."""
        main.execute("ROLLBACK")
        main.execute("PRAGMA synchronous = FULL")
        try:
            main.execute("BEGIN IMMEDIATE")
            if token > _token(main):
                main.execute("UPDATE fact SET value = ? WHERE name = 'token'", (str(token),))
            main.execute("COMMIT")
        finally:
            main.execute("PRAGMA synchronous = NORMAL")
        main.execute("BEGIN IMMEDIATE")

    # --- writing ---------------------------------------------------------------------------------------------------

    @property
    def token(self) -> int:
        with self._turn:
            if self._main is None:
                self._open_main()
            assert self._main is not None
            with told(self.folder / MAIN, "read"):
                return _token(self._main)

    def write(self, messages: Iterable[Message], *, texts: Texts | None = None, token: int = NO_TOKEN) -> Written:
        now_ms = int(self._clock.wall() * 1000)
        rows = place(messages, now_ms)
        keep_ms = kept_from(self._options.keep, now_ms, self._period)
        young = [row for row in rows if row.ms < 0 or row.ms >= keep_ms] if keep_ms else rows
        chosen = texts or Texts()
        new = 0
        with self._writing(token) as main:
            there = self._names()
            for name, group in sorted(by_partition(young, self._period).items()):
                new += self._write_to(main, name, group, there, chosen, now_ms)
            if now_ms >= self._looked_ms + _LOOK_MS:
                self._looked_ms = now_ms
                if keep_ms:
                    self._drop(main, keep_ms)
        return Written(new=new, known=len(young) - new, expired=len(rows) - len(young))

    def _write_to(
        self, main: sqlite3.Connection, name: str, rows: list[Row], there: list[str], texts: Texts, now_ms: int
    ) -> int:
        path = self._path(name)
        try:
            known = repeated(rows)
            for other in (*([name] if name in there else []), *other_partitions(rows, name, self._period, there)):
                part = self._partition(main, other)
                with told(part.path, "read"):
                    known |= part.known(rows)
            fresh = [row for index, row in enumerate(rows) if index not in known] if known else rows
            if not fresh:
                return 0
            part = self._partition(main, name)
            with told(path, "write"):
                writes = part.add(fresh, texts, now_ms)
        except BaseException:
            # whatever it was, the next call begins with a look at the file itself
            self._forget(name)
            raise
        with told(self.folder / MAIN, "write"):
            main.execute(
                "INSERT INTO partition (name, writes) VALUES (?, ?) ON CONFLICT DO UPDATE SET writes = excluded.writes",
                (name, writes),
            )
        return len(fresh)

    def _partition(self, main: sqlite3.Connection, name: str) -> Partition:
        part = self._open.get(name)
        if part is not None and part.is_there:
            return part
        self._forget(name)
        while len(self._open) >= _OPEN:
            self._forget(next(iter(self._open)))
        path = self._path(name)
        fresh = not path.exists()
        with told(self.folder / MAIN, "read"):
            row = main.execute("SELECT writes FROM partition WHERE name = ?", (name,)).fetchone()
        if fresh and row is not None and row[0]:
            raise HistoryDamaged(
                f"{path} is gone, though it held messages; put it back, or let `fedbus history rebuild` fill it again",
                where=path.name,
            )
        part = Partition.open(path, writable=True)
        try:
            if fresh:
                sync_directory(self.folder)
            with told(path, "read"):
                self._compare(main, part, row[0] if row is not None else 0)
        except BaseException:
            part.close()
            raise
        self._open[name] = part
        return part

    def _compare(self, main: sqlite3.Connection, part: Partition, expected: int) -> None:
        """Find out whether writes that were committed are gone, as after damage of a write-ahead log."""
        text = _writes_gone(part, expected)
        if not text:
            return
        log.error(
            "history %s: %s, as if its write-ahead log was damaged; what they held is missing, and comes back with "
            "`fedbus history rebuild`",
            part.path,
            text,
        )
        main.execute("UPDATE partition SET writes = ?, fault = ? WHERE name = ?", (part.writes, text, part.name))

    def _forget(self, name: str) -> None:
        part = self._open.pop(name, None)
        if part is not None:
            part.close()

    # --- partitions ------------------------------------------------------------------------------------------------

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.db"

    def _names(self) -> list[str]:
        """Return the partitions that are there: those apart first, then the others, the oldest first."""
        found = []
        try:
            entries = [path.name for path in self.folder.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise HistoryUnavailable(f"cannot read {self.folder}: {error.strerror}; check its mode") from error
        for entry in entries:
            if not entry.endswith(".db") or entry == MAIN:
                continue
            try:
                found.append((bounds(entry.removesuffix(".db")), entry.removesuffix(".db")))
            except ValueError:
                continue
        return [name for _, name in sorted(found)]

    def partitions(self) -> list[PartitionState]:
        noted = self._noted()
        faults = {name: fault for name, (fault, _) in noted.items()}
        found = []
        for name in self._names():
            path = self._path(name)
            size = 0
            for ending in ("", "-wal"):
                try:
                    size += path.with_name(path.name + ending).stat().st_size
                except FileNotFoundError:
                    pass
            try:
                with self._reading(name) as part, told(path, "read"):
                    (count,) = part.connection.execute("SELECT coalesce(sum(count), 0) FROM tally").fetchone()
                    gone = _writes_gone(part, noted[name][1]) if name in noted else ""
                found.append(PartitionState(name, count, size, faults.pop(name, "") or gone))
            except HistoryDamaged as error:
                found.append(PartitionState(name, 0, size, str(error)))
                faults.pop(name, None)
        found += [PartitionState(name, 0, 0, fault) for name, fault in faults.items() if fault]
        return found

    def _noted(self) -> dict[str, tuple[str, int]]:
        """Return what was noted of each partition, also of one whose file is gone, and how many writes it has taken."""
        path = self.folder / MAIN
        if not path.exists():
            return {}
        there = set(self._names())
        with told(path, "read"):
            connection = connect(path, writable=False)
            try:
                rows = connection.execute("SELECT name, fault, writes FROM partition").fetchall()
            finally:
                connection.close()
        gone = "its file is gone, though it held messages"
        return {
            name: (fault if name in there else gone, writes) for name, fault, writes in rows if name in there or writes
        }

    def drop_before(self, before_ms: int, *, token: int = NO_TOKEN) -> list[str]:
        with self._writing(token) as main:
            return self._drop(main, before_ms)

    def _drop(self, main: sqlite3.Connection, before_ms: int) -> list[str]:
        dropped = [name for name in self._names() if is_over(name, before_ms)]
        for name in dropped:
            self._forget(name)
            path = self._path(name)
            with told(path, "drop"):
                # the file first: its log alone means nothing, the file without its log means something else
                for ending in ("", "-wal", "-shm"):
                    path.with_name(path.name + ending).unlink(missing_ok=True)
                main.execute("DELETE FROM partition WHERE name = ?", (name,))
            log.info("history %s: dropped, all that it held is older than what is kept", path)
        return dropped

    # --- reading ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _reading(self, name: str) -> Iterator[Partition]:
        """A partition for reading only, with a connection of its own: what is read is one state, whoever writes."""
        part = Partition.open(self._path(name), writable=False)
        try:
            yield part
        finally:
            part.close()

    def _chosen(self, query: HistoryQuery) -> list[str]:
        low, high = query.places
        names = [name for name in self._names() if bounds(name)[0] <= high and bounds(name)[1] > low]
        if query.newest:
            names.reverse()
        return names

    def _deadline(self, query: HistoryQuery) -> Callable[[], int]:
        if not query.seconds:
            return lambda: 0
        monotonic, end = self._clock.monotonic, self._clock.monotonic() + query.seconds
        return lambda: monotonic() > end

    def place_of(self, key: MessageKey) -> int | None:
        for name in self._names():
            with self._reading(name) as part, told(part.path, "read"):
                for endpoint, epoch, sequence in keys_for(key):
                    row = part.connection.execute(
                        "SELECT message.id FROM stream JOIN message ON message.stream = stream.id AND sequence = ? "
                        "WHERE endpoint = ? AND epoch = ?",
                        (sequence, endpoint, epoch),
                    ).fetchone()
                    if row is not None:
                        return int(row[0])
        return None

    def find(self, query: HistoryQuery) -> Iterator[StoredMessage]:
        found = self._find(query)
        return islice(found, query.limit) if query.limit else found

    def _find(self, query: HistoryQuery) -> Iterator[StoredMessage]:
        late = self._deadline(query)
        for name in self._chosen(query):
            path = self._path(name)
            if not path.exists():
                continue  # dropped meanwhile
            with self._reading(name) as part, _in_time(path, query):
                part.connection.set_progress_handler(late, _STEPS)
                for number, stored in enumerate(find(part, query)):
                    if query.inexact:
                        if not number & 0xFF and late():
                            raise _too_long(query)
                        if not is_wanted(stored, query):
                            continue
                    yield stored

    def count(self, query: HistoryQuery) -> int:
        if query.inexact:
            return sum(1 for _ in self._find(query))
        late = self._deadline(query)
        found = 0
        for name in self._chosen(query):
            path = self._path(name)
            with self._reading(name) as part, _in_time(path, query):
                part.connection.set_progress_handler(late, _STEPS)
                found += total(part, query)
        return found

    def statistics(self, query: HistoryQuery) -> dict[tuple[str, int], int]:
        found: dict[tuple[str, int], int] = {}
        if query.inexact:
            for stored in self._find(query):
                where = (stored.topic, (stored.place >> SLOT_BITS) // HOUR_MS)
                found[where] = found.get(where, 0) + 1
            return found
        late = self._deadline(query)
        for name in self._chosen(query):
            path = self._path(name)
            with self._reading(name) as part, _in_time(path, query):
                part.connection.set_progress_handler(late, _STEPS)
                for where, count in tally(part, query).items():
                    found[where] = found.get(where, 0) + count
        return found

    # --- damage ----------------------------------------------------------------------------------------------------

    def faults(self) -> Iterator[StoreFault]:
        there = self._names()
        noted = self._noted()
        for name, (fault, _) in noted.items():
            if fault:
                yield StoreFault(f"{name}.db", fault, aside=name not in there)
        for name in there:
            fault, writes = noted.get(name, ("", 0))
            try:
                with self._reading(name) as part:
                    # a writer counts here only after it has written there, so what is missing was there once
                    gone = "" if fault else _writes_gone(part, writes)
                    if gone:
                        yield StoreFault(part.path.name, gone, aside=False)
                    for fault in part.faults():
                        yield StoreFault(part.path.name, fault, aside=True)
            except HistoryDamaged as error:
                yield StoreFault(error.where, str(error.__cause__ or error), aside=True)

    def set_aside(self, where: str) -> Iterator[StoredMessage]:
        name = where.removesuffix(".db")
        bounds(name)  # nothing but a partition is moved
        path = self._path(name)
        number = 1
        while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
            number += 1
        with self._writing(self.token) as main:
            self._forget(name)
            with told(path, "move"):
                for ending in ("-wal", "-shm", ""):
                    source = path.with_name(path.name + ending)
                    if source.exists():
                        source.rename(aside.with_name(aside.name + ending))
                sync_directory(self.folder)
                main.execute("DELETE FROM partition WHERE name = ?", (name,))
        if ARMED:
            hit("history.aside")
        if not aside.exists():
            return iter(())
        log.warning("history: %s was moved aside, to %s", path, aside.name)
        return salvage(aside)

    def settle(self) -> None:
        """Forget what was noted of partitions that are there: it was read again from the journals."""
        with self._writing(self.token) as main:
            for name in self._names():
                try:
                    self._partition(main, name)  # from now on it has to have the writes that it has now
                except HistoryDamaged:
                    continue
            with told(self.folder / MAIN, "write"):
                main.execute("UPDATE partition SET fault = ''")


@contextmanager
def _in_time(path: Path, query: HistoryQuery) -> Iterator[None]:
    with told(path, "read"):
        try:
            yield
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
                raise _too_long(query) from error
            raise


def _too_long(query: HistoryQuery) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"the search took longer than {query.seconds:g} s; narrow it with a topic, a time or a word, or allow it more"
    )


def _writes_gone(part: Partition, expected: int) -> str:
    """Say how many of the *expected* writes, which were committed, *part* does not have; "" where it has them all."""
    with told(part.path, "read"):
        missing = expected - part.writes
    return f"the last {missing} of its writes are gone" if missing > 0 else ""


def _token(main: sqlite3.Connection) -> int:
    return int(main.execute("SELECT value FROM fact WHERE name = 'token'").fetchone()[0])
