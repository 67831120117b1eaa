"""Who signs, before, while and after a key is rotated."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509 import load_der_x509_certificate
from forging import STATEMENT, Forge

from fedbus.errors import KeysError
from fedbus.trust.signer import Signer

DAY = 86_400.0


def test_a_rotated_pair_is_picked_up_and_both_certificates_verify(authority, signer, verifier):
    before = (signer.certificate, signer.sign(STATEMENT))
    assert not signer.refresh()
    authority.rotate("koji.build01")
    assert signer.refresh()
    assert not signer.refresh()
    after = (signer.certificate, signer.sign(STATEMENT))
    assert before[0] != after[0]
    for certificate, signature in (before, after):
        assert verifier.check(certificate, signature, STATEMENT).name == "koji.build01"


@pytest.mark.fault("F22")
def test_a_pair_that_does_not_fit_leaves_the_old_one_signing(authority, signer, verifier, caplog):
    key = authority.directory / "koji.build01.key"
    other = authority.issue("koji.build02")
    key.write_bytes(other.key_path.read_bytes())
    assert not signer.refresh()
    assert "goes on signing with its old certificate" in caplog.text
    assert verifier.check(signer.certificate, signer.sign(STATEMENT), STATEMENT)


def test_a_key_of_another_certificate_is_refused_at_the_start(authority, signer, clock):
    other = authority.issue("koji.build02")
    with pytest.raises(KeysError, match="does not belong to"):
        Signer.load("koji.build01", authority.directory / "koji.build01.crt", other.key_path, clock=clock)


def test_a_certificate_for_another_endpoint_is_refused(authority, clock):
    other = authority.issue("koji.build02")
    with pytest.raises(KeysError, match=r"is for koji.build02, not for koji.build01"):
        Signer.load("koji.build01", other.certificate_path, other.key_path, clock=clock)


@pytest.mark.badinput("B24")
def test_an_expired_certificate_cannot_sign(authority, signer, clock):
    clock.advance(400 * DAY)
    issued = authority.directory / "koji.build01.crt"
    with pytest.raises(KeysError, match=r"has expired at .* fedbus keys rotate koji.build01"):
        Signer.load("koji.build01", issued, authority.directory / "koji.build01.key", clock=clock)


@pytest.mark.badinput("B23")
def test_an_rsa_key_cannot_sign(tmp_path, forge: Forge, clock):
    key = rsa.generate_private_key(65537, 2048)
    der, _ = forge(key=key)
    certificate = tmp_path / "rsa.crt"
    certificate.write_bytes(load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM))
    path = tmp_path / "rsa.key"
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    with pytest.raises(KeysError, match="neither ECDSA P-256 nor Ed25519"):
        Signer.load("koji.build01", certificate, path, clock=clock)


@pytest.mark.badinput("B26")
def test_a_certificate_that_everyone_would_refuse_cannot_sign(tmp_path, forge: Forge, clock):
    der, key = forge(purposes=None)
    certificate = tmp_path / "bad.crt"
    certificate.write_bytes(load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM))
    path = tmp_path / "bad.key"
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    with pytest.raises(KeysError, match="clientAuth"):
        Signer.load("koji.build01", certificate, path, clock=clock)


@pytest.mark.badinput("B45")
def test_an_exposed_key_is_refused_at_the_start_and_at_a_refresh(authority, signer, clock, caplog):
    path = authority.directory / "koji.build01.key"
    path.chmod(0o644)
    assert not signer.refresh()
    assert "0644" in caplog.text
    with pytest.raises(KeysError, match="0644"):
        Signer.load("koji.build01", authority.directory / "koji.build01.crt", path, clock=clock)


@pytest.mark.fault("F22")
def test_the_end_of_a_certificate_is_announced(signer, clock, caplog):
    clock.advance(368 * DAY)
    signer.refresh()
    signer.refresh()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "fedbus keys rotate koji.build01" in caplog.text
