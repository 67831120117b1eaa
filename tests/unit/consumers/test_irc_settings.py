"""The settings of the relay: what they mean, and how faults in them are told."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fedbus_consumers.irc import IrcRelay
from fedbus_consumers.irc_parts.rules import Rule, Seen
from fedbus_consumers.irc_parts.settings import _COLOURS, SCHEMA, ChannelOptions, NetworkOptions, Secret

from fedbus import ConfigError, Text
from fedbus.hub.options import ConsumerSettings
from fedbus.hub.registry import find
from tests.support import wait_until

ROOT = "org.x.dev"


def seen(topic: str = f"{ROOT}.koji.package.build", body: dict[str, Any] | None = None, summary: str = "") -> Seen:
    message: Any = SimpleNamespace(topic=topic, body=body or {})
    return Seen(message, Text("a title", summary))


def holds(rule: dict[str, Any], **more: Any) -> bool:
    return Rule(rule, ROOT, "here").holds(seen(**more))


def problems(settings: dict[str, Any]) -> list[str]:
    """What the hub says of *settings*."""
    wanted = ConsumerSettings(name="announce", use="fedbus_consumers.irc", settings=settings, origin="bus.yaml:7")
    return find({"announce": wanted}).problems


def network(**more: Any) -> dict[str, Any]:
    return {"server": "irc.example.org", "nick": "fedbus", "channels": {"#a": {}}, **more}


def test_no_networks_are_valid_settings_and_the_relay_idles(caplog: pytest.LogCaptureFixture) -> None:
    assert problems({"networks": {}}) == []
    relay = IrcRelay(networks={})
    relay.start()
    relay.consume(SimpleNamespace(topic="a.b", body={}))  # type: ignore[arg-type]
    relay.stop()
    assert "no networks are configured" in caplog.text


@pytest.mark.parametrize("server", ["::1", "[::1]"])
def test_a_server_may_be_an_ipv6_address_however_it_is_written(server: str) -> None:
    secret = {"env": "SECRET"}
    wanted = network(server=server, tls=False, sasl={"mechanism": "PLAIN", "password": secret})
    assert problems({"networks": {"a": wanted}}) == []
    options = NetworkOptions("a", wanted, ROOT)
    assert (options.server, options.tls_name) == ("::1", "::1")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "'networks' is a required property"),
        ({"networks": {"a": network(nick="1x")}}, "networks.a.nick"),
        ({"networks": {"a": network(nick="a\nQUIT")}}, "networks.a.nick"),
        ({"networks": {"a": network(channels={"nochannel": {}})}}, "nochannel"),
        ({"networks": {"a": network(channels={"#a,#b": {}})}}, "#a,#b"),
        ({"networks": {"a": network(channels={"#a": {"color": True}})}}, "'color' was unexpected"),
        ({"networks": {"a": network(password="secret")}}, "networks.a.password"),
        ({"networks": {"a": network(password={"file": "a", "env": "B"})}}, "networks.a.password"),
        ({"networks": {"a": network(realname="a\r\nOPER")}}, "networks.a.realname"),
        ({"networks": {"a": network(channels={"#a": {"colours": {"koji": "puce"}}})}}, "'puce' is none of"),
        ({"networks": {"a": network(channels={"#a": {"deny": [{"text": ["(a"]}]}})}}, "is no regular expression"),
        ({"networks": {"a": network(channels={"#a": {"deny": [{"text": ["x" * 501]}]}})}}, "deny[0].text[0]"),
        ({"networks": {"a": network(channels={"#a": {"topics": ["koji..x"]}})}}, "channels.#a.topics"),
        ({"networks": {"a": network(retry_pause="soon")}}, "is not a duration"),
        ({"networks": {"a": network(sasl={"mechanism": "PLAIN"})}}, "PLAIN needs a password"),
        ({"networks": {"a": network(sasl={"mechanism": "EXTERNAL"})}}, "EXTERNAL shows a certificate"),
        (
            {"networks": {"a": network(tls=False, sasl={"mechanism": "PLAIN", "password": {"env": "X"}})}},
            "PLAIN sends the password as it is",
        ),
    ],
)
def test_a_fault_in_the_settings_is_told_with_its_place(settings: dict[str, Any], expected: str) -> None:
    (problem,) = problems(settings)
    assert expected in problem
    assert "bus.yaml:7" in problem


def test_all_faults_of_all_networks_are_told_together() -> None:
    bad = network(channels={"#a": {"colours": {"koji": "puce"}}})
    with pytest.raises(ConfigError) as caught:
        IrcRelay(networks={"a": bad, "b": bad})
    assert len(caught.value.problems) == 2


def test_a_rule_holds_when_everything_it_names_does() -> None:
    body = {"package": "bash", "n": 1, "ok": True, "build": {"state": "failed"}, "tags": ["a", "b"], "none": None}
    assert holds({"fields": {"package": "bash", "build.state": ["failed", "cancelled"], "tags.1": "b"}}, body=body)
    assert not holds({"fields": {"package": "bash", "build.state": "ok"}}, body=body)
    assert not holds({"fields": {"missing": None}}, body=body)
    assert holds({"fields": {"none": None}}, body=body)
    assert not holds({"fields": {"ok": 1}}, body=body)
    assert not holds({"fields": {"n": True}}, body=body)
    assert not holds({"fields": {"tags.7": "b"}}, body=body)
    assert holds({"patterns": {"build.state": "^fail"}}, body=body)
    assert not holds({"patterns": {"build": "fail"}}, body=body)
    assert holds({"body": ['"state":"failed"']}, body=body)
    assert holds({"text": ["nothing", "(?i)KERNEL"]}, summary="the kernel is built")
    assert not holds({"text": ["kernel"], "topics": ["git"]}, summary="the kernel is built")


@pytest.mark.parametrize("topics", [["koji"], ["koji.package.#"], ["*.package"], ["org.x.dev.koji"], ["#"]])
def test_topics_may_be_written_with_the_prefix_of_the_bus_or_without(topics: list[str]) -> None:
    assert holds({"topics": topics})


def test_a_channel_gets_what_is_allowed_and_not_denied() -> None:
    channel = ChannelOptions(
        "#a",
        {
            "topics": ["koji", "git"],
            "allow": [{"fields": {"package": "bash"}}, {"topics": ["git"]}],
            "deny": [{"text": ["secret"]}],
        },
        ROOT,
        "here",
    )
    assert channel.wants(seen(body={"package": "bash"}))
    assert not channel.wants(seen(body={"package": "zsh"}))
    assert channel.wants(seen(topic=f"{ROOT}.git.push"))
    assert not channel.wants(seen(topic=f"{ROOT}.git.push", summary="a secret thing"))
    assert not channel.wants(seen(topic=f"{ROOT}.bodhi.update", body={"package": "bash"}))


def test_colours_are_those_configured_or_always_the_same_for_a_service() -> None:
    channel = ChannelOptions("#a", {"colours": {"koji.package": "red"}}, ROOT, "here")
    assert channel.colour(f"{ROOT}.koji.package.build", "koji") == 4
    assert channel.colour(f"{ROOT}.koji.tag", "koji") == channel.colour(f"{ROOT}.koji.other", "koji")
    assert not ChannelOptions("#a", {"colours": False}, ROOT, "here").colours


# the pattern backtracks for ever in engines that do so: the text has no b
@pytest.mark.badinput("B16")
@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|a)*b", "(a*)*b", "(.*a){25}b", "^(([a-z])+.)+[A-Z]([a-z])+$"])
def test_a_regular_expression_made_to_take_for_ever_does_not(pattern: str) -> None:
    code = (
        "import sys\n"
        "from fedbus_consumers.irc_parts.rules import Regex\n"
        f"assert not Regex({pattern!r}, 'here').found_in('a' * 10**6)\n"
    )
    # in a process of its own, which can be killed: an engine that backtracks would need more than the age of the world
    done = subprocess.run([sys.executable, "-c", code], timeout=180, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.badinput("B16")
@pytest.mark.parametrize("pattern", ["(a{1000}){1000}", "((a{100}){100}){100}", r"(a)\1", "(?=a)", "(" * 400, "\udcff"])
def test_a_regular_expression_that_cannot_be_linear_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match="is no regular expression"):
        Rule({"text": [pattern]}, "", "here")


def test_a_regular_expression_that_is_refused_is_shown_as_it_was_written() -> None:
    for pattern, shown in ((r"^\d+\.(el9", r"'^\d+\.(el9'"), ("(\x1b[31m", r"'(\x1b[31m'")):
        with pytest.raises(ConfigError) as caught:
            Rule({"text": [pattern]}, "", "here")
        assert f"here.text: {shown} is no regular expression: " in str(caught.value)


def test_a_password_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "password"
    path.write_text("correct horse\n")
    path.chmod(0o600)
    assert Secret(file=str(path)).read() == "correct horse"
    monkeypatch.setenv("IRC_PASSWORD", "battery")
    assert Secret(env="IRC_PASSWORD").read() == "battery"


@pytest.mark.parametrize("content", [b"", b"two\nlines\n", b"a\0b", b"x" * 500, b"\xff"])
def test_a_file_that_holds_no_password_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "password"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="password") as caught:
        Secret(file=str(path)).read()
    assert "two" not in str(caught.value)


def test_a_password_that_everybody_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("secret")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        Secret(file=str(path)).read()
    with pytest.raises(ConfigError, match="not set"):
        Secret(env="NO_SUCH_VARIABLE_HERE").read()
    with pytest.raises(ConfigError, match="cannot be read"):
        Secret(file=str(tmp_path / "none")).read()


def test_a_network_that_cannot_be_reached_does_not_hold_up_the_hub() -> None:
    relay = IrcRelay(networks={"a": network(server="127.0.0.1", port=1, tls=False)}, linger=0)
    relay.start()
    try:
        for number in range(2000):
            relay.consume(SimpleNamespace(topic="org.x.dev.koji", body={"i": number}))  # type: ignore[arg-type]
        (one,) = relay._networks
        backlog = one.channels[0].backlog
        assert len(backlog) == 30
        assert backlog.left_out == 1970
    finally:
        relay.stop()
    wait_until(lambda: relay._thread is None)


def test_the_lines_of_a_network_default_to_what_rfc_1459_bears() -> None:
    options = NetworkOptions("a", network(), ROOT)
    assert (options.lines_per_second, options.burst, options.tls, options.port) == (0.5, 4, True, 6697)


def keys_of(part: dict[str, Any]) -> set[str]:
    """All names of settings below *part* of a schema."""
    found = set(part.get("properties", {}))
    for inner in part.get("properties", {}).values():
        found |= keys_of(inner)
    for name in ("items", "additionalProperties"):
        if isinstance(part.get(name), dict):
            found |= keys_of(part[name])
    return found


def test_every_setting_and_every_colour_is_on_the_page_about_irc() -> None:
    page = (Path(__file__).parents[3] / "doc" / "irc.rst").read_text("utf-8")
    words = set(re.findall(r"[a-z_]+", " ".join(re.findall(r"``([^`]*)``", page)) + page.partition("Settings\n---")[2]))
    assert keys_of(SCHEMA) <= words
    assert set(_COLOURS) <= words


def test_without_its_libraries_the_extra_is_named() -> None:
    code = "import sys\nsys.modules['pydle'] = None\nimport fedbus_consumers.irc\n"
    done = subprocess.run([sys.executable, "-c", code], timeout=180, check=False, capture_output=True, text=True)
    assert "pip install 'fedbus[irc]'" in done.stderr.splitlines()[-1]
