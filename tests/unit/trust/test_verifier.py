"""What the verifier accepts, what it refuses, and with which reason."""

from __future__ import annotations

import base64
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from forging import STATEMENT, Forge, usage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedbus.clock import ManualClock
from fedbus.errors import Reason, TrustError
from fedbus.model.topic import Naming
from fedbus.trust.authority import Authority
from fedbus.trust.keyring import Keyring, KeyringOptions, load_private_key
from fedbus.trust.policy import Policy
from fedbus.trust.signer import Signer
from fedbus.trust.verifier import MAX_CERTIFICATE_BYTES, Verifier
from tests.support import need_program

DAY = 86_400.0
YEAR = 365 * DAY


def refusal(
    verifier: Verifier, der: bytes, signature: bytes = b"x", statement: bytes = STATEMENT, **more: float
) -> Reason:
    """The reason for which *verifier* refuses, asked twice, as the second answer comes from memory."""
    with pytest.raises(TrustError) as first:
        verifier.check(der, signature, statement, **more)
    with pytest.raises(TrustError) as second:
        verifier.check(der, signature, statement, **more)
    assert (first.value.reason, str(first.value)) == (second.value.reason, str(second.value))
    return first.value.reason


@pytest.mark.parametrize("algorithm", ["ecdsa-p256", "ed25519"])
@pytest.mark.parametrize("ca_algorithm", ["ecdsa-p256", "ed25519"])
def test_what_a_signer_signs_the_verifier_accepts(tmp_path, clock, algorithm, ca_algorithm):
    authority = Authority.create(tmp_path / "other", common_name="CA", algorithm=ca_algorithm, clock=clock)
    issued = authority.issue("koji.build01", algorithm=algorithm)
    signer = Signer.load("koji.build01", issued.certificate_path, issued.key_path, clock=clock)
    keyring = Keyring.load(KeyringOptions(ca=authority.certificate_path, crl=authority.crl_path), clock=clock)
    verifier = Verifier(keyring, Policy(Naming()), clock=clock)
    signature = signer.sign(STATEMENT)
    for _ in range(2):
        identity = verifier.check(signer.certificate, signature, STATEMENT)
        assert identity.name == "koji.build01"
        assert identity.not_after == signer.expires_at
    assert signer.sign_with_certificate(STATEMENT)[1] == signer.certificate


def test_a_repeated_check_does_not_verify_the_signature_again(verifier, signer):
    signature = signer.sign(STATEMENT)
    identity = verifier.check(signer.certificate, signature, STATEMENT)
    asked = []
    genuine = identity.verify
    identity.verify = lambda *arguments: asked.append(arguments) or genuine(*arguments)
    assert verifier.check(bytes(bytearray(signer.certificate)), signature, STATEMENT) is identity
    assert asked == []
    for _ in range(3):
        with pytest.raises(TrustError):
            verifier.check(signer.certificate, signature, STATEMENT + b"!")
    assert len(asked) == 1, "a refused signature is remembered as well"


@pytest.mark.badinput("B20")
@pytest.mark.parametrize("algorithm", ["ecdsa-p256", "ed25519"])
def test_a_signature_of_a_wrong_length_or_form_is_refused(authority, clock, verifier, algorithm):
    issued = authority.issue("koji.build02", algorithm=algorithm)
    signer = Signer.load("koji.build02", issued.certificate_path, issued.key_path, clock=clock)
    good = signer.sign(STATEMENT)
    bad = [b"", good[:-1], good + b"\0", bytes(64), bytes(72), b"\xff" * 256, bytes(257), bytes(100_000)]
    bad += [base64.b64encode(good), base64.encodebytes(good), good.replace(good[5:6], b"\r\n", 1)]
    for signature in bad:
        assert refusal(verifier, signer.certificate, signature) is Reason.SIGNATURE
    assert verifier.check(signer.certificate, good, STATEMENT)


@pytest.mark.badinput("B21")
def test_one_bit_changed_in_statement_signature_or_certificate_is_refused(verifier, signer):
    signature = signer.sign(STATEMENT)
    certificate = signer.certificate

    def flipped(data: bytes):
        for bit in range(0, 8 * len(data)):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            yield bytes(changed)

    for changed in flipped(STATEMENT):
        with pytest.raises(TrustError):
            verifier.check(certificate, signature, changed)
    for changed in flipped(signature):
        with pytest.raises(TrustError):
            verifier.check(certificate, changed, STATEMENT)
    for changed in flipped(certificate):
        with pytest.raises(TrustError):
            verifier.check(changed, signature, STATEMENT)
    assert verifier.check(certificate, signature, STATEMENT)


