"""One partition of a history in SQLite: a file that holds all messages of a period, and can be read, moved, dropped
and restored by itself.

A message's row number is its place (see `places`), so that every index is sorted by time within one value.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedbus.errors import FedbusError
from fedbus.failpoints import ARMED, hit
from fedbus.history.errors import HistoryDamaged, HistoryError, HistoryUnavailable
from fedbus.history.incoming import Bundle, Row, bundle, crowded, give_slots, words_of
from fedbus.history.places import HOUR_MS, SLOT_BITS, first_place
from fedbus.history.stored import Proof
from fedbus.texts.texts import Texts
from fedbus.wire import merkle

FORMAT = 1
APPLICATION = 0x66656468  # "fedh", so that file(1) and we know the file again
SCHEMA = """
CREATE TABLE fact (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE stream (id INTEGER PRIMARY KEY, endpoint TEXT NOT NULL, epoch TEXT NOT NULL, UNIQUE (endpoint, epoch));
CREATE TABLE topic (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE certificate (id INTEGER PRIMARY KEY, der BLOB NOT NULL UNIQUE);
CREATE TABLE parcel (
    id INTEGER PRIMARY KEY, first INTEGER NOT NULL, size INTEGER NOT NULL, start INTEGER NOT NULL,
    certificate INTEGER NOT NULL, signature BLOB NOT NULL, chain BLOB NOT NULL, path BLOB NOT NULL,
    leaves BLOB NOT NULL, signer TEXT NOT NULL, wire TEXT NOT NULL, taken_at_ms INTEGER NOT NULL, original BLOB
);
CREATE TABLE message (
    id INTEGER PRIMARY KEY, stream INTEGER NOT NULL, sequence INTEGER NOT NULL, topic INTEGER NOT NULL,
    parcel INTEGER NOT NULL, leaf INTEGER NOT NULL, envelope BLOB NOT NULL
);
CREATE UNIQUE INDEX message_by_key ON message (stream, sequence);
CREATE INDEX message_by_topic ON message (topic);
CREATE TABLE tally (
    topic INTEGER NOT NULL, hour INTEGER NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (topic, hour)
) WITHOUT ROWID;
CREATE VIRTUAL TABLE word USING fts5 (text, content = '', columnsize = 0, detail = none, tokenize = 'ascii');
INSERT INTO word (word, rank) VALUES ('hashsize', 16777216);
INSERT INTO word (word, rank) VALUES ('automerge', 16);
INSERT INTO word (word, rank) VALUES ('crisismerge', 32);
INSERT INTO fact VALUES ('writes', 0);
"""
DATABASE_ERRORS = (sqlite3.Error, UnicodeDecodeError, OSError)
BUSY_SECONDS = 10.0
HOUR_PLACES = HOUR_MS << SLOT_BITS
# the hour of a message in SQL, rounded down below zero too
HOUR = f"CASE WHEN id >= 0 THEN id / {HOUR_PLACES} ELSE -((-id + {HOUR_PLACES - 1}) / {HOUR_PLACES}) END"
_CACHE_KIB = 32 * 1024  # of one file that is written
PAGE_BYTES = 8192  # larger ones are no quicker, and a lone message writes ten of them
_WAL_PAGES = 4000  # 32 MiB between two checkpoints
_KNOWN = 4096  # streams, topics and certificates whose numbers are remembered
_ONE_BY_ONE = 16  # so many times the rows of a batch may a range of sequences have before they are looked up singly


class Partition:
    """The file of one period. Belongs to one thread at a time; whoever writes holds the history's own lock."""

    def __init__(self, path: Path, connection: sqlite3.Connection, *, writable: bool) -> None:
        self.path = path
        self.name = path.stem
        self.connection = connection
        self.writable = writable
        self._inode = _inode(path)
        self._numbers: dict[tuple[str, object], int] = {}
        self._proofs: dict[int, Proof | None] = {}

    @classmethod
    def open(cls, path: Path, *, writable: bool) -> Partition:
        """Open the file at *path*; a writer makes it where it is missing, with mode 0600.

        Raises:
            HistoryDamaged: It is no such file (any more).
            HistoryUnavailable: Not now.
            HistoryError: It is of a later release.
        """
        with told(path, "open"):
            if writable:
                path.touch(mode=0o600)
            connection = connect(path, writable=writable)
            try:
                if not writable and _is_blank(connection):
                    # its first writer has only just made it
                    connection.close()
                    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
                    _make(connection)
                elif writable:
                    _make(connection)
                _check_format(path, connection)
            except BaseException:
                connection.close()
                raise
        return cls(path, connection, writable=writable)

    def close(self) -> None:
        """Let go of the file; again is harmless."""
        self.connection.close()

    @property
    def is_there(self) -> bool:
        """Whether its name still stands for the file that was opened: it may have been dropped or replaced."""
        return self._inode is not None and _inode(self.path) == self._inode

    @property
    def writes(self) -> int:
        """How many transactions it has taken."""
        return int(self.connection.execute("SELECT value FROM fact WHERE name = 'writes'").fetchone()[0])

    # --- writing ---------------------------------------------------------------------------------------------------

    def known(self, rows: Sequence[Row]) -> set[int]:
        """Return which of *rows*, by their index, are here already."""
        execute = self.connection.execute
        streams: dict[tuple[str, str], list[int]] = {}
        for index, row in enumerate(rows):
            streams.setdefault((row.key.endpoint, row.key.epoch), []).append(index)
        found: set[int] = set()
        for stream, indexes in streams.items():
            sequences = {rows[index].key.sequence: index for index in reversed(indexes)}
            number = self._number("stream", stream, make=False)
            if number is None:
                continue
            low, high = min(sequences), max(sequences)
            (newest,) = execute("SELECT max(sequence) FROM message WHERE stream = ?", (number,)).fetchone()
            if newest is None or newest < low:
                continue
            if high - low < _ONE_BY_ONE * len(sequences):
                there = execute(
                    "SELECT sequence FROM message WHERE stream = ? AND sequence BETWEEN ? AND ?", (number, low, high)
                )
                found.update(sequences[one] for (one,) in there if one in sequences)
            else:
                for sequence, index in sequences.items():
                    if execute(
                        "SELECT 1 FROM message WHERE stream = ? AND sequence = ?", (number, sequence)
                    ).fetchone():
                        found.add(index)
        return found

    def add(self, rows: Sequence[Row], texts: Texts, now_ms: int) -> int:
        """Write *rows* that are not here yet, in one transaction; on return they outlive the machine.

        Return how many transactions the file has taken now.
        """
        connection = self.connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            (highest,) = connection.execute("SELECT coalesce(max(id), -9223372036854775808) FROM message").fetchone()
            last_of = {ms: self._last_of(ms) for ms in crowded(rows, highest)}
            placed = give_slots(list(rows), highest, last_of)
            bundles = bundle(placed, now_ms)
            for one in bundles:
                self._add_bundle(one)
            connection.executemany(
                "INSERT INTO word (rowid, text) VALUES (?, ?)",
                [(at, words_of(message, texts)) for at, (_, _, _, message) in placed],
            )
            self._count(bundles)
            connection.execute("UPDATE fact SET value = value + 1 WHERE name = 'writes'")
            writes = self.writes
            if ARMED:
                hit("history.commit.before")
            connection.execute("COMMIT")
        except BaseException:
            # what was rolled back may have made a number
            self._numbers.clear()
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        if ARMED:
            hit("history.commit.after")
        return writes

    def _last_of(self, ms: int) -> int:
        first = first_place(ms)
        row = self.connection.execute(
            "SELECT max(id) FROM message WHERE id BETWEEN ? AND ?", (first, first_place(ms + 1) - 1)
        ).fetchone()
        return first - 1 if row[0] is None else int(row[0])

    def _add_bundle(self, one: Bundle) -> None:
        proof, number = one.proof, one.rows[0][0]
        self.connection.execute(
            "INSERT INTO parcel VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                number,
                proof.first,
                proof.size,
                proof.start,
                self._number("certificate", proof.certificate),
                proof.signature,
                proof.chain,
                b"".join(proof.path),
                proof.leaves,
                proof.signer,
                proof.wire,
                proof.taken_at_ms,
                proof.original or None,
            ),
        )
        _, first, _ = one.rows[0]
        topic = self._number("topic", first.message.topic)
        stream = self._number("stream", (first.key.endpoint, first.key.epoch))
        envelopes = first.message.parcel.envelopes
        self.connection.executemany(
            "INSERT INTO message VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (at, stream, key.sequence, topic, number, leaf, envelopes[message.index])
                for at, (key, _, _, message), leaf in one.rows
            ],
        )

    def _count(self, bundles: Iterable[Bundle]) -> None:
        counts: dict[tuple[int, int], int] = {}
        for one in bundles:
            topic = self._number("topic", one.rows[0][1].message.topic)
            assert topic is not None
            begin, end = one.rows[0][0] // HOUR_PLACES, one.rows[-1][0] // HOUR_PLACES
            # they are sorted, and almost always of one hour
            hours = [begin] * len(one.rows) if begin == end else [at // HOUR_PLACES for at, _, _ in one.rows]
            for hour in set(hours):
                counts[topic, hour] = counts.get((topic, hour), 0) + hours.count(hour)
        self.connection.executemany(
            "INSERT INTO tally VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count",
            [(topic, hour, count) for (topic, hour), count in counts.items()],
        )

    def _number(self, table: str, value: object, *, make: bool = True) -> int | None:
        """Return the number of a stream (endpoint, epoch), a topic or a certificate."""
        found = self._numbers.get((table, value))
        if found is not None:
            return found
        if len(self._numbers) >= _KNOWN:
            self._numbers.clear()
        columns = {"stream": "endpoint, epoch", "topic": "name", "certificate": "der"}[table]
        values = value if isinstance(value, tuple) else (value,)
        marks = ", ".join("?" * len(values))
        row = self.connection.execute(f"SELECT id FROM {table} WHERE ({columns}) = ({marks})", values).fetchone()
        if row is not None:
            number = int(row[0])
        elif make:
            made = self.connection.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks})", values)
            number = int(made.lastrowid or 0)
        else:
            return None
        self._numbers[table, value] = number
        return number

    # --- reading ---------------------------------------------------------------------------------------------------

    def topics(self) -> dict[int, str]:
        """Return the topics by their numbers."""
        return dict(self.connection.execute("SELECT id, name FROM topic"))

    def streams(self) -> dict[int, tuple[str, str]]:
        """Return endpoint and epoch of the streams by their numbers."""
        rows = self.connection.execute("SELECT id, endpoint, epoch FROM stream")
        return {number: (endpoint, epoch) for number, endpoint, epoch in rows}

    def proof(self, number: int) -> Proof | None:
        """Return what proves the messages of a parcel; None where it is gone."""
        if number in self._proofs:
            return self._proofs[number]
        if len(self._proofs) >= 1024:
            self._proofs.clear()
        row = self.connection.execute(
            "SELECT first, size, start, der, signature, chain, path, leaves, signer, wire, taken_at_ms, original "
            "FROM parcel LEFT JOIN certificate ON certificate.id = parcel.certificate WHERE parcel.id = ?",
            (number,),
        ).fetchone()
        proof = None
        if row is not None:
            first, size, start, der, signature, chain, path, leaves, signer, wire, taken_at_ms, original = row
            steps = blob(path)
            proof = Proof(
                first,
                size,
                start,
                blob(der),
                blob(signature),
                blob(chain),
                tuple(steps[at : at + merkle.HASH_BYTES] for at in range(0, len(steps), merkle.HASH_BYTES)),
                blob(leaves),
                str(signer),
                str(wire),
                taken_at_ms,
                blob(original),
            )
        self._proofs[number] = proof
        return proof

    def faults(self, limit: int = 10) -> list[str]:
        """Return what SQLite and we find wrong with the file as such; it is read from end to end.

        Raises:
            HistoryUnavailable: Not now.
        """
        with told(self.path, "check"):
            try:
                found = [str(row[0]) for row in self.connection.execute(f"PRAGMA integrity_check({int(limit)})")]
                found = [] if found == ["ok"] else found
                if not found:
                    (wrong,) = self.connection.execute(
                        f"SELECT count(*) FROM (SELECT topic, {HOUR} AS hour, count(*) AS count FROM message "
                        "GROUP BY 1, 2 EXCEPT SELECT topic, hour, count FROM tally)"
                    ).fetchone()
                    if wrong:
                        found.append(f"the counts of {wrong} hours are not those of the messages")
            except sqlite3.DatabaseError as error:
                if is_passing(error):
                    raise
                found = [str(error)]
        return found


