"""The tables of a history in PostgreSQL, the connections to them, and what their errors mean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql

from fedbus.history.errors import HistoryDamaged, HistoryError, HistoryUnavailable, HistoryUnreachable
from fedbus.history.options import HistoryOptions
from fedbus.history.places import SLOT_BITS, bounds
from fedbus.history.words import index_words

FORMAT = "1"
SCHEMA = """
CREATE TABLE IF NOT EXISTS fedbus_history_fact (name text PRIMARY KEY, value text NOT NULL);
CREATE TABLE IF NOT EXISTS fedbus_history_stream (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, endpoint text NOT NULL, epoch text NOT NULL,
    UNIQUE (endpoint, epoch)
);
CREATE TABLE IF NOT EXISTS fedbus_history_topic (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE
);
CREATE TABLE IF NOT EXISTS fedbus_history_certificate (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, digest bytea NOT NULL UNIQUE, der bytea NOT NULL
);
CREATE TABLE IF NOT EXISTS fedbus_history_parcel (
    id bigint NOT NULL, first bigint NOT NULL, size int NOT NULL, start int NOT NULL, certificate int NOT NULL,
    signature bytea NOT NULL, chain bytea NOT NULL, path bytea NOT NULL, leaves bytea NOT NULL, signer text NOT NULL,
    wire text NOT NULL, taken_at_ms bigint NOT NULL, original bytea, PRIMARY KEY (id)
) PARTITION BY RANGE (id);
CREATE TABLE IF NOT EXISTS fedbus_history_message (
    id bigint NOT NULL, stream int NOT NULL, sequence bigint NOT NULL, topic int NOT NULL, parcel bigint NOT NULL,
    leaf int NOT NULL, envelope bytea NOT NULL, words tsvector NOT NULL, PRIMARY KEY (id)
) PARTITION BY RANGE (id);
CREATE INDEX IF NOT EXISTS fedbus_history_message_topic ON fedbus_history_message (topic, id);
CREATE INDEX IF NOT EXISTS fedbus_history_message_words ON fedbus_history_message USING gin (words);
CREATE TABLE IF NOT EXISTS fedbus_history_tally (
    topic int NOT NULL, hour bigint NOT NULL, count bigint NOT NULL, PRIMARY KEY (topic, hour)
);
"""
_LOCK = 0x66656462  # of pg_advisory_xact_lock, while tables are made
_CONNECT_SECONDS = 10
_STATEMENT_MS = 60_000  # that a write may take, before it is given up and tried again
_DOCUMENT_BYTES = 600_000  # of the words of one message; a tsvector holds a megabyte

HOUR = f"floor((id >> {SLOT_BITS})::numeric / %s)::bigint"
CHECKS = (
    (
        "messages whose seal is gone",
        "SELECT count(*) FROM fedbus_history_message AS message WHERE NOT EXISTS "
        "(SELECT FROM fedbus_history_parcel AS parcel WHERE parcel.id = message.parcel)",
    ),
    (
        "hours whose counts are not those of the messages",
        "SELECT count(*) FROM (SELECT topic, hour, count(*) AS found FROM "
        f"(SELECT topic, {HOUR} AS hour FROM fedbus_history_message) AS one GROUP BY 1, 2) AS real "
        "FULL JOIN fedbus_history_tally AS tally USING (topic, hour) WHERE real.found IS DISTINCT FROM tally.count",
    ),
)

IN_THE_WAY = (
    psycopg.errors.SerializationFailure,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.UniqueViolation,
    psycopg.errors.DuplicateTable,
)


_OURS = (psycopg.DataError, psycopg.ProgrammingError, psycopg.NotSupportedError, psycopg.InterfaceError)


def connect(options: HistoryOptions) -> psycopg.Connection[Any]:
    """Connect to the server.

    Raises:
        HistoryUnreachable: It does not answer, or refuses us.
    """
    try:
        return psycopg.connect(
            options.store,
            autocommit=True,
            connect_timeout=_CONNECT_SECONDS,
            application_name="fedbus history",
            # a server that is gone without a word is noticed within a minute or so
            keepalives=1,
            keepalives_idle=20,
            keepalives_interval=10,
            keepalives_count=3,
            tcp_user_timeout=50_000,  # milliseconds: keepalives are not sent while something is not acknowledged
        )
    except psycopg.Error as error:
        raise HistoryUnreachable(
            f"cannot connect to the history {options.shown}: {_words(error, options)}; {_advice(error)}"
        ) from error


def prepare(connection: psycopg.Connection[Any], options: HistoryOptions, *, writable: bool) -> str:
    """Make the tables where a writer finds none; return the period that they are partitioned by.

    Raises:
        HistoryError: A reader finds none, or they are of another release.
    """
    if writable:
        connection.execute("SELECT set_config('statement_timeout', %s, false)", (str(_STATEMENT_MS),))
        connection.execute("SET synchronous_commit = on")
        # writers follow one another by a lock, and each has to see what the one before has committed
        connection.execute("SET default_transaction_isolation = 'read committed'")
    if not _has_tables(connection):
        if not writable:
            raise HistoryError(
                f"there is no history in {options.shown}; the consumer fedbus_consumers.history makes it"
            )
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            connection.execute(SCHEMA)
            for name, value in (("format", FORMAT), ("period", options.period), ("token", "0")):
                connection.execute(
                    "INSERT INTO fedbus_history_fact VALUES (%s, %s) ON CONFLICT DO NOTHING", (name, value)
                )
    facts: dict[str, str] = dict(connection.execute("SELECT name, value FROM fedbus_history_fact").fetchall())
    if facts.get("format") != FORMAT:
        raise HistoryError(f"{options.shown} is of another release of fedbus (format {facts.get('format')})")
    return facts["period"]


@contextmanager
def told(options: HistoryOptions, doing: str) -> Iterator[None]:
    """Turn what psycopg raises into what a history does."""
    try:
        yield
    except psycopg.Error as error:
        text = f"cannot {doing} the history {options.shown}: {_words(error, options)}"
        if isinstance(error, (psycopg.errors.DataCorrupted, psycopg.errors.IndexCorrupted)):
            raise HistoryDamaged(
                f"{text}; restore the database from a backup, then `fedbus history rebuild` fills in what is newer",
                where=options.shown,
            ) from error
        if isinstance(error, _OURS) and not isinstance(error, IN_THE_WAY):
            raise HistoryError(text) from error
        raise HistoryUnavailable(f"{text}; {_advice(error)}") from error


def _advice(error: psycopg.Error) -> str:
    if isinstance(error, psycopg.errors.DiskFull):
        return "the server's disk is full; make room there, or keep messages for a shorter time"
    if isinstance(error, psycopg.errors.QueryCanceled):
        return "it took too long; see what else the server does"
    if isinstance(error, psycopg.errors.InvalidPassword):
        return "correct user and password of `store`, or ~/.pgpass"
    return "see that the server runs and lets us in"


def _words(error: psycopg.Error, options: HistoryOptions) -> str:
    # of a URL that it cannot make sense of the library shows all, with the password
    text = " ".join(str(error).replace(options.store, options.shown).split()) or type(error).__name__
    return text if len(text) <= 400 else text[:400] + "…"


def _has_tables(connection: psycopg.Connection[Any]) -> bool:
    row = connection.execute("SELECT to_regclass('fedbus_history_tally')").fetchone()
    return row is not None and row[0] is not None


def suffix(name: str) -> str:
    bounds(name)  # raises for what is no partition
    return name.replace("-", "_")


def named(kind: str, name: str) -> sql.Identifier:
    return sql.Identifier(f"fedbus_history_{kind}_{suffix(name)}")


def tsvector(document: str) -> str:
    """Return the words of a document as PostgreSQL reads a tsvector; they hold neither quotes nor backslashes."""
    found = []
    size = 0
    for word in index_words(document):
        size += len(word.encode()) + 4
        if size > _DOCUMENT_BYTES:
            break
        found.append(f"'{word}'")
    return " ".join(found)
