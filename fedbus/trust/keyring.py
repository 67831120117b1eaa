"""Whom we trust: CA certificates and their revocation lists, reloaded when their files change."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import CRLEntryExtensionOID, ExtensionOID

from fedbus.clock import Clock, SystemClock
from fedbus.errors import KeysError
from fedbus.trust.expiry import CRL_ALARM_DAYS, Expiry, ExpiryAlarms, stamp
from fedbus.trust.files import file_mark, read_private, read_public
from fedbus.trust.leaf import PARSER_ERRORS
from fedbus.trust.options import KeyringOptions

log = logging.getLogger(__name__)

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

_SYSTEM_CLOCK = SystemClock()
_GOOD_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_MIN_RSA_BITS = 2048
# After one of these reasons, what the key signed earlier may still be judged by when it was signed; after any other
# (a stolen key, or none given) nothing that it signed can be told from a forgery.
_ORDERLY_REASONS = frozenset(
    {
        x509.ReasonFlags.superseded,
        x509.ReasonFlags.cessation_of_operation,
        x509.ReasonFlags.affiliation_changed,
        x509.ReasonFlags.privilege_withdrawn,
    }
)
_KNOWN_CRL_EXTENSIONS = frozenset({ExtensionOID.CRL_NUMBER, ExtensionOID.AUTHORITY_KEY_IDENTIFIER})
_KNOWN_ENTRY_EXTENSIONS = frozenset({CRLEntryExtensionOID.CRL_REASON, CRLEntryExtensionOID.INVALIDITY_DATE})


@dataclass(frozen=True, slots=True)
class Revocation:
    """That one certificate is revoked."""

    at: float  # seconds of wall time
    reason: str  # the word of RFC 5280, such as keyCompromise
    orderly: bool  # signatures made before *at* are still what they were


@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationList:
    """What one CA says it has revoked; times in seconds of wall time."""

    number: int
    this_update: float
    next_update: float
    revoked: dict[int, Revocation]  # by serial


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrustedAuthority:
    """One CA that may issue certificates for this bus, with its latest revocation list."""

    certificate: x509.Certificate
    name: str  # its subject, for people
    fingerprint: str  # SHA-256 of the certificate, hexadecimal
    not_before: float
    not_after: float
    crl: RevocationList | None


class Keyring:
    """The trusted CAs, and what they have revoked.

    A new file that cannot be used, or a list with an older number, is refused and logged, and what was in force
    stays in force until that expires. ``generation`` grows with every change.
    """

    def __init__(self, options: KeyringOptions, *, clock: Clock) -> None:
        self.options = options
        self.authorities: tuple[TrustedAuthority, ...] = ()
        self.generation = 0
        self._clock = clock
        self._loaded_at = clock.wall()
        self._newest: dict[str, RevocationList] = {}  # by fingerprint of the CA: what an older list is measured by
        self._alarms = ExpiryAlarms(log)
        self._marks = self._files()

    @classmethod
    def load(cls, options: KeyringOptions, *, clock: Clock = _SYSTEM_CLOCK) -> Keyring:
        """Read the files that *options* name.

        Without a usable revocation list the keyring opens all the same, says so in the log, and ``crl_until`` is in
        the past: everything is refused until there is one.

        Raises:
            KeysError: The CA file is missing, cannot be read, is open to changes by others, or holds no usable CA.
        """
        keyring = cls(options, clock=clock)
        certificates = _load_authorities(options.ca)
        keyring.authorities = keyring._with_lists(certificates)
        keyring.generation = 1
        if options.crl is None:
            log.warning("revocation is not checked: the configuration names no revocation list (crl)")
        keyring.check_expiry()
        return keyring

    def adopt(self, options: KeyringOptions) -> None:
        """Trust what the files of other *options* say from now on; what is known of older lists still counts.

        Raises:
            KeysError: Their CA file cannot be used; nothing has changed.
        """
        certificates = _load_authorities(options.ca)
        if options.crl is None and self.options.crl is not None:
            log.warning("revocation is not checked any more: the configuration names no revocation list (crl)")
        self.options = options
        self._marks = self._files()
        self.authorities = self._with_lists(certificates)
        self.generation += 1
        self.check_expiry()

    def refresh(self) -> bool:
        """Read the files again if they have changed; return whether anything in force has changed."""
        marks = self._files()
        changed = False
        if marks != self._marks:
            self._marks = marks
            try:
                certificates = _load_authorities(self.options.ca)
            except KeysError as error:
                log.error("the trusted CAs stay as they were: %s", error)
                certificates = [authority.certificate for authority in self.authorities]
            authorities = self._with_lists(certificates)
            before = [(one.fingerprint, one.crl) for one in self.authorities]
            changed = before != [(one.fingerprint, one.crl) for one in authorities]
            if changed:
                self.authorities = authorities
                self.generation += 1
        self.check_expiry()
        return changed

    def crl_until(self, authority: TrustedAuthority) -> float:
        """Until when *authority* counts as known not to have revoked more, in seconds of wall time."""
        if self.options.crl is None:
            return float("inf")
        since = self._loaded_at if authority.crl is None else authority.crl.next_update
        # Without any grace a missing list is never good, not even in the very moment of loading.
        if authority.crl is None and self.options.crl_grace <= 0:
            return float("-inf")
        return since + self.options.crl_grace

    def expiries(self) -> list[Expiry]:
        """When each CA certificate and revocation list ends."""
        found = []
        for authority in self.authorities:
            found.append(
                Expiry(
                    what=f"CA certificate {authority.name} ({authority.fingerprint[:16]}) in {self.options.ca}",
                    advice="roll over to a new CA: fedbus keys roll-ca",
                    expires_at=authority.not_after,
                )
            )
            if authority.crl is not None:
                found.append(
                    Expiry(
                        what=f"revocation list of {authority.name} ({authority.fingerprint[:16]}): {self.options.crl}",
                        advice="renew it: fedbus keys crl",
                        expires_at=authority.crl.next_update,
                        alarm_days=CRL_ALARM_DAYS,
                    )
                )
        return found

    def check_expiry(self) -> None:
        """Log what has come within 30, 7 or 1 days of its end, each alarm once."""
        self._alarms.check(self.expiries(), self._clock.wall())

    def _files(self) -> tuple[object, object]:
        crl = self.options.crl
        return (file_mark(self.options.ca), None if crl is None else file_mark(crl))

    def _with_lists(self, certificates: list[x509.Certificate]) -> tuple[TrustedAuthority, ...]:
        """*certificates* joined with the newest list known of each."""
        authorities = [_authority(certificate) for certificate in certificates]
        path = self.options.crl
        if path is None:
            return tuple(authorities)
        lists: list[x509.CertificateRevocationList] = []
        try:
            lists = _load_lists(path)
        except KeysError as error:
            log.error("%s; until it is mended, the lists already known stay in force", error)
        for found in lists:
            # One list may serve two certificates of the same CA key, the old and the renewed one.
            issuers = [one for one in authorities if _issued(one, found)]
            if not issuers:
                log.error(
                    "ignoring a revocation list in %s: no CA in %s has signed it; fetch the list of one of these",
                    path,
                    self.options.ca,
                )
            for issuer in issuers:
                self._take(issuer, found, path)
        joined = []
        for authority in authorities:
            newest = self._newest.get(authority.fingerprint)
            if newest is None:
                log.error(
                    "there is no usable revocation list of the CA %s in %s: what it has issued is refused%s; "
                    "renew the list: fedbus keys crl",
                    authority.name,
                    path,
                    f" after a grace of {self.options.crl_grace:g} s" if self.options.crl_grace > 0 else "",
                )
            joined.append(replace(authority, crl=newest))
        return tuple(joined)

    def _take(self, issuer: TrustedAuthority, found: x509.CertificateRevocationList, path: Path) -> None:
        """Let *found* be the list of *issuer*, unless it cannot be used or a newer one is known."""
        try:
            new = _revocation_list(found)
        except PARSER_ERRORS as error:
            log.error("ignoring the revocation list of %s in %s: %s", issuer.name, path, error)
            return
        known = self._newest.get(issuer.fingerprint)
        if known is not None and (new.number, new.this_update) < (known.number, known.this_update):
            log.error(
                "refusing the revocation list of %s in %s: its number %d of %s is older than number %d of %s, which "
                "stays in force; put the newest list there",
                issuer.name,
                path,
                new.number,
                stamp(new.this_update),
                known.number,
                stamp(known.this_update),
            )
            return
        self._newest[issuer.fingerprint] = new


def load_private_key(path: Path) -> PrivateKey:
    """The private key in the PEM file *path*.

    Raises:
        KeysError: Missing, readable by others, of a foreign owner, encrypted, or neither P-256 nor Ed25519.
    """
    data = read_private(path)
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except TypeError as error:
        raise KeysError(
            f"cannot use private key {path}: it is encrypted; store it in the clear with mode 600"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeysError(f"cannot use private key {path}: it is no private key in PEM form ({error})") from error
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise KeysError(
        f"cannot use private key {path}: it is neither ECDSA P-256 nor Ed25519; issue a new one: fedbus keys issue"
    )


def load_certificates(path: Path, what: str) -> list[x509.Certificate]:
    """The certificates in the PEM file *path*, one or more.

    Raises:
        KeysError: Missing, writable by others, or holding no certificate.
    """
    data = read_public(path, what)
    try:
        return x509.load_pem_x509_certificates(data)
    except PARSER_ERRORS as error:
        raise KeysError(f"cannot use {what} {path}: it holds no certificate in PEM form ({error})") from error


def allowed_hash(signed: x509.Certificate | x509.CertificateRevocationList, key: object) -> bool:
    """Whether what the CA's *key* has *signed* is signed with SHA-256 or better."""
    try:
        algorithm = signed.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return False
    if algorithm is None:  # Ed25519 brings its own
        return isinstance(key, ed25519.Ed25519PublicKey)
    return isinstance(algorithm, _GOOD_HASHES)


