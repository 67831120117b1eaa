"""Proves again what a history holds: that these bytes were signed, by whom, and that he could at that time.

What is stored is checked as it is stored; nothing is encoded again. A message whose seal is gone, or of a kind that
cannot be checked here, is *not verifiable*, which is never as good as verified.
"""

from __future__ import annotations

import binascii
import struct
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import Any

import orjson

from fedbus.errors import Reason, Refused, TrustError, WireError
from fedbus.fedmsg.codec import parse
from fedbus.fedmsg.message import WIRE as FEDMSG
from fedbus.fedmsg.validator import Validator
from fedbus.history.incoming import key_of
from fedbus.history.places import stated_ms
from fedbus.history.stored import NATIVE, Proof, StoredMessage
from fedbus.model.limits import Limits
from fedbus.model.message import Message
from fedbus.trust.proof import verify_parcel
from fedbus.trust.verifier import Verifier
from fedbus.wire import parcel as parcels
from fedbus.wire.envelope import open_parcel

_UNBOUNDED = Limits(message_bytes=2**62)


class State(StrEnum):
    """What became of a check."""

    GOOD = "good"
    REFUSED = "refused"  # something was altered, or its signer had no right to it
    NOT_VERIFIABLE = "not verifiable"  # there is nothing to check it by


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome for one message."""

    state: State
    text: str = ""
    reason: Reason | None = None

    def __str__(self) -> str:
        if self.state is State.GOOD:
            return "good"
        return f"{self.state}: {self.text}{f' ({self.reason})' if self.reason else ''}"


GOOD = Verdict(State.GOOD)


def _unverifiable(text: str) -> Verdict:
    return Verdict(State.NOT_VERIFIABLE, text)


class SealCheck:
    """Checks messages one after the other; signatures that were proved are remembered.

    Seals are judged as of the time that the signed message states, so what was signed with a certificate that has
    expired since is good; what a revoked key has signed is not. Rights are those of today's policy.
    """

    def __init__(self, verifier: Verifier, fedmsg: Callable[[], Validator] | None = None) -> None:
        """*fedmsg* makes what checks messages of fedmsg, where those can be checked."""
        self._verifier = verifier
        self._fedmsg = fedmsg
        self._validator: Validator | None = None

    def check(self, stored: StoredMessage) -> Verdict:
        """Return what holds of *stored*; raises nothing for whatever stands in the row."""
        proof = stored.proof
        if proof is None:
            return _unverifiable("its seal is not in the store")
        try:
            if proof.wire == NATIVE:
                self._check_native(stored, proof)
            elif proof.wire == FEDMSG:
                return self._check_fedmsg(stored, proof)
            else:
                return _unverifiable(f"its format {proof.wire[:40]!r} is not known here")
        except Refused as error:
            return Verdict(State.REFUSED, str(error), error.reason)
        except (ValueError, IndexError, OverflowError, TypeError, AttributeError, struct.error) as error:
            return Verdict(State.REFUSED, f"the row is not as it was written: {error}", Reason.MALFORMED)
        return GOOD

    def _check_native(self, stored: StoredMessage, proof: Proof) -> None:
        if not 0 <= stored.leaf < proof.count:
            raise WireError(Reason.MALFORMED, "the row names no leaf of its parcel")
        leaf = sha256(parcels.leaf_prefix(stored.topic.encode(), proof.chain) + stored.envelope).digest()
        if leaf != proof.leaf(stored.leaf):
            raise WireError(
                Reason.SIGNATURE, "topic and envelope are not the bytes that were signed; somebody changed them"
            )
        message = stored.message()
        if not proof.first <= message.sequence < proof.first + proof.size:
            raise WireError(Reason.SEQUENCE, f"/sequence is {message.sequence}, outside its batch")
        stated = stated_ms(message.time)
        statement = proof.statement(stored.endpoint, stored.epoch)
        identity = self._verifier.check(proof.certificate, proof.signature, statement, at=stated / 1000)
        if identity.name != stored.endpoint:
            raise TrustError(
                Reason.ENDPOINT_MISMATCH,
                f"the row says {stored.endpoint!r}, the certificate is of {identity.name!r}",
            )
        self._verifier.permit(identity, stored.topic)
        if proof.signer != identity.name:
            raise WireError(
                Reason.SIGNATURE, f"the row says that {proof.signer!r} signed it, but {identity.name!r} did"
            )
        if stored.place >= 0 and abs((stored.place >> 20) - stated) > 1:
            raise WireError(Reason.SIGNATURE, f"it stands at another time than the one that was signed, {message.time}")

    def _check_fedmsg(self, stored: StoredMessage, proof: Proof) -> Verdict:
        if self._validator is None and self._fedmsg is not None:
            self._validator = self._fedmsg()
        if self._validator is None:
            return _unverifiable("it is of fedmsg, whose CA is not configured here")
        message = stored.message()
        original = parse((stored.topic.encode(), proof.original), _UNBOUNDED)
        stamp = original.timestamp
        identity = self._validator.check(original, at=stamp)
        if identity.name != proof.signer:
            raise WireError(
                Reason.SIGNATURE, f"the row says that {proof.signer!r} signed it, but {identity.name!r} did"
            )
        if original.signed != stored.envelope:
            raise WireError(Reason.SIGNATURE, "the row's text is another than the one that was signed")
        key = key_of(message)
        if (key.endpoint, key.epoch, key.sequence) != (stored.endpoint, stored.epoch, stored.sequence):
            raise WireError(Reason.SIGNATURE, "the row stands under the key of another message")
        return GOOD


# --- lines of an export --------------------------------------------------------------------------------------------


def line_of(stored: StoredMessage) -> dict[str, Any]:
    """Return the object of a line that keeps what was signed: the record, and ``envelope``, ``sealed`` and ``kept``.

    It is the form of ``fedbus journal export``.

    Raises:
        WireError: The message cannot be read, or has no seal.
    """
    from base64 import b64encode

    message = stored.message()
    proof = stored.proof
    sealed = stored.sealed()
    assert proof is not None
    return {
        **message.record(),
        "envelope": stored.envelope.decode("utf-8"),
        "sealed": b64encode(sealed).decode("ascii"),
        "kept": {
            "start": proof.start,
            "count": max(proof.count, 1),
            "written_at_ms": stated_ms(message.time) if message.time else proof.taken_at_ms,
        },
    }


_KEPT = ("envelope", "sealed", "kept")


def check_line(text: bytes, check: SealCheck, verifier: Verifier) -> Verdict:
    """Return what holds of one line of an export.

    A line with its seal is checked by the bytes in it, and what it says besides is compared with them. One without, as
    ``fedbus tail --json`` prints it or another store has written it anew, is not verifiable: nothing that was encoded
    again can be.
    """
    try:
        values = orjson.loads(text)
        if not isinstance(values, dict):
            raise ValueError("not an object")
    except ValueError as error:
        return Verdict(State.REFUSED, f"not a line of an export: {error}", Reason.JSON)
    if "sealed" not in values:
        return _unverifiable("the line has no seal; export with --sealed keeps it")
    if values.get("wire", NATIVE) != NATIVE:
        return _unverifiable("messages of another format are verified in the store only")
    try:
        frame = b64decode(values["sealed"], validate=True)
        parcel = parcels.decode(frame, parcel_bytes=len(frame))
        message = _only(parcel, parcel.endpoint)
        verify_parcel(verifier, parcel, at=stated_ms(message.time) / 1000)
    except Refused as error:
        return Verdict(State.REFUSED, str(error), error.reason)
    except (binascii.Error, ValueError, TypeError) as error:
        return Verdict(State.REFUSED, f"sealed is not base64 of a parcel: {error}", Reason.MALFORMED)
    if "envelope" in values and (
        not isinstance(values["envelope"], str)
        or values["envelope"].encode("utf-8", "surrogatepass") != parcel.envelopes[0]
    ):
        return Verdict(State.REFUSED, "envelope is another text than the one that is sealed", Reason.SIGNATURE)
    said = {name: value for name, value in values.items() if name not in _KEPT}
    meant = orjson.loads(orjson.dumps(message.record()))
    if said and said != meant:
        wrong = sorted(name for name in said.keys() | meant.keys() if said.get(name) != meant.get(name))
        return Verdict(State.REFUSED, f"{', '.join(wrong)[:200]}: not as sealed; somebody changed it", Reason.SIGNATURE)
    return GOOD


def _only(parcel: parcels.Parcel, signer: str) -> Message:
    def refuse(error: WireError) -> None:
        raise error

    found = list(open_parcel(parcel, signer, _UNBOUNDED, refuse))
    if len(found) != 1:
        raise WireError(Reason.MALFORMED, f"sealed holds {len(found)} messages instead of one")
    return found[0]