@pytest.mark.badinput("B19")
@pytest.mark.badinput("B23")
@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 1024),
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP256K1()),
    ],
    ids=["rsa-1024", "rsa-2048", "p-384", "secp256k1"],
)
def test_a_key_of_another_algorithm_is_refused_even_with_a_good_certificate(verifier, forge: Forge, key):
    der, _ = forge(key=key)
    assert refusal(verifier, der) is Reason.ALGORITHM


@pytest.mark.badinput("B19")
def test_a_signature_of_the_other_algorithm_is_not_tried(verifier, forge: Forge):
    der, _ = forge(key=ed25519.Ed25519PrivateKey.generate())
    other = ec.generate_private_key(ec.SECP256R1())
    assert refusal(verifier, der, other.sign(STATEMENT, ec.ECDSA(hashes.SHA256()))) is Reason.SIGNATURE
    der, key = forge()
    # the right key, the wrong hash
    assert refusal(verifier, der, key.sign(STATEMENT, ec.ECDSA(hashes.SHA512()))) is Reason.SIGNATURE


@pytest.mark.badinput("B23")
def test_a_certificate_signed_with_less_than_sha_256_is_refused(verifier, forge: Forge):
    der, _ = forge(algorithm=hashes.SHA224())
    assert refusal(verifier, der) is Reason.ALGORITHM


@pytest.mark.badinput("B23")
def test_a_certificate_signed_with_sha_1_is_refused(tmp_path, verifier, authority, clock):
    need_program("openssl")
    request = tmp_path / "leaf.csr"
    leaf = tmp_path / "leaf.crt"

    def openssl(*arguments: str | Path) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=180)

    openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj",
            "/CN=koji.build01", "-keyout", tmp_path / "leaf.key", "-out", request)  # fmt: skip
    openssl("x509", "-req", "-sha1", "-in", request, "-CA", authority.certificate_path, "-CAkey", authority.key_path,
            "-set_serial", "77", "-days", "30", "-out", leaf)  # fmt: skip
    certificate = x509.load_pem_x509_certificate(leaf.read_bytes())
    assert certificate.signature_algorithm_oid.dotted_string == "1.2.840.10045.4.1"  # ecdsa-with-SHA1
    assert refusal(verifier, certificate.public_bytes(serialization.Encoding.DER)) is Reason.ALGORITHM


@pytest.mark.badinput("B24")
def test_a_certificate_counts_from_five_minutes_before_to_five_minutes_after_its_validity(
    authority, forge: Forge, clock, tmp_path
):
    der, key = forge(days=20)
    signature = key.sign(STATEMENT, ec.ECDSA(hashes.SHA256()))
    verifier = Verifier(
        Keyring.load(KeyringOptions(ca=authority.certificate_path, crl=authority.crl_path), clock=clock),
        Policy(Naming()),
        clock=clock,
    )
    identity = verifier.check(der, signature, STATEMENT)
    clock.jump(identity.not_before - 299 - clock.wall())
    assert verifier.check(der, signature, STATEMENT)
    clock.jump(-2)
    assert refusal(verifier, der, signature) is Reason.NOT_YET_VALID
    clock.jump(identity.not_after + 299 - clock.wall())
    assert verifier.check(der, signature, STATEMENT)
    clock.advance(2)
    assert refusal(verifier, der, signature) is Reason.EXPIRED


@pytest.mark.badinput("B24")
def test_a_revoked_certificate_is_refused_once_the_list_is_here(verifier, signer, authority, clock):
    signature = signer.sign(STATEMENT)
    verifier.check(signer.certificate, signature, STATEMENT)
    clock.advance(60)
    authority.revoke("koji.build01", "keyCompromise")
    assert verifier.refresh()
    assert refusal(verifier, signer.certificate, signature) is Reason.REVOKED


@pytest.mark.badinput("B24")
def test_an_archive_judges_by_the_time_it_took_a_message_in(verifier, signer, authority, clock):
    signature = signer.sign(STATEMENT)
    taken_in = clock.wall() + DAY
    clock.advance(2 * YEAR)
    authority.write_crl()
    verifier.refresh()
    assert refusal(verifier, signer.certificate, signature) is Reason.EXPIRED
    assert verifier.check(signer.certificate, signature, STATEMENT, at=taken_in).name == "koji.build01"
    assert refusal(verifier, signer.certificate, signature, at=taken_in - YEAR) is Reason.NOT_YET_VALID


