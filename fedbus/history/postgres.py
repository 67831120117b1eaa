"""A history in PostgreSQL: tables that are partitioned by time, so that what is old is dropped with its table.

Rows are numbered as in SQLite (see `places`); the partitions are ranges of that number. Who writes holds the row of the
fencing token locked, so writers follow one another. Everything that comes from outside is a parameter; the names of
partitions are made of digits here.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from itertools import islice
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg import sql

from fedbus.clock import Clock
from fedbus.errors import DeadlineExceeded, Fenced
from fedbus.failpoints import ARMED, hit
from fedbus.history.errors import HistoryError, HistoryUnavailable
from fedbus.history.incoming import (
    Row,
    Written,
    bundle,
    by_partition,
    crowded,
    give_slots,
    other_partitions,
    place,
    repeated,
    words_of,
)
from fedbus.history.options import HistoryOptions
from fedbus.history.places import HOUR_MS, SLOT_BITS, bounds, first_place, is_over, kept_from
from fedbus.history.postgres_finding import Finder, is_wanted
from fedbus.history.postgres_tables import CHECKS, IN_THE_WAY, connect, named, prepare, suffix, told, tsvector
from fedbus.history.query import HistoryQuery
from fedbus.history.store import NO_TOKEN, PartitionState, StoreFault
from fedbus.history.stored import StoredMessage
from fedbus.model.message import Message, MessageKey
from fedbus.texts.texts import Texts

log = logging.getLogger(__name__)

_TRIES = 3  # of a transaction that another one got in the way of
_KNOWN = 100_000
_LOOK_MS = HOUR_MS


class PostgresHistory:
    """See :class:`~fedbus.history.store.HistoryStore`. Tables are made in the first schema of ``search_path``."""

    def __init__(self, options: HistoryOptions, *, writable: bool, clock: Clock) -> None:
        """Raises HistoryError."""
        self._options = options
        self._writable = writable
        self._clock = clock
        self._turn = threading.RLock()
        self._connection: psycopg.Connection[Any] | None = None
        self._closed = False
        self._period = options.period
        self._numbers: dict[tuple[str, object], int] = {}
        self._made: set[str] = set()
        self._looked_ms = 0
        with self._turn:
            self._connected()

    @property
    def shown(self) -> str:
        return self._options.shown

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        with self._turn:
            self._closed = True
            self._let_go()

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        self._numbers.clear()
        self._made.clear()
        if connection is not None:
            with contextlib.suppress(psycopg.Error):
                connection.close()

    # --- the connection --------------------------------------------------------------------------------------------

    def _connected(self) -> psycopg.Connection[Any]:
        if self._closed:
            raise HistoryError(f"the history {self.shown} is closed; open it again")
        if self._connection is not None and not self._connection.closed:
            return self._connection
        self._let_go()
        connection = connect(self._options)
        try:
            with told(self._options, "prepare"):
                period = prepare(connection, self._options, writable=self._writable)
        except BaseException:
            connection.close()
            raise
        if self._writable and period != self._options.period:
            log.warning(
                "history %s: has partitions of a %s each, and keeps that; a %s is for new histories",
                self.shown,
                period,
                self._options.period,
            )
        self._period = period
        self._connection = connection
        return connection

    # --- writing ---------------------------------------------------------------------------------------------------

    @property
    def token(self) -> int:
        with self._turn, told(self._options, "read"):
            row = self._connected().execute("SELECT value FROM fedbus_history_fact WHERE name = 'token'").fetchone()
            return int(row[0]) if row else 0

    def write(self, messages: Iterable[Message], *, texts: Texts | None = None, token: int = NO_TOKEN) -> Written:
        now_ms = int(self._clock.wall() * 1000)
        rows = place(messages, now_ms)
        keep_ms = kept_from(self._options.keep, now_ms, self._period)
        young = [row for row in rows if row.ms < 0 or row.ms >= keep_ms] if keep_ms else rows
        groups = sorted(by_partition(young, self._period).items())
        chosen = texts or Texts()

        def act(connection: psycopg.Connection[Any]) -> int:
            self._fence(connection, token)
            there = self._names(connection)
            return sum(self._write_to(connection, name, group, there, chosen, now_ms) for name, group in groups)

        new = self._in_transaction("write to", act)
        if keep_ms and now_ms >= self._looked_ms + _LOOK_MS:
            self._looked_ms = now_ms
            self.drop_before(keep_ms, token=token)
        return Written(new=new, known=len(young) - new, expired=len(rows) - len(young))

    def _in_transaction(self, doing: str, act: Any) -> Any:
        """Do *act* in one transaction; once more where another one got in its way."""
        if not self._writable:
            raise HistoryError(f"the history {self.shown} was opened for reading")
        with self._turn:
            for left in reversed(range(_TRIES)):
                try:
                    with told(self._options, doing):
                        connection = self._connected()
                        with connection.transaction():
                            result = act(connection)
                            if ARMED:
                                hit("history.commit.before")
                        if ARMED:
                            hit("history.commit.after")
                        return result
                except HistoryUnavailable as error:
                    # numbers that were made in it are gone with it
                    self._numbers.clear()
                    self._made.clear()
                    if not isinstance(error.__cause__, IN_THE_WAY) or not left:
                        self._let_go()
                        raise
                except BaseException:
                    self._numbers.clear()
                    self._made.clear()
                    raise
        raise AssertionError("unreachable")

    def _fence(self, connection: psycopg.Connection[Any], token: int) -> None:
        row = connection.execute("SELECT value FROM fedbus_history_fact WHERE name = 'token' FOR UPDATE").fetchone()
        highest = int(row[0]) if row else 0
        if token < highest:
            raise Fenced(
                f"token {token} is older than {highest}, which has written to the history {self.shown}; step down"
            )
        if token > highest:
            connection.execute("UPDATE fedbus_history_fact SET value = %s WHERE name = 'token'", (str(token),))

    def _write_to(
        self,
        connection: psycopg.Connection[Any],
        name: str,
        rows: list[Row],
        there: list[str],
        texts: Texts,
        now_ms: int,
    ) -> int:
        known = repeated(rows)
        for other in (*([name] if name in there else []), *other_partitions(rows, name, self._period, there)):
            known |= self._known(connection, other, rows)
        fresh = [row for index, row in enumerate(rows) if index not in known]
        if not fresh:
            return 0
        self._make(connection, name, there)
        low, high = bounds(name)
        (highest,) = connection.execute(
            "SELECT coalesce(max(id), %s) FROM fedbus_history_message WHERE id >= %s AND id < %s", (low - 1, low, high)
        ).fetchone() or (low - 1,)
        last_of = {ms: self._last_of(connection, ms) for ms in crowded(fresh, highest)}
        placed = give_slots(fresh, highest, last_of)
        bundles = bundle(placed, now_ms)
        certificates = [self._number(connection, "certificate", one.proof.certificate) for one in bundles]
        topics = {topic: self._number(connection, "topic", topic) for topic in {row.message.topic for row in fresh}}
        streams = {
            stream: self._number(connection, "stream", stream)
            for stream in {(row.key.endpoint, row.key.epoch) for row in fresh}
        }
        cursor = connection.cursor()
        with cursor.copy(
            "COPY fedbus_history_parcel (id, first, size, start, certificate, signature, chain, path, leaves, signer, "
            "wire, taken_at_ms, original) FROM STDIN"
        ) as copy:
            for one, certificate in zip(bundles, certificates, strict=True):
                proof = one.proof
                copy.write_row(
                    (
                        one.rows[0][0],
                        proof.first,
                        proof.size,
                        proof.start,
                        certificate,
                        proof.signature,
                        proof.chain,
                        b"".join(proof.path),
                        proof.leaves,
                        proof.signer,
                        proof.wire,
                        proof.taken_at_ms,
                        proof.original or None,
                    )
                )
        with cursor.copy(
            "COPY fedbus_history_message (id, stream, sequence, topic, parcel, leaf, envelope, words) FROM STDIN"
        ) as copy:
            for one in bundles:
                parcel = one.rows[0][0]
                for at, row, leaf in one.rows:
                    key, message = row.key, row.message
                    copy.write_row(
                        (
                            at,
                            streams[key.endpoint, key.epoch],
                            key.sequence,
                            topics[message.topic],
                            parcel,
                            leaf,
                            message.envelope,
                            tsvector(words_of(message, texts).decode()),
                        )
                    )
        counts: dict[tuple[int, int], int] = {}
        for at, row in placed:
            topic = topics[row.message.topic]
            assert topic is not None
            where = (topic, (at >> SLOT_BITS) // HOUR_MS)
            counts[where] = counts.get(where, 0) + 1
        cursor.executemany(
            "INSERT INTO fedbus_history_tally AS tally VALUES (%s, %s, %s) "
            "ON CONFLICT (topic, hour) DO UPDATE SET count = tally.count + excluded.count",
            [(*where, count) for where, count in sorted(counts.items())],
        )
        return len(fresh)

    @staticmethod
    def _last_of(connection: psycopg.Connection[Any], ms: int) -> int:
        first = first_place(ms)
        row = connection.execute(
            "SELECT max(id) FROM fedbus_history_message WHERE id BETWEEN %s AND %s", (first, first_place(ms + 1) - 1)
        ).fetchone()
        return first - 1 if row is None or row[0] is None else int(row[0])

    def _known(self, connection: psycopg.Connection[Any], name: str, rows: Sequence[Row]) -> set[int]:
        """Return which of *rows*, by their index, are in that partition."""
        found: set[int] = set()
        streams: dict[tuple[str, str], dict[int, int]] = {}
        for index, row in enumerate(rows):
            streams.setdefault((row.key.endpoint, row.key.epoch), {}).setdefault(row.key.sequence, index)
        table = named("message", name)
        for stream, sequences in streams.items():
            number = self._number(connection, "stream", stream, make=False)
            if number is None:
                continue
            there = connection.execute(
                sql.SQL("SELECT sequence FROM {} WHERE stream = %s AND sequence = ANY(%s)").format(table),
                (number, list(sequences)),
            )
            found.update(sequences[one] for (one,) in there)
        return found

    def _number(
        self, connection: psycopg.Connection[Any], table: str, value: object, *, make: bool = True
    ) -> int | None:
        """Return the number of a stream (endpoint, epoch), a topic or a certificate."""
        found = self._numbers.get((table, value))
        if found is not None:
            return found
        if len(self._numbers) >= _KNOWN:
            self._numbers.clear()
        values: tuple[object, ...] = value if isinstance(value, tuple) else (value,)
        by = {"stream": "endpoint = %s AND epoch = %s", "topic": "name = %s", "certificate": "digest = %s"}[table]
        if table == "certificate":
            assert isinstance(value, bytes)
            values = (sha256(value).digest(), value)
        keys = values[:1] if table == "certificate" else values
        select = f"SELECT id FROM fedbus_history_{table} WHERE {by}"
        row = connection.execute(select, keys).fetchone()
        if row is None and make:
            columns = {"stream": "endpoint, epoch", "topic": "name", "certificate": "digest, der"}[table]
            marks = ", ".join(["%s"] * len(values))
            row = connection.execute(
                f"INSERT INTO fedbus_history_{table} ({columns}) VALUES ({marks}) RETURNING id", values
            ).fetchone()
        if row is None:
            return None
        number = int(row[0])
        self._numbers[table, value] = number
        return number

    # --- partitions ------------------------------------------------------------------------------------------------

    def _make(self, connection: psycopg.Connection[Any], name: str, there: list[str]) -> None:
        if name in self._made or name in there:
            self._made.add(name)
            return
        low, high = bounds(name)
        for table in ("parcel", "message"):
            connection.execute(
                sql.SQL("CREATE TABLE {} PARTITION OF {} FOR VALUES FROM ({}) TO ({})").format(
                    named(table, name), sql.Identifier(f"fedbus_history_{table}"), sql.Literal(low), sql.Literal(high)
                )
            )
        connection.execute(
            sql.SQL("CREATE UNIQUE INDEX {} ON {} (stream, sequence)").format(
                sql.Identifier(f"fedbus_history_key_{suffix(name)}"), named("message", name)
            )
        )
        self._made.add(name)

    @staticmethod
    def _names(connection: psycopg.Connection[Any]) -> list[str]:
        rows = connection.execute(
            "SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid "
            "WHERE inhparent = to_regclass('fedbus_history_message')"
        )
        found = []
        for (table,) in rows:
            name = table.removeprefix("fedbus_history_message_").replace("_", "-")
            with contextlib.suppress(ValueError):
                found.append((bounds(name), name))
        return [name for _, name in sorted(found)]

    def partitions(self) -> list[PartitionState]:
        with self._turn, told(self._options, "read"):
            connection = self._connected()
            found = []
            for name in self._names(connection):
                low, high = bounds(name)
                row = connection.execute(
                    "SELECT coalesce(sum(count), 0) FROM fedbus_history_tally WHERE hour >= %s AND hour < %s",
                    ((low >> SLOT_BITS) // HOUR_MS, (high >> SLOT_BITS) // HOUR_MS),
                ).fetchone()
                size = connection.execute(
                    sql.SQL("SELECT pg_total_relation_size({}) + pg_total_relation_size({})").format(
                        *(sql.Literal(f"fedbus_history_{table}_{suffix(name)}") for table in ("message", "parcel"))
                    )
                ).fetchone()
                found.append(PartitionState(name, int(row[0]) if row else 0, int(size[0]) if size else 0))
            return found

    def drop_before(self, before_ms: int, *, token: int = NO_TOKEN) -> list[str]:
        def act(connection: psycopg.Connection[Any]) -> list[str]:
            self._fence(connection, token)
            dropped = [name for name in self._names(connection) if is_over(name, before_ms)]
            for name in dropped:
                low, high = bounds(name)
                for table in ("message", "parcel"):
                    connection.execute(sql.SQL("DROP TABLE {}").format(named(table, name)))
                connection.execute(
                    "DELETE FROM fedbus_history_tally WHERE hour >= %s AND hour < %s",
                    ((low >> SLOT_BITS) // HOUR_MS, (high >> SLOT_BITS) // HOUR_MS),
                )
                self._made.discard(name)
                log.info("history %s: dropped %s, all of it is older than what is kept", self.shown, name)
            return dropped

        dropped: list[str] = self._in_transaction("drop partitions of", act)
        return dropped

    # --- reading ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _finder(self, query: HistoryQuery) -> Iterator[Finder]:
        """A connection of its own, since what is found is read while others write."""
        with self._turn:
            self._connected()  # says what is wrong in our words
        connection = connect(self._options)
        try:
            with told(self._options, "read"):
                try:
                    connection.execute("SET default_transaction_read_only = on")
                    if query.seconds:
                        connection.execute(
                            "SELECT set_config('statement_timeout', %s, false)",
                            (str(max(1, int(query.seconds * 1000))),),
                        )
                    yield Finder(connection, query, self._clock)
                except psycopg.errors.QueryCanceled as error:
                    if not query.seconds:
                        raise
                    raise _too_long(query) from error
        finally:
            with contextlib.suppress(psycopg.Error):
                connection.close()

    def place_of(self, key: MessageKey) -> int | None:
        with self._finder(HistoryQuery()) as finder:
            return finder.place_of(key)

    def find(self, query: HistoryQuery) -> Iterator[StoredMessage]:
        found = self._find(query)
        return islice(found, query.limit) if query.limit else found

    def _find(self, query: HistoryQuery) -> Iterator[StoredMessage]:
        end = self._clock.monotonic() + query.seconds
        with self._finder(query) as finder:
            for number, stored in enumerate(finder.find()):
                if query.seconds and not number & 0xFF and self._clock.monotonic() > end:
                    raise _too_long(query)
                if not query.inexact or is_wanted(stored, query):
                    yield stored

    def count(self, query: HistoryQuery) -> int:
        if query.inexact:
            return sum(1 for _ in self._find(query))
        return sum(self.statistics(query).values())

    def statistics(self, query: HistoryQuery) -> dict[tuple[str, int], int]:
        if query.inexact:
            found: dict[tuple[str, int], int] = {}
            for stored in self._find(query):
                where = (stored.topic, (stored.place >> SLOT_BITS) // HOUR_MS)
                found[where] = found.get(where, 0) + 1
            return found
        with self._finder(query) as finder:
            return finder.tally()

    # --- damage ----------------------------------------------------------------------------------------------------

    def faults(self) -> Iterator[StoreFault]:
        """Rows without what belongs to them, and counts that are not those of the messages.

        Pages are PostgreSQL's own matter: its checksums, and pg_amcheck(1), find damage there.
        """
        with self._turn, told(self._options, "check"):
            connection = self._connected()
            for text, query in CHECKS:
                row = connection.execute(query, (HOUR_MS,) if "%s" in query else None).fetchone()
                if row is not None and row[0]:
                    yield StoreFault(self.shown, f"{text}: {row[0]}", aside=False)

    def set_aside(self, where: str) -> Iterator[StoredMessage]:
        raise HistoryError(f"{self.shown}: nothing of PostgreSQL is moved aside; restore {where} from a backup")

    def settle(self) -> None:
        """There are no notes to forget."""


def _too_long(query: HistoryQuery) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"the search took longer than {query.seconds:g} s; narrow it with a topic, a time or a word, or allow it more"
    )
