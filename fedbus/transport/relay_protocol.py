"""What passes between the relay and those who hand in messages: bytes in, values out; doc/relay.rst specifies it.

Scripts import this each time they run, so what takes long to import is imported where it is needed.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Generator, Mapping
from typing import Any, NamedTuple

from fedbus.errors import (
    ConfigError,
    ConnectError,
    DeadlineExceeded,
    FedbusError,
    JournalWriteError,
    MessageError,
    QueueFull,
    Reason,
    TrustError,
    WireError,
)
from fedbus.model.receipt import RelayReceipt

VERSION = 1
HEADER_BYTES = 8192
ANSWER_BYTES = 64 * 1024
_LENGTH = struct.Struct(">I")
_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_TEXTS = ("endpoint", "topic", "submission", "dataschema", "traceparent")
_NEEDED = {"publish": ("endpoint", "topic", "submission"), "status": ("endpoint",)}


class Request(NamedTuple):
    """What a client asks for: to ``publish`` *body* (JSON), or for the ``status`` of an endpoint.

    ``submission`` is a UUIDv7 that the client makes for each message and keeps when it sends the message ``again``.
    """

    do: str
    endpoint: str
    topic: str = ""
    submission: str = ""
    again: bool = False
    dataschema: str | None = None
    traceparent: str | None = None
    body: bytes = b""


class Unavailable(ConnectError):
    """The relay does not take messages for the endpoint now; they are for the spool."""


# --- submissions -----------------------------------------------------------------------------------------------


def new_submission(wall: float) -> str:
    """Return a new UUIDv7 (RFC 9562) of the wall time *wall*."""
    # a library for it takes 4 ms to import
    number = (int(wall * 1000) & (2**48 - 1)) << 80 | int.from_bytes(os.urandom(10), "big")
    number = number & ~(0xF << 76) | 0x7 << 76
    text = f"{number & ~(0x3 << 62) | 0x2 << 62:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def is_submission(text: str) -> bool:
    """Say whether *text* is a UUIDv7 in its usual form."""
    return _UUID7.fullmatch(text) is not None


def submission_key(text: str) -> bytes:
    """Return the 16 bytes of a submission."""
    return bytes.fromhex(text.replace("-", ""))


def submitted_ms(key: bytes) -> int:
    """Return when a submission was made, in ms of wall time, by the clock of who made it."""
    return int.from_bytes(key[:6], "big")


# --- frames ----------------------------------------------------------------------------------------------------


def frame(content: bytes) -> bytes:
    """Put its length before *content*."""
    return _LENGTH.pack(len(content)) + content


class Splitter:
    """Cuts what comes from a connection into the contents of frames of at most *most* bytes.

    ``wanted`` is how many bytes the frame under way has, 0 where none is; ``held`` how many of it are here.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._data = bytearray()
        self.wanted = 0

    @property
    def held(self) -> int:
        """Bytes that wait here."""
        return len(self._data)

    def feed(self, data: bytes) -> None:
        """Take what has come."""
        self._data += data

    def frames(self) -> Generator[bytes, None, None]:
        """Yield each whole frame's content.

        Raises:
            WireError: The next frame says that it has no bytes, or more than are allowed.
        """
        at = 0
        data = self._data
        try:
            while True:
                self.wanted = 0
                if len(data) - at < _LENGTH.size:
                    return
                (length,) = _LENGTH.unpack_from(data, at)
                if not length:
                    raise WireError(Reason.MALFORMED, "a frame of 0 bytes")
                if length > self._most:
                    raise WireError(Reason.OVERSIZE, f"a frame of {length} bytes, where {self._most} are allowed")
                end = at + _LENGTH.size + length
                if end > len(data):
                    self.wanted = _LENGTH.size + length
                    return
                content = bytes(data[at + _LENGTH.size : end])
                at = end
                yield content
        finally:
            del data[:at]


# --- requests --------------------------------------------------------------------------------------------------


def encode_request(request: Request) -> bytes:
    """Return the content of the frame of *request*: u32 length of a JSON object, the object, the body.

    Raises:
        MessageError: An attribute is too long, or text that UTF-8 cannot carry.
    """
    header: dict[str, Any] = {"version": VERSION, "do": request.do}
    for name in _TEXTS:
        if text := getattr(request, name):
            header[name] = text
    if request.again:
        header["again"] = True
    try:
        encoded = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError:
        raise MessageError(Reason.TEXT, "an attribute of the message holds a lone surrogate") from None
    if b"\\u0000" in encoded:
        raise MessageError(Reason.TEXT, "an attribute of the message holds U+0000")
    if len(encoded) > HEADER_BYTES:
        raise MessageError(
            Reason.OVERSIZE, f"topic, dataschema and traceparent take {len(encoded)} bytes, limit {HEADER_BYTES}"
        )
    return _LENGTH.pack(len(encoded)) + encoded + request.body


