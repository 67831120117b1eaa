"""Parcels: messages of one topic and one batch that travel together behind one seal, in one frame.

The layout is specified in ``doc/wire.rst``. Decoding checks the layout only; proof and rights are the verifier's.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from itertools import accumulate
from typing import NamedTuple
from uuid import UUID

from fedbus.errors import MessageError, Reason, WireError
from fedbus.model.topic import check_topic
from fedbus.wire import merkle

VERSION = 1
SEAL_CONTEXT = b"fedbus seal 1\0"
CERTIFICATE_BYTES = 8192  # a leaf with one name has under 1 KiB; the rest is room for an existing CA's habits
SIGNATURE_BYTES = 256
MAX_SIZE = 65536  # messages in one batch

_PLACE = struct.Struct(">16sQIII")  # epoch, first, size, start, count
_LENGTH = struct.Struct(">H")
_LEVEL = struct.Struct(">QI")  # prior, inside
_SEQUENCES = 2**63  # a sequence stays below, so that it fits a signed 64-bit integer in every language and store


class Level(NamedTuple):
    """What a parcel says of one level of its topic."""

    prior: int  # the last sequence below that level before this batch; 0 for none
    inside: int  # how many messages of this batch stand below that level


@dataclass(slots=True, eq=False, repr=False)  # not frozen: that makes the many fields of each one cost twice as much
class Parcel:
    """One parcel, taken apart; every field is as received, and none is changed."""

    topic: str
    endpoint: str
    epoch: str
    first: int  # sequence of the batch's first message
    size: int  # messages in the batch, which is the size of its tree
    start: int  # index of this parcel's first leaf
    chain: bytes  # the levels, as on the wire, which every leaf covers
    path: tuple[bytes, ...]
    signature: bytes
    certificate: bytes
    envelopes: list[bytes]
    frame: bytes

    def __repr__(self) -> str:
        return f"<Parcel {self.endpoint}/{self.epoch}/{self.first} {self.topic}: {len(self.envelopes)} of {self.size}>"

    @property
    def last(self) -> int:
        """Sequence of the batch's last message."""
        return self.first + self.size - 1

    def level(self, fields: int) -> Level:
        """Return what the parcel says of its topic's first *fields* fields; 0 is the whole stream."""
        if not fields:
            return Level(self.first - 1, self.size)
        return Level(*_LEVEL.unpack_from(self.chain, (fields - 1) * _LEVEL.size))

    def leaves(self) -> list[bytes]:
        """Hash the parcel's leaves."""
        return merkle.leaf_hashes(leaf_prefix(self.topic.encode("ascii"), self.chain), self.envelopes)

    def statement(self, leaves: list[bytes] | None = None) -> bytes:
        """Return the bytes that the seal's signature must cover, with the root computed from what was received.

        Raises:
            WireError: The path does not fit the parcel's place in the tree.
        """
        root = merkle.climb(self.leaves() if leaves is None else leaves, self.start, self.size, self.path)
        return seal_statement(
            self.endpoint.encode("ascii"), _epoch_bytes(self.epoch), self.first, self.size, root, self.certificate
        )

    def singles(self) -> list[bytes]:
        """Return what :meth:`single` does for every message, in their order, at a fraction of the cost."""
        paths = merkle.extract_paths(self.leaves(), self.start, self.size, self.path)
        topic, endpoint = self.topic.encode("ascii"), self.endpoint.encode("ascii")
        batch_head = head(endpoint, _epoch_bytes(self.epoch), self.first, self.size)
        return [
            encode(topic, batch_head, place, self.signature, self.certificate, self.chain, path, [envelope])
            for place, (path, envelope) in enumerate(zip(paths, self.envelopes, strict=True), self.start)
        ]

    def single(self, index: int) -> bytes:
        """Return a parcel that holds only message *index* of this one and verifies alone."""
        place = self.start + index
        path = merkle.extract_path(self.leaves(), self.start, self.size, self.path, place)
        return encode(
            self.topic.encode("ascii"),
            head(self.endpoint.encode("ascii"), _epoch_bytes(self.epoch), self.first, self.size),
            place,
            self.signature,
            self.certificate,
            self.chain,
            path,
            [self.envelopes[index]],
        )