@pytest.mark.badinput("B24")
@pytest.mark.parametrize(
    ("reason", "still_good"), [("superseded", True), ("keyCompromise", False), ("unspecified", False)]
)
def test_what_was_signed_before_a_revocation_counts_only_where_the_key_was_not_stolen(
    verifier, signer, authority, clock, reason, still_good
):
    signature = signer.sign(STATEMENT)
    before = clock.wall()
    clock.advance(DAY)
    authority.revoke("koji.build01", reason)
    verifier.refresh()
    assert refusal(verifier, signer.certificate, signature) is Reason.REVOKED
    if still_good:
        assert verifier.check(signer.certificate, signature, STATEMENT, at=before)
    else:
        assert refusal(verifier, signer.certificate, signature, at=before) is Reason.REVOKED


@pytest.mark.badinput("B26")
def test_a_self_signed_certificate_and_one_of_an_unknown_ca_are_refused(verifier, forge: Forge, tmp_path, clock):
    key = ec.generate_private_key(ec.SECP256R1())
    first, _ = forge(key=key)
    alone = x509.load_der_x509_certificate(first)
    self_signed, _ = forge(key=key, issuer=(alone, key))
    assert refusal(verifier, self_signed) is Reason.UNKNOWN_CA
    # the same name as the real CA, another key
    other = Authority.create(tmp_path / "other", common_name="Test CA", clock=clock)
    issued = other.issue("koji.build01")
    foreign = Signer.load("koji.build01", issued.certificate_path, issued.key_path, clock=clock)
    assert refusal(verifier, foreign.certificate, foreign.sign(STATEMENT)) is Reason.UNKNOWN_CA


@pytest.mark.badinput("B26")
def test_a_leaf_cannot_act_as_a_ca_and_a_ca_cannot_act_as_a_leaf(verifier, forge: Forge, authority):
    der, key = forge(subject=["evil.host01"], uris=["fedbus:evil.host01"])
    leaf = x509.load_der_x509_certificate(der)
    assert refusal(verifier, forge(issuer=(leaf, key))[0]) is Reason.UNKNOWN_CA
    # even a real intermediate of ours is not followed
    der, key = forge(ca=True, key_usage=usage(key_cert_sign=True), uris=[])
    assert refusal(verifier, forge(issuer=(x509.load_der_x509_certificate(der), key))[0]) is Reason.UNKNOWN_CA
    root = x509.load_pem_x509_certificate(authority.certificate_path.read_bytes())
    assert refusal(verifier, root.public_bytes(serialization.Encoding.DER)) is Reason.CERTIFICATE
    assert refusal(verifier, forge(ca=True)[0]) is Reason.CERTIFICATE
    both = usage(digital_signature=True, key_cert_sign=True)
    assert refusal(verifier, forge(key_usage=both)[0]) is Reason.CERTIFICATE


