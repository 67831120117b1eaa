"""Messages as a history holds them: the signed bytes, and what is needed to prove them, shared by those of a parcel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from fedbus.errors import FedbusError, Reason, WireError
from fedbus.fedmsg.codec import parse
from fedbus.fedmsg.message import WIRE as FEDMSG
from fedbus.fedmsg.message import to_message
from fedbus.model.limits import Limits
from fedbus.model.message import Message, MessageKey
from fedbus.wire import merkle
from fedbus.wire import parcel as parcels
from fedbus.wire.envelope import decode
from fedbus.wire.parcel import Parcel

NATIVE = "native"
_UNBOUNDED = Limits(message_bytes=2**62)


@dataclass(frozen=True, slots=True)
class Proof:
    """What proves the messages that came together: the parts of a parcel, with its leaves instead of its envelopes.

    ``start`` is the index of the first of ``leaves`` in the batch's tree. For a message in another format than the
    native one, ``original`` is what came, and the rest is empty.
    """

    first: int
    size: int
    start: int
    certificate: bytes
    signature: bytes
    chain: bytes
    path: tuple[bytes, ...]
    leaves: bytes
    signer: str
    wire: str
    taken_at_ms: int
    original: bytes = b""

    @property
    def count(self) -> int:
        """How many leaves it has."""
        return len(self.leaves) // merkle.HASH_BYTES

    def leaf(self, place: int) -> bytes:
        """Return the hash of the leaf at *place*, counted from 0."""
        return self.leaves[place * merkle.HASH_BYTES : (place + 1) * merkle.HASH_BYTES]

    def hashes(self) -> list[bytes]:
        """Return all leaves."""
        return [self.leaf(place) for place in range(self.count)]

    def statement(self, endpoint: str, epoch: str) -> bytes:
        """Return what the signature has to cover.

        Raises:
            WireError: The path does not fit, or the epoch is none.
        """
        root = merkle.climb(self.hashes(), self.start, self.size, self.path)
        try:
            identity = UUID(epoch).bytes
        except ValueError:
            raise WireError(Reason.EPOCH, f"{epoch!r} is no epoch") from None
        return parcels.seal_statement(endpoint.encode(), identity, self.first, self.size, root, self.certificate)

    def path_of(self, place: int) -> list[bytes]:
        """Return the hashes that lead from one leaf to the root."""
        return merkle.extract_path(self.hashes(), self.start, self.size, self.path, self.start + place)


def proof_of(messages: Sequence[Message], now_ms: int) -> tuple[Proof, int]:
    """Return what proves *messages*, which came in one parcel, and the place of that parcel's first message in it.

    Of a whole parcel, or several messages of one, that is what the parcel has; of a single one no more than it needs.
    """
    one = messages[0]
    if one.wire != NATIVE:
        proof = Proof(0, 0, 0, b"", b"", b"", (), b"", one.signer, one.wire, now_ms, original=one.sealed)
        return proof, one.index
    parcel = one.parcel if isinstance(one.parcel, Parcel) else None
    first = 0
    if parcel is None or (len(messages) == 1 and len(parcel.envelopes) > 1):
        frame = one.sealed
        parcel = parcels.decode(frame, parcel_bytes=len(frame))
        first = one.index
    leaves = b"".join(parcel.leaves())
    return (
        Proof(
            parcel.first,
            parcel.size,
            parcel.start,
            parcel.certificate,
            parcel.signature,
            parcel.chain,
            parcel.path,
            leaves,
            one.signer,
            NATIVE,
            now_ms,
        ),
        first,
    )


@dataclass(frozen=True, slots=True, eq=False)
class StoredMessage:
    """One row of a history. ``where`` names it to people, for instance ``2026-11.db message 1234``.

    ``leaf`` is its place among the leaves of its ``proof``, which is None where the store has lost it.
    """

    place: int
    topic: str
    endpoint: str
    epoch: str
    sequence: int
    envelope: bytes
    leaf: int
    proof: Proof | None
    where: str

    @property
    def key(self) -> MessageKey:
        """Stream and sequence, as the row says; of a message of fedmsg, as the message says."""
        if not self.epoch:
            try:
                return self.message().key
            except WireError:
                pass  # as much as can be told
        return MessageKey(self.endpoint, self.epoch, self.sequence)

    def message(self) -> Message:
        """Return the message, not verified.

        Raises:
            WireError: The row and its envelope contradict each other, or the envelope cannot be read.
        """
        proof = self.proof
        wire = NATIVE if proof is None else proof.wire
        if proof is not None and wire == FEDMSG:
            try:
                parsed = parse((self.topic.encode(), proof.original), _UNBOUNDED)
            except FedbusError as error:
                raise WireError(Reason.ENVELOPE, str(error)) from error
            return to_message(parsed, endpoint=self.endpoint, signer=proof.signer)
        attributes = decode(
            self.envelope, topic=self.topic, source=f"fedbus:{self.endpoint}", epoch=self.epoch, limits=_UNBOUNDED
        )
        sequence = int(attributes["sequence"])
        if sequence != self.sequence:
            raise WireError(Reason.SEQUENCE, f"/sequence is {sequence}, the row says {self.sequence}")
        signer = self.endpoint if proof is None else proof.signer
        return Message(attributes["data"], sequence, signer, _Alone(self), 0, wire=wire, _attributes=attributes)

    def sealed(self) -> bytes:
        """Return a parcel of this message alone, which verifies with nothing but the CA; for fedmsg, what came.

        Raises:
            WireError: There is no seal for it in the store.
        """
        proof = self.proof
        if proof is None or (proof.wire == NATIVE and not 0 <= self.leaf < proof.count):
            raise WireError(Reason.UNSIGNED, f"{self.where} has no seal in the store")
        if proof.wire != NATIVE:
            return proof.original
        return parcels.encode(
            self.topic.encode(),
            parcels.head(self.endpoint.encode(), UUID(self.epoch).bytes, proof.first, proof.size),
            proof.start + self.leaf,
            proof.signature,
            proof.certificate,
            proof.chain,
            proof.path_of(self.leaf),
            [self.envelope],
        )


class _Alone:
    """What stands in for the parcel of a message from a store."""

    __slots__ = ("_stored",)

    def __init__(self, stored: StoredMessage) -> None:
        self._stored = stored

    @property
    def topic(self) -> str:
        return self._stored.topic

    @property
    def endpoint(self) -> str:
        return self._stored.endpoint

    @property
    def epoch(self) -> str:
        return self._stored.epoch

    @property
    def envelopes(self) -> list[bytes]:
        return [self._stored.envelope]

    def single(self, index: int) -> bytes:
        return self._stored.sealed()
