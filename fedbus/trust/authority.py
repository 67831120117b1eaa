"""A private CA in a folder: issues, rotates and revokes the certificates of endpoints.

Every file is written whole or not at all, and a plan of several steps leaves a working state after each one, because
a reader takes the certificate that belongs to the key it finds:

    ca.crt          the current CA certificate first, then those that it has taken over from
    ca.key          the key of the current one; ca.key.SERIAL of an earlier one, which still signs its revocation list
    crl.pem         one revocation list for each CA whose key is here
    crl-number      the number of the latest list
    NAME.crt/.key   the certificate and key of the endpoint NAME; NAME.crt.SERIAL after a rotation
    issued/         SERIAL.crt for each certificate issued, SERIAL.revoked for each revoked
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedbus.clock import Clock, SystemClock
from fedbus.errors import KeysError
from fedbus.trust.files import read_public, write_atomic
from fedbus.trust.keyring import PrivateKey, load_certificates, load_private_key
from fedbus.trust.leaf import certificate_names
from fedbus.trust.names import MAX_NAME_BYTES, URI_PREFIX, is_name

Algorithm = Literal["ecdsa-p256", "ed25519"]

ALGORITHMS: tuple[Algorithm, ...] = ("ecdsa-p256", "ed25519")
CA_DAYS = 3650
CERTIFICATE_DAYS = 397
CRL_DAYS = 30
BACKDATE = timedelta(minutes=5)  # a new certificate must be valid on hosts whose clocks are behind

_SYSTEM_CLOCK = SystemClock()


def check_issuable(name: str) -> None:
    """Return when a certificate can be issued for an endpoint *name*.

    Raises:
        KeysError: It can name none.
    """
    if not is_name(name) or name == "ca":
        raise KeysError(
            f"{name!r} cannot be the name of an endpoint: write lower case fields joined by dots, such as "
            f"koji.build01, {MAX_NAME_BYTES} bytes at most, and not `ca`"
        )


def check_reason(reason: str) -> None:
    """Return when *reason* is a word of RFC 5280 for which a certificate can be revoked for good.

    Raises:
        KeysError: It is none.
    """
    words = {one.value for one in x509.ReasonFlags} - {"removeFromCRL", "certificateHold"}
    if reason not in words:
        raise KeysError(f"{reason!r} is no reason to revoke a certificate; give one of {', '.join(sorted(words))}")


@dataclass(frozen=True, slots=True)
class Issued:
    """Where a certificate and its key were written."""

    certificate_path: Path
    key_path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One certificate that was issued; times in seconds of wall time."""

    name: str
    serial: int
    not_before: float
    not_after: float
    path: Path
    current: bool  # it is the one in NAME.crt
    revoked_at: float | None = None
    reason: str = ""


