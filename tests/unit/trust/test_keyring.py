"""Whom we trust, and how that changes while running."""

from __future__ import annotations

import base64
import logging
import os
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedbus.errors import KeysError, Reason, TrustError
from fedbus.model.topic import Naming
from fedbus.trust.authority import Authority
from fedbus.trust.keyring import Keyring, KeyringOptions, load_private_key
from fedbus.trust.policy import Policy
from fedbus.trust.verifier import Verifier

DAY = 86_400.0
PEM = serialization.Encoding.PEM


def verifier_of(options: KeyringOptions, clock) -> Verifier:
    return Verifier(Keyring.load(options, clock=clock), Policy(Naming()), clock=clock)


def reason_of(verifier: Verifier, der: bytes) -> Reason | None:
    try:
        verifier.identify(der)
    except TrustError as error:
        return error.reason
    return None


def write_list(authority: Authority, clock, *, number=100, days=30, key=None, extra=None, digest=None) -> None:
    """Put a hand-made list of the test's CA in place."""
    ca = x509.load_pem_x509_certificate(authority.certificate_path.read_bytes())
    now = datetime.fromtimestamp(clock.wall(), UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.subject)
        .last_update(now)
        .next_update(now + timedelta(days=days))
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    if extra is not None:
        builder = builder.add_extension(extra, critical=True)
    made = builder.sign(key or load_private_key(authority.key_path), digest or hashes.SHA256())
    replace(authority.crl_path, made.public_bytes(PEM))


def replace(path, data: bytes) -> None:
    """As tools do it: a new file, renamed over the old one."""
    new = path.with_name("new")
    new.write_bytes(data)
    new.chmod(0o644)
    new.replace(path)


# --- revocation lists ------------------------------------------------------------------------------------------


@pytest.mark.badinput("B25")
def test_without_its_list_a_ca_vouches_for_nothing_until_there_is_one(authority, options, signer, clock, caplog):
    content = authority.crl_path.read_bytes()
    authority.crl_path.unlink()
    verifier = verifier_of(options, clock)
    assert "there is no usable revocation list" in caplog.text
    assert reason_of(verifier, signer.certificate) is Reason.CRL
    replace(authority.crl_path, content)
    assert verifier.refresh()
    assert reason_of(verifier, signer.certificate) is None


@pytest.mark.badinput("B25")
def test_a_grace_lets_a_missing_or_expired_list_count_for_so_long_and_no_longer(authority, options, signer, clock):
    generous = KeyringOptions(ca=options.ca, crl=options.crl, crl_grace=2 * DAY)
    verifier = verifier_of(generous, clock)
    clock.advance(31 * DAY)
    assert reason_of(verifier, signer.certificate) is None
    clock.advance(1.1 * DAY)
    assert reason_of(verifier, signer.certificate) is Reason.CRL
    authority.crl_path.unlink()
    verifier = verifier_of(generous, clock)
    assert reason_of(verifier, signer.certificate) is None
    clock.advance(2.1 * DAY)
    assert reason_of(verifier, signer.certificate) is Reason.CRL


def test_revocation_can_be_left_unchecked_and_that_is_logged(authority, signer, clock, caplog):
    authority.revoke("koji.build01")
    verifier = verifier_of(KeyringOptions(ca=authority.certificate_path, crl=None), clock)
    assert "revocation is not checked" in caplog.text
    assert reason_of(verifier, signer.certificate) is None


@pytest.mark.badinput("B25")
def test_a_list_with_an_older_number_is_refused_and_the_newer_one_stays(authority, options, signer, clock, caplog):
    old = authority.crl_path.read_bytes()
    authority.revoke("koji.build01")
    verifier = verifier_of(options, clock)
    replace(authority.crl_path, old)
    verifier.refresh()
    assert "is older than number" in caplog.text
    assert reason_of(verifier, signer.certificate) is Reason.REVOKED


