"""The IRC relay, InspIRCd and atheme: accounts, SASL, and a server that ends whoever says too much."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.services.irc_servers import Client, Inspircd
from tests.services.relays import PATIENCE, Servers, flood, running, starting
from tests.support import wait_until

PASSWORD = "correct-horse-battery"


@pytest.fixture
def servers() -> Iterator[Servers]:
    with starting() as servers:
        yield servers


def register(client: Client) -> None:
    """Register the nick of *client* as an account."""
    client.send(f"PRIVMSG NickServ :REGISTER {PASSWORD} {client.nick}@example.org")
    client.wait(lambda line: line.command == "900", "being registered")


def with_account(servers: Servers, server: Inspircd, nick: str = "fedbot") -> None:
    """Make an account *nick* that nobody is on."""
    client = servers.client(server, nick)
    register(client)
    client.close()


def password(tmp_path: Path, text: str = PASSWORD) -> dict[str, str]:
    path = tmp_path / "password"
    path.write_text(f"{text}\n")
    path.chmod(0o600)
    return {"file": str(path)}


def with_tls(servers: Servers, server: Inspircd, **more: Any) -> dict[str, Any]:
    return {"port": server.tls_port, "tls": True, "tls_name": "irc.test", "tls_ca": str(servers.authority.path), **more}


def test_sasl_plain_logs_in_before_the_channel_is_joined(
    servers: Servers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    server = servers.inspircd()
    with_account(servers, server)
    boss = servers.client(server, "boss")
    boss.send("MODE #test +R")  # for those with an account only
    boss.wait(lambda line: line.command == "MODE" and "+R" in line.text, "the mode")
    sasl = {"mechanism": "PLAIN", "password": password(tmp_path)}
    with running(local=with_tls(servers, server, sasl=sasl)) as relay:
        relay.say("known to the services")
        boss.wait_to_hear("known to the services", "fedbot")
    assert "account fedbot" in caplog.text
    assert PASSWORD not in caplog.text


@pytest.mark.fault("F19")
def test_sasl_that_is_refused_keeps_the_bot_out_and_the_password_out_of_the_log(
    servers: Servers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = servers.inspircd()
    with_account(servers, server)
    anna = servers.client(server)
    sasl = {"mechanism": "PLAIN", "account": "fedbot", "password": password(tmp_path, "wrong-horse")}
    with running(local=with_tls(servers, server, sasl=sasl)) as relay:
        wait_until(lambda: caplog.text.count("SASL PLAIN was refused") >= 2, PATIENCE, "two refusals")
        assert relay.network.connections == 0
        # as soon as the password is right, the next try goes through
        password(tmp_path)
        relay.say("now it is right")
        anna.wait_to_hear("now it is right", "fedbot")
    assert "(login)" in caplog.text
    assert "horse" not in caplog.text


def test_sasl_external_shows_a_certificate_that_the_services_know(servers: Servers) -> None:
    server = servers.inspircd()
    owner = servers.client(server, "fedbot")
    register(owner)
    certificate, key = servers.authority.issue("client.test")
    fingerprint = hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.read_text())).hexdigest()
    owner.send(f"PRIVMSG NickServ :CERT ADD {fingerprint}")
    owner.wait(lambda line: line.command == "NOTICE" and fingerprint in line.text.lower(), "the certificate be added")
    owner.close()
    anna = servers.client(server)
    external = {"tls_certificate": str(certificate), "tls_key": str(key), "sasl": {"mechanism": "EXTERNAL"}}
    with running(local=with_tls(servers, server, **external)) as relay:
        relay.say("by certificate")
        anna.wait_to_hear("by certificate", "fedbot")
        assert relay.network.session is not None
        assert relay.network.session.logged_in == "fedbot"


@pytest.mark.fault("F19")
def test_a_network_whose_services_are_away_is_tried_again_until_they_are_back(
    servers: Servers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = servers.inspircd(services=False)
    anna = servers.client(server)
    sasl = {"mechanism": "PLAIN", "password": password(tmp_path)}
    with running(local=with_tls(servers, server, sasl=sasl)):
        wait_until(lambda: caplog.text.count("offers no SASL") >= 2, PATIENCE, "two tries")
    assert anna.count("JOIN", "fedbot") == 0


@pytest.mark.fault("F19")
@pytest.mark.parametrize("way", ["ghost", "regain"])
def test_the_services_get_our_nick_back_from_who_has_it(servers: Servers, tmp_path: Path, way: str) -> None:
    # the server ends those who say more than ten things at once, and a handshake with SASL has nine; twenty leave room
    # for seconds in which it does not run
    server = servers.inspircd(threshold=20)
    with_account(servers, server)
    anna = servers.client(server)
    thief = servers.client(server, "fedbot")
    sasl = {"mechanism": "PLAIN", "account": "fedbot", "password": password(tmp_path)}
    slow = {"lines_per_second": 2, "burst": 4}
    with running(local=with_tls(servers, server, sasl=sasl, recover=way, **slow)) as relay:
        relay.say("hello")
        anna.wait_to_hear("hello")
        anna.wait(lambda line: line.command == "NICK" and line.words[1] == "fedbot", "fedbot take its nick")
        relay.say("as myself")
        anna.wait_to_hear("as myself", "fedbot")
        assert relay.network.connections == 1
    assert thief.nick == "fedbot"


def test_commands_are_for_accounts_and_not_for_nicks_that_look_like_them(servers: Servers) -> None:
    server = servers.inspircd(threshold=100)
    anna = servers.client(server)
    register(anna)
    mallory = servers.client(server, "Anna2")
    with running(local={"port": server.port, "commands": {"accounts": ["anna"]}}) as relay:
        relay.wait_joined()
        mallory.send("PRIVMSG #test :!mute 10m")
        anna.wait_to_hear("!mute", "Anna2")
        anna.send("PRIVMSG #test :!status")
        anna.wait_to_hear("status: up", "fedbot")
        assert not relay.network.channels[0].backlog.muted_until
        anna.send("NICK mallory2")
        anna.send("PRIVMSG #test :!mute")
        anna.wait_to_hear("muted for 10m", "fedbot")


@pytest.mark.badinput("B38")
@pytest.mark.fault("F19")
def test_two_thousand_messages_in_a_burst_leave_the_bot_there_and_the_channel_readable(servers: Servers) -> None:
    server = servers.inspircd(services=False)  # whose limits are as shipped: ten commands, then one a second
    anna = servers.client(server)
    channels = {"#test": {"queue": 3}}
    with running(local={"port": server.port, "lines_per_second": 1, "burst": 4, "channels": channels}) as relay:
        relay.wait_joined()
        flood(relay, anna)
        assert relay.network.connections == 1


@pytest.mark.fault("F19")
def test_excess_flood_makes_the_bot_slower_and_no_loop(servers: Servers, caplog: pytest.LogCaptureFixture) -> None:
    server = servers.inspircd(services=False)
    anna = servers.client(server)
    with running(local={"port": server.port, "lines_per_second": 100, "burst": 50, "retry_most": 600}) as relay:
        network, after = relay.network, relay.network._pauses.after
        punished: list[tuple[float, float]] = []

        def noted(cause: str, lived: float) -> float:
            pause = after(cause, lived)
            if cause == "flood":
                punished.append((network._bucket.rate, network._pauses._last))
            return pause

        network._pauses.after = noted
        relay.wait_joined()

        def twice() -> bool:
            # what was written into a connection that the server had ended already is not there for the next one
            if not len(network.channels[0].backlog):
                for number in range(30):
                    relay.say(f"number {number}")
            return len(punished) >= 2

        wait_until(twice, PATIENCE, "two floods be punished")
    anna.wait(lambda line: line.command == "QUIT" and "Excess Flood" in line.text, "the flood be punished")
    (rate, pause), (slower, longer) = punished[:2]
    assert (rate, slower) == (50, 25)
    assert pause > 1.1 and longer > 1.9 * pause
    assert "(flood)" in caplog.text
    assert anna.count("JOIN", "fedbot") <= network.connections


@pytest.mark.fault("F19")
def test_a_k_line_keeps_us_away_for_long(servers: Servers, caplog: pytest.LogCaptureFixture) -> None:
    server = servers.inspircd(services=False)
    boss = servers.operator(server)
    with running(local={"port": server.port, "ban_pause": "1h"}) as relay:
        relay.wait_joined()
        boss.send("KLINE fedbus@* 1h :go away")
        boss.wait(lambda line: line.command == "QUIT" and line.source.startswith("fedbot!"), "fedbot be gone")
        wait_until(lambda: relay.network._pauses._last == 3600.0, PATIENCE, "the long pause")
    assert "(banned)" in caplog.text
    assert boss.count("JOIN", "fedbot") == 1


def test_a_channel_that_takes_no_colours_gets_none(servers: Servers) -> None:
    server = servers.inspircd(services=False)
    boss = servers.client(server, "boss")
    boss.send("MODE #test +c")
    boss.wait(lambda line: line.command == "MODE" and "+c" in line.text, "the mode")
    with running(local={"port": server.port}) as relay:
        relay.wait_joined()
        relay.say("in colours")
        wait_until(lambda: not relay.network.channels[0].coloured, PATIENCE, "the refusal")
        relay.say("plain")
        assert boss.wait_to_hear("plain") == "[koji] plain"


def test_a_moderated_channel_keeps_what_it_is_to_be_told(servers: Servers) -> None:
    server = servers.inspircd(services=False)
    boss = servers.client(server, "boss")
    boss.send("MODE #test +m")
    boss.wait(lambda line: line.command == "MODE" and "+m" in line.text, "the mode")
    with running(local={"port": server.port}) as relay:
        relay.wait_joined()
        relay.say("refused")
        (channel,) = relay.network.channels
        wait_until(lambda: channel.held_until, PATIENCE, "the refusal")
        relay.say("kept")
        boss.send("MODE #test -m")
        boss.wait(lambda line: line.command == "MODE" and "-m" in line.text, "the mode")
        assert len(channel.backlog) == 1
        channel.held_until = 0.0  # a minute later
        boss.wait_to_hear("kept")
