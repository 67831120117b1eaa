"""The command `fedbus keys`, as people and scripts meet it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from fedbus.cli.keys import keys
from fedbus.errors import KeysError


@pytest.fixture
def run(tmp_path):
    def call(*arguments: str, stdin: bytes | None = None) -> Result:
        command, *rest = arguments
        where = ["--dir", str(tmp_path / "keys")]
        result = CliRunner().invoke(keys, [command, *where, *rest], obj={"config": None}, input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    assert call("ca", "--name", "Test CA").exit_code == 0
    return call


def test_a_certificate_is_issued_shown_listed_and_verified(run):
    issued = json.loads(run("issue", "koji.build01", "bodhi.web01", "--json").stdout)
    assert set(issued) == {"koji.build01", "bodhi.web01"}
    shown = json.loads(run("show", "koji.build01", "--json").stdout)
    assert shown[0]["names"] == ["koji.build01"]
    assert shown == json.loads(run("show", issued["koji.build01"]["certificate"], "--json").stdout)
    assert "ECDSA secp256r1" in run("show", "koji.build01").stdout
    listed = json.loads(run("list", "--json").stdout)
    assert [one["name"] for one in listed] == ["bodhi.web01", "koji.build01"]
    assert "current" in run("list").stdout
    verified = run("verify", "koji.build01")
    assert (verified.exit_code, verified.stdout.split()[:2]) == (0, ["trusted:", "koji.build01"])


def test_a_certificate_may_come_from_stdin(run, tmp_path):
    run("issue", "koji.build01")
    data = (tmp_path / "keys/koji.build01.crt").read_bytes()
    assert run("verify", "-", stdin=data).stdout.startswith("trusted: koji.build01")
    assert run("show", "-", "--json", stdin=data).stdout == run("show", "koji.build01", "--json").stdout
    with pytest.raises(KeysError, match="cannot read certificate -: it holds none in PEM or DER form"):
        run("verify", "-", stdin=b"")


def test_verify_exits_with_4_and_a_reason_when_a_certificate_is_not_trusted(run):
    run("issue", "koji.build01")
    run("revoke", "koji.build01", "--reason", "keyCompromise")
    result = run("verify", "koji.build01")
    assert result.exit_code == 4
    assert "not trusted (revoked)" in result.stderr
    assert result.stdout == ""
    result = run("verify", "koji.build01", "--json")
    assert (result.exit_code, json.loads(result.stdout)["reason"]) == (4, "revoked")


@pytest.mark.parametrize("command", ["issue", "rotate"])
def test_a_name_that_can_be_none_is_an_error_of_usage_and_no_other_is_issued(run, command):
    result = run(command, "koji.build01", "Koji.build02")
    assert result.exit_code == 2
    assert "'Koji.build02' cannot be the name of an endpoint" in result.stderr
    assert json.loads(run("list", "--json").stdout) == []


def test_an_unknown_reason_to_revoke_is_an_error_of_usage_that_lists_those_there_are(run):
    run("issue", "koji.build01")
    result = run("revoke", "koji.build01", "--reason", "because")
    assert result.exit_code == 2
    assert "keyCompromise" in result.stderr
    assert run("verify", "koji.build01").exit_code == 0


def test_revoking_says_what_follows_and_what_to_do(run):
    run("issue", "koji.build01")
    run("rotate", "koji.build01")
    first, second = (one["serial"] for one in json.loads(run("list", "--json").stdout))
    current = {one["serial"]: one["current"] for one in json.loads(run("list", "--json").stdout)}
    old, new = (first, second) if current[second] else (second, first)
    told = run("revoke", old).stderr
    assert "1 certificate of koji.build01 revoked" in told
    assert "fedbus keys rotate" not in told  # the current one still counts
    result = run("revoke", "koji.build01")
    assert result.stdout == f"revoked koji.build01 {new} (unspecified)\n"
    assert "koji.build01 has no certificate that readers accept until: fedbus keys rotate koji.build01" in result.stderr
    assert "bring " in result.stderr
    run("rotate", "koji.build01")
    run("rotate", "koji.build01")
    assert "2 certificates of koji.build01 revoked" in run("revoke", "koji.build01").stderr


@pytest.mark.fault("F22")
def test_check_returns_what_monitoring_expects(run, tmp_path):
    run("issue", "koji.build01")
    assert (run("check").exit_code, run("check").stdout[:8]) == (0, "KEYS OK ")
    run("issue", "bodhi.web01", "--days", "20")
    result = run("check", "--json")
    assert (result.exit_code, json.loads(result.stdout)["status"]) == (1, "WARNING")
    run("rotate", "bodhi.web01", "--days", "1")
    result = run("check")
    assert (result.exit_code, result.stdout.split(" - ")[0]) == (2, "KEYS CRITICAL")
    assert "fedbus keys rotate bodhi.web01" in result.stdout
    run("rotate", "bodhi.web01")
    assert run("check").exit_code == 0
    (tmp_path / "keys" / "crl.pem").unlink()
    assert run("check").exit_code == 2
    run("crl")
    assert run("check").exit_code == 0
    (tmp_path / "keys" / "ca.crt").unlink()
    assert (run("check").exit_code, run("check").stdout[:12]) == (3, "KEYS UNKNOWN")


def test_a_ca_is_rolled_over_from_the_command_line(run):
    run("issue", "koji.build01")
    assert run("roll-ca").exit_code == 0
    assert run("verify", "koji.build01").exit_code == 0
    run("rotate", "koji.build01", "--algorithm", "ed25519")
    assert run("verify", "koji.build01").exit_code == 0
    assert "Ed25519" in run("show", "koji.build01").stdout


def test_a_certificate_from_a_stranger_cannot_command_the_terminal(run):
    run("roll-ca", "--name", "evil\x1b[2J CA")
    run("issue", "koji.build01")
    shown = run("show", "koji.build01").stdout
    assert "\x1b" not in shown
    assert "evil" in shown


def test_a_file_that_is_no_certificate_is_refused_with_its_path(run, tmp_path):
    path = tmp_path / "noise"
    for content in (b"", b"noise", b"-----BEGIN CERTIFICATE-----\n?", bytes(2**20 + 1)):
        path.write_bytes(content)
        with pytest.raises(KeysError, match="noise"):
            run("show", str(path))


@pytest.mark.parametrize("command", sorted(keys.commands))
def test_every_help_ends_with_examples(command):
    text = CliRunner().invoke(keys, [command, "--help"]).stdout
    assert f"fedbus keys {command}" in text.split("Examples:")[1]
