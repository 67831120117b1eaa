"""The settings of the relay: what they fill, what is refused, and that the page of the documentation is right."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from fedbus.config.init import create
from fedbus.config.settings import Settings, schema
from fedbus.config.units import parse_duration, parse_size
from fedbus.errors import ConfigError
from fedbus.transport.options import RelayOptions, RelayRule

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create(tmp_path / "bus", ["koji.build01", "koji.hook01"])
    return tmp_path / "bus"


def write(folder: Path, text: str) -> None:
    path = folder / "40-relay.yaml"
    path.write_text(text)
    path.chmod(0o600)


def test_without_settings_the_relay_is_for_its_own_user_and_no_endpoint_is_its(folder: Path) -> None:
    settings = Settings.load(folder, {})
    assert settings.relay == RelayOptions(socket=folder / "state/relay.sock")
    assert settings.relay.mode == "0600"
    assert settings.spools == folder / "state/spool"
    assert not any(one.relay for one in settings.endpoints.values())


def test_every_setting_fills_its_option(folder: Path) -> None:
    endpoints = folder / "20-endpoints.yaml"
    endpoints.write_text(endpoints.read_text().replace("  koji.hook01:\n", "  koji.hook01:\n    relay: true\n"))
    write(
        folder,
        """\
relay:
  socket: /run/fedbus/relay.sock
  mode: "0660"
  group: 1000
  allow:
    - {endpoints: ["koji.*", bodhi.web01], users: [git, 33], groups: [hooks]}
    - {endpoints: ["*.web01"]}
  connections: 10
  request_timeout: 1s
  idle_timeout: 2m
  window: 5
  queue_bytes: 1MiB
  remember: 7
  spool_bytes: 2MiB
  http: "127.0.0.1:9142"
  drain_timeout: 3s
""",
    )
    settings = Settings.load(folder, {})
    assert settings.endpoint("koji.hook01").relay
    assert not settings.endpoint("koji.build01").relay
    assert settings.relay == RelayOptions(
        socket=Path("/run/fedbus/relay.sock"),
        mode="0660",
        group=1000,
        allow=(
            RelayRule(endpoints=("koji.*", "bodhi.web01"), users=("git", 33), groups=("hooks",)),
            RelayRule(endpoints=("*.web01",)),
        ),
        connections=10,
        request_timeout=1.0,
        idle_timeout=120.0,
        window=5,
        queue_bytes=2**20,
        remember=7,
        spool_bytes=2**21,
        http="127.0.0.1:9142",
        drain_timeout=3.0,
    )


@pytest.mark.badinput("B47")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mode: '660'", "four octal digits"),
        ("mode: 0660", "octal"),
        ("group: ''", "relay.group is empty"),
        ("group: -1", "at least 0"),
        ("allow: [{users: [git]}]", "lacks the key 'endpoints'"),
        ("allow: [{endpoints: [koji]}]", "is no endpoint's name"),
        ("allow: [{endpoints: ['koji.b*']}]", "is no endpoint's name"),
        ("allow: [{endpoints: [koji.a], user: [git]}]", "did you mean 'users'?"),
        ("allow: [{endpoints: [koji.a], users: [true]}]", "a name, or a number"),
        ("http: '127.0.0.1:0'", "between 1 and 65535"),
        (f"socket: {'x' * 120}", "at most 103 bytes"),
        ("port: 1", "unknown key 'relay.port'"),
    ],
)
def test_what_does_not_fit_is_told_with_its_line(folder: Path, text: str, said: str) -> None:
    write(folder, f"relay:\n  {text}\n")
    with pytest.raises(ConfigError) as caught:
        Settings.load(folder, {})
    assert any("40-relay.yaml:2: " in one and said in one for one in caught.value.problems), caught.value.problems


def test_the_socket_in_a_deep_state_folder_is_told_only_where_a_relay_is_used(folder: Path) -> None:
    write(folder, f"state: /{'x' * 120}\n")
    Settings.load(folder, {})
    write(folder, f"state: /{'x' * 120}\nendpoints: {{koji.hook01: {{publish: 'tcp://127.0.0.1:1', relay: true}}}}\n")
    with pytest.raises(ConfigError) as caught:
        Settings.load(folder, {})
    assert any("at most 103 bytes" in one for one in caught.value.problems), caught.value.problems


def test_every_option_can_be_set_and_nothing_else() -> None:
    part = schema()["properties"]["relay"]
    assert set(part["properties"]) == {field.name for field in dataclasses.fields(RelayOptions)}
    rule = part["properties"]["allow"]["items"]
    assert set(rule["properties"]) == {field.name for field in dataclasses.fields(RelayRule)}


def test_the_defaults_in_the_documentation_are_those_in_force(tmp_path: Path) -> None:
    page = (ROOT / "doc" / "configuration.rst").read_text("utf-8")
    options = RelayOptions(socket=tmp_path)
    found = dict(re.findall(r"\* - ``relay\.(\w+)``\n     - ``\"?(\S+?)\"?``\n", page))
    assert len(found) >= 9
    for name, default in found.items():
        value = getattr(options, name)
        shown: object = default
        if isinstance(value, float):
            shown = parse_duration(default)
        elif isinstance(value, int):
            shown = parse_size(default)
        assert shown == value, name
