"""Finds the messages of one SQLite partition that a query wants. All values are parameters, all names are ours.

Whichever index leaves least to look at leads: that of words, where words are looked for; that of topics, one walk for
each topic, merged by time; else the table itself, which is sorted by time.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from fedbus.errors import WireError
from fedbus.history.partition import HOUR, HOUR_PLACES, Partition, blob
from fedbus.history.query import HistoryQuery, Terms
from fedbus.history.stored import StoredMessage

_WALKS = 500  # topics that are walked through one by one; for more, the whole table is
COLUMNS = "message.id, stream, sequence, topic, parcel, leaf, envelope"
_HIGHEST = 2**63 - 1

Row = tuple[int, int, int, int, int, int, bytes]
"""A row of COLUMNS."""


class _Chosen(NamedTuple):
    """Numbers of what is wanted; None: all."""

    topics: list[int] | None
    streams: list[int] | None

    @property
    def nothing(self) -> bool:
        return self.topics == [] or self.streams == []


def _choose(part: Partition, query: HistoryQuery) -> _Chosen:
    topics = streams = None
    if query.filters:
        known = part.topics()
        topics = sorted(number for number, name in known.items() if query.of_topic(name))
        if len(topics) == len(known) and known:
            topics = None
    if not query.any_endpoint:
        streams = sorted(number for number, (endpoint, _) in part.streams().items() if query.of_endpoint(endpoint))
    return _Chosen(topics, streams)


def expression(terms: Terms) -> str:
    """Return *terms* as FTS5 has them; words consist of letters and digits, so quotes are enough."""
    groups = []
    for group in terms:
        words = [f'"{term.word.replace(chr(34), "")}"{" *" if term.begins else ""}' for term in group]
        groups.append(words[0] if len(words) == 1 else f"({' OR '.join(words)})")
    return " AND ".join(groups)


def find(part: Partition, query: HistoryQuery) -> Iterator[StoredMessage]:
    """Yield what the indexes find in *part*, in the order that *query* wants; more than that where it is inexact."""
    low, high = query.places
    chosen = _choose(part, query)
    if chosen.nothing or low > high:
        return
    topics, streams = part.topics(), part.streams()
    for row in _rows(part, query, chosen, low, high):
        yield to_stored(part, row, topics, streams)


def to_stored(
    part: Partition, row: Row, topics: Mapping[int, str], streams: Mapping[int, tuple[str, str]]
) -> StoredMessage:
    """Return a row of COLUMNS as what it stands for; whatever is in it."""
    at, stream, sequence, topic, parcel, leaf, envelope = row
    endpoint, epoch = streams.get(stream, ("", ""))
    return StoredMessage(
        at,
        topics.get(topic, ""),
        endpoint,
        epoch,
        sequence,
        blob(envelope),
        leaf,
        part.proof(parcel),
        f"{part.path.name} message {at}",
    )


def _rows(part: Partition, query: HistoryQuery, chosen: _Chosen, low: int, high: int) -> Iterator[Row]:
    execute = part.connection.execute
    order = "DESC" if query.newest else "ASC"
    terms = query.terms
    where, values = _conditions(chosen)
    if terms:
        yield from execute(
            f"SELECT {COLUMNS} FROM word CROSS JOIN message ON message.id = word.rowid "
            f"WHERE word MATCH ? AND word.rowid BETWEEN ? AND ? {where} ORDER BY word.rowid {order}",
            (expression(terms), low, high, *values),
        )
    elif chosen.topics is not None and len(chosen.topics) <= _WALKS:
        only, numbers = _among("stream", chosen.streams)
        walks = [
            execute(
                f"SELECT {COLUMNS} FROM message INDEXED BY message_by_topic "
                f"WHERE topic = ? AND id BETWEEN ? AND ? {only} ORDER BY id {order}",
                (topic, low, high, *numbers),
            )
            for topic in chosen.topics
        ]
        if len(walks) == 1:
            yield from walks[0]
        else:
            yield from heapq.merge(*walks, key=_place_of, reverse=query.newest)
    else:
        yield from execute(
            f"SELECT {COLUMNS} FROM message NOT INDEXED WHERE id BETWEEN ? AND ? {where} ORDER BY id {order}",
            (low, high, *values),
        )


def _place_of(row: Row) -> int:
    return row[0]


def _conditions(chosen: _Chosen) -> tuple[str, list[int]]:
    topics, first = _among("topic", chosen.topics)
    streams, second = _among("stream", chosen.streams)
    return f"{topics} {streams}", [*first, *second]


def _among(column: str, numbers: Sequence[int] | None) -> tuple[str, list[int]]:
    """Return a condition, and its values. Numbers beyond what SQLite takes as parameters go in as one JSON text."""
    if numbers is None:
        return "", []
    if len(numbers) > 10_000:
        # they are integers of our own tables
        return f"AND {column} IN ({', '.join(str(int(one)) for one in numbers)})", []
    return f"AND {column} IN ({', '.join('?' * len(numbers))})", list(numbers)


# --- counts --------------------------------------------------------------------------------------------------------


def tally(part: Partition, query: HistoryQuery) -> dict[tuple[str, int], int]:
    """Return how many messages there are by topic and hour (of 1970); for queries that are not inexact."""
    low, high = query.places
    chosen = _choose(part, query)
    if chosen.nothing or low > high:
        return {}
    names = part.topics()
    found: dict[tuple[str, int], int] = {}
    if query.terms or chosen.streams is not None:
        rows = _counted(part, query, chosen, low, high)
    else:
        rows = _from_tally(part, chosen, low, high)
    for topic, hour, count in rows:
        where = (names.get(topic, ""), hour)
        found[where] = found.get(where, 0) + count
    return found


def _counted(
    part: Partition, query: HistoryQuery, chosen: _Chosen, low: int, high: int
) -> Iterator[tuple[int, int, int]]:
    where, values = _conditions(chosen)
    hour = HOUR.replace("id", "message.id")
    terms = query.terms
    if terms:
        yield from part.connection.execute(
            f"SELECT topic, {hour}, count(*) FROM word CROSS JOIN message ON message.id = word.rowid "
            f"WHERE word MATCH ? AND word.rowid BETWEEN ? AND ? {where} GROUP BY 1, 2",
            (expression(terms), low, high, *values),
        )
    else:
        yield from part.connection.execute(
            f"SELECT topic, {hour}, count(*) FROM message WHERE id BETWEEN ? AND ? {where} GROUP BY 1, 2",
            (low, high, *values),
        )


def _from_tally(part: Partition, chosen: _Chosen, low: int, high: int) -> Iterator[tuple[int, int, int]]:
    """Whole hours from the counts that are kept, the parts of hours at both ends from the index of topics."""
    first, after = -(-low // HOUR_PLACES), (high + 1) // HOUR_PLACES
    if high == _HIGHEST:
        after = _HIGHEST
    where, values = _among("topic", chosen.topics)
    execute = part.connection.execute
    if first < after:
        yield from execute(
            f"SELECT topic, hour, count FROM tally WHERE hour >= ? AND hour < ? {where}", (first, after, *values)
        )
        ends = [(low, min(high, first * HOUR_PLACES - 1)), (after * HOUR_PLACES, high)]
    else:
        ends = [(low, high)]
    for begin, end in ends:
        if begin > end:
            continue
        for topic in chosen.topics if chosen.topics is not None else part.topics():
            yield from execute(
                f"SELECT topic, {HOUR}, count(*) FROM message INDEXED BY message_by_topic "
                "WHERE topic = ? AND id BETWEEN ? AND ? GROUP BY 1, 2",
                (topic, begin, end),
            )


def total(part: Partition, query: HistoryQuery) -> int:
    """Return how many messages there are; for queries that are not inexact."""
    low, high = query.places
    chosen = _choose(part, query)
    if query.terms and chosen.topics is None and chosen.streams is None:
        (count,) = part.connection.execute(
            "SELECT count(*) FROM word WHERE word MATCH ? AND rowid BETWEEN ? AND ?",
            (expression(query.terms), low, high),
        ).fetchone()
        return int(count)
    return sum(tally(part, query).values())


def is_wanted(stored: StoredMessage, query: HistoryQuery) -> bool:
    """Look at a message that an inexact index has found; one that cannot be read is wanted, so that it is told of."""
    try:
        return query.confirms(stored.message())
    except WireError:
        return True