@lru_cache(maxsize=4096)
def _epoch_text(epoch: bytes) -> str:
    return str(UUID(bytes=epoch))


@lru_cache(maxsize=4096)
def _epoch_bytes(epoch: str) -> bytes:
    return UUID(epoch).bytes


def leaf_prefix(topic: bytes, chain: bytes) -> bytes:
    """Return what is hashed before each envelope of a parcel: 0x00, topic, NUL, chain."""
    return b"\0" + topic + b"\0" + chain


def seal_statement(endpoint: bytes, epoch: bytes, first: int, size: int, root: bytes, certificate: bytes) -> bytes:
    """Return the bytes that are signed once for a batch.

    The certificate is among them because X.509 does not protect all of its own bytes: the count of unused bits in
    front of the CA's signature can often be changed, and the certificate still verifies.
    """
    return b"".join(
        (
            SEAL_CONTEXT,
            bytes((len(endpoint),)),
            endpoint,
            epoch,
            struct.pack(">QI", first, size),
            root,
            sha256(certificate).digest(),
        )
    )


def chain_block(entries: Sequence[tuple[int, int]]) -> bytes:
    """Encode (prior, inside) of each level of a topic, the first field's first."""
    return b"".join([_LEVEL.pack(prior, inside) for prior, inside in entries])


def head(endpoint: bytes, epoch: bytes, first: int, size: int) -> bytes:
    """Encode what all parcels of a batch begin with, behind their topic."""
    return bytes((VERSION, len(endpoint))) + endpoint + epoch + struct.pack(">QI", first, size)


