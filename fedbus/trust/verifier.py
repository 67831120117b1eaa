"""Who checks: certificates, signatures and rights, each refusal with its reason.

The path of a message meets ``Verifier.check`` and ``Verifier.permit``; both cost a few dict lookups when the same was
asked before. Everything else here runs once for each certificate or each signature.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from fedbus.clock import Clock, SystemClock
from fedbus.errors import Reason, TrustError
from fedbus.trust.cache import GenerationCache
from fedbus.trust.expiry import stamp
from fedbus.trust.keyring import Keyring, TrustedAuthority, allowed_hash
from fedbus.trust.leaf import leaf_name, verify_with
from fedbus.trust.policy import Policy

MAX_CERTIFICATE_BYTES = 8 * 1024  # one leaf has about 600; nothing larger is parsed
MAX_SIGNATURE_BYTES = 256

SKEW = 300.0  # seconds by which the clocks of two hosts may differ

_SYSTEM_CLOCK = SystemClock()
_CACHED_CERTIFICATES = 1024
_CACHED_REFUSALS = 1024
_CACHED_SIGNATURES = 4096


class Identity:
    """A certificate that a trusted CA has issued, and what it proves; never changed once made."""

    __slots__ = (
        "authority",
        "fingerprint",
        "holds_from",
        "holds_until",
        "name",
        "not_after",
        "not_before",
        "serial",
        "verify",
    )

    def __init__(
        self,
        name: str,
        fingerprint: str,
        not_before: float,
        not_after: float,
        serial: int,
        verify: Callable[[bytes, bytes], bool],
        authority: TrustedAuthority,
        holds: tuple[float, float],
    ) -> None:
        self.name = name  # the endpoint that it speaks for
        self.fingerprint = fingerprint  # SHA-256 of the certificate, hexadecimal
        self.not_before = not_before  # seconds of wall time
        self.not_after = not_after
        self.serial = serial
        self.verify = verify  # verify(signature, statement): whether the key has signed exactly this
        self.authority = authority
        self.holds_from, self.holds_until = holds  # between these nothing about it needs a second look

    def __repr__(self) -> str:
        return f"<Identity {self.name} {self.fingerprint[:16]}>"


class Verifier:
    """Checks certificates and signatures against a keyring, and topics against a policy.

    ``rejections`` counts refusals by reason; whoever drops a message for a reason calls ``reject``. Methods may be
    called from several threads, the worst of a race being work done twice.
    """

    def __init__(
        self,
        keyring: Keyring,
        policy: Policy,
        *,
        clock: Clock = _SYSTEM_CLOCK,
        skew: float = SKEW,
    ) -> None:
        self.keyring = keyring
        self.policy = policy
        self.rejections: Counter[Reason] = Counter()
        self._wall = clock.wall
        self._skew = skew
        self._generation = keyring.generation
        self._identities: GenerationCache[bytes, Identity] = GenerationCache(_CACHED_CERTIFICATES)
        # Apart from the good ones, so that a flood of bad certificates cannot push those out.
        self._refusals: GenerationCache[bytes, tuple[Reason, str]] = GenerationCache(_CACHED_REFUSALS)
        self._proofs: GenerationCache[tuple[Identity, bytes, bytes], bool] = GenerationCache(_CACHED_SIGNATURES)
        self._disproofs: GenerationCache[tuple[Identity, bytes, bytes], bool] = GenerationCache(_CACHED_SIGNATURES)

    # --- the hot path ------------------------------------------------------------------------------------------

    def check(self, der: bytes, signature: bytes, statement: bytes, *, at: float | None = None) -> Identity:
        """Return who signed *statement*, after checking certificate and signature; asked again, from memory.

        *at* (seconds of wall time) judges as of then, for archives that know when they took a message in.

        Raises:
            TrustError: The certificate is refused (see ``identify``) or the signature does not verify.
        """
        identity = self._identities.get(der)
        now = self._wall() if at is None else at
        if identity is None or not identity.holds_from <= now <= identity.holds_until:
            identity = self.identify(der, at=at)
        if self._proofs.get((identity, signature, statement)) is None:
            self._prove(identity, signature, statement)
        return identity

    def permit(self, identity: Identity, topic: str) -> None:
        """Raise unless *identity* may say the full *topic*.

        Raises:
            TrustError: ``Reason.ENVIRONMENT`` or ``Reason.POLICY``.
        """
        self.policy.check(identity.name, topic)

    # --- the rest ----------------------------------------------------------------------------------------------

    def identify(self, der: bytes, *, at: float | None = None) -> Identity:
        """Return whom the certificate *der* stands for, if a trusted CA has issued it and it is valid.

        Raises:
            TrustError: CERTIFICATE, ALGORITHM, UNKNOWN_CA, EXPIRED, NOT_YET_VALID, REVOKED, or CRL when no current
                revocation list of its CA is known.
        """
        identity = self._identities.get(der)
        if identity is None:
            identity = self._examine(der)
        now = self._wall() if at is None else at
        if not identity.holds_from <= now <= identity.holds_until:
            self._judge(identity, now)
        return identity

    def refresh(self) -> bool:
        """Take up changed CA and revocation files; return whether anything changed."""
        self.keyring.refresh()
        if self.keyring.generation == self._generation:
            return False
        self._generation = self.keyring.generation
        self._identities.clear()
        self._refusals.clear()
        self._proofs.clear()
        self._disproofs.clear()
        return True

    def reject(self, reason: Reason) -> None:
        """Count one refusal for *reason*."""
        self.rejections[reason] += 1

    def _prove(self, identity: Identity, signature: bytes, statement: bytes) -> None:
        """Verify *signature* and remember the outcome, whichever it is."""
        if len(signature) > MAX_SIGNATURE_BYTES:
            raise TrustError(
                Reason.SIGNATURE,
                f"the signature of {identity.name} has more than {MAX_SIGNATURE_BYTES} bytes, so it was not looked at",
            )
        key = (identity, signature, statement)
        if self._disproofs.get(key) is None:
            if identity.verify(signature, statement):
                self._proofs.put(key, True)
                return
            self._disproofs.put(key, True)
        raise TrustError(
            Reason.SIGNATURE,
            f"the signature does not verify with the certificate of {identity.name} ({identity.fingerprint[:16]}): "
            "what was signed has been altered, or another key has signed it",
        )

    def _examine(self, der: bytes) -> Identity:
        """All checks of *der* that do not depend on the time; the outcome is remembered."""
        if len(der) > MAX_CERTIFICATE_BYTES:
            raise TrustError(
                Reason.CERTIFICATE,
                f"the certificate field has more than {MAX_CERTIFICATE_BYTES} bytes, so it was not parsed; send one "
                "certificate in DER form, without its chain",
            )
        known = self._refusals.get(der)
        if known is not None:
            raise TrustError(*known)
        try:
            identity = self._identity(der)
        except TrustError as error:
            self._refusals.put(der, (error.reason, str(error)))
            raise
        except Exception as error:
            # The parser reads a stranger's bytes lazily, and its ways to fail are many and grow with its releases.
            text = f"the certificate cannot be parsed ({type(error).__name__}); send one certificate in DER form"
            self._refusals.put(der, (Reason.CERTIFICATE, text))
            raise TrustError(Reason.CERTIFICATE, text) from error
        self._identities.put(der, identity)
        return identity

    def _identity(self, der: bytes) -> Identity:
        certificate = x509.load_der_x509_certificate(der)
        fingerprint = hashlib.sha256(der).hexdigest()
        # The one byte that neither the signature nor the parser fixes: the count of unused bits before the signature.
        if der[-len(certificate.signature) - 1] != 0:
            raise TrustError(
                Reason.CERTIFICATE,
                f"certificate {fingerprint[:16]} is not in DER form, so it was altered on its way; send it as issued",
            )
        authority = self._issuer(certificate, fingerprint)
        name = leaf_name(certificate, fingerprint)
        verify = verify_with(certificate, name)
        not_before = certificate.not_valid_before_utc.timestamp()
        not_after = certificate.not_valid_after_utc.timestamp()
        serial = certificate.serial_number
        if self.keyring.options.crl is not None and (authority.crl is None or serial in authority.crl.revoked):
            holds = (math.inf, -math.inf)  # look at it each time, as the answer depends on the time asked for
        else:
            holds = (
                max(not_before, authority.not_before) - self._skew,
                min(not_after + self._skew, authority.not_after + self._skew, self.keyring.crl_until(authority)),
            )
        return Identity(name, fingerprint, not_before, not_after, serial, verify, authority, holds)

    def _issuer(self, certificate: x509.Certificate, fingerprint: str) -> TrustedAuthority:
        """The trusted CA that has signed *certificate* itself; there are no intermediates."""
        named = False
        for authority in self.keyring.authorities:
            if authority.certificate.subject != certificate.issuer:
                continue
            named = True
            if not allowed_hash(certificate, authority.certificate.public_key()):
                raise TrustError(
                    Reason.ALGORITHM,
                    f"certificate {fingerprint[:16]} is signed with a hash weaker than SHA-256; issue it again",
                )
            try:
                certificate.verify_directly_issued_by(authority.certificate)
            except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
                continue
            return authority
        how = "its signature is of none of them, though it names one" if named else "its issuer is none of them"
        raise TrustError(
            Reason.UNKNOWN_CA,
            f"certificate {fingerprint[:16]} is not issued by a trusted CA: {how}; issue it with the bus's CA, or add "
            f"its CA to {self.keyring.options.ca}",
        )

    def _judge(self, identity: Identity, now: float) -> None:
        """Raise if *identity* is not good at the wall time *now*."""
        skew = self._skew
        who = f"certificate {identity.name} ({identity.fingerprint[:16]})"
        if now < identity.not_before - skew:
            raise TrustError(
                Reason.NOT_YET_VALID,
                f"{who} is valid only from {stamp(identity.not_before)}; check the clocks of both hosts",
            )
        if now > identity.not_after + skew:
            raise TrustError(
                Reason.EXPIRED,
                f"{who} has expired at {stamp(identity.not_after)}; renew it: fedbus keys rotate {identity.name}",
            )
        authority = identity.authority
        if now < authority.not_before - skew:
            raise TrustError(
                Reason.NOT_YET_VALID,
                f"the CA of {who} is valid only from {stamp(authority.not_before)}; check the clocks of both hosts",
            )
        if now > authority.not_after + skew:
            raise TrustError(
                Reason.EXPIRED,
                f"the CA of {who}, {authority.name}, has expired at {stamp(authority.not_after)}; roll over to a new "
                f"CA (fedbus keys roll-ca) and rotate {identity.name}",
            )
        crl = authority.crl
        revocation = None if crl is None else crl.revoked.get(identity.serial)
        if revocation is not None and not (revocation.orderly and now < revocation.at):
            raise TrustError(
                Reason.REVOKED,
                f"{who} was revoked at {stamp(revocation.at)} ({revocation.reason}); issue a new one: "
                f"fedbus keys rotate {identity.name}",
            )
        # Without any list there is only the grace after a start, which is a matter of today and not of *now*.
        if (self._wall() if crl is None else now) > self.keyring.crl_until(authority):
            state = "no list is known" if crl is None else f"the list has expired at {stamp(crl.next_update)}"
            raise TrustError(
                Reason.CRL,
                f"cannot tell whether {who} is revoked: of its CA {authority.name} {state}; renew "
                f"{self.keyring.options.crl}: fedbus keys crl",
            )
