"""The bytes of fedmsg: two frames, a topic and one JSON object with the signature inside. Bytes in, values out.

Its format was never written down; what is said here was read from fedmsg 1.1.7 and checked against it, and against
messages that Fedora has recorded. What is signed is not what is sent: a receiver parses the object, takes `signature`
and `certificate` out, and encodes the rest again, with sorted keys, no blanks, and all but ASCII escaped. So numbers
have to come out of the parser and into the text again as Python writes them.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from fedbus.errors import Reason, WireError
from fedbus.model.limits import Limits
from fedbus.wire import strict

TOPIC_BYTES = 255
MARKER = "fedbus"  # a member of what a bridge sends out, so that no bridge takes it in again
_LATEST = 2**53  # seconds; beyond it a double cannot count
_FIELD = r"[!\"$-)+\-/-~]+"  # visible ASCII but for the dot and the wildcards * and #
_TOPIC = re.compile(rf"{_FIELD}(?:\.{_FIELD})*")
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True)
_ARCHIVE_KEYS = ("source_name", "source_version")  # what datagrepper adds


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message of fedmsg, as it came, not verified yet.

    ``fields`` is the object without ``signature`` and ``certificate``, and ``signed`` the bytes that the signature
    covers; both texts are empty where the message has none. ``data`` is the second frame.
    """

    topic: str
    fields: dict[str, Any]
    signed: bytes
    signature: str
    certificate: str
    data: bytes

    @property
    def id(self) -> str:
        """``YEAR-UUID``; empty where it has none."""
        found: str = self.fields.get("msg_id", "")
        return found

    @property
    def body(self) -> dict[str, Any]:
        """Its ``msg``; one that is no object (a convention that nobody checks) stands in an object as ``msg``."""
        msg = self.fields["msg"]
        return msg if isinstance(msg, dict) else {"msg": msg}

    @property
    def timestamp(self) -> float | None:
        """Seconds since 1970, by its publisher's clock."""
        found: float | None = self.fields.get("timestamp")
        return found

    @property
    def count(self) -> int:
        """Its ``i``: which message it is of the thread that has published it, from 1; 0 where it does not say so."""
        found: int = self.fields.get("i", 0)
        return found


def canonical(value: Mapping[str, Any]) -> bytes:
    """Return what a signature of *value* covers."""
    return _ENCODER.encode(value).encode("ascii")


def parse(frames: Sequence[bytes], limits: Limits) -> Envelope:
    """Return the message that *frames* are.

    Raises:
        WireError: Not two frames, a topic or a body that is none, or one that contradicts the other.
    """
    if len(frames) != 2:
        raise WireError(Reason.FRAMES, f"{len(frames)} frames, where fedmsg sends two")
    head, data = frames
    if not head or len(head) > TOPIC_BYTES:
        raise WireError(Reason.TOPIC, f"a topic of {len(head)} bytes, where 1 to {TOPIC_BYTES} are allowed")
    try:
        topic = head.decode("ascii")
    except UnicodeDecodeError:
        try:
            head.decode("utf-8")
        except UnicodeDecodeError as error:
            raise WireError(Reason.ENCODING, f"the topic is not UTF-8: {error.reason} at byte {error.start}") from None
        raise WireError(Reason.TOPIC, "the topic holds letters beyond ASCII") from None
    check_topic(topic)
    envelope = from_fields(decode(data, limits), data)
    if envelope.topic != topic:
        raise WireError(
            Reason.TOPIC_MISMATCH,
            f"the topic frame says {topic!r}, what is signed says {envelope.topic[:TOPIC_BYTES]!r}",
        )
    return envelope


def check_topic(topic: str) -> None:
    """Return when *topic* may be one of fedmsg's, which are freer than ours.

    Raises:
        WireError: It has blanks, control characters, wildcards or empty fields, or is longer than 255 bytes.
    """
    if len(topic) > TOPIC_BYTES or not _TOPIC.fullmatch(topic):
        raise WireError(Reason.TOPIC, f"{topic[:TOPIC_BYTES]!r} is no topic")


