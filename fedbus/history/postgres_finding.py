"""Finds the messages in PostgreSQL that a query wants. All values are parameters, all names are ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg

from fedbus.clock import Clock
from fedbus.history.finding import is_wanted
from fedbus.history.incoming import keys_for
from fedbus.history.places import HOUR_MS, SLOT_BITS
from fedbus.history.query import HistoryQuery, Terms
from fedbus.history.stored import Proof, StoredMessage
from fedbus.model.message import MessageKey
from fedbus.wire import merkle

__all__ = ["Finder", "expression", "is_wanted"]

_PAGE = 2000  # rows that are fetched at once
_FEW = 200
HOUR_PLACES = HOUR_MS << SLOT_BITS
_COLUMNS = "id, stream, sequence, topic, parcel, leaf, envelope"


def expression(terms: Terms) -> str:
    """Return *terms* as a tsquery; words hold neither quotes nor backslashes."""
    groups = []
    for group in terms:
        words = [f"'{term.word.replace(chr(39), '')}'{':*' if term.begins else ''}" for term in group]
        groups.append(words[0] if len(words) == 1 else f"({' | '.join(words)})")
    return " & ".join(groups)


class Finder:
    """Reads for one query, on a connection of its own."""

    def __init__(self, connection: psycopg.Connection[Any], query: HistoryQuery, clock: Clock) -> None:
        self._connection = connection
        self._query = query
        self._topics: dict[int, str] = dict(connection.execute("SELECT id, name FROM fedbus_history_topic").fetchall())
        rows = connection.execute("SELECT id, endpoint, epoch FROM fedbus_history_stream").fetchall()
        self._streams = {number: (endpoint, epoch) for number, endpoint, epoch in rows}
        self._low, self._high = query.places
        self._chosen: list[int] | None = None
        self._from: list[int] | None = None
        if query.filters:
            self._chosen = sorted(number for number, name in self._topics.items() if query.of_topic(name))
            if len(self._chosen) == len(self._topics) and self._topics:
                self._chosen = None
        if not query.any_endpoint:
            self._from = sorted(one for one, (endpoint, _) in self._streams.items() if query.of_endpoint(endpoint))
        self._proofs: dict[int, Proof | None] = {}

    @property
    def _nothing(self) -> bool:
        return self._chosen == [] or self._from == [] or self._low > self._high

    def _where(self, low: int, high: int) -> tuple[str, list[Any]]:
        conditions, values = ["id BETWEEN %s AND %s"], [low, high]
        found: list[Any] = list(values)
        if self._chosen is not None:
            # of one topic the index is sorted by time
            conditions.append("topic = %s" if len(self._chosen) == 1 else "topic = ANY(%s)")
            found.append(self._chosen[0] if len(self._chosen) == 1 else self._chosen)
        if self._from is not None:
            conditions.append("stream = ANY(%s)")
            found.append(self._from)
        if self._query.terms:
            conditions.append("words @@ %s::tsquery")
            found.append(expression(self._query.terms))
        return " AND ".join(conditions), found

    def find(self) -> Iterator[StoredMessage]:
        """Yield what the indexes find, in the order that is wanted; more than that where the query is inexact.

        It is read in pages, each behind the last row of the one before, so neither side holds it all.
        """
        if self._nothing:
            return
        newest, limit = self._query.newest, self._query.limit
        low, high = self._low, self._high
        page = min(limit, _PAGE) if limit and not self._query.inexact else _FEW
        while True:
            where, values = self._where(low, high)
            rows = self._connection.execute(
                f"SELECT {_COLUMNS} FROM fedbus_history_message WHERE {where} "
                f"ORDER BY id {'DESC' if newest else 'ASC'} LIMIT %s",
                (*values, page),
                binary=True,
            ).fetchall()
            self._fetch_proofs({row[4] for row in rows})
            for at, stream, sequence, topic, parcel, leaf, envelope in rows:
                endpoint, epoch = self._streams.get(stream, ("", ""))
                yield StoredMessage(
                    at,
                    self._topics.get(topic, ""),
                    endpoint,
                    epoch,
                    sequence,
                    bytes(envelope),
                    leaf,
                    self._proofs.get(parcel),
                    f"fedbus_history_message {at}",
                )
            if len(rows) < page:
                return
            if newest:
                high = rows[-1][0] - 1
            else:
                low = rows[-1][0] + 1
            page = _PAGE

    def place_of(self, key: MessageKey) -> int | None:
        """Return the place of the message with that key."""
        numbers = {stream: number for number, stream in self._streams.items()}
        for endpoint, epoch, sequence in keys_for(key):
            row = self._connection.execute(
                "SELECT id FROM fedbus_history_message WHERE stream = %s AND sequence = %s",
                (numbers.get((endpoint, epoch), 0), sequence),
            ).fetchone()
            if row is not None:
                return int(row[0])
        return None

    def _fetch_proofs(self, numbers: set[int]) -> None:
        if len(self._proofs) > 4 * _PAGE:
            self._proofs.clear()
        missing = [number for number in numbers if number not in self._proofs]
        if not missing:
            return
        rows = self._connection.execute(
            "SELECT parcel.id, first, size, start, der, signature, chain, path, leaves, signer, wire, taken_at_ms, "
            "original FROM fedbus_history_parcel AS parcel "
            "LEFT JOIN fedbus_history_certificate AS certificate ON certificate.id = parcel.certificate "
            "WHERE parcel.id = ANY(%s)",
            (missing,),
            binary=True,
        )
        for number, first, size, start, der, signature, chain, path, leaves, signer, wire, taken, original in rows:
            self._proofs[number] = Proof(
                first,
                size,
                start,
                bytes(der or b""),
                bytes(signature),
                bytes(chain),
                tuple(path[at : at + merkle.HASH_BYTES] for at in range(0, len(path), merkle.HASH_BYTES)),
                bytes(leaves),
                signer,
                wire,
                taken,
                bytes(original or b""),
            )

    def tally(self) -> dict[tuple[str, int], int]:
        """Return how many messages there are by topic and hour; for queries that are not inexact."""
        if self._nothing:
            return {}
        rows: list[Any] = []
        low, high = self._low, self._high
        if self._query.terms or self._from is not None:
            rows += self._counted(low, high)
        else:
            first, after = -(-low // HOUR_PLACES), (high + 1) // HOUR_PLACES
            if first < after:
                topics = "" if self._chosen is None else "AND topic = ANY(%s)"
                rows += self._connection.execute(
                    f"SELECT topic, hour, count FROM fedbus_history_tally WHERE hour >= %s AND hour < %s {topics}",
                    (first, after, *([] if self._chosen is None else [self._chosen])),
                ).fetchall()
                ends = [(low, min(high, first * HOUR_PLACES - 1)), (after * HOUR_PLACES, high)]
            else:
                ends = [(low, high)]
            for begin, end in ends:
                if begin <= end:
                    rows += self._counted(begin, end)
        found: dict[tuple[str, int], int] = {}
        for topic, hour, count in rows:
            where = (self._topics.get(topic, ""), int(hour))
            found[where] = found.get(where, 0) + int(count)
        return found

    def _counted(self, low: int, high: int) -> list[Any]:
        where, values = self._where(low, high)
        return self._connection.execute(
            f"SELECT topic, floor((id >> {SLOT_BITS})::numeric / {HOUR_MS})::bigint, count(*) "
            f"FROM fedbus_history_message WHERE {where} GROUP BY 1, 2",
            values,
        ).fetchall()
