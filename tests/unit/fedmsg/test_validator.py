"""Who has signed, and may: certificates, revocation, dates, the routing policy; and what Fedora has recorded."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509

from fedbus.clock import ManualClock
from fedbus.errors import KeysError, Reason, TrustError
from fedbus.fedmsg import codec
from fedbus.fedmsg.authority import Authorities
from fedbus.fedmsg.bridge import Bridge
from fedbus.fedmsg.options import FedmsgOptions
from fedbus.fedmsg.signer import FedmsgSigner
from fedbus.fedmsg.validator import RoutingPolicy, Validator
from fedbus.trust.expiry import DAY
from tests.services.fedmsg_site import PEM, Pki

CORPUS = Path(__file__).resolve().parents[4] / "shared" / "corpus"
TOPIC = "org.example.dev.koji.build"


def day(text: str) -> float:
    return datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC).timestamp()


class Bench:
    def __init__(self, folder: Path) -> None:
        self.pki = Pki(folder / "pki")
        self.options = FedmsgOptions(
            ca=self.pki.folder / "ca.crt", crl=self.pki.folder / "crl.pem", routing_nitpicky=False
        )

    def signer(self, stem: str = "koji", **days: int) -> FedmsgSigner:
        self.pki.issue(stem, **days)
        return FedmsgSigner.load(
            self.pki.folder / f"{stem}.crt", self.pki.folder / f"{stem}.key", clock=ManualClock(wall=0.0)
        )

    def message(self, signer: FedmsgSigner, **members: Any) -> codec.Envelope:
        data = signer.sign({"topic": TOPIC, "msg": {"n": 1}, "msg_id": "2026-x", "timestamp": 1, "i": 1, **members})
        return codec.from_fields(json.loads(data), data)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.badinput("B25")
def test_what_has_everything_refused_is_told_for_as_long_as_it_does(bench: Bench) -> None:
    clock = ManualClock(wall=bench.pki.now.timestamp())
    found = Authorities(bench.options, clock=clock)
    assert found.faults() == []
    clock.advance(1.5 * DAY)  # no file has changed, but both have come to their end by now
    assert ["the CA certificate of" in one for one in found.faults()] == [True]
    bench.pki.certificate = bench.pki.sign("test CA", bench.pki.key, ca=True, after=30)
    (bench.pki.folder / "ca.crt").write_bytes(bench.pki.certificate.public_bytes(PEM))
    assert found.refresh()
    (fault,) = found.faults()
    assert "the revocation list of CN=test CA in" in fault
    assert "has expired at" in fault
    other = Pki(bench.pki.folder.parent / "other")
    (bench.pki.folder / "crl.pem").write_bytes((other.folder / "crl.pem").read_bytes())
    assert found.refresh()
    (fault,) = found.faults()
    assert "holds no revocation list that CN=test CA has signed" in fault
    bench.pki.write_list(after=30)
    assert found.refresh()
    assert found.faults() == []
    assert Authorities(replace(bench.options, crl=None), clock=clock).faults() == []


def test_a_bridge_whose_revocation_list_has_expired_is_not_ready(bench: Bench) -> None:
    clock = ManualClock(wall=bench.pki.now.timestamp())
    validator = Validator(bench.options, clock=clock)
    inward: Any = SimpleNamespace(failure="", feed=SimpleNamespace(validator=validator))
    bridge = Bridge(None, None, drain_timeout=0.0, clock=clock)
    try:
        bridge.inward = inward
        assert bridge.reasons() == []
        clock.advance(1.5 * DAY)
        (reason,) = bridge.reasons()
        assert reason.startswith("carrying in: ")
        assert "so all it has issued is refused" in reason
    finally:
        bridge.inward = None
        bridge.close()


def reason_of(check: Callable[[], object]) -> Reason:
    with pytest.raises(TrustError) as caught:
        check()
    return caught.value.reason


def test_the_recorded_messages_verify_as_of_then_and_not_as_of_today() -> None:
    if not CORPUS.is_dir():
        pytest.skip(f"LOUD: {CORPUS} is missing, so messages of Fedora's bus are not checked")
    validator = Validator(FedmsgOptions(ca=CORPUS / "fedora-fedmsg-ca.pem", crl=None, routing_nitpicky=False))
    records = [json.loads(line) for line in (CORPUS / "fedora-messages.jsonl").read_text("utf-8").splitlines()]
    signed = [one for one in records if "signature" in one]
    assert len(signed) == 15
    for one in signed:
        envelope, identity = validator.check_record(dict(one), at=day("2023-06-01"))
        assert identity.name.endswith(".fedoraproject.org")
        archived = {
            **one,
            "timestamp": float(one["timestamp"]),
            "headers": {},
            "source_name": "x",
            "source_version": "1",
        }
        assert validator.check_record(archived, at=day("2023-06-01"))[0].signed == envelope.signed
        assert reason_of(lambda one=one: validator.check_record(dict(one))) is Reason.EXPIRED
        assert (
            reason_of(lambda one=one: validator.check_record(dict(one), at=day("2017-09-06"))) is Reason.NOT_YET_VALID
        )
        altered = {**one, "i": one["i"] + 1}
        assert reason_of(lambda one=altered: validator.check_record(one, at=day("2023-06-01"))) is Reason.SIGNATURE
    unsigned = [one for one in records if "signature" not in one]
    assert reason_of(lambda: validator.check_record(dict(unsigned[0]))) is Reason.UNSIGNED


@pytest.mark.badinput("B18")
@pytest.mark.badinput("B19")
@pytest.mark.badinput("B21")
def test_whatever_is_altered_is_refused(bench: Bench) -> None:
    validator = Validator(bench.options)
    signer = bench.signer()
    good = bench.message(signer)
    assert validator.check(good).name == "koji"
    members = {**good.fields, "signature": good.signature, "certificate": good.certificate}

    def verdict(**changes: Any) -> Reason:
        changed = {key: value for key, value in {**members, **changes}.items() if value is not None}
        return reason_of(lambda: validator.check(codec.from_fields(changed)))

    assert verdict(signature=None) is Reason.UNSIGNED
    assert verdict(certificate=None) is Reason.UNSIGNED
    assert verdict(crypto="gpg") is Reason.ALGORITHM
    assert verdict(crypto="none") is Reason.ALGORITHM
    assert verdict(crypto=None) is Reason.SIGNATURE
    for changes in ({"msg": {"n": 2}}, {"i": 2}, {"timestamp": 1.0}, {"msg_id": "y"}, {"more": 1}, {"headers": {}}):
        assert verdict(**changes) is Reason.SIGNATURE
    assert verdict(signature="") is Reason.UNSIGNED
    assert verdict(signature="AAAA") is Reason.SIGNATURE
    assert verdict(signature="?") is Reason.SIGNATURE
    assert verdict(signature=good.signature.replace("\n", "\r\n")) is Reason.SIGNATURE
    assert verdict(signature="A" * 5000) is Reason.SIGNATURE
    assert verdict(certificate="Z2FyYmFnZQ==\n") is Reason.CERTIFICATE
    assert verdict(certificate="é") is Reason.CERTIFICATE
    other = bench.signer("bodhi")
    assert verdict(certificate=other.certificate) is Reason.SIGNATURE


@pytest.mark.badinput("B28")
def test_a_certificate_that_is_too_large_is_not_parsed_and_of_a_chain_the_first_counts(bench: Bench) -> None:
    validator = Validator(bench.options)
    good = bench.message(bench.signer())
    pem = codec.decode_base64(good.certificate)
    chain = replace(good, certificate=codec.encode_base64(pem + (bench.pki.folder / "ca.crt").read_bytes()))
    assert validator.check(chain).name == "koji"
    huge = replace(good, certificate=codec.encode_base64(pem * 50))
    assert reason_of(lambda: validator.check(huge)) is Reason.CERTIFICATE


@pytest.mark.badinput("B24")
@pytest.mark.badinput("B26")
def test_certificates_that_do_not_count_are_refused_with_a_reason(bench: Bench, tmp_path: Path) -> None:
    old, early = bench.signer("old", before=9, after=-5), bench.signer("early", before=-5, after=9)
    gone = bench.signer("gone")
    stranger = Bench(tmp_path / "other").signer()
    with pytest.raises(KeysError, match="plain common name"):
        bench.signer("*.example.org")
    bench.pki.revoked.append(x509.load_pem_x509_certificate((bench.pki.folder / "gone.crt").read_bytes()).serial_number)
    bench.pki.write_list()
    validator = Validator(bench.options)
    for signer, reason in (
        (old, Reason.EXPIRED),
        (early, Reason.NOT_YET_VALID),
        (gone, Reason.REVOKED),
        (stranger, Reason.UNKNOWN_CA),
    ):
        message = bench.message(signer)
        for _ in range(2):  # the second time from memory
            assert reason_of(lambda message=message: validator.check(message)) is reason
    day_before = bench.pki.now.timestamp() - 2 * 86400
    assert validator.authorities.known[0].crl.serials
    assert reason_of(lambda: validator.check(bench.message(gone), at=day_before)) is Reason.NOT_YET_VALID


@pytest.mark.badinput("B25")
def test_a_list_that_has_expired_refuses_everything_until_a_new_one_is_there(bench: Bench) -> None:
    clock = ManualClock(wall=bench.pki.now.timestamp())
    signer = bench.signer(after=400)
    bench.pki.certificate = bench.pki.sign("test CA", bench.pki.key, ca=True, after=400)
    (bench.pki.folder / "ca.crt").write_bytes(bench.pki.certificate.public_bytes(PEM))
    validator = Validator(bench.options, clock=clock)
    message = bench.message(signer)
    assert validator.check(message).name == "koji"
    clock.advance(2 * 86400)
    assert reason_of(lambda: validator.check(message)) is Reason.CRL
    assert not validator.refresh()
    bench.pki.write_list(after=100)
    assert validator.refresh()
    assert validator.check(message).name == "koji"


def test_a_certificate_that_is_revoked_later_is_refused_once_the_list_is_read(bench: Bench) -> None:
    validator = Validator(bench.options)
    message = bench.message(bench.signer())
    assert validator.check(message).name == "koji"
    bench.pki.revoked.append(x509.load_pem_x509_certificate((bench.pki.folder / "koji.crt").read_bytes()).serial_number)
    bench.pki.write_list()
    assert validator.refresh()
    assert reason_of(lambda: validator.check(message)) is Reason.REVOKED


def test_files_that_cannot_be_used_are_errors_at_first_and_refused_later(bench: Bench) -> None:
    with pytest.raises(KeysError, match="no such file"):
        Validator(replace(bench.options, ca=bench.pki.folder / "missing"))
    with pytest.raises(KeysError, match="revocation list"):
        Validator(replace(bench.options, crl=bench.pki.folder / "ca.crt"))
    validator = Validator(bench.options)
    message = bench.message(bench.signer())
    (bench.pki.folder / "crl.pem").write_text("rubbish")
    assert not validator.refresh()
    assert validator.check(message).name == "koji"


def test_a_number_for_replay_that_is_added_behind_the_signature_is_left_out(bench: Bench) -> None:
    validator = Validator(bench.options)
    good = bench.message(bench.signer())
    members = {**good.fields, "seq_id": 7, "signature": good.signature, "certificate": good.certificate}
    accepted, identity = validator.accept(codec.from_fields(members))
    assert identity.name == "koji"
    assert "seq_id" not in accepted.fields and accepted.signed == good.signed


@pytest.mark.badinput("B27")
def test_the_policy_lists_who_may_say_what() -> None:
    policy = RoutingPolicy([("a.b.c", ["x"]), ("a.b.#", ["y"]), ("a.*.d", ["z"])], nitpicky=True)
    policy.check("a.b.c", "x")
    policy.check("a.b.e", "y")
    policy.check("a.b.d", "z")
    for topic, signer in (("a.b.c", "y"), ("a.b.e", "x"), ("q.r", "x"), ("a.b.c", "")):
        assert reason_of(lambda topic=topic, signer=signer: policy.check(topic, signer)) is Reason.POLICY
    lax = RoutingPolicy([("a.b.c", ["x"])], nitpicky=False)
    lax.check("q.r", "anybody")
    assert reason_of(lambda: lax.check("a.b.c", "anybody")) is Reason.POLICY


def test_keys_that_others_can_read_or_that_are_no_rsa_are_refused(bench: Bench) -> None:
    bench.signer()
    pki = bench.pki.folder
    (pki / "koji.key").chmod(0o640)
    with pytest.raises(KeysError, match="0640"):
        FedmsgSigner.load(pki / "koji.crt", pki / "koji.key")
    (pki / "koji.key").chmod(0o600)
    bench.signer("bodhi")
    with pytest.raises(KeysError, match="does not belong"):
        FedmsgSigner.load(pki / "bodhi.crt", pki / "koji.key")