def _load_authorities(path: Path) -> list[x509.Certificate]:
    certificates = load_certificates(path, "CA certificate")
    for certificate in certificates:
        try:
            problem = _authority_problem(certificate)
            name = certificate.subject.rfc4514_string()
        except PARSER_ERRORS as error:
            problem, name = str(error), "a certificate"
        if problem:
            raise KeysError(f"cannot trust {name} in {path}: {problem}; put CA certificates only there")
    return certificates


def _authority_problem(certificate: x509.Certificate) -> str:
    """Why *certificate* cannot be a trusted CA; empty when it can."""
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return "it is not marked as a CA"
    if not constraints.ca:
        return "it is not marked as a CA"
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        pass
    else:
        if not usage.key_cert_sign:
            return "its key usage does not allow it to sign certificates"
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        return (
            "" if key.key_size >= _MIN_RSA_BITS else f"its RSA key has {key.key_size} bits, fewer than {_MIN_RSA_BITS}"
        )
    if isinstance(key, ec.EllipticCurvePublicKey):
        return "" if key.curve.key_size >= 256 else f"its curve {key.curve.name} is too small"
    return "" if isinstance(key, ed25519.Ed25519PublicKey) else "its key is neither RSA, ECDSA nor Ed25519"


def _authority(certificate: x509.Certificate) -> TrustedAuthority:
    return TrustedAuthority(
        certificate=certificate,
        name=certificate.subject.rfc4514_string(),
        fingerprint=hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest(),
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
        crl=None,
    )