def blob(value: object) -> bytes:
    """Return a column that should hold bytes; SQLite lets whoever alters a row put anything there."""
    if isinstance(value, bytes):
        return value
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else b""


def connect(path: Path, *, writable: bool) -> sqlite3.Connection:
    """Open a database as all of a history are."""
    if writable:
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            connection.execute("PRAGMA secure_delete = 0")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
            connection.execute(f"PRAGMA journal_size_limit = {4 * PAGE_BYTES * _WAL_PAGES}")
        except BaseException:
            connection.close()
            raise
        return connection
    uri = path.absolute().as_uri()
    # where nobody may write beside it, and nobody does, it is read as it lies
    alone = not os.access(path.parent, os.W_OK) and not path.with_name(path.name + "-wal").exists()
    connection = sqlite3.connect(
        f"{uri}?mode=ro{'&immutable=1' if alone else ''}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.execute("PRAGMA query_only = 1")
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    return connection


def _make(connection: sqlite3.Connection) -> None:
    if connection.execute("PRAGMA user_version").fetchone()[0]:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        # another process may have been quicker
        if not connection.execute("PRAGMA user_version").fetchone()[0]:
            for statement in SCHEMA.split(";\n"):
                if statement.strip():
                    connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {FORMAT}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _is_blank(connection: sqlite3.Connection) -> bool:
    return not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


def _check_format(path: Path, connection: sqlite3.Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    owner = connection.execute("PRAGMA application_id").fetchone()[0]
    if owner != APPLICATION or not version:
        raise HistoryDamaged(f"{path} is no part of a history; move it away", where=path.name)
    if version > FORMAT:
        raise HistoryError(f"{path} is of a later release of fedbus (format {version}); update fedbus")


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def is_passing(error: BaseException) -> bool:
    """Say whether the same may work another time: the file is busy, the disk full or gone, or somebody was quicker."""
    code = getattr(error, "sqlite_errorcode", None)
    if isinstance(error, UnicodeDecodeError) or code is None:
        return isinstance(error, OSError)
    return code & 0xFF not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT)


@contextmanager
def told(path: Path, doing: str) -> Iterator[None]:
    """Turn what SQLite raises into what a history does."""
    try:
        yield
    except FedbusError:
        raise  # DeadlineExceeded is a TimeoutError, and that an OSError
    except DATABASE_ERRORS as error:
        if not is_passing(error):
            raise HistoryDamaged(
                f"cannot {doing} {path}: {error}; it is damaged: `fedbus history rebuild` moves it aside, saves what "
                "can be read, and reads the rest from the journals",
                where=path.name,
            ) from error
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        advice = {
            sqlite3.SQLITE_BUSY: "another process keeps it locked; find it with `fuser`",
            sqlite3.SQLITE_LOCKED: "another process keeps it locked; find it with `fuser`",
            sqlite3.SQLITE_FULL: "the disk is full; make room, or keep messages for a shorter time",
        }.get(code, "check the disk, and the mode of the file and its folder")
        raise HistoryUnavailable(f"cannot {doing} {path}: {error}; {advice}") from error
