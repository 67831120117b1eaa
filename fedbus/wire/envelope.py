"""Envelopes: each message as a CloudEvents 1.0 event in JSON, the bytes that are hashed, kept and sent."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import orjson

from fedbus.errors import MessageError, Reason, WireError
from fedbus.model.limits import Limits
from fedbus.model.message import Message
from fedbus.wire import strict
from fedbus.wire.parcel import Parcel

_TIME = re.compile(
    r"\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d\.\d{6}Z\Z", re.ASCII
)
_BEFORE_ID = b'{"specversion":"1.0","id":"'
_ID_LENGTH = 36
_ID_SHARED = 24  # characters that the ids of a batch have in common: all but the last of a UUID's five fields
_ID_END = slice(len(_BEFORE_ID) + _ID_SHARED, len(_BEFORE_ID) + _ID_LENGTH)
_AFTER_ID = _ID_END.stop
_BEFORE_DATA = b'","data":'
_BEFORE_SEQUENCE = b'","sequence":"'
_BEFORE_SUBMISSION = b',"submission":"'
_REQUIRED = ("specversion", "id", "source", "type", "time", "datacontenttype", "epoch", "sequence", "data")


def rfc3339(wall: float) -> str:
    """Write a wall time as RFC 3339 text in UTC with microseconds: ``2026-11-21T12:34:56.123456Z``."""
    seconds, microseconds = divmod(round(wall * 1e6), 1_000_000)
    return f"{_to_the_second(seconds)}.{microseconds:06d}Z"


@lru_cache(maxsize=16)
def _to_the_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


class EnvelopeWriter:
    """Writes the envelopes of one endpoint, topic and epoch; what is the same for all of them is written once."""

    __slots__ = ("_after_id", "_after_time")

    def __init__(self, endpoint: str, topic: str, epoch: str) -> None:
        self._after_id = f'","source":"fedbus:{endpoint}","type":"{topic}","time":"'
        self._after_time = f'","datacontenttype":"application/json","epoch":"{epoch}","sequence":"'

    def middle(self, stamp: str) -> bytes:
        """Return what stands between id and sequence in all envelopes of the time *stamp*."""
        return f"{self._after_id}{stamp}{self._after_time}".encode("ascii")


def layout(prefix: bytes, middle: bytes) -> bytes:
    """Return a format that makes envelopes of (number, sequence, extra, data).

    Their ids are *prefix* and twelve hexadecimal digits of the number; *middle* is :meth:`EnvelopeWriter.middle`;
    extra is empty or ``,"name":value`` for each optional attribute, and data is JSON. Neither *prefix* nor what
    *middle* is made of can hold a per cent sign.
    """
    return b'{"specversion":"1.0","id":"%b%%012x%b%%020d"%%b,"data":%%b}' % (prefix, middle)


def write(prefix: bytes, number: int, middle: bytes, sequence: int, extra: bytes, data: bytes) -> bytes:
    """Return one envelope; see :func:`layout`."""
    return layout(prefix, middle) % (number, sequence, extra, data)


def optional_attributes(*, dataschema: str | None, traceparent: str | None) -> bytes:
    """Return the part of an envelope that holds the optional attributes, or nothing.

    Raises:
        MessageError: One is no text, or text that readers refuse.
    """
    extra = b""
    if dataschema is not None:
        extra += b',"dataschema":' + _text("dataschema", dataschema)
    if traceparent is not None:
        extra += b',"traceparent":' + _text("traceparent", traceparent)
    return extra


def _text(name: str, value: object) -> bytes:
    # what readers refuse must not be journaled: its place in the stream would be a loss for ever
    if not isinstance(value, str):
        raise MessageError(Reason.ENVELOPE, f"{name} is a text, not {type(value).__name__}")
    if "\0" in value:
        raise MessageError(Reason.TEXT, f"{name} holds U+0000")
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        raise MessageError(Reason.TEXT, f"{name} {value!r} is not UTF-8: it holds a lone surrogate") from None


def submission_attribute(submission: str) -> bytes:
    """Return the part of an envelope that holds the number under which a message was handed in; it comes first."""
    return b',"submission":"%b"' % submission.encode("ascii")


def submission_of(envelope: bytes) -> str:
    """Return the submission of an *envelope* of our own journal, in the layout of :func:`write`; empty: it has none."""
    after_sequence = envelope.find(_BEFORE_SEQUENCE) + len(_BEFORE_SEQUENCE) + 21
    if not envelope.startswith(_BEFORE_SUBMISSION, after_sequence):
        return ""
    start = after_sequence + len(_BEFORE_SUBMISSION)
    return envelope[start : start + 36].decode("ascii", "replace")


def sequence_of(envelope: bytes) -> int:
    """Return the sequence of an *envelope* of our own journal, in the layout of :func:`write`."""
    start = envelope.find(_BEFORE_SEQUENCE) + len(_BEFORE_SEQUENCE)
    return int(envelope[start : start + 20])


def decode(envelope: bytes, *, topic: str, source: str, epoch: str, limits: Limits) -> dict[str, Any]:
    """Return the attributes of an *envelope* whose seal has been verified.

    The attributes that the seal states too must agree with it. Unknown attributes are kept.

    Raises:
        WireError: The bytes are not strict JSON, an attribute is missing or of the wrong type, or one disagrees.
    """
    attributes = strict.decode(envelope, limits)
    try:
        if attributes["type"] != topic:
            raise WireError(Reason.TOPIC_MISMATCH, f"/type is {attributes['type']!r}, the topic {topic!r}")
        if attributes["source"] != source:
            raise WireError(Reason.ENVELOPE, f"/source is {attributes['source']!r}, the seal says {source!r}")
        if attributes["epoch"] != epoch:
            raise WireError(Reason.EPOCH, f"/epoch is {attributes['epoch']!r}, the seal says {epoch!r}")
        sequence, stamp = attributes["sequence"], attributes["time"]
        if (
            attributes["specversion"] != "1.0"
            or attributes["datacontenttype"] != "application/json"
            or type(attributes["id"]) is not str
            or type(attributes["data"]) is not dict
            or type(sequence) is not str
            or len(sequence) != 20
            or not (sequence.isascii() and sequence.isdigit())
            or type(stamp) is not str
            or not _TIME.match(stamp)
        ):
            raise WireError(Reason.ENVELOPE, _first_fault(attributes))
        if len(attributes) > len(_REQUIRED):
            for name in ("dataschema", "traceparent"):
                if not isinstance(attributes.get(name, ""), str):
                    raise WireError(Reason.ENVELOPE, f"/{name} is not a string")
    except KeyError as error:
        raise WireError(Reason.ENVELOPE, f"/{error.args[0]} is missing") from None
    return attributes


def _first_fault(attributes: dict[str, Any]) -> str:
    """Name the first attribute that is not as it has to be, as a JSON pointer."""
    if attributes["specversion"] != "1.0":
        return "/specversion is not '1.0'"
    if attributes["datacontenttype"] != "application/json":
        return "/datacontenttype is not 'application/json'"
    if not isinstance(attributes["id"], str):
        return "/id is not a string"
    if not isinstance(attributes["data"], dict):
        return "/data is not an object"
    sequence = attributes["sequence"]
    if not (isinstance(sequence, str) and len(sequence) == 20 and sequence.isascii() and sequence.isdigit()):
        return "/sequence is not 20 decimal digits"
    return "/time is not RFC 3339 text in UTC with microseconds"


def open_parcel(parcel: Parcel, signer: str, limits: Limits, refuse: Callable[[WireError], None]) -> Iterator[Message]:
    """Yield the messages of a verified *parcel*, in order, decoding each when it is asked for.

    A signer whose seal is good may still have sealed an envelope that is not well formed; *refuse* is told what is
    wrong with it, and that message alone is left out.
    """
    topic, epoch = parcel.topic, parcel.epoch
    source = "fedbus:" + parcel.endpoint
    before, last = parcel.first - 1, parcel.last
    head = middle = b""  # what stands before the id's last field, and between id and sequence, in our own layout
    sequence_at = data_at = 0
    message_bytes = limits.message_bytes
    decode_plain = strict.plain_decoder(limits, limits.nesting - 1)
    for index, envelope in enumerate(parcel.envelopes):
        try:
            # All messages of a batch have the same attributes but for the end of the id and the sequence, so once one
            # was looked at whole, comparing bytes says the same of the others as decoding them would. Any other layout
            # is decoded.
            if (
                middle
                and envelope.startswith(head)
                and envelope.startswith(middle, _AFTER_ID)
                and envelope.startswith(_BEFORE_DATA, sequence_at + 20)
                and envelope[_ID_END].isalnum()
                and (digits := envelope[sequence_at : sequence_at + 20]).isdigit()
                and len(envelope) <= message_bytes
                and envelope.endswith(b"}")
                and (body := decode_plain(envelope[data_at:-1])) is not None
            ):
                sequence = int(digits)
                message = Message(body, sequence, signer, parcel, index)
            else:
                attributes = decode(envelope, topic=topic, source=source, epoch=epoch, limits=limits)
                sequence = int(attributes["sequence"])
                message = Message(attributes["data"], sequence, signer, parcel, index, _attributes=attributes)
                identifier = attributes["id"]
                # a quote or an escape in an id would make the places below others
                if len(identifier) == _ID_LENGTH and identifier.isascii() and identifier.replace("-", "").isalnum():
                    head = _BEFORE_ID + identifier[:_ID_SHARED].encode()
                    middle = EnvelopeWriter(parcel.endpoint, topic, epoch).middle(attributes["time"])
                    sequence_at = _AFTER_ID + len(middle)
                    data_at = sequence_at + 20 + len(_BEFORE_DATA)
                else:
                    middle = b""
            if not before < sequence <= last:
                raise WireError(
                    Reason.SEQUENCE, f"/sequence is {sequence} in a batch of {parcel.first} to {last}, behind {before}"
                )
        except WireError as error:
            refuse(error)
            continue
        before = sequence
        yield message
