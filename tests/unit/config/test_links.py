"""The parts of the configuration that encrypt links and guard them."""

from __future__ import annotations

import pytest

from fedbus.config.init import create
from fedbus.config.settings import Settings
from fedbus.errors import ConfigError
from fedbus.transport.options import LinkOptions
from fedbus.trust import curve

KEY = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"  # the example of zmq_curve(7)


@pytest.fixture
def write(tmp_path):
    """Write a configuration with these lines behind `endpoints`, and return the settings."""

    def load(text: str) -> Settings:
        folder = tmp_path / "conf"
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / "a.yaml"
        path.write_text(f"topic_prefix: org.example\nenvironment: dev\n{text}")
        path.chmod(0o600)
        return Settings.load(folder, {})

    return load


PLAIN = "endpoints:\n  koji.build01:\n    publish: tcp://127.0.0.1:3000\n    replay: tcp://127.0.0.1:3001\n"


def test_links_are_plain_and_open_to_all_unless_something_else_is_written(write):
    settings = write(PLAIN)
    assert settings.links == LinkOptions()
    endpoint = settings.endpoint("koji.build01")
    assert (endpoint.curve, endpoint.also) == ("", None)


def test_the_keys_of_links_are_read(write, tmp_path):
    settings = write(
        f'{PLAIN}    curve: "{KEY}"\n    curve_key: secret/koji\n'
        "    also: {publish: tcp://127.0.0.1:3002, replay: tcp://127.0.0.1:3003}\n"
        "links: {key: secret/link, clients: secret/clients, connections: 10, connections_per_address: 5,\n"
        "  subscriptions: 7, ban: 2m}\n"
    )
    folder = tmp_path / "conf"
    endpoint = settings.endpoint("koji.build01")
    assert (endpoint.curve, endpoint.curve_key) == (KEY, folder / "secret/koji")
    assert endpoint.also is not None
    assert (endpoint.also.publish, endpoint.also.curve) == ("tcp://127.0.0.1:3002", "")
    assert settings.links == LinkOptions(
        key=folder / "secret/link",
        clients=folder / "secret/clients",
        connections=10,
        connections_per_address=5,
        subscriptions=7,
        ban=120.0,
    )


def test_any_client_is_what_it_says(write):
    assert write(f"{PLAIN}links: {{clients: any}}\n").links.clients is None


def test_the_key_file_of_an_endpoint_has_its_name_unless_told_otherwise(write, tmp_path):
    text = f'{PLAIN}    curve: "{KEY}"\n    also: {{publish: tcp://h:1, replay: tcp://h:2, curve: "{KEY}"}}\n'
    endpoint = write(text).endpoint("koji.build01")
    assert endpoint.curve_key == tmp_path / "conf/keys/koji.build01.curve"
    assert endpoint.also is not None and endpoint.also.curve_key == endpoint.curve_key


@pytest.mark.badinput("B47")
@pytest.mark.parametrize(
    ("line", "told"),
    [
        (f'    curve: "{KEY[1:]}"', r"curve must be a public key in double quotes"),
        (f"    curve: {'%' * 40!r}", r"curve: not the public key of a CURVE pair"),
        ("    curve: 5", r"curve must be a public key"),
        ("    also: {publish: tcp://127.0.0.1:3002}", r"also lacks the key 'replay'"),
        ("    also: {publish: tcp://127.0.0.1:3000, replay: tcp://h:1}", r"3000 is in use already"),
        ("links: {clients: []}", r"links.clients must be any, or the path"),
        ("links: {connections: 0}", r"links.connections must be at least 1"),
        ("links: {bans: 5}", r"did you mean 'ban'"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_line(write, line, told):
    with pytest.raises(ConfigError, match=rf"a\.yaml:\d+: .*{told}"):
        write(f"{PLAIN}{line}\n")


def test_an_encrypted_set_up_fits_together(tmp_path):
    create(tmp_path / "bus", ["koji.build01", "bodhi.web01"], encrypted=True)
    settings = Settings.load(tmp_path / "bus", {})
    for name, endpoint in settings.endpoints.items():
        assert curve.load_pair(endpoint.curve_key).public == endpoint.curve, name
    assert settings.links.clients is not None
    own = curve.load_pair(settings.links.key)
    assert curve.load_clients(settings.links.clients) == {curve.raw(own.public): "this host"}


def test_with_force_the_keys_of_links_are_kept(tmp_path):
    create(tmp_path / "bus", ["koji.build01"], encrypted=True)
    before = Settings.load(tmp_path / "bus", {}).endpoint("koji.build01").curve
    create(tmp_path / "bus", ["koji.build01", "bodhi.web01"], encrypted=True, force=True)
    after = Settings.load(tmp_path / "bus", {})
    assert after.endpoint("koji.build01").curve == before
    assert after.endpoint("bodhi.web01").curve not in ("", before)