@pytest.mark.badinput("B26")
@pytest.mark.parametrize(
    "wrong",
    [
        {"purposes": None},
        {"purposes": [ExtendedKeyUsageOID.SERVER_AUTH]},
        {"purposes": [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]},
        {"key_usage": None},
        {"key_usage": usage(key_agreement=True)},
        {"extra": x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")},
    ],
    ids=["no-eku", "server-only", "any", "no-usage", "not-for-signing", "unknown-critical"],
)
def test_a_certificate_for_another_use_is_refused(verifier, forge: Forge, wrong):
    assert refusal(verifier, forge(**wrong)[0]) is Reason.CERTIFICATE


@pytest.mark.badinput("B26")
@pytest.mark.parametrize(
    ("subject", "uris"),
    [
        ([], []),
        (["koji.build01"], []),
        (["koji.build01"], ["https://koji.build01"]),
        (["koji.build01"], ["fedbus:koji.build01", "fedbus:bodhi.web01"]),
        (["bodhi.web01"], ["fedbus:koji.build01"]),
        (["koji.build01", "bodhi.web01"], ["fedbus:koji.build01"]),
        (["koji.build01"], ["fedbus:koji.build01\0.evil"]),
        (["koji.build01\0"], ["fedbus:koji.build01"]),
        ([], ["fedbus:koji.*"]),
        ([], ["fedbus:*"]),
        ([], ["fedbus:"]),
        ([], ["fedbus:Koji.build01"]),
        ([], ["fedbus:koji.build01 "]),
        ([], ["fedbus:koji.build01\n"]),
        ([], ["fedbus:koji..build01"]),
        ([], ["fedbus:" + "k" * 65]),
        (["kоji.build01"], ["fedbus:koji.build01"]),  # the second letter is Cyrillic  # noqa: RUF001
    ],
)
def test_a_name_that_is_not_exactly_one_endpoint_is_refused(verifier, forge: Forge, subject, uris):
    assert refusal(verifier, forge(subject=subject, uris=uris)[0]) is Reason.CERTIFICATE


@pytest.mark.badinput("B26")
def test_a_homoglyph_in_the_uri_itself_is_refused(verifier, forge: Forge):
    # The library refuses to write it, so it is put into the bytes and signed by nobody; and as a URI in Latin-1.
    der, _ = forge(subject=[], uris=["fedbus:koji.build01"])
    with pytest.raises(TrustError) as caught:
        verifier.identify(der.replace(b"fedbus:koji", "fedbus:k\xf3ji".encode("latin-1")))
    assert caught.value.reason in (Reason.CERTIFICATE, Reason.UNKNOWN_CA)


def test_a_certificate_without_a_common_name_is_accepted(verifier, forge: Forge):
    assert verifier.identify(forge(subject=[])[0]).name == "koji.build01"


@pytest.mark.badinput("B28")
def test_a_certificate_field_of_a_megabyte_and_a_chain_are_refused_before_they_are_parsed(
    verifier, signer, monkeypatch
):
    def parse(data: bytes) -> x509.Certificate:
        raise AssertionError("parsed")

    monkeypatch.setattr("fedbus.trust.verifier.x509.load_der_x509_certificate", parse)
    assert refusal(verifier, bytes(2**20)) is Reason.CERTIFICATE
    assert refusal(verifier, signer.certificate * 50) is Reason.CERTIFICATE
    assert len(signer.certificate) < MAX_CERTIFICATE_BYTES


@pytest.mark.badinput("B28")
def test_two_certificates_in_one_field_are_refused(verifier, signer):
    assert refusal(verifier, signer.certificate * 2) is Reason.CERTIFICATE


@pytest.mark.badinput("B28")
def test_a_bad_certificate_is_parsed_once_however_often_it_comes(verifier, forge: Forge, monkeypatch):
    der, _ = forge(purposes=None)
    refusal(verifier, der)
    monkeypatch.setattr("fedbus.trust.verifier.x509.load_der_x509_certificate", None)
    assert refusal(verifier, der) is Reason.CERTIFICATE


@pytest.mark.badinput("B28")
def test_a_flood_of_bad_certificates_neither_grows_memory_nor_drops_the_good_one(verifier, signer):
    identity = verifier.identify(signer.certificate)
    for number in range(5000):
        with pytest.raises(TrustError):
            verifier.identify(b"%d" % number)
    assert len(verifier._refusals) <= 2048
    assert verifier._identities.get(signer.certificate) is identity


@pytest.mark.badinput("B27")
def test_a_good_certificate_of_one_service_may_not_speak_for_another(verifier, signer):
    identity = verifier.identify(signer.certificate)
    verifier.permit(identity, "org.example.dev.koji.package.build.complete")
    for topic, reason in (
        ("org.example.dev.kojira.package.build.complete", Reason.POLICY),
        ("org.example.dev.bodhi.update.push", Reason.POLICY),
        ("org.example.production.koji.package.build.complete", Reason.ENVIRONMENT),
        ("org.fedoraproject.dev.koji.package.build.complete", Reason.ENVIRONMENT),
    ):
        with pytest.raises(TrustError) as caught:
            verifier.permit(identity, topic)
        assert caught.value.reason is reason


def test_refusals_are_counted_by_reason(verifier):
    verifier.reject(Reason.SIGNATURE)
    verifier.reject(Reason.SIGNATURE)
    assert verifier.rejections == {Reason.SIGNATURE: 2}


def test_an_rsa_ca_that_exists_already_can_issue_for_the_bus(tmp_path, clock, forge: Forge):
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Company CA")])
    now = datetime.fromtimestamp(clock.wall(), UTC)
    ca = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=100))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "company.crt"
    path.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    verifier = Verifier(Keyring.load(KeyringOptions(ca=path, crl=None), clock=clock), Policy(Naming()), clock=clock)
    assert verifier.identify(forge(issuer=(ca, key))[0]).name == "koji.build01"


# --- any bytes -------------------------------------------------------------------------------------------------


@pytest.mark.badinput("B28")
@given(st.binary(max_size=2000))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
def test_any_bytes_as_a_certificate_raise_trust_error_and_nothing_else(verifier, data):
    with pytest.raises(TrustError):
        verifier.identify(data)


