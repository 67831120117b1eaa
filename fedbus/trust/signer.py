"""Who signs: a private key and its certificate, picked up again when they are rotated."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from fedbus.clock import Clock, SystemClock
from fedbus.errors import KeysError, TrustError
from fedbus.trust.expiry import Expiry, ExpiryAlarms, stamp
from fedbus.trust.files import file_mark
from fedbus.trust.keyring import PrivateKey, load_certificates, load_private_key
from fedbus.trust.leaf import leaf_name

log = logging.getLogger(__name__)

_SYSTEM_CLOCK = SystemClock()


@dataclass(frozen=True, slots=True)
class _Pair:
    """A certificate and the function that signs with its key; they change together or not at all."""

    certificate: bytes
    sign: Callable[[bytes], bytes]
    not_before: float
    expires_at: float


class Signer:
    """Signs statements as the endpoint *name*; ECDSA P-256 with SHA-256, or Ed25519, as its key is.

    ``sign`` may be called from any thread; a publisher that needs a signature and its certificate to fit takes both
    with ``sign_with_certificate``.
    """

    def __init__(self, name: str, certificate: Path, key: Path, *, clock: Clock) -> None:
        self.name = name
        self._certificate_path = certificate
        self._key_path = key
        self._clock = clock
        self._alarms = ExpiryAlarms(log)
        self._marks = self._files()
        self._pair = self._load()
        self.sign: Callable[[bytes], bytes] = self._pair.sign
        self.check_expiry()

    @classmethod
    def load(cls, name: str, certificate: Path, key: Path, *, clock: Clock = _SYSTEM_CLOCK) -> Signer:
        """Read the certificate and the key (PEM) of the endpoint *name*.

        Raises:
            KeysError: A file is missing or exposed, the certificate has expired or is for another name, the key does
                not belong to it, or is neither P-256 nor Ed25519.
        """
        return cls(name, certificate, key, clock=clock)

    @property
    def certificate(self) -> bytes:
        """The certificate, DER."""
        return self._pair.certificate

    @property
    def expires_at(self) -> float:
        """When the certificate ends, in seconds of wall time."""
        return self._pair.expires_at

    def sign_with_certificate(self, statement: bytes) -> tuple[bytes, bytes]:
        """The signature of *statement*, and the certificate (DER) that it verifies with."""
        pair = self._pair
        return pair.sign(statement), pair.certificate

    def refresh(self) -> bool:
        """Take the pair on disk if it has changed and is whole; return whether it is another than before.

        A pair that cannot be used is logged once, and the old one stays.
        """
        marks = self._files()
        changed = False
        if marks != self._marks:
            self._marks = marks
            try:
                pair = self._load()
            except KeysError as error:
                log.error("the endpoint %s goes on signing with its old certificate: %s", self.name, error)
            else:
                changed = pair.certificate != self._pair.certificate
                if changed:
                    self._pair = pair
                    self.sign = pair.sign
        self.check_expiry()
        return changed

    def expiries(self) -> list[Expiry]:
        """When the certificate ends."""
        return [
            Expiry(
                what=f"certificate {self.name} in {self._certificate_path}",
                advice=f"issue a new one: fedbus keys rotate {self.name}",
                expires_at=self._pair.expires_at,
            )
        ]

    def check_expiry(self) -> None:
        """Log when the certificate has come within 30, 7 or 1 days of its end, each alarm once."""
        self._alarms.check(self.expiries(), self._clock.wall())

    def _files(self) -> tuple[object, object]:
        return (file_mark(self._certificate_path), file_mark(self._key_path))

    def _load(self) -> _Pair:
        key = load_private_key(self._key_path)
        certificate = load_matching_certificate(self._certificate_path, key, self._key_path)
        der = certificate.public_bytes(serialization.Encoding.DER)
        try:
            name = leaf_name(certificate, hashlib.sha256(der).hexdigest())
        except TrustError as error:
            raise KeysError(f"cannot sign with {self._certificate_path}: {error}") from error
        if name != self.name:
            raise KeysError(
                f"certificate {self._certificate_path} is for {name}, not for {self.name}; issue one: "
                f"fedbus keys issue {self.name}"
            )
        not_before = certificate.not_valid_before_utc.timestamp()
        expires_at = certificate.not_valid_after_utc.timestamp()
        if self._clock.wall() > expires_at:
            raise KeysError(
                f"certificate {self._certificate_path} has expired at {stamp(expires_at)}; issue a new one: "
                f"fedbus keys rotate {self.name}"
            )
        return _Pair(der, _sign_with(key), not_before, expires_at)


def load_matching_certificate(path: Path, key: PrivateKey, key_path: Path) -> x509.Certificate:
    """The certificate in *path* that belongs to *key*.

    The file may hold two for a moment: while a pair is rotated the certificates of the old and of the new key stand
    there together, so that whenever one looks, the key has its certificate beside it.

    Raises:
        KeysError: None belongs to *key*, or the file cannot be used.
    """
    wanted = key.public_key()
    for certificate in load_certificates(path, "certificate"):
        try:
            if certificate.public_key() == wanted:
                return certificate
        except (ValueError, UnsupportedAlgorithm):
            continue
    raise KeysError(f"certificate {path} does not belong to private key {key_path}; copy both of one pair")


def _sign_with(key: PrivateKey) -> Callable[[bytes], bytes]:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign
    algorithm = ec.ECDSA(hashes.SHA256())
    sign = key.sign

    def sign_ecdsa(statement: bytes) -> bytes:
        return sign(statement, algorithm)

    return sign_ecdsa