def decode(data: bytes, limits: Limits) -> dict[str, Any]:
    """Return the one JSON object that *data* is, as strictly as any other message of the bus.

    Raises:
        WireError: As :func:`fedbus.wire.strict.decode`.
    """
    if len(data) <= limits.message_bytes:
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError:
            value = None
        # fedmsg sends what it has signed, so encoding it again gives the same bytes: then no key stands there twice,
        # and no number was rounded
        if type(value) is dict and strict.is_within(value, data, limits):
            try:
                if canonical(value) == data:
                    return value
            except (RecursionError, ValueError):
                pass
    return strict.decode(data, limits)


def from_fields(value: dict[str, Any], data: bytes = b"") -> Envelope:
    """Return the message that the decoded object *value* is; it is taken apart.

    Raises:
        WireError: A member is missing or of the wrong type.
    """
    signature, certificate = value.pop("signature", None), value.pop("certificate", None)
    for name, text in (("signature", signature), ("certificate", certificate)):
        if text is not None and not isinstance(text, str):
            raise WireError(Reason.ENVELOPE, f"/{name} is not a string")
    for name in ("topic", "msg"):
        if name not in value:
            raise WireError(Reason.ENVELOPE, f"/{name} is missing")
    for name, kind in (("topic", str), ("msg_id", str), ("username", str), ("crypto", str), ("i", int)):
        member = value.get(name)
        if name in value and (not isinstance(member, kind) or isinstance(member, bool)):
            raise WireError(Reason.ENVELOPE, f"/{name} is not {'a string' if kind is str else 'a whole number'}")
    stamp = value.get("timestamp")
    if "timestamp" in value and (
        isinstance(stamp, bool) or not isinstance(stamp, (int, float)) or not 0 <= stamp < _LATEST
    ):
        raise WireError(Reason.ENVELOPE, "/timestamp is not a number of seconds since 1970")
    if len(value.get("msg_id", "")) > 255:
        raise WireError(Reason.ENVELOPE, "/msg_id is longer than 255 characters")
    return Envelope(value["topic"], value, canonical(value), signature or "", certificate or "", data)


def restored(record: Mapping[str, Any]) -> Iterator[Envelope]:
    """Yield what a *record* of an archive (datagrepper, datanommer) may have been when it was signed, likeliest first.

    The archive adds ``source_name`` and ``source_version``, puts empty ``headers`` there, and makes the timestamp a
    float; but messages of before 2014 have one by themselves. Only the signature tells which.

    Raises:
        WireError: It is no message of fedmsg.
    """
    plain = {key: value for key, value in record.items() if key not in _ARCHIVE_KEYS}
    if not plain.get("headers", True):
        del plain["headers"]
    stamp = plain.get("timestamp")
    if isinstance(stamp, float) and stamp.is_integer():
        yield from_fields({**plain, "timestamp": int(stamp)})
    yield from_fields(plain)


def without_replay_number(envelope: Envelope) -> Envelope | None:
    """Return *envelope* without ``seq_id``, or None where it has none.

    A publisher with a store for replay (``persistent_store``) adds that member after it has signed the message, so
    that no signature of its messages holds.
    """
    if "seq_id" not in envelope.fields:
        return None
    fields = {key: value for key, value in envelope.fields.items() if key != "seq_id"}
    return Envelope(envelope.topic, fields, canonical(fields), envelope.signature, envelope.certificate, envelope.data)


def encode_base64(data: bytes) -> str:
    """Write *data* as fedmsg does, which keeps to what M2Crypto did: lines of 76 characters, each with its end."""
    return base64.encodebytes(data).decode("ascii")


def decode_base64(text: str) -> bytes:
    """Read what :func:`encode_base64` writes, or the same in one line.

    Raises:
        ValueError: It is neither; other line breaks are what somebody has altered.
    """
    try:
        data = base64.b64decode(text.replace("\n", ""), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"not base64: {error}") from None
    if text.rstrip("\n") != base64.b64encode(data).decode("ascii") and text != encode_base64(data):
        raise ValueError("base64 with line breaks where nobody puts them")
    return data
