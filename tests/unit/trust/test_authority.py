"""The CA in a folder: what it writes, and that it can be stopped anywhere."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509
from forging import STATEMENT

from fedbus.errors import KeysError
from fedbus.model.topic import Naming
from fedbus.trust import authority as module
from fedbus.trust.authority import Authority
from fedbus.trust.files import write_atomic
from fedbus.trust.keyring import Keyring, KeyringOptions
from fedbus.trust.policy import Policy
from fedbus.trust.signer import Signer
from fedbus.trust.verifier import Verifier


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def crl_numbers(authority: Authority) -> list[int]:
    blocks = authority.crl_path.read_bytes().split(b"-----END X509 CRL-----")[:-1]
    lists = [x509.load_pem_x509_crl(block + b"-----END X509 CRL-----") for block in blocks]
    return [one.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number for one in lists]


def works(authority: Authority, clock, name: str = "koji.build01") -> bool:
    """Whether a publisher that starts now can sign, and a subscriber that starts now believes it."""
    pair = (authority.directory / f"{name}.crt", authority.directory / f"{name}.key")
    signer = Signer.load(name, *pair, clock=clock)
    options = KeyringOptions(ca=authority.certificate_path, crl=authority.crl_path)
    verifier = Verifier(Keyring.load(options, clock=clock), Policy(Naming()), clock=clock)
    return verifier.check(signer.certificate, signer.sign(STATEMENT), STATEMENT).name == name


def test_keys_are_for_their_owner_only_and_the_folder_too(authority, signer):
    assert mode(authority.directory) == 0o700
    for path in authority.directory.glob("*.key*"):
        assert mode(path) == 0o600
    assert mode(authority.certificate_path) == 0o644


def test_an_issued_certificate_names_its_endpoint_and_nothing_more(authority, signer, clock):
    certificate = x509.load_der_x509_certificate(signer.certificate)
    extensions = certificate.extensions
    assert extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.UniformResourceIdentifier("fedbus:koji.build01")]
    assert certificate.not_valid_before_utc.timestamp() == clock.wall() - 300


@pytest.mark.badinput("B26")
@pytest.mark.parametrize(
    "name", ["", "ca", "Koji.build01", "koji.*", "../koji", "koji/x", "koji\0", "k" * 65, ".koji", "köji.x"]
)
def test_a_name_that_no_verifier_would_take_is_not_issued(authority, name):
    with pytest.raises(KeysError, match="cannot be the name of an endpoint"):
        authority.issue(name)


def test_neither_a_ca_nor_a_certificate_is_overwritten(authority, signer):
    with pytest.raises(KeysError, match=r"a CA in .* already"):
        Authority.create(authority.directory, common_name="Again")
    with pytest.raises(KeysError, match=r"fedbus keys rotate koji.build01"):
        authority.issue("koji.build01")


def test_the_number_of_the_list_grows_and_revocations_survive_its_loss(authority, signer, clock):
    authority.revoke("koji.build01", "keyCompromise")
    before = crl_numbers(authority)[0]
    authority.crl_path.unlink()
    Authority.open(authority.directory, clock=clock).write_crl()
    assert crl_numbers(authority) == [before + 1]
    revoked = x509.load_pem_x509_crl(authority.crl_path.read_bytes())
    serial = x509.load_der_x509_certificate(signer.certificate).serial_number
    entry = revoked.get_revoked_certificate_by_serial_number(serial)
    assert entry.extensions.get_extension_for_class(x509.CRLReason).value.reason is x509.ReasonFlags.key_compromise


def test_one_serial_is_revoked_without_the_others_of_its_name(authority, signer):
    old = x509.load_der_x509_certificate(signer.certificate).serial_number
    authority.rotate("koji.build01")
    assert [one.serial for one in authority.revoke(f"{old:X}")] == [old]
    assert authority.revoke(old) == ()
    states = {one.serial == old: (one.current, one.revoked_at is not None) for one in authority.list()}
    assert states == {True: (False, True), False: (True, False)}


def test_nothing_unknown_is_revoked_and_no_reason_is_made_up(authority, signer):
    with pytest.raises(KeysError, match="no certificate bodhi"):
        authority.revoke("bodhi.web01")
    for reason in ("because", "removeFromCRL", "certificateHold"):
        with pytest.raises(KeysError, match="no reason to revoke"):
            authority.revoke("koji.build01", reason)


class Stopped(BaseException):
    """Power off, as far as the plan can tell."""


def stop_before_write(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    writes = []

    def write(path: Path, data: bytes, *, mode: int) -> None:
        if len(writes) == number:
            raise Stopped
        writes.append(path)
        write_atomic(path, data, mode=mode)

    monkeypatch.setattr(module, "write_atomic", write)


@pytest.mark.parametrize("plan", ["rotate", "roll_over", "revoke", "write_crl"])
def test_a_plan_stopped_before_any_of_its_writes_leaves_working_keys_and_can_be_run_again(
    authority, signer, clock, monkeypatch, plan
):
    authority.issue("bodhi.web01")
    plans = {
        "rotate": lambda: authority.rotate("koji.build01"),
        "roll_over": authority.roll_over,
        "revoke": lambda: authority.revoke("bodhi.web01"),
        "write_crl": authority.write_crl,
    }
    stopped = 0
    for number in range(20):
        with monkeypatch.context() as patch:
            stop_before_write(patch, number)
            try:
                plans[plan]()
            except Stopped:
                stopped += 1
                assert works(authority, clock)
                continue
        break
    assert stopped >= 1
    assert works(authority, clock)
    authority.rotate("koji.build01")
    assert works(authority, clock)


def test_a_first_issue_that_was_stopped_can_be_run_again(authority, clock, monkeypatch):
    for number in range(3):
        with monkeypatch.context() as patch:
            stop_before_write(patch, number)
            with pytest.raises(Stopped):
                authority.issue("koji.build01")
    authority.issue("koji.build01")
    assert works(authority, clock)


def test_a_ca_that_was_stopped_while_made_can_be_made_again(tmp_path, clock, monkeypatch):
    for number in range(2):
        with monkeypatch.context() as patch:
            stop_before_write(patch, number)
            with pytest.raises(Stopped):
                Authority.create(tmp_path / "new", common_name="CA", clock=clock)
    authority = Authority.create(tmp_path / "new", common_name="CA", clock=clock)
    authority.issue("koji.build01")
    assert works(authority, clock)


@pytest.mark.badinput("B45")
def test_an_exposed_ca_key_is_not_used(authority):
    authority.key_path.chmod(0o640)
    with pytest.raises(KeysError, match="0640"):
        Authority.open(authority.directory)


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    target = folder / "file"
    target.mkdir()  # a rename over it fails
    with pytest.raises(KeysError, match="cannot write"):
        write_atomic(target, b"new", mode=0o600)
    assert list(folder.iterdir()) == [target]


def test_two_at_once_take_turns_and_no_list_number_is_used_twice(authority, clock):
    def renew() -> None:
        mine = Authority.open(authority.directory, clock=clock)
        for _ in range(10):
            mine.write_crl()

    first = crl_numbers(authority)[0]
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(renew), pool.submit(renew)]:
            done.result(timeout=180)
    assert crl_numbers(authority) == [first + 20]


def test_a_folder_without_a_ca_says_how_to_make_one(tmp_path):
    with pytest.raises(KeysError, match="fedbus keys ca"):
        Authority(tmp_path / "nowhere").list()
