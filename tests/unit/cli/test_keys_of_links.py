"""`fedbus keys curve` and `fedbus keys link`, as people and scripts meet them."""

from __future__ import annotations

import json
import socket

import pytest
from click.testing import CliRunner, Result

from fedbus.cli.keys import keys
from fedbus.trust import curve


@pytest.fixture
def run(tmp_path):
    def call(*arguments: str) -> Result:
        command, *rest = arguments
        (tmp_path / "keys").mkdir(mode=0o700, exist_ok=True)
        result = CliRunner().invoke(keys, [command, "--dir", str(tmp_path / "keys"), *rest], obj={"config": None})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


def test_a_pair_is_made_once_and_shown_as_the_endpoints_file_wants_it(run, tmp_path):
    first = run("curve", "koji.build01", "bodhi.web01")
    pair = curve.load_pair(tmp_path / "keys/koji.build01.curve")
    assert first.stdout.splitlines()[0] == f'koji.build01: {{curve: "{pair.public}"}}'
    assert "was made" in first.stderr
    again = run("curve", "koji.build01", "bodhi.web01")
    assert again.stdout == first.stdout
    assert "was made" not in again.stderr
    found = json.loads(run("curve", "koji.build01", "--json").stdout)
    assert found == {"koji.build01": {"curve": pair.public, "key": str(tmp_path / "keys/koji.build01.curve")}}


def test_a_second_pair_goes_into_a_file_of_its_own(run, tmp_path):
    run("curve", "koji.build01")
    run("curve", "koji.build01", "--out", str(tmp_path / "keys/next.curve"))
    old, new = (curve.load_pair(tmp_path / "keys" / name) for name in ("koji.build01.curve", "next.curve"))
    assert old != new
    assert run("curve", "koji.build01", "bodhi.web01", "--out", "x").exit_code == 2


def test_the_line_of_a_host_can_be_put_into_a_list_of_clients(run, tmp_path):
    line = run("link").stdout
    assert line.endswith(f" {socket.gethostname()}\n")
    other = run("link", "--name", "web 01").stdout
    assert other.split(" ", 1) == [line.split()[0], "web 01\n"]
    path = tmp_path / "clients"
    path.write_text(other)
    path.chmod(0o600)
    assert list(curve.load_clients(path).values()) == ["web 01"]
    found = json.loads(run("link", "--name", "web01", "--json").stdout)
    assert found == {"name": "web01", "curve": line.split()[0], "key": str(tmp_path / "keys/link.curve")}


@pytest.mark.parametrize("name", ["", " web01", "web\n01", "\x1b[31m"])
def test_a_name_that_would_break_the_list_is_refused(run, name):
    assert run("link", "--name", name).exit_code == 2