def decode_request(content: bytes) -> Request:
    """Take the content of a frame apart; the body is not looked at.

    Raises:
        WireError: It is not a request that this release understands.
    """
    from fedbus.model.limits import Limits
    from fedbus.wire import strict

    if len(content) < _LENGTH.size:
        raise WireError(Reason.MALFORMED, "a request without a header")
    (length,) = _LENGTH.unpack_from(content)
    end = _LENGTH.size + length
    if length > HEADER_BYTES or end > len(content):
        raise WireError(Reason.MALFORMED, f"a header of {length} bytes in a frame of {len(content)}")
    header = strict.decode(content[_LENGTH.size : end], Limits(message_bytes=HEADER_BYTES, nesting=2, members=32))
    version, do = header.pop("version", None), header.pop("do", None)
    if type(version) is not int or version != VERSION:
        raise WireError(Reason.VERSION, f"version {version!r} of the relay's protocol, where this relay speaks 1")
    if not isinstance(do, str) or do not in _NEEDED:
        raise WireError(Reason.MALFORMED, "what to do is neither publish nor status")
    again = header.pop("again", False)
    if not isinstance(again, bool):
        raise WireError(Reason.MALFORMED, "/again is neither true nor false")
    for name in _NEEDED[do]:
        if name not in header:
            raise WireError(Reason.MALFORMED, f"/{name} is missing")
    for name, value in header.items():
        if name not in _TEXTS:
            raise WireError(Reason.MALFORMED, f"/{name[:40]} is unknown")
        if not isinstance(value, str) or not value:
            raise WireError(Reason.MALFORMED, f"/{name} is not a text")
    if "submission" in header and not is_submission(header["submission"]):
        raise WireError(Reason.MALFORMED, "/submission is not a UUIDv7")
    return Request(do=do, again=again, body=content[end:], **header)


# --- answers ---------------------------------------------------------------------------------------------------

# the word on the wire, the class that the client raises
_KINDS: tuple[tuple[str, type[FedbusError]], ...] = (
    ("message", MessageError),
    ("denied", TrustError),
    ("unavailable", Unavailable),
    ("refused", JournalWriteError),
    ("busy", QueueFull),
    ("unknown", DeadlineExceeded),
    ("protocol", WireError),
    ("configuration", ConfigError),
    ("failed", FedbusError),
)
_BY_WORD = dict(_KINDS)


def encode_receipt(receipt: RelayReceipt) -> bytes:
    """Return the content of the answer to a message that is in the journal."""
    names = ("submission", "topic", "endpoint", "epoch", "sequence", "id", "time")
    return json.dumps({name: getattr(receipt, name) for name in names}).encode()


def error_word(error: FedbusError) -> str:
    """Return the word for *error* in answers, and in the counters of the relay."""
    return next(word for word, kind in _KINDS if isinstance(error, kind))


def encode_error(error: FedbusError, submission: str = "") -> bytes:
    """Return the content of the answer that says why something was not done."""
    answer = {"submission": submission, "error": error_word(error), "text": str(error)[:4096]}
    reason = getattr(error, "reason", None)
    if reason is not None:
        answer["reason"] = str(reason)
    return json.dumps({name: value for name, value in answer.items() if value}).encode()


def encode_status(status: Mapping[str, Any]) -> bytes:
    """Return the content of the answer to a question for the status."""
    return json.dumps({"status": dict(status)}).encode()


class Answer(NamedTuple):
    """What the relay says: one of the three, and to which submission where it is to one."""

    submission: str
    receipt: RelayReceipt | None = None
    error: FedbusError | None = None
    status: dict[str, Any] | None = None


def decode_answer(content: bytes) -> Answer:
    """Take an answer apart.

    Raises:
        WireError: It is none that this release understands.
    """
    try:
        value = json.loads(content)
        submission = value.get("submission", "")
        if "status" in value:
            return Answer("", status=dict(value["status"]))
        if "error" in value:
            return Answer(submission, error=_restore(value))
        receipt = RelayReceipt(
            topic=value["topic"],
            endpoint=value["endpoint"],
            epoch=value["epoch"],
            sequence=int(value["sequence"]),
            id=value["id"],
            time=value["time"],
            submission=submission,
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise WireError(Reason.MALFORMED, f"not an answer of a relay: {content[:80]!r}") from None
    return Answer(submission, receipt=receipt)


def _restore(value: Mapping[str, Any]) -> FedbusError:
    kind = _BY_WORD.get(value["error"], FedbusError)
    text = str(value.get("text", value["error"]))
    if issubclass(kind, (MessageError, TrustError, WireError)):
        try:
            reason = Reason(value.get("reason", ""))
        except ValueError:
            reason = Reason.MALFORMED
        return kind(reason, text)
    return kind(text)
