"""Who checks messages of fedmsg: signature, certificate, revocation, and the routing policy.

fedmsg itself makes a store of certificates anew for each message, which takes most of its time. Here a certificate is
looked at once, by its text; what is said of it holds until the files of CA and revocation list change, or one of the
dates in them passes.
"""

from __future__ import annotations

import base64
import logging
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

from fedbus.clock import Clock, SystemClock
from fedbus.errors import Reason, TrustError, WireError
from fedbus.fedmsg.authority import LEAST_BITS, Authorities, Authority
from fedbus.fedmsg.codec import Envelope, decode_base64, restored, without_replay_number
from fedbus.fedmsg.options import FedmsgOptions
from fedbus.model.topic import TopicFilter
from fedbus.trust.cache import GenerationCache
from fedbus.trust.expiry import stamp
from fedbus.trust.leaf import PARSER_ERRORS
from fedbus.trust.verifier import SKEW

log = logging.getLogger(__name__)

CERTIFICATE_CHARACTERS = 16 * 1024  # base64 of PEM: one of Fedora's has 2200; nothing larger is parsed
SIGNATURE_CHARACTERS = 2048  # one of an RSA key of 8192 bits has 1400
_PADDING, _SHA1 = padding.PKCS1v15(), hashes.SHA1()  # the format knows no other
_SYSTEM_CLOCK = SystemClock()
_CERTIFICATES = 1024
_TOPICS_TOLD = 1000


class Identity:
    """A certificate that a trusted CA has issued, and whose it is."""

    __slots__ = ("authority", "holds_from", "holds_until", "key", "name", "not_after", "not_before", "serial")

    def __init__(self, name: str, certificate: x509.Certificate, key: rsa.RSAPublicKey, authority: Authority) -> None:
        self.name = name  # the common name
        self.key = key
        self.serial = certificate.serial_number
        self.not_before = certificate.not_valid_before_utc.timestamp()
        self.not_after = certificate.not_valid_after_utc.timestamp()
        self.authority = authority
        self.holds_from, self.holds_until = math.inf, -math.inf  # between these nothing needs a second look


class RoutingPolicy:
    """Which signers may say which topics.

    A topic is listed by itself, as in fedmsg, or by a filter with ``*`` and ``#``; the topic itself counts first. One
    that is not listed anywhere is refused where *nitpicky*, and otherwise everybody's, with a line in the log.
    """

    def __init__(self, rules: Iterable[tuple[str, Iterable[str]]], *, nitpicky: bool) -> None:
        """Take (topic or filter, common names) pairs.

        Raises:
            MessageError: One is no filter.
        """
        self.nitpicky = nitpicky
        self._exact: dict[str, frozenset[str]] = {}
        self._filters: list[tuple[TopicFilter, frozenset[str]]] = []
        self._told: set[str] = set()
        for topic, signers in rules:
            if any(letter in topic for letter in "*#"):
                self._filters.append((TopicFilter(topic), frozenset(signers)))
            else:
                self._exact[topic] = frozenset(signers)

    def check(self, topic: str, signer: str) -> None:
        """Return when *signer* may say *topic*.

        Raises:
            TrustError: It may not.
        """
        allowed = self._exact.get(topic)
        if allowed is None:
            found = [names for one, names in self._filters if one.matches(topic)]
            if not found:
                self._unlisted(topic, signer)
                return
            allowed = frozenset().union(*found)
        if signer not in allowed:
            raise TrustError(Reason.POLICY, f"{signer!a} may not say {topic}; fedmsg.routing_policy names who may")

    def _unlisted(self, topic: str, signer: str) -> None:
        if self.nitpicky:
            raise TrustError(
                Reason.POLICY,
                f"fedmsg.routing_policy does not list {topic}, which {signer!a} has signed; list it, or set "
                "fedmsg.routing_nitpicky to false",
            )
        if topic not in self._told and len(self._told) < _TOPICS_TOLD:
            self._told.add(topic)
            log.warning(
                "fedmsg.routing_policy does not list %s; it is taken from everybody, here from %a", topic, signer
            )


