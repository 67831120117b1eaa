"""A CA in a folder, and what a test needs to issue certificates that no proper CA would."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from forging import SHA256, SIGNING, Forge

from fedbus.clock import ManualClock
from fedbus.model.topic import Naming
from fedbus.trust.authority import Authority
from fedbus.trust.keyring import Keyring, KeyringOptions, load_private_key
from fedbus.trust.policy import Policy
from fedbus.trust.signer import Signer
from fedbus.trust.verifier import Verifier


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def authority(tmp_path: Path, clock: ManualClock) -> Authority:
    return Authority.create(tmp_path / "keys", common_name="Test CA", clock=clock)


@pytest.fixture
def options(authority: Authority) -> KeyringOptions:
    return KeyringOptions(ca=authority.certificate_path, crl=authority.crl_path)


@pytest.fixture
def signer(authority: Authority, clock: ManualClock) -> Signer:
    issued = authority.issue("koji.build01")
    return Signer.load("koji.build01", issued.certificate_path, issued.key_path, clock=clock)


@pytest.fixture
def verifier(options: KeyringOptions, clock: ManualClock) -> Verifier:
    return Verifier(Keyring.load(options, clock=clock), Policy(Naming()), clock=clock)


@pytest.fixture
def forge(authority: Authority, clock: ManualClock) -> Forge:
    """Issue a leaf of the test's CA (or of *issuer*) in which anything may be wrong; returns DER and its key."""

    def issue(
        *,
        subject: Sequence[str] = ("koji.build01",),
        uris: Sequence[str] = ("fedbus:koji.build01",),
        key: Any = None,
        ca: bool = False,
        key_usage: x509.KeyUsage | None = SIGNING,
        purposes: Sequence[x509.ObjectIdentifier] | None = (ExtendedKeyUsageOID.CLIENT_AUTH,),
        issuer: tuple[x509.Certificate, Any] | None = None,
        algorithm: hashes.HashAlgorithm | None = SHA256,
        days: int = 30,
        extra: x509.ExtensionType | None = None,
    ) -> tuple[bytes, Any]:
        now = datetime.fromtimestamp(clock.wall(), UTC)
        if key is None:
            key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, one) for one in subject])
        if issuer is None:
            ca_certificate = x509.load_pem_x509_certificate(authority.certificate_path.read_bytes())
            issuer = (ca_certificate, load_private_key(authority.key_path))
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer[0].subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if uris:
            names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(one) for one in uris])
            builder = builder.add_extension(names, critical=False)
        if key_usage is not None:
            builder = builder.add_extension(key_usage, critical=True)
        if purposes is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        if extra is not None:
            builder = builder.add_extension(extra, critical=True)
        if isinstance(issuer[1], ed25519.Ed25519PrivateKey):
            algorithm = None
        certificate = builder.sign(issuer[1], algorithm)
        return certificate.public_bytes(serialization.Encoding.DER), key

    return issue