@pytest.mark.badinput("B25")
@pytest.mark.parametrize("wrong", ["other issuer", "forged", "partial", "garbage", "empty", "sha-224", "missing"])
def test_a_list_that_cannot_be_used_leaves_the_old_one_in_force_until_that_expires(
    authority, options, signer, clock, caplog, tmp_path, wrong
):
    authority.issue("bodhi.web01")
    authority.revoke("bodhi.web01")
    verifier = verifier_of(options, clock)
    caplog.clear()
    if wrong == "other issuer":
        other = Authority.create(tmp_path / "other", common_name="Other CA", clock=clock)
        replace(authority.crl_path, other.crl_path.read_bytes())
    elif wrong == "forged":
        write_list(authority, clock, key=ec.generate_private_key(ec.SECP256R1()))
    elif wrong == "partial":
        write_list(authority, clock, extra=x509.DeltaCRLIndicator(1))
    elif wrong == "sha-224":
        write_list(authority, clock, digest=hashes.SHA224())
    elif wrong == "missing":
        authority.crl_path.unlink()
    else:
        replace(authority.crl_path, b"" if wrong == "empty" else b"-----BEGIN X509 CRL-----\n?\n-----END X509 CRL-----")
    verifier.refresh()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    verifier.refresh()
    assert len(caplog.records) == 1, "logged once, not at each look"
    assert reason_of(verifier, signer.certificate) is None
    bodhi = x509.load_pem_x509_certificate((authority.directory / "bodhi.web01.crt").read_bytes())
    assert reason_of(verifier, bodhi.public_bytes(serialization.Encoding.DER)) is Reason.REVOKED
    clock.advance(31 * DAY)
    assert reason_of(verifier, signer.certificate) is Reason.CRL


@pytest.mark.badinput("B25")
@pytest.mark.parametrize("which", ["ca", "crl"])
@given(data=st.data())
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=60
)
def test_whatever_the_files_hold_a_running_keyring_stays_up_and_never_trusts_more(
    authority, options, signer, clock, which, data
):
    """Bytes of either file are altered inside the PEM armour, so that the parser meets them."""
    if not (authority.directory / "bodhi.web01.crt").exists():  # one folder serves all examples
        authority.issue("bodhi.web01")
        authority.revoke("bodhi.web01")
    path = options.ca if which == "ca" else options.crl
    good = path.read_bytes()
    verifier = verifier_of(options, clock)
    head, body, tail = good.split(b"-----\n", 1)[0] + b"-----\n", *good.split(b"-----\n", 1)[1].rsplit(b"-----END", 1)
    der = bytearray(base64.b64decode(body))
    start = data.draw(st.integers(0, len(der) - 1))
    der[start : start + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    try:
        replace(path, head + base64.encodebytes(bytes(der)) + b"-----END" + tail)
        verifier.refresh()
        bodhi = x509.load_pem_x509_certificate((authority.directory / "bodhi.web01.crt").read_bytes())
        assert reason_of(verifier, bodhi.public_bytes(serialization.Encoding.DER)) is not None
        assert reason_of(verifier, b"noise") is Reason.CERTIFICATE
    finally:
        replace(path, good)


# --- CA files --------------------------------------------------------------------------------------------------


@pytest.mark.fault("F22")
def test_a_new_ca_file_that_cannot_be_used_leaves_the_old_one_in_force(authority, options, signer, clock, caplog):
    verifier = verifier_of(options, clock)
    leaf = authority.directory / "koji.build01.crt"
    for content in (b"", b"garbage", leaf.read_bytes()):
        caplog.clear()
        replace(options.ca, content)
        assert not verifier.refresh()
        assert "the trusted CAs stay as they were" in caplog.text
        assert reason_of(verifier, signer.certificate) is None


@pytest.mark.badinput("B26")
def test_what_is_no_ca_certificate_cannot_be_trusted_as_one(authority, signer, clock):
    with pytest.raises(KeysError, match="not marked as a CA"):
        Keyring.load(KeyringOptions(ca=authority.directory / "koji.build01.crt", crl=None), clock=clock)


@pytest.mark.badinput("B23")
def test_a_ca_with_a_short_rsa_key_cannot_be_trusted(tmp_path, clock):
    key = rsa.generate_private_key(65537, 1024)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Old CA")])
    now = datetime.fromtimestamp(clock.wall(), UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=9))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "old.crt"
    path.write_bytes(certificate.public_bytes(PEM))
    with pytest.raises(KeysError, match="1024 bits"):
        Keyring.load(KeyringOptions(ca=path, crl=None), clock=clock)