class Validator:
    """Checks messages of fedmsg; ``rejections`` counts refusals by reason. May be used by several threads."""

    def __init__(self, options: FedmsgOptions, *, clock: Clock = _SYSTEM_CLOCK, skew: float = SKEW) -> None:
        """Read the CAs and lists that *options* name.

        Raises:
            KeysError: They cannot be used.
        """
        self.authorities = Authorities(options, clock=clock)
        self.policy = RoutingPolicy(options.routing_policy.items(), nitpicky=options.routing_nitpicky)
        self.rejections: Counter[Reason] = Counter()
        self._wall = clock.wall
        self._skew = skew
        self._identities: GenerationCache[str, Identity] = GenerationCache(_CERTIFICATES)
        self._refusals: GenerationCache[str, tuple[Reason, str]] = GenerationCache(_CERTIFICATES)

    def check(self, envelope: Envelope, *, at: float | None = None) -> Identity:
        """Return who has signed *envelope*, and may say its topic; see :meth:`accept`.

        Raises:
            TrustError: As there.
        """
        return self.accept(envelope, at=at)[1]

    def accept(self, envelope: Envelope, *, at: float | None = None) -> tuple[Envelope, Identity]:
        """Return what was signed of *envelope* (all but a ``seq_id``), and who has signed it and may say its topic.

        *at* (seconds of wall time) judges as of then, for archives that know when a message was made.

        Raises:
            TrustError: Unsigned, signed in another way, by an unknown or revoked certificate or one that is not valid
                then, altered, or about a topic that is not the signer's.
        """
        certificate = envelope.certificate
        if not envelope.signature or not certificate:
            raise TrustError(Reason.UNSIGNED, "no signature, or no certificate with it")
        crypto = envelope.fields.get("crypto", "x509")  # releases before 0.7.2 did not say it
        if crypto != "x509":
            raise TrustError(
                Reason.ALGORITHM, f"signed with {crypto[:40]!a}; only x509 proves topic and id, and so is taken"
            )
        identity = self._identities.get(certificate)
        now = self._wall() if at is None else at
        if identity is None or not identity.holds_from <= now <= identity.holds_until:
            identity = self._identify(certificate)
            self._judge(identity, now)
        proved = self._prove(identity, envelope)
        self.policy.check(envelope.topic, identity.name)
        return proved, identity

    def check_record(self, record: dict[str, Any], *, at: float | None = None) -> tuple[Envelope, Identity]:
        """Check what an archive has stored, which adds to messages what nobody has signed; see :meth:`check`.

        Raises:
            WireError, TrustError: It is none, or its proof does not hold.
        """
        first: TrustError | None = None
        for envelope in restored(record):
            try:
                return self.accept(envelope, at=at)
            except TrustError as error:
                if error.reason is not Reason.SIGNATURE:
                    raise
                first = first or error
        raise first or WireError(Reason.ENVELOPE, "no message of fedmsg")

    def refresh(self) -> bool:
        """Take up changed files of CA and revocation list; return whether anything changed."""
        if not self.authorities.refresh():
            return False
        self._identities.clear()
        self._refusals.clear()
        return True

    def reject(self, reason: Reason) -> None:
        """Count one refusal for *reason*."""
        self.rejections[reason] += 1

    def _prove(self, identity: Identity, envelope: Envelope) -> Envelope:
        """Return the part of *envelope* that the key of *identity* has signed."""
        text = envelope.signature
        if len(text) > SIGNATURE_CHARACTERS:
            raise TrustError(Reason.SIGNATURE, "the signature is too long to be one, so it was not looked at")
        try:
            signature = decode_base64(text)
        except ValueError as error:
            raise TrustError(Reason.SIGNATURE, f"the signature is {error}") from None
        try:
            identity.key.verify(signature, envelope.signed, _PADDING, _SHA1)
            return envelope
        except InvalidSignature:
            pass
        other = without_replay_number(envelope)
        if other is not None:
            try:
                identity.key.verify(signature, other.signed, _PADDING, _SHA1)
                return other
            except InvalidSignature:
                pass
        raise TrustError(
            Reason.SIGNATURE,
            f"the signature does not verify with the certificate of {identity.name!a}: what was signed has been "
            "altered, or another key has signed it",
        )

    def _identify(self, text: str) -> Identity:
        """All checks of a certificate that do not depend on the time; the outcome is remembered."""
        identity = self._identities.get(text)
        if identity is not None:
            return identity
        if len(text) > CERTIFICATE_CHARACTERS:
            raise TrustError(
                Reason.CERTIFICATE, f"a certificate of {len(text)} characters, so it was not parsed; send it alone"
            )
        known = self._refusals.get(text)
        if known is not None:
            raise TrustError(*known)
        try:
            identity = self._examine(text)
        except TrustError as error:
            self._refusals.put(text, (error.reason, str(error)))
            raise
        except Exception as error:
            # the parser reads a stranger's bytes, and its ways to fail are many and grow with its releases
            problem = f"the certificate cannot be parsed ({type(error).__name__}: {str(error)[:100]!a})"
            self._refusals.put(text, (Reason.CERTIFICATE, problem))
            raise TrustError(Reason.CERTIFICATE, problem) from error
        self._identities.put(text, identity)
        return identity

    def _examine(self, text: str) -> Identity:
        certificate = x509.load_pem_x509_certificate(base64.b64decode(text))  # the first one, where there are several
        key = certificate.public_key()
        if not isinstance(key, rsa.RSAPublicKey) or key.key_size < LEAST_BITS:
            raise TrustError(Reason.ALGORITHM, f"a certificate whose key is not RSA of {LEAST_BITS} bits or more")
        name = common_name(certificate)
        authority = self.authorities.issuer(certificate)
        if authority is None:
            raise TrustError(
                Reason.UNKNOWN_CA,
                f"the certificate of {name!a} is not issued by a CA in {self.authorities.options.ca}",
            )
        identity = Identity(name, certificate, key, authority)
        crl = authority.crl
        if self.authorities.options.crl is None or (crl is not None and identity.serial not in crl.serials):
            identity.holds_from = max(identity.not_before, authority.not_before) - self._skew
            identity.holds_until = min(
                identity.not_after + self._skew,
                authority.not_after + self._skew,
                self.authorities.list_until(authority),
            )
        return identity

    def _judge(self, identity: Identity, now: float) -> None:
        """Raise if *identity* is not good at the wall time *now*."""
        authority, skew = identity.authority, self._skew
        who = f"the certificate of {identity.name!a}"
        for what, begins, ends in (
            (who, identity.not_before, identity.not_after),
            (f"the CA of it, {authority.name!a},", authority.not_before, authority.not_after),
        ):
            if now < begins - skew:
                raise TrustError(Reason.NOT_YET_VALID, f"{what} is valid only from {stamp(begins)}")
            if now > ends + skew:
                raise TrustError(Reason.EXPIRED, f"{what} has expired at {stamp(ends)}")
        crl = authority.crl
        if crl is not None and identity.serial in crl.serials and crl.serials[identity.serial] <= now:
            raise TrustError(Reason.REVOKED, f"{who} was revoked at {stamp(crl.serials[identity.serial])}")
        if now > self.authorities.list_until(authority):
            state = "no list is known" if crl is None else f"the list has expired at {stamp(crl.next_update)}"
            raise TrustError(
                Reason.CRL,
                f"cannot tell whether {who} is revoked: {state}; renew {self.authorities.options.crl}",
            )


def common_name(certificate: x509.Certificate) -> str:
    """Return the one common name of a leaf.

    Raises:
        TrustError: It has none, several, or one that could be taken for another; or it is a CA's.
    """
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    name = names[0].value if len(names) == 1 else ""
    if isinstance(name, bytes) or not name or not name.isascii() or not name.isprintable() or "*" in name:
        raise TrustError(Reason.CERTIFICATE, "a certificate without one plain common name")
    try:
        if certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise TrustError(Reason.CERTIFICATE, f"the certificate of {name!a} is a CA's, which signs no messages")
    except x509.ExtensionNotFound:
        pass
    except (UnsupportedAlgorithm, *PARSER_ERRORS) as error:
        raise TrustError(Reason.CERTIFICATE, f"the certificate of {name!a} cannot be parsed: {error}") from error
    return name
