"""Beats: the signed word of a publisher, once a second, of how far its stream has come."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from uuid import UUID

import msgspec
import orjson

from fedbus.errors import Reason, WireError
from fedbus.wire.parcel import CERTIFICATE_BYTES, SIGNATURE_BYTES, VERSION

BEAT_CONTEXT = b"fedbus beat 1\0"
MARK = b"\x02"  # topics begin with a letter, digit, '_' or '-', so no filter meets this byte
BEAT_BYTES = 512 * 1024  # a thousand topics of the greatest length, and room

_LENGTH = struct.Struct(">H")


class BeatFacts(msgspec.Struct, frozen=True):
    """What a beat says.

    ``topics`` gives the last sequence of every topic that got a message after sequence ``window``; so a reader of one
    topic prefix that has come at least as far as ``window`` knows from it whether it has missed anything.
    """

    endpoint: str
    epoch: str
    start: int
    head: int
    window: int
    topics: dict[str, int]
    sent_at_ms: int
    interval_ms: int


_decoder = msgspec.json.Decoder(BeatFacts)


@dataclass(frozen=True, slots=True, eq=False)
class Beat:
    """One beat, taken apart; ``payload`` is what the signature covers."""

    facts: BeatFacts
    payload: bytes
    signature: bytes
    certificate: bytes

    def statement(self) -> bytes:
        """Return the bytes that the signature must cover."""
        return beat_statement(self.certificate, self.payload)

    def head_below(self, prefix: str) -> int:
        """Return the last sequence that the beat names below the topic *prefix*, 0 where it names none."""
        if not prefix:
            return self.facts.head
        inner = prefix + "."
        return max(
            (last for topic, last in self.facts.topics.items() if topic == prefix or topic.startswith(inner)), default=0
        )


def beat_statement(certificate: bytes, payload: bytes) -> bytes:
    """Return the bytes that a beat's signature covers; the certificate for the reason that a seal covers it."""
    return BEAT_CONTEXT + sha256(certificate).digest() + payload


def encode(facts: BeatFacts, *, sign: Callable[[bytes], bytes], certificate: bytes) -> bytes:
    """Sign and lay out one beat."""
    payload = orjson.dumps(msgspec.structs.asdict(facts))
    signature = sign(beat_statement(certificate, payload))
    return b"".join(
        (
            MARK,
            facts.endpoint.encode("ascii"),
            b"\0",
            bytes((VERSION,)),
            _LENGTH.pack(len(signature)),
            signature,
            _LENGTH.pack(len(certificate)),
            certificate,
            payload,
        )
    )


def decode(frame: bytes) -> Beat:
    """Take a beat apart.

    Raises:
        WireError: The frame is too large, of an unknown version, or not laid out as specified.
    """
    if len(frame) > BEAT_BYTES:
        raise WireError(Reason.OVERSIZE, f"a beat of {len(frame)} bytes where the limit is {BEAT_BYTES}")
    end = frame.find(b"\0", 0, 257)
    if frame[:1] != MARK or end < 2:
        raise WireError(Reason.MALFORMED, "not a beat")
    try:
        if frame[end + 1] != VERSION:
            raise WireError(Reason.VERSION, f"wire version {frame[end + 1]} where this release speaks {VERSION}")
        (length,) = _LENGTH.unpack_from(frame, end + 2)
        at = end + 4 + length
        signature = frame[at - length : at]
        (certificate_length,) = _LENGTH.unpack_from(frame, at)
        at += 2 + certificate_length
        certificate = frame[at - certificate_length : at]
        if at > len(frame):
            raise IndexError
    except (struct.error, IndexError):
        raise WireError(Reason.MALFORMED, "the beat ends within its signature") from None
    if not length or not certificate_length:
        raise WireError(Reason.UNSIGNED, "the beat carries no signature")
    if length > SIGNATURE_BYTES:
        raise WireError(Reason.SIGNATURE, f"a signature of {length} bytes")
    if certificate_length > CERTIFICATE_BYTES:
        raise WireError(Reason.CERTIFICATE, f"a certificate of {certificate_length} bytes")
    payload = frame[at:]
    try:
        facts = _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(Reason.JSON, f"the beat's payload: {error}") from None
    if frame[1:end] != facts.endpoint.encode("utf-8", "replace"):
        raise WireError(Reason.TOPIC_MISMATCH, "the beat's frame names another endpoint than its payload")
    if not _consistent(facts):
        raise WireError(Reason.MALFORMED, "the beat's numbers contradict each other")
    try:
        canonical = str(UUID(facts.epoch)) == facts.epoch
    except ValueError:
        canonical = False
    if not canonical:
        raise WireError(Reason.EPOCH, f"the beat's epoch {facts.epoch[:80]!r} is not a UUID in canonical form")
    return Beat(facts, payload, signature, certificate)


def _consistent(facts: BeatFacts) -> bool:
    heads = facts.topics.values()
    return (
        0 <= facts.window <= facts.head < 2**63
        and 1 <= facts.start <= facts.head + 1
        and (not heads or (facts.window < min(heads) and max(heads) <= facts.head))
        and 0 <= facts.sent_at_ms < 2**63
        and 0 < facts.interval_ms < 2**63
    )
