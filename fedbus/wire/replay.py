"""Replay: what a reader asks of a publisher's ROUTER socket, and the answers.

A request is one JSON frame. Its answer is a row of two-frame messages, each headed by a kind and the request's number:
BEAT (the publisher's signed word of start and head), START, any number of RECORDS, END; or ERROR alone.
"""

from __future__ import annotations

import struct
from enum import IntEnum

import msgspec
import orjson

from fedbus.errors import MessageError, Reason, WireError
from fedbus.model.topic import TopicFilter

REQUEST_BYTES = 64 * 1024
FACT_BYTES = 2**20  # one START, END or ERROR
MAX_FILTERS = 256
_HEADER = struct.Struct(">BI")


class Kind(IntEnum):
    """What the second frame of an answer holds."""

    BEAT = 1  # a beat, as sent on the PUB socket
    START = 2  # JSON: Start
    RECORDS = 3  # records as in the journal
    END = 4  # JSON: End
    ERROR = 5  # JSON: Failure


class Fetch(msgspec.Struct, frozen=True, omit_defaults=True):
    """A request for stored messages.

    Exactly one of ``after`` (a sequence of ``epoch``), ``time_ms`` (wall time, by the publisher's clock) and ``age_ms``
    (how long ago, whatever the clocks say) tells where to begin; ``after=0`` is the beginning. ``filters`` are full
    topic filters, none meaning all; ``budget`` bounds the bytes of records in the answer.
    """

    id: int
    budget: int
    epoch: str | None = None
    after: int | None = None
    time_ms: int | None = None
    age_ms: int | None = None
    filters: list[str] = []
    op: str = "fetch"


class Start(msgspec.Struct, frozen=True):
    """Where the answer begins: behind sequence ``after`` of ``epoch``."""

    epoch: str
    after: int


class End(msgspec.Struct, frozen=True):
    """The answer is complete: all that was wanted up to ``through`` was sent; ``end`` says that this is the head.

    ``lost`` lists ranges (first, last) which the journal should hold and cannot read.
    """

    through: int
    end: bool
    lost: list[tuple[int, int]] = []


class Failure(msgspec.Struct, frozen=True):
    """The request could not be answered: ``code`` for programs, ``text`` for people."""

    code: str
    text: str


_fetch = msgspec.json.Decoder(Fetch)
_start = msgspec.json.Decoder(Start)
_end = msgspec.json.Decoder(End)
_failure = msgspec.json.Decoder(Failure)


def encode_fetch(request: Fetch) -> bytes:
    """Lay out a request."""
    fields = {key: value for key, value in msgspec.structs.asdict(request).items() if value is not None}
    return orjson.dumps(fields)


def decode_fetch(frame: bytes) -> tuple[Fetch, list[TopicFilter]]:
    """Take a request apart.

    Raises:
        WireError: It is too large, not of the right shape, or one of its filters is none.
    """
    if len(frame) > REQUEST_BYTES:
        raise WireError(Reason.OVERSIZE, f"a request of {len(frame)} bytes where the limit is {REQUEST_BYTES}")
    try:
        request = _fetch.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(Reason.JSON, f"the request: {error}") from None
    given = [one for one in (request.after, request.time_ms, request.age_ms) if one is not None]
    if request.op != "fetch" or len(given) != 1 or len(request.filters) > MAX_FILTERS:
        raise WireError(Reason.MALFORMED, "a fetch gives exactly one of after, time_ms and age_ms")
    if not (0 <= request.id < 2**32 and 0 < request.budget < 2**40 and 0 <= given[0] < 2**63):
        raise WireError(Reason.MALFORMED, "a number of the request is out of range")
    try:
        return request, [TopicFilter(text) for text in request.filters]
    except MessageError as error:
        raise WireError(Reason.TOPIC, str(error)) from None


def answer_header(kind: Kind, request: int) -> bytes:
    """Lay out the first frame of an answer."""
    return _HEADER.pack(kind, request)


def encode_fact(fact: Start | End | Failure) -> bytes:
    """Lay out the second frame of an answer that is JSON."""
    return orjson.dumps(msgspec.structs.asdict(fact))


def decode_header(frame: bytes) -> tuple[Kind, int]:
    """Take the first frame of an answer apart: its kind and the number of the request."""
    try:
        kind, request = _HEADER.unpack(frame)
        return Kind(kind), request
    except (struct.error, ValueError):
        raise WireError(Reason.MALFORMED, "not the header of a replay answer") from None


def decode_fact(kind: Kind, frame: bytes) -> Start | End | Failure:
    """Take the second frame of a START, END, or ERROR apart."""
    decoders: dict[Kind, msgspec.json.Decoder[Start] | msgspec.json.Decoder[End] | msgspec.json.Decoder[Failure]]
    decoders = {Kind.START: _start, Kind.END: _end, Kind.ERROR: _failure}
    if len(frame) > FACT_BYTES:
        raise WireError(Reason.OVERSIZE, f"a replay answer of {len(frame)} bytes where the limit is {FACT_BYTES}")
    try:
        fact = decoders[kind].decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError) as error:
        raise WireError(Reason.JSON, f"a replay answer: {error}") from None
    if isinstance(fact, Start) and not 0 <= fact.after < 2**63:
        raise WireError(Reason.MALFORMED, "a replay answer begins at an impossible sequence")
    if isinstance(fact, End) and not (
        0 <= fact.through < 2**63 and all(0 < first <= last < 2**63 for first, last in fact.lost)
    ):
        raise WireError(Reason.MALFORMED, "a replay answer ends at an impossible sequence")
    return fact
