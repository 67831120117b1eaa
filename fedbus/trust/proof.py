"""Checks whole parcels and beats: that the bytes are what was signed, by whom the seal says, who may say so."""

from __future__ import annotations

from fedbus.errors import Reason, TrustError
from fedbus.trust.verifier import Identity, Verifier
from fedbus.wire.beat import Beat
from fedbus.wire.parcel import Parcel


def verify_parcel(verifier: Verifier, parcel: Parcel, *, at: float | None = None) -> Identity:
    """Return who signed *parcel*; every envelope in it, its topic, and its place in the stream are then proved.

    *at* judges certificates as of that wall time instead of now.

    Raises:
        WireError: The path to the root does not fit.
        TrustError: Certificate, signature, name, or policy; the reason tells which.
    """
    identity = verifier.check(parcel.certificate, parcel.signature, parcel.statement(), at=at)
    if identity.name != parcel.endpoint:
        raise TrustError(
            Reason.ENDPOINT_MISMATCH, f"the seal is for {parcel.endpoint!r}, the certificate for {identity.name!r}"
        )
    verifier.permit(identity, parcel.topic)
    return identity


def verify_beat(verifier: Verifier, beat: Beat) -> Identity:
    """Return who signed *beat*.

    Raises:
        TrustError: Certificate, signature, or name.
    """
    identity = verifier.check(beat.certificate, beat.signature, beat.statement())
    if identity.name != beat.facts.endpoint:
        raise TrustError(
            Reason.ENDPOINT_MISMATCH, f"the beat is of {beat.facts.endpoint!r}, the certificate of {identity.name!r}"
        )
    return identity