_PEM_CRL_END = b"-----END X509 CRL-----"


def _load_lists(path: Path) -> list[x509.CertificateRevocationList]:
    data = read_public(path, "revocation list")
    lists = []
    try:
        for block in data.split(_PEM_CRL_END)[:-1]:
            lists.append(x509.load_pem_x509_crl(block + _PEM_CRL_END))
    except PARSER_ERRORS as error:
        raise KeysError(f"cannot use revocation list {path}: {error}") from error
    if not lists:
        raise KeysError(f"cannot use revocation list {path}: it holds no list in PEM form")
    return lists


def _issued(authority: TrustedAuthority, found: x509.CertificateRevocationList) -> bool:
    """Whether *authority* has signed the list *found*, with a hash that counts."""
    try:
        if found.issuer != authority.certificate.subject:
            return False
        key = authority.certificate.public_key()
        return allowed_hash(found, key) and found.is_signature_valid(key)  # type: ignore[arg-type]
    except (InvalidSignature, *PARSER_ERRORS):
        return False


def _revocation_list(found: x509.CertificateRevocationList) -> RevocationList:
    """*found* as values.

    Raises:
        ValueError: It has no end, or covers only a part (an unknown critical extension): then absence proves nothing.
    """
    if found.next_update_utc is None:
        raise ValueError("it has no next update, so nobody can tell whether it is out of date")
    number = 0
    for extension in found.extensions:
        if isinstance(extension.value, x509.CRLNumber):
            number = extension.value.crl_number
        elif extension.critical and extension.oid not in _KNOWN_CRL_EXTENSIONS:
            raise ValueError(f"critical extension {extension.oid.dotted_string} says that it is not a complete list")
    revoked = {}
    for entry in found:
        flag = x509.ReasonFlags.unspecified
        for detail in entry.extensions:
            if isinstance(detail.value, x509.CRLReason):
                flag = detail.value.reason
            elif detail.critical and detail.oid not in _KNOWN_ENTRY_EXTENSIONS:
                raise ValueError(f"an entry has the unknown critical extension {detail.oid.dotted_string}")
        if flag is x509.ReasonFlags.remove_from_crl:
            continue
        revoked[entry.serial_number] = Revocation(
            entry.revocation_date_utc.timestamp(), flag.value, flag in _ORDERLY_REASONS
        )
    return RevocationList(
        number=number,
        this_update=found.last_update_utc.timestamp(),
        next_update=found.next_update_utc.timestamp(),
        revoked=revoked,
    )