def test_a_keyring_without_a_ca_file_says_which_file_is_missing(tmp_path, clock):
    with pytest.raises(KeysError, match=r"nowhere.crt"):
        Keyring.load(KeyringOptions(ca=tmp_path / "nowhere.crt", crl=None), clock=clock)


# --- file modes ------------------------------------------------------------------------------------------------


@pytest.mark.badinput("B45")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610])
def test_a_private_key_that_others_can_use_is_refused_with_its_path_and_mode(authority, signer, mode):
    path = authority.directory / "koji.build01.key"
    path.chmod(mode)
    with pytest.raises(KeysError) as caught:
        load_private_key(path)
    for part in (str(path), f"{mode:04o}", f"chmod 600 {path}"):
        assert part in str(caught.value)


@pytest.mark.badinput("B45")
def test_a_private_key_behind_a_link_or_a_fifo_is_refused(authority, signer, tmp_path):
    link = tmp_path / "link.key"
    link.symlink_to(authority.directory / "koji.build01.key")
    with pytest.raises(KeysError, match="symbolic link"):
        load_private_key(link)
    fifo = tmp_path / "fifo.key"
    os.mkfifo(fifo, 0o600)
    with pytest.raises(KeysError, match="not a regular file"):
        load_private_key(fifo)
    with pytest.raises(KeysError, match="not a regular file"):
        load_private_key(tmp_path)


@pytest.mark.badinput("B45")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_files_of_a_foreign_owner_are_refused(authority, options, signer, clock):
    for path in (authority.directory / "koji.build01.key", options.ca):
        os.chown(path, 12345, -1)
    with pytest.raises(KeysError, match="belongs to user 12345"):
        load_private_key(authority.directory / "koji.build01.key")
    with pytest.raises(KeysError, match="belongs to user 12345"):
        Keyring.load(options, clock=clock)


@pytest.mark.badinput("B45")
def test_a_ca_file_or_its_folder_that_others_can_write_is_refused(authority, options, clock):
    options.ca.chmod(0o664)
    with pytest.raises(KeysError, match="0664"):
        Keyring.load(options, clock=clock)
    options.ca.chmod(0o644)
    authority.directory.chmod(0o777)
    with pytest.raises(KeysError, match="0777"):
        Keyring.load(options, clock=clock)
    authority.directory.chmod(0o755)
    assert Keyring.load(options, clock=clock).authorities


# --- alarms ----------------------------------------------------------------------------------------------------


@pytest.mark.fault("F22")
def test_what_expires_is_announced_30_7_and_1_days_ahead_and_when_it_has_once_each(tmp_path, clock, caplog):
    authority = Authority.create(tmp_path / "short", common_name="Short CA", days=40, clock=clock)
    keyring = Keyring.load(KeyringOptions(ca=authority.certificate_path, crl=None), clock=clock)
    alarms = []
    for hour in range(41 * 24):
        caplog.clear()
        keyring.refresh()
        alarms += [(hour // 24, record.levelname) for record in caplog.records]
        clock.advance(3600)
    assert alarms == [(10, "WARNING"), (33, "WARNING"), (39, "ERROR"), (40, "ERROR")]


@pytest.mark.fault("F22")
def test_a_renewed_list_ends_its_alarm(authority, options, clock, caplog):
    keyring = Keyring.load(options, clock=clock)
    clock.advance(25 * DAY)
    keyring.refresh()
    assert "renew it: fedbus keys crl" in caplog.text
    authority.write_crl()
    caplog.clear()
    assert keyring.refresh()
    assert caplog.records == []