class Authority:
    """The CA in one folder; several processes may use it, one after the other under a lock."""

    def __init__(self, directory: Path, *, clock: Clock = _SYSTEM_CLOCK) -> None:
        self.directory = directory
        self._clock = clock

    @property
    def certificate_path(self) -> Path:
        return self.directory / "ca.crt"

    @property
    def key_path(self) -> Path:
        return self.directory / "ca.key"

    @property
    def crl_path(self) -> Path:
        return self.directory / "crl.pem"

    @classmethod
    def create(
        cls,
        directory: Path,
        *,
        common_name: str,
        days: int = CA_DAYS,
        algorithm: Algorithm = "ecdsa-p256",
        clock: Clock = _SYSTEM_CLOCK,
    ) -> Authority:
        """Make a new CA in *directory* (mode 0700): certificate, key, and an empty revocation list.

        Raises:
            KeysError: There is a CA already, or the folder cannot be written.
        """
        authority = cls(directory, clock=clock)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)
            (directory / "issued").mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise KeysError(f"cannot make the folder of keys {directory}: {error.strerror}") from error
        with authority._locked():
            if authority.certificate_path.exists():
                raise KeysError(f"there is a CA in {directory} already; to replace it: fedbus keys roll-ca")
            key = _new_key(algorithm)
            certificate = authority._new_ca(common_name, key, days)
            # The key first: a certificate without its key would look like a CA, one without a certificate does not.
            _write_key(authority.key_path, key)
            _write_certificates(authority.certificate_path, [certificate])
            authority._write_crl(CRL_DAYS)
        return authority

    @classmethod
    def open(cls, directory: Path, *, clock: Clock = _SYSTEM_CLOCK) -> Authority:
        """The CA in *directory*, made by :meth:`create` or put there as ca.crt and ca.key.

        Raises:
            KeysError: There is none, its key is exposed, or key and certificate do not belong together.
        """
        authority = cls(directory, clock=clock)
        authority._current()
        return authority

    def issue(self, name: str, *, days: int = CERTIFICATE_DAYS, algorithm: Algorithm = "ecdsa-p256") -> Issued:
        """Issue a certificate for the endpoint *name*, as NAME.crt and NAME.key.

        Raises:
            KeysError: *name* is no endpoint's name or has a certificate, or a file cannot be written.
        """
        check_issuable(name)
        with self._locked():
            if self._pair(name).certificate_path.exists():
                raise KeysError(
                    f"{name} has a certificate already, {self._pair(name).certificate_path}; to replace it: "
                    f"fedbus keys rotate {name}"
                )
            key = _new_key(algorithm)
            certificate = self._new_leaf(name, key, days)
            issued = self._pair(name)
            self._record(certificate)
            _write_key(issued.key_path, key)
            _write_certificates(issued.certificate_path, [certificate])
            return issued

    def rotate(self, name: str, *, days: int = CERTIFICATE_DAYS, algorithm: Algorithm | None = None) -> Issued:
        """Replace the key and certificate of *name*; the old certificate is kept as NAME.crt.SERIAL, still valid.

        *algorithm* None keeps that of the old key. Stopped anywhere, what is there works: for a moment NAME.crt
        holds the certificates of both keys.

        Raises:
            KeysError: *name* has no certificate, or a file cannot be written.
        """
        check_issuable(name)
        with self._locked():
            pair = self._pair(name)
            if not pair.certificate_path.exists():
                raise KeysError(f"{name} has no certificate in {self.directory}; issue one: fedbus keys issue {name}")
            existing = load_certificates(pair.certificate_path, "certificate")
            if algorithm is None:
                ed = isinstance(existing[0].public_key(), ed25519.Ed25519PublicKey)
                algorithm = "ed25519" if ed else "ecdsa-p256"
            key = _new_key(algorithm)
            certificate = self._new_leaf(name, key, days)
            self._record(certificate)
            for old in existing:
                _write_certificates(self.directory / f"{name}.crt.{_hex(old.serial_number)}", [old])
            _write_certificates(pair.certificate_path, [certificate, *existing])
            _write_key(pair.key_path, key)
            _write_certificates(pair.certificate_path, [certificate])
            return pair

    def revoke(self, who: str | int, reason: str = "unspecified") -> tuple[Record, ...]:
        """Revoke the certificates of the endpoint *who*, or the one with this serial (int, or hexadecimal text).

        The new revocation list is written too; it must then reach the hosts. Returns what is now revoked that was
        not before. *reason* is a word of RFC 5280: keyCompromise, superseded, cessationOfOperation, …

        Raises:
            KeysError: Nothing of that name or serial was issued here, or *reason* is not known.
        """
        check_reason(reason)
        with self._locked():
            wanted = who.lower().removeprefix("0x") if isinstance(who, str) else who
            records = [one for one in self.list() if who == one.name or wanted in (one.serial, _hex(one.serial))]
            if not records:
                raise KeysError(f"no certificate {who} was issued in {self.directory}; see: fedbus keys list")
            fresh = tuple(one for one in records if one.revoked_at is None)
            now = self._clock.wall()
            for one in fresh:
                entry = json.dumps({"revoked_at": now, "reason": reason})
                write_atomic(self._issued(one.serial, "revoked"), entry.encode() + b"\n", mode=0o600)
            self._write_crl(CRL_DAYS)
            return fresh

    def write_crl(self, days: int = CRL_DAYS) -> Path:
        """Write crl.pem anew, good for *days*, with a number above all before it; return its path.

        Revoked certificates stay listed after they have expired, so that archives can judge them.
        """
        with self._locked():
            return self._write_crl(days)

    def roll_over(
        self, *, common_name: str | None = None, days: int = CA_DAYS, algorithm: Algorithm | None = None
    ) -> Path:
        """Make a new CA beside the old one and return the path of ca.crt, which then holds both.

        Bring ca.crt and crl.pem to all hosts first, then rotate each endpoint; what the old CA has issued stays valid
        until it expires. Take the old certificate out of ca.crt when nothing of it is left.
        """
        with self._locked():
            current, key = self._current()
            if common_name is None:
                names = current.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
                common_name = str(names[0].value) if names else "fedbus CA"
            if algorithm is None:
                algorithm = "ed25519" if isinstance(key, ed25519.Ed25519PrivateKey) else "ecdsa-p256"
            new_key = _new_key(algorithm)
            new = self._new_ca(common_name, new_key, days)
            others = load_certificates(self.certificate_path, "CA certificate")
            # Both keys get a name of their own before ca.key is replaced, and the new CA is trusted before it signs.
            # Stopped in between, the new CA is one more whose key is here.
            spare = self.directory / f"ca.key.{_hex(new.serial_number)}"
            _write_key(self.directory / f"ca.key.{_hex(current.serial_number)}", key)
            _write_key(spare, new_key)
            _write_certificates(self.certificate_path, [new, *others])
            _write_key(self.key_path, new_key)
            spare.unlink()
            self._write_crl(CRL_DAYS)
            return self.certificate_path

    def list(self) -> tuple[Record, ...]:
        """Every certificate issued here, by name and then by age.

        Raises:
            KeysError: There is no such folder, or a file in it cannot be read.
        """
        try:
            if not self.certificate_path.exists():
                raise KeysError(f"there is no CA in {self.directory}; make one: fedbus keys ca")
            paths = sorted(path for path in (self.directory / "issued").iterdir() if path.suffix == ".crt")
        except FileNotFoundError:  # a CA made elsewhere has no record yet
            paths = []
        except OSError as error:
            raise KeysError(f"cannot read the folder of keys {self.directory}: {error.strerror}") from error
        records = []
        for path in paths:
            certificate = load_certificates(path, "certificate")[0]
            names = certificate_names(certificate)
            name = names[0] if names else certificate.subject.rfc4514_string()
            revoked = self._revocation(certificate.serial_number)
            current_path = self.directory / f"{name}.crt"
            current = [] if not current_path.exists() else load_certificates(current_path, "certificate")
            records.append(
                Record(
                    name=name,
                    serial=certificate.serial_number,
                    not_before=certificate.not_valid_before_utc.timestamp(),
                    not_after=certificate.not_valid_after_utc.timestamp(),
                    path=path,
                    current=certificate in current,
                    revoked_at=None if revoked is None else revoked[0],
                    reason="" if revoked is None else revoked[1],
                )
            )
        return tuple(sorted(records, key=lambda one: (one.name, one.not_before)))

    # --- the parts ---------------------------------------------------------------------------------------------

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes from changing this folder; waits for at most one of their commands."""
        path = self.directory / ".lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise KeysError(
                f"cannot lock the folder of keys {self.directory}: {error.strerror}; check its owner"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _pair(self, name: str) -> Issued:
        return Issued(self.directory / f"{name}.crt", self.directory / f"{name}.key")

    def _issued(self, serial: int, suffix: str) -> Path:
        return self.directory / "issued" / f"{_hex(serial)}.{suffix}"

    def _current(self) -> tuple[x509.Certificate, PrivateKey]:
        """The CA certificate that belongs to ca.key, and that key."""
        certificates = load_certificates(self.certificate_path, "CA certificate")
        key = load_private_key(self.key_path)
        wanted = key.public_key()
        for certificate in certificates:
            if certificate.public_key() == wanted:
                return certificate, key
        raise KeysError(
            f"CA key {self.key_path} does not belong to {self.certificate_path}; restore both from one backup"
        )

    def _authorities(self) -> tuple[tuple[x509.Certificate, PrivateKey], ...]:
        """Every CA certificate whose key is here, the current one first."""
        found = [self._current()]
        for certificate in load_certificates(self.certificate_path, "CA certificate"):
            path = self.directory / f"ca.key.{_hex(certificate.serial_number)}"
            if certificate != found[0][0] and path.exists():
                found.append((certificate, load_private_key(path)))
        return tuple(found)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.wall(), UTC).replace(microsecond=0)

    def _new_ca(self, common_name: str, key: PrivateKey, days: int) -> x509.Certificate:
        now = self._now()
        try:
            name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        except ValueError as error:
            raise KeysError(f"{common_name!r} cannot be the name of a CA: {error}") from error
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATE)
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, _hash(key))
        )

    def _new_leaf(self, name: str, key: PrivateKey, days: int) -> x509.Certificate:
        ca, ca_key = self._current()
        now = self._now()
        if now > ca.not_valid_after_utc:
            raise KeysError(f"the CA in {self.certificate_path} has expired; make a new one: fedbus keys roll-ca")
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(ca.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATE)
            # No longer than its CA, which could not vouch for it any more.
            .not_valid_after(min(now + timedelta(days=days), ca.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
                critical=False,
            )
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(URI_PREFIX + name)]), critical=False
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
            .sign(ca_key, _hash(ca_key))
        )

    def _record(self, certificate: x509.Certificate) -> None:
        """Note *certificate* before it exists anywhere else, so that there is none that cannot be revoked."""
        (self.directory / "issued").mkdir(mode=0o700, exist_ok=True)
        _write_certificates(self._issued(certificate.serial_number, "crt"), [certificate])

    def _revocation(self, serial: int) -> tuple[float, str] | None:
        path = self._issued(serial, "revoked")
        if not path.exists():
            return None
        try:
            entry = json.loads(read_public(path, "revocation record"))
            return float(entry["revoked_at"]), str(entry["reason"])
        except (ValueError, KeyError, TypeError) as error:
            raise KeysError(f"cannot read revocation record {path}: {error}; restore it from a backup") from error

    def _next_crl_number(self) -> int:
        path = self.directory / "crl-number"
        last = 0
        if path.exists():
            try:
                last = int(read_public(path, "number of the revocation list"))
            except ValueError as error:
                raise KeysError(f"cannot read {path}: {error}; write the number of crl.pem there") from error
        return last + 1

    def _write_crl(self, days: int) -> Path:
        now = self._now()
        authorities = self._authorities()
        number = self._next_crl_number()
        # The number first: stopped here, one is skipped; the other way round, one would be used twice.
        write_atomic(self.directory / "crl-number", b"%d\n" % number, mode=0o600)
        revoked = [
            (load_certificates(one.path, "certificate")[0], one) for one in self.list() if one.revoked_at is not None
        ]
        blocks = []
        for ca, key in authorities:
            builder = (
                x509.CertificateRevocationListBuilder()
                .issuer_name(ca.subject)
                .last_update(now)
                .next_update(now + timedelta(days=days))
                .add_extension(x509.CRLNumber(number), critical=False)
                .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
            )
            for certificate, one in revoked:
                if _issued_by(certificate, ca):
                    entry = (
                        x509.RevokedCertificateBuilder()
                        .serial_number(one.serial)
                        .revocation_date(datetime.fromtimestamp(one.revoked_at or 0.0, UTC).replace(microsecond=0))
                    )
                    if one.reason != "unspecified":  # RFC 5280, 5.3.1: absent rather than unspecified
                        entry = entry.add_extension(x509.CRLReason(x509.ReasonFlags(one.reason)), critical=False)
                    builder = builder.add_revoked_certificate(entry.build())
            blocks.append(builder.sign(key, _hash(key)).public_bytes(serialization.Encoding.PEM))
        write_atomic(self.crl_path, b"".join(blocks), mode=0o644)
        return self.crl_path


def _hex(serial: int) -> str:
    return f"{serial:x}"


def _new_key(algorithm: Algorithm) -> PrivateKey:
    if algorithm == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if algorithm == "ecdsa-p256":
        return ec.generate_private_key(ec.SECP256R1())
    raise KeysError(f"{algorithm!r} is no algorithm for keys of the bus; use one of {', '.join(ALGORITHMS)}")


def _hash(key: PrivateKey) -> hashes.SHA256 | None:
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _issued_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(ca)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _write_key(path: Path, key: PrivateKey) -> None:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_atomic(path, pem, mode=0o600)


def _write_certificates(path: Path, certificates: list[x509.Certificate]) -> None:
    pem = b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates)
    write_atomic(path, pem, mode=0o644)
