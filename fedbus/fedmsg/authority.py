"""Whom the fedmsg side trusts: CA certificates and revocation lists, read again when their files change.

Apart from the native keyring, since what was issued for fedmsg is weaker than what that takes: keys of 1024 bits, and
certificates and lists signed with SHA-1. None of it counts for the native format.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from fedbus.clock import Clock
from fedbus.errors import KeysError
from fedbus.fedmsg.options import FedmsgOptions
from fedbus.trust.expiry import stamp
from fedbus.trust.files import Mark, file_mark, read_public
from fedbus.trust.keyring import load_certificates
from fedbus.trust.leaf import PARSER_ERRORS

log = logging.getLogger(__name__)

LEAST_BITS = 1024  # what Fedora has issued for fedmsg
_PEM_CRL_END = b"-----END X509 CRL-----"


@dataclass(frozen=True, slots=True, eq=False)
class Revocations:
    """What one CA has revoked; times in seconds of wall time."""

    this_update: float
    next_update: float
    serials: Mapping[int, float]  # -> since when


@dataclass(slots=True, eq=False)
class Authority:
    """One CA whose certificates count."""

    certificate: x509.Certificate
    name: str
    not_before: float
    not_after: float
    crl: Revocations | None = field(default=None)


class Authorities:
    """The CAs of the fedmsg side. ``generation`` grows whenever anything in force has changed."""

    def __init__(self, options: FedmsgOptions, *, clock: Clock) -> None:
        """Read the files that *options* name.

        Raises:
            KeysError: The CA file, or the list, cannot be used; without a list nobody can tell what was revoked.
        """
        self.options = options
        self.generation = 1
        self._clock = clock
        self._marks = self._files()
        self._said: set[str] = set()
        self.known = self._load()
        if options.crl is None:
            log.warning("fedmsg: revocation is not checked: fedmsg.crl is false")

    def refresh(self) -> bool:
        """Read the files again if they have changed; what cannot be used is refused and logged."""
        marks = self._files()
        if marks == self._marks:
            return False
        self._marks = marks
        try:
            self.known = self._load()
        except KeysError as error:
            log.error("fedmsg: the trusted CAs and lists stay as they were: %s", error)
            return False
        self.generation += 1
        return True

    def issuer(self, certificate: x509.Certificate) -> Authority | None:
        """Return the CA that has signed *certificate* itself, if any; there are no intermediates."""
        for one in self.known:
            if one.certificate.subject == certificate.issuer and _has_signed(one.certificate, certificate):
                return one
        return None

    def list_until(self, authority: Authority) -> float:
        """Until when the revocations of *authority* count as complete, in seconds of wall time."""
        if self.options.crl is None:
            return math.inf
        return -math.inf if authority.crl is None else authority.crl.next_update + self.options.crl_grace

    def _files(self) -> tuple[Mark, Mark]:
        crl = self.options.crl
        return file_mark(self.options.ca), None if crl is None else file_mark(crl)

    def _load(self) -> list[Authority]:
        found = [_authority(one) for one in load_certificates(self.options.ca, "fedmsg CA certificate")]
        crl = self.options.crl
        if crl is not None:
            for one in _load_lists(read_public(crl, "fedmsg revocation list"), str(crl)):
                for authority in found:
                    if one.issuer == authority.certificate.subject and _has_signed(authority.certificate, one):
                        authority.crl = _revocations(one, str(crl))
            for authority in found:
                if (text := self._fault(authority)) and text not in self._said:
                    self._said.add(text)
                    log.error("fedmsg: %s", text)
        return found

    def faults(self) -> list[str]:
        """Return what has everything refused that one of the CAs has issued, as of now; safe in any thread."""
        return [text for one in self.known if (text := self._fault(one))]

    def _fault(self, authority: Authority) -> str:
        now = self._clock.wall()
        if now > authority.not_after:
            return (
                f"the CA certificate of {authority.name} in {self.options.ca} has expired at "
                f"{stamp(authority.not_after)}, so all it has issued is refused; bring a new one"
            )
        if self.options.crl is None:
            return ""
        if authority.crl is None:
            return (
                f"{self.options.crl} holds no revocation list that {authority.name} has signed, so all it has issued "
                "is refused; bring one"
            )
        if now > self.list_until(authority):
            return (
                f"the revocation list of {authority.name} in {self.options.crl} has expired at "
                f"{stamp(authority.crl.next_update)}, so all it has issued is refused; bring a new one, or set "
                "fedmsg.crl_grace"
            )
        return ""


def _authority(certificate: x509.Certificate) -> Authority:
    return Authority(
        certificate,
        certificate.subject.rfc4514_string(),
        certificate.not_valid_before_utc.timestamp(),
        certificate.not_valid_after_utc.timestamp(),
    )


def _load_lists(data: bytes, path: str) -> list[x509.CertificateRevocationList]:
    try:
        found = [x509.load_pem_x509_crl(block + _PEM_CRL_END) for block in data.split(_PEM_CRL_END)[:-1]]
    except PARSER_ERRORS as error:
        raise KeysError(f"cannot use fedmsg revocation list {path}: {error}") from error
    if not found:
        raise KeysError(f"cannot use fedmsg revocation list {path}: it holds no list in PEM form")
    return found


def _revocations(found: x509.CertificateRevocationList, path: str) -> Revocations:
    try:
        if found.next_update_utc is None:
            raise ValueError("it has no next update, so nobody can tell whether it is out of date")
        serials = {entry.serial_number: entry.revocation_date_utc.timestamp() for entry in found}
        return Revocations(found.last_update_utc.timestamp(), found.next_update_utc.timestamp(), serials)
    except PARSER_ERRORS as error:
        raise KeysError(f"cannot use fedmsg revocation list {path}: {error}") from error


def _has_signed(issuer: x509.Certificate, found: x509.Certificate | x509.CertificateRevocationList) -> bool:
    """Whether the key of *issuer* has signed *found*, with SHA-1 or better.

    What `cryptography` offers for this refuses SHA-1 by now, so the signature is checked by itself.
    """
    try:
        key = issuer.public_key()
        algorithm = found.signature_hash_algorithm
        content = found.tbs_certificate_bytes if isinstance(found, x509.Certificate) else found.tbs_certlist_bytes
        if algorithm is None or algorithm.name not in ("sha1", "sha224", "sha256", "sha384", "sha512"):
            return False
        if isinstance(key, rsa.RSAPublicKey):
            if key.key_size < LEAST_BITS:
                return False
            key.verify(found.signature, content, padding.PKCS1v15(), algorithm)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(found.signature, content, ec.ECDSA(algorithm))
        else:
            return False
    except (InvalidSignature, UnsupportedAlgorithm, *PARSER_ERRORS):
        return False
    return True
