from __future__ import annotations

import socket
import stat

import pytest

from fedbus.config.init import create, free_ports
from fedbus.config.settings import Settings
from fedbus.errors import ConfigError
from fedbus.trust.keyring import Keyring
from fedbus.trust.signer import Signer


def test_a_new_set_up_loads_and_its_keys_fit(tmp_path):
    made = create(tmp_path / "bus", ["koji.build01", "bodhi.web01"], prefix="org.fedoraproject", environment="stg")
    settings = Settings.load(tmp_path / "bus", {})
    assert settings.naming.root == "org.fedoraproject.stg"
    assert settings.state == tmp_path / "bus/state"
    assert {name: (one.publish, one.replay) for name, one in settings.endpoints.items()} == made.endpoints
    keyring = Keyring.load(settings.keyring)
    assert [authority.crl is not None for authority in keyring.authorities] == [True]
    for name, endpoint in settings.endpoints.items():
        assert Signer.load(name, endpoint.certificate, endpoint.key).certificate


def test_all_that_is_made_is_private(tmp_path):
    directory = tmp_path / "deep" / "bus"
    made = create(directory, ["koji.build01"])
    assert [path.name for path in made.files] == ["10-bus.yaml", "20-endpoints.yaml", "30-policy.yaml"]
    modes = {
        str(path.relative_to(directory)): stat.S_IMODE(path.stat().st_mode)
        for path in (directory, *directory.rglob("*"))
    }
    assert {modes[name] for name in (".", "keys", "state")} == {0o700}
    assert {modes[name] for name in ("10-bus.yaml", "30-policy.yaml", "keys/ca.key", "keys/koji.build01.key")} == {
        0o600
    }
    assert not [name for name, mode in modes.items() if mode & 0o022]


@pytest.mark.parametrize("prefix", ["1.5", "no.on", "org.example", "2024-01.01"])
def test_a_prefix_or_name_that_looks_like_a_number_comes_back_as_text(tmp_path, prefix):
    create(tmp_path / "bus", ["1.5", "0.1"], prefix=prefix)
    settings = Settings.load(tmp_path / "bus", {})
    assert settings.naming.prefix == prefix
    assert set(settings.endpoints) == {"1.5", "0.1"}


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(ConfigError, match="is not empty; choose a new folder"):
        create(tmp_path, ["koji.build01"])
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_with_force_the_files_are_new_and_the_keys_are_kept(tmp_path):
    create(tmp_path / "bus", ["koji.build01"])
    kept = {name: (tmp_path / "bus/keys" / name).read_bytes() for name in ("ca.crt", "koji.build01.key")}
    create(tmp_path / "bus", ["koji.build01", "bodhi.web01"], force=True)
    assert set(Settings.load(tmp_path / "bus", {}).endpoints) == {"koji.build01", "bodhi.web01"}
    assert {name: (tmp_path / "bus/keys" / name).read_bytes() for name in kept} == kept
    assert (tmp_path / "bus/keys/bodhi.web01.crt").exists()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "bus").write_text("x")
    with pytest.raises(ConfigError, match="is no folder"):
        create(tmp_path / "bus", ["koji.build01"])


@pytest.mark.badinput("B47")
def test_all_bad_arguments_are_reported_together_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError) as caught:
        create(tmp_path / "bus", ["Koji", "a.b", "a.b"], prefix="org", environment="prod")
    assert len(caught.value.problems) == 4
    assert "write it in lower case: koji" in caught.value.problems[0]
    assert not (tmp_path / "bus").exists()
    with pytest.raises(ConfigError, match="no endpoint is named"):
        create(tmp_path / "bus", [])


def test_free_ports_are_all_different_and_can_be_bound():
    ports = free_ports(20)
    assert len(set(ports)) == 20
    with socket.socket() as held:
        held.bind(("127.0.0.1", ports[0]))