def encode(
    topic: bytes,
    batch_head: bytes,
    start: int,
    signature: bytes,
    certificate: bytes,
    chain: bytes,
    path: Sequence[bytes],
    envelopes: Sequence[bytes],
) -> bytes:
    """Lay out one parcel."""
    count = len(envelopes)
    return b"".join(
        (
            topic,
            b"\0",
            batch_head,
            struct.pack(">II", start, count),
            _LENGTH.pack(len(signature)),
            signature,
            _LENGTH.pack(len(certificate)),
            certificate,
            bytes((len(chain) // _LEVEL.size,)),
            chain,
            bytes((len(path),)),
            *path,
            struct.pack(f">{count}I", *map(len, envelopes)),
            *envelopes,
        )
    )


def decode(frame: bytes, *, parcel_bytes: int) -> Parcel:
    """Take a frame apart.

    Raises:
        WireError: The frame is larger than *parcel_bytes*, of an unknown version, or not laid out as specified.
    """
    if not frame:
        raise WireError(Reason.FRAMES, "an empty frame")
    if len(frame) > parcel_bytes:
        raise WireError(Reason.OVERSIZE, f"a parcel of {len(frame)} bytes where the limit is {parcel_bytes}")
    end = frame.find(b"\0", 0, 257)
    if end < 0:
        raise WireError(Reason.TOPIC, "no topic at the start of the frame")
    try:
        topic = frame[:end].decode("ascii")
        check_topic(topic)
    except (UnicodeDecodeError, MessageError):
        raise WireError(Reason.TOPIC, f"{frame[: min(end, 80)]!r} is not a topic") from None
    if len(frame) < end + 2:
        raise WireError(Reason.MALFORMED, "the frame ends behind its topic")
    if frame[end + 1] != VERSION:
        raise WireError(Reason.VERSION, f"wire version {frame[end + 1]} where this release speaks {VERSION}")
    try:
        return _decode(frame, topic, end + 2)
    except (struct.error, IndexError):
        raise WireError(Reason.MALFORMED, "the frame ends within its seal") from None
    except UnicodeDecodeError:
        raise WireError(Reason.MALFORMED, "the endpoint's name is not ASCII") from None


def _decode(frame: bytes, topic: str, at: int) -> Parcel:
    length = frame[at]
    at += 1 + length
    endpoint = frame[at - length : at].decode("ascii")
    epoch, first, size, start, count = _PLACE.unpack_from(frame, at)
    at += _PLACE.size
    if (
        not endpoint
        or not first
        or not 0 < size <= MAX_SIZE
        or first + size > _SEQUENCES
        or not count
        or start + count > size
    ):
        raise WireError(Reason.MALFORMED, "the parcel's place in its batch is impossible")
    (length,) = _LENGTH.unpack_from(frame, at)
    at += 2 + length
    signature = frame[at - length : at]
    if not length:
        raise WireError(Reason.UNSIGNED, "the parcel carries no signature")
    if length > SIGNATURE_BYTES:
        raise WireError(Reason.SIGNATURE, f"a signature of {length} bytes")
    (length,) = _LENGTH.unpack_from(frame, at)
    at += 2 + length
    certificate = frame[at - length : at]
    if not length:
        raise WireError(Reason.UNSIGNED, "the parcel carries no certificate")
    if length > CERTIFICATE_BYTES:
        raise WireError(Reason.CERTIFICATE, f"a certificate of {length} bytes")
    length = frame[at] * _LEVEL.size
    if frame[at] != topic.count(".") + 1:
        raise WireError(Reason.MALFORMED, "the chain does not have one entry for each field of the topic")
    at += 1 + length
    chain = frame[at - length : at]
    hashes = frame[at]
    most = size
    for prior, inside in _LEVEL.iter_unpack(chain):
        # deeper levels hold no more than those around them, and this parcel is inside all of them
        if prior >= first or not count <= inside <= most:
            raise WireError(Reason.MALFORMED, "the chain contradicts the parcel's place in its batch")
        most = inside
    at += 1
    end = at + hashes * merkle.HASH_BYTES
    path = tuple([frame[place : place + merkle.HASH_BYTES] for place in range(at, end, merkle.HASH_BYTES)])
    lengths = struct.unpack_from(f">{count}I", frame, end)
    at = end + 4 * count
    if at + sum(lengths) != len(frame):
        raise WireError(Reason.MALFORMED, "the envelopes do not fill the frame")
    envelopes = []
    for length in lengths:
        envelopes.append(frame[at : at + length])
        at += length
    return Parcel(
        topic,
        endpoint,
        _epoch_text(epoch),
        first,
        size,
        start,
        chain,
        path,
        signature,
        certificate,
        envelopes,
        frame,
    )


@dataclass(slots=True)
class Group:
    """Messages of one topic in one batch, before they are sealed."""

    topic: bytes
    chain: bytes
    envelopes: list[bytes]


def seal(
    groups: Sequence[Group],
    *,
    endpoint: bytes,
    epoch: bytes,
    first: int,
    sign: Callable[[bytes], bytes],
    certificate: bytes,
    parcel_bytes: int,
    parcel_messages: int,
) -> list[tuple[int, str, bytes]]:
    """Seal one batch with one signature and return its parcels as (number of messages, topic, frame).

    Leaves stand in the order of *groups*. A group becomes several parcels where it has more than *parcel_messages*
    messages or *parcel_bytes* bytes; one message is never split.
    """
    leaves: list[bytes] = []
    for group in groups:
        leaves += merkle.leaf_hashes(leaf_prefix(group.topic, group.chain), group.envelopes)
    rows = merkle.levels(leaves)
    size = len(leaves)
    batch_head = head(endpoint, epoch, first, size)
    signature = sign(seal_statement(endpoint, epoch, first, size, rows[-1][0], certificate))
    parcels: list[tuple[int, str, bytes]] = []
    start = 0
    for group in groups:
        topic = group.topic.decode("ascii")
        for envelopes in _portions(group.envelopes, parcel_bytes, parcel_messages):
            count = len(envelopes)
            path = merkle.range_path(rows, start, count)
            frame = encode(group.topic, batch_head, start, signature, certificate, group.chain, path, envelopes)
            parcels.append((count, topic, frame))
            start += count
    return parcels


def _portions(envelopes: list[bytes], most_bytes: int, most: int) -> list[list[bytes]]:
    ends = list(accumulate(map(len, envelopes)))
    portions: list[list[bytes]] = []
    at = weight = 0
    while at < len(envelopes):
        end = min(max(bisect_right(ends, weight + most_bytes, at), at + 1), at + most)
        portions.append(envelopes[at:end])
        at, weight = end, ends[end - 1]
    return portions
