"""What can still be read of a damaged SQLite file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fedbus.history.errors import HistoryError
from fedbus.history.finding import COLUMNS, to_stored
from fedbus.history.partition import DATABASE_ERRORS, Partition
from fedbus.history.stored import StoredMessage


def salvage(path: Path) -> Iterator[StoredMessage]:
    """Yield every message of the file at *path* that can be read, some of them twice; none of them is verified.

    The table is read up to where it is damaged; behind that, row by row, as the index of topics names them, which
    stands on other pages.
    """
    try:
        part = Partition.open(path, writable=False)
    except HistoryError:
        return
    try:
        topics, streams = part.topics(), part.streams()
        reached = -(2**63)
        rows = part.connection.execute(f"SELECT {COLUMNS} FROM message NOT INDEXED ORDER BY id")
        while True:
            try:
                row = rows.fetchone()
            except DATABASE_ERRORS:
                break
            if row is None:
                return
            reached = row[0]
            stored = _stored(part, row, topics, streams)
            if stored is not None:
                yield stored
        for topic in topics:
            for order in ("ASC", "DESC"):  # from its other end, where the index is damaged itself
                whole = True
                for at in _places(part, topic, reached, order):
                    if at is None:
                        whole = False
                        break
                    stored = _fetch(part, at, topics, streams)
                    if stored is not None:
                        yield stored
                if whole:
                    break
    except DATABASE_ERRORS:
        return
    finally:
        part.close()


def _places(part: Partition, topic: int, after: int, order: str) -> Iterator[int | None]:
    """Yield the places of a topic's messages; None where the index cannot be read on."""
    rows = part.connection.execute(
        f"SELECT id FROM message INDEXED BY message_by_topic WHERE topic = ? AND id > ? ORDER BY id {order}",
        (topic, after),
    )
    while True:
        try:
            row = rows.fetchone()
        except DATABASE_ERRORS:
            yield None
            return
        if row is None:
            return
        yield row[0]


def _fetch(
    part: Partition, at: int, topics: dict[int, str], streams: dict[int, tuple[str, str]]
) -> StoredMessage | None:
    try:
        row = part.connection.execute(f"SELECT {COLUMNS} FROM message WHERE id = ?", (at,)).fetchone()
    except DATABASE_ERRORS:
        return None
    return None if row is None else _stored(part, row, topics, streams)


def _stored(
    part: Partition,
    row: tuple[int, int, int, int, int, int, bytes],
    topics: dict[int, str],
    streams: dict[int, tuple[str, str]],
) -> StoredMessage | None:
    try:
        return to_stored(part, row, topics, streams)
    except (*DATABASE_ERRORS, TypeError, ValueError):
        return None  # its proof stands where the damage is, or a column is not what it was