@pytest.mark.badinput("B21")
@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
def test_a_mutilated_certificate_raises_trust_error_and_nothing_else(verifier, signer, data):
    good = signer.certificate
    start = data.draw(st.integers(0, len(good)))
    stop = data.draw(st.integers(start, min(len(good), start + 20)))
    changed = good[:start] + data.draw(st.binary(max_size=20)) + good[stop:]
    if changed != good:
        with pytest.raises(TrustError):
            verifier.identify(changed)


@pytest.mark.badinput("B26")
@given(st.lists(st.from_regex(r"(fedbus:|x:)?[ -~]{0,20}", fullmatch=True), max_size=3))
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=50
)
def test_whatever_names_a_ca_was_talked_into_only_a_well_formed_one_passes(verifier, forge: Forge, uris):
    der, _ = forge(subject=[], uris=uris)
    try:
        name = verifier.identify(der).name
    except TrustError as error:
        assert error.reason is Reason.CERTIFICATE
    else:
        assert [uri for uri in uris if uri.startswith("fedbus:")] == [f"fedbus:{name}"]
        assert not set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789._-")


# --- while running ---------------------------------------------------------------------------------------------


@pytest.mark.fault("F22")
def test_a_certificate_that_expires_while_running_is_refused_from_then_on(verifier, authority, signer, clock):
    signature = signer.sign(STATEMENT)
    verifier.check(signer.certificate, signature, STATEMENT)
    clock.advance(398 * DAY)
    authority.write_crl()
    verifier.refresh()
    assert refusal(verifier, signer.certificate, signature) is Reason.EXPIRED
    authority.rotate("koji.build01")
    assert signer.refresh()
    assert verifier.check(signer.certificate, signer.sign(STATEMENT), STATEMENT)


@pytest.mark.fault("F22")
@pytest.mark.badinput("B25")
def test_a_list_that_expires_while_running_fails_closed_until_it_is_renewed(verifier, authority, signer, clock):
    signature = signer.sign(STATEMENT)
    verifier.check(signer.certificate, signature, STATEMENT)
    clock.advance(31 * DAY)
    assert refusal(verifier, signer.certificate, signature) is Reason.CRL
    assert not verifier.refresh()
    authority.write_crl()
    assert verifier.refresh()
    assert verifier.check(signer.certificate, signature, STATEMENT)


@pytest.mark.fault("F22")
def test_a_ca_is_rolled_over_while_old_and_new_certificates_are_in_use(verifier, authority, signer, clock):
    old = signer.certificate
    signature = signer.sign(STATEMENT)
    verifier.check(old, signature, STATEMENT)
    authority.roll_over()
    authority.rotate("koji.build01")
    assert signer.refresh()
    # a host that has not got the new ca.crt yet refuses the new certificate, and only that
    assert refusal(verifier, signer.certificate) is Reason.UNKNOWN_CA
    assert verifier.check(old, signature, STATEMENT)
    assert verifier.refresh()
    assert verifier.check(old, signature, STATEMENT)
    assert verifier.check(signer.certificate, signer.sign(STATEMENT), STATEMENT)
    # both CAs can still revoke
    authority.revoke("koji.build01", "superseded")
    assert verifier.refresh()
    assert refusal(verifier, old, signature) is Reason.REVOKED
    assert refusal(verifier, signer.certificate) is Reason.REVOKED


@pytest.mark.fault("F22")
def test_the_old_ca_taken_out_ends_what_it_issued(verifier, authority, signer):
    signature = signer.sign(STATEMENT)
    authority.roll_over()
    new = x509.load_pem_x509_certificates(authority.certificate_path.read_bytes())[0]
    authority.certificate_path.write_bytes(new.public_bytes(serialization.Encoding.PEM))
    assert verifier.refresh()
    assert refusal(verifier, signer.certificate, signature) is Reason.UNKNOWN_CA
    assert load_private_key(authority.key_path).public_key() == new.public_key()


@pytest.mark.fault("F22")
def test_an_expired_ca_vouches_for_nothing(tmp_path):
    clock = ManualClock()
    authority = Authority.create(tmp_path / "short", common_name="CA", days=10, clock=clock)
    issued = authority.issue("koji.build01", days=100)
    signer = Signer.load("koji.build01", issued.certificate_path, issued.key_path, clock=clock)
    verifier = Verifier(
        Keyring.load(KeyringOptions(ca=authority.certificate_path, crl=authority.crl_path), clock=clock),
        Policy(Naming()),
        clock=clock,
    )
    assert signer.expires_at <= clock.wall() + 10 * DAY
    verifier.identify(signer.certificate)
    clock.advance(11 * DAY)
    assert refusal(verifier, signer.certificate) is Reason.EXPIRED
