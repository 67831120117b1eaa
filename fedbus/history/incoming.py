"""Messages on their way into a history: what is computed of each before a store is asked anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from operator import itemgetter
from typing import NamedTuple

from fedbus.history.places import first_place, partition_of, placed_ms, stated_ms
from fedbus.history.stored import NATIVE, Proof, proof_of
from fedbus.history.words import document
from fedbus.model.message import Message, MessageKey
from fedbus.texts.texts import Texts

_AFTER_ID = len(b'{"specversion":"1.0","id":"') + 36
_TIME_LENGTH = len("2026-11-21T12:34:56.123456Z")


class Key(NamedTuple):
    """A stream and a sequence as a store keeps them."""

    endpoint: str
    epoch: str
    sequence: int


class Row(NamedTuple):
    """A message that has a place in time, and no slot in it yet."""

    key: Key
    ms: int  # that it is placed by; negative: apart
    stated: int
    message: Message


@dataclass(frozen=True, slots=True)
class Written:
    """What became of messages that were handed to a history."""

    new: int = 0
    known: int = 0  # were there already
    expired: int = 0  # older than what is kept, so not stored


def key_of(message: Message) -> Key:
    """Return the key under which a store keeps *message* once.

    The streams of other formats have no numbers of their own: fedmsg's *epoch* is that of one message. They share one
    stream in a store, with 63 bits of a hash of their key as number, lest there be a stream for each message.
    """
    if message.wire == NATIVE:
        parcel = message.parcel
        return Key(parcel.endpoint, parcel.epoch, message.sequence)
    return _hashed(message.key)


def _hashed(key: MessageKey) -> Key:
    digest = sha256(str(key).encode()).digest()
    return Key(key.endpoint, "", int.from_bytes(digest[:8], "big") >> 1)


def keys_for(key: MessageKey) -> tuple[Key, Key]:
    """Return under which keys the message *key* may stand in a store: as a native one, and as one of another format."""
    return Key(key.endpoint, key.epoch, min(key.sequence, 2**63 - 1)), _hashed(key)


def place(messages: Iterable[Message], now_ms: int) -> list[Row]:
    """Return the rows of *messages*, in their order."""
    rows: list[Row] = []
    append, make = rows.append, tuple.__new__  # a named tuple is quicker made by the class that it is of
    parcel: object = None
    envelopes: list[bytes] = []
    endpoint = epoch = ""
    before_time = last = b""
    ms = stated = 0
    native = True
    for message in messages:
        if message.parcel is not parcel:
            parcel, endpoint, epoch = message.parcel, message.endpoint, message.epoch
            envelopes, native = message.parcel.envelopes, message.wire == NATIVE
            before_time = f'","source":"fedbus:{endpoint}","type":"{message.topic}","time":"'.encode()
            start = _AFTER_ID + len(before_time)
        envelope = envelopes[message.index]
        # In our own layout the time stands at a known place, and is the same for a batch; any other is decoded whole.
        if not envelope.startswith(before_time, _AFTER_ID):
            stated = _stated(message.attributes["time"])
            ms, last = placed_ms(stated, now_ms), b""
        elif (stamp := envelope[start : start + _TIME_LENGTH]) != last:
            stated = _stated(stamp.decode("ascii", "replace"))
            ms, last = placed_ms(stated, now_ms), stamp
        key = make(Key, (endpoint, epoch, message.sequence)) if native else key_of(message)
        append(make(Row, (key, ms, stated, message)))
    return rows


def _stated(stamp: str) -> int:
    try:
        return stated_ms(stamp)
    except ValueError:
        return -1  # fedmsg demands none


def by_partition(rows: Iterable[Row], period: str) -> dict[str, list[Row]]:
    """Return the rows by the partition that they belong to."""
    found: dict[str, list[Row]] = {}
    group: list[Row] = []
    last: int | None = None
    for row in rows:
        if row.ms != last:
            last = row.ms
            group = found.setdefault(partition_of(last, period), [])
        group.append(row)
    return found


def repeated(rows: Sequence[Row]) -> set[int]:
    """Return which of *rows*, by their index, have the key of one before them."""
    if len({row.key for row in rows}) == len(rows):
        return set()
    seen: set[Key] = set()
    found = set()
    for index, row in enumerate(rows):
        if row.key in seen:
            found.add(index)
        seen.add(row.key)
    return found


def other_partitions(rows: Sequence[Row], name: str, period: str, there: Iterable[str]) -> list[str]:
    """Return in which partitions but *name*, of those that are *there*, some of its *rows* may stand already.

    A message whose time was a day ahead when it came first may be credible when it comes again, and the clock here may
    have been set back: it is looked for apart, and where it would stand now.
    """
    existing = set(there)
    found = {one for one in existing if one.startswith("apart-")}
    if name.startswith("apart-"):
        found |= {partition_of(row.stated, period) for row in rows if row.stated > 0} & existing
    found.discard(name)
    return sorted(found)


def give_slots(rows: list[Row], highest: int, last_of: dict[int, int]) -> list[tuple[int, Row]]:
    """Give each row its place, and return them sorted by that.

    *highest* is the highest place in the partition, and *last_of* has, for each millisecond of a row at or before it,
    the highest place of that millisecond that is taken (or the one before its first).
    """
    placed = []
    following: dict[int, int] = {}
    top = highest
    for row in rows:
        ms = row.ms
        at = following.get(ms)
        if at is None:
            first = first_place(ms)
            at = first if first > highest else max(first, last_of[ms] + 1)
        if at >= first_place(ms + 1):
            at = top + 1  # somebody has stated one time for a million messages: behind all others is room
        else:
            following[ms] = at + 1
        top = max(top, at)
        placed.append((at, row))
    placed.sort(key=itemgetter(0))
    return placed


def crowded(rows: Iterable[Row], highest: int) -> list[int]:
    """Return the milliseconds of *rows* in which other rows may stand already."""
    return sorted({row.ms for row in rows if first_place(row.ms) <= highest})


class Bundle(NamedTuple):
    """The rows of one write that came in one parcel, and what proves them."""

    proof: Proof
    rows: list[tuple[int, Row, int]]  # place, row, leaf


def bundle(placed: Sequence[tuple[int, Row]], now_ms: int) -> list[Bundle]:
    """Return the rows by the parcel that they came in."""
    groups: dict[int, list[tuple[int, Row]]] = {}
    group: list[tuple[int, Row]] = []
    last: object = None
    for one in placed:
        _, (_, _, _, message) = one
        if message.parcel is not last:
            # what has no seal for several has one for each
            native = message.wire == NATIVE
            last = message.parcel if native else None
            group = groups.setdefault(id(message.parcel) if native else id(message), [])
        group.append(one)
    found = []
    for group in groups.values():
        proof, first = proof_of([row[3] for _, row in group], now_ms)
        found.append(Bundle(proof, [(at, row, row[3].index - first) for at, row in group]))
    return found


def words_of(message: Message, texts: Texts) -> bytes:
    """Return the document of *message* for an index of words."""
    users, packages = texts.names(message)
    return document(message.body, users, packages)
