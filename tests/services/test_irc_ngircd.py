"""The IRC relay and ngIRCd: a server without services, whose throttle, operators, links and TLS are real."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from fedbus import Bus
from tests.conftest import Running
from tests.services.irc_servers import Authority, Ngircd
from tests.services.relays import PATIENCE, QUICK, Servers, flood, running, starting
from tests.support import wait_until


@pytest.fixture
def servers() -> Iterator[Servers]:
    with starting() as servers:
        yield servers


def test_a_message_is_announced_with_its_service_its_text_and_its_link(servers: Servers) -> None:
    server = servers.ngircd()
    anna = servers.client(server)
    with running(local={"port": server.port}) as relay:
        relay.say("bash-5.2 is built", url="https://example.org/b/1")
        heard = anna.wait_to_hear("bash-5.2")
        assert re.fullmatch(r"\x03\d\d\[koji\]\x0f .*bash-5\.2 is built.* https://example\.org/b/1", heard)
    anna.wait(lambda line: line.command == "QUIT" and line.source.startswith("fedbot!"), "fedbot leave")


def test_channels_get_what_their_filters_let_through(servers: Servers) -> None:
    server = servers.ngircd()
    anna = servers.client(server, "anna", "#koji", "#git", "#plain")
    channels = {
        "#koji": {"topics": ["koji.#"], "deny": [{"fields": {"package": "zsh"}}]},
        "#git": {"allow": [{"topics": ["git"], "text": ["^[^x]*kernel"]}]},
        "#plain": {"colours": False, "link": False, "notice": True},
    }
    with running(local={"port": server.port, "channels": channels}) as relay:
        for channel in channels:
            relay.wait_joined(channel)
        relay.say("one", package="bash", url="https://example.org")
        relay.say("two", package="zsh")
        relay.say("three kernel", topic="git.push")
        relay.say("four", topic="git.push")
        anna.wait(lambda line: "four" in line.text, "the last message")

        def said(channel: str) -> list[str]:
            found = [re.search("one|two|three|four", text) for text in anna.heard("fedbot", channel)]
            return [match[0] for match in found if match]

        wait_until(lambda: len(said("#plain")) == 4 and said("#git") and said("#koji"), PATIENCE, "all messages")
    assert said("#koji") == ["one"]
    assert said("#git") == ["three"]
    assert not any("\x03" in text or "https" in text for text in anna.heard("fedbot", "#plain"))
    assert {line.command for line in anna.lines if line.words[1:2] == ["#plain"] and "two" in line.text} == {"NOTICE"}


@pytest.mark.badinput("B38")
@pytest.mark.fault("F19")
def test_two_thousand_messages_in_a_burst_leave_the_bot_there_and_the_channel_readable(servers: Servers) -> None:
    server = servers.ngircd(penalty=-1)  # as shipped: it throttles
    anna = servers.client(server)
    with running(
        local={"port": server.port, "lines_per_second": 5, "burst": 5, "channels": {"#test": {"queue": 5}}}
    ) as relay:
        relay.wait_joined()
        flood(relay, anna)
        assert relay.network.connections == 1


@pytest.mark.badinput("B38")
def test_a_line_arrives_whole_at_others_byte_for_byte(servers: Servers) -> None:
    server = servers.ngircd()
    anna = servers.client(server)
    text = "".join(chr(0x4E00 + place) for place in range(600))
    with running(local={"port": server.port, "channels": {"#test": {"lines": 5}}}) as relay:
        relay.wait_joined()
        relay.say(text)
        anna.wait_to_hear(text[-1])
    pieces = [re.sub(r"^(\x03\d\d\[koji\]\x0f |… )", "", one) for one in anna.heard("fedbot")]
    assert text in "".join(pieces)
    longest = max(len(line.raw) for line in anna.lines if line.source.startswith("fedbot!"))
    assert 505 <= longest <= 510  # what fits is used: three bytes to a character, and CR LF


@pytest.mark.fault("F19")
def test_a_nick_that_is_taken_is_got_back_when_it_is_free(servers: Servers) -> None:
    server = servers.ngircd()
    anna = servers.client(server)
    holder = servers.client(server, "fedbot")
    with running(local={"port": server.port, "other_nicks": ["fedbot-2"]}) as relay:
        relay.say("hello")
        anna.wait_to_hear("hello", "fedbot-2")
        holder.send("QUIT :bye")
        anna.wait(lambda line: line.command == "NICK" and line.words[1] == "fedbot", "fedbot take its nick")
        relay.say("again")
        anna.wait_to_hear("again", "fedbot")
        assert relay.network.connections == 1


@pytest.mark.fault("F19")
def test_a_nick_that_is_too_long_for_the_server_is_replaced_by_a_shorter_one(servers: Servers) -> None:
    server = servers.ngircd(nick=9)
    anna = servers.client(server)
    with running(local={"port": server.port, "nick": "fedbus-announcements"}) as relay:
        relay.say("hello")
        heard = anna.wait(lambda line: line.command == "PRIVMSG", "hello")
        assert heard.source.startswith("fedbus-a_!")


@pytest.mark.fault("F19")
def test_a_bot_that_is_killed_comes_back_later_and_says_what_waited(servers: Servers) -> None:
    server = servers.ngircd()
    anna = servers.client(server)
    boss = servers.operator(server)
    with running(local={"port": server.port}) as relay:
        relay.wait_joined()
        boss.send("KILL fedbot :off you go")
        anna.wait(lambda line: line.command in ("QUIT", "KILL") and "fedbot" in line.text, "fedbot be killed")
        # it stays away for less than a second, which may be over before anybody looks
        wait_until(
            lambda: relay.network.session is None or relay.network.connections > 1, PATIENCE, "the connection's end"
        )
        relay.say("while away")
        anna.wait_to_hear("while away")
        assert relay.network.connections == 2
        assert relay.network._pauses._last == pytest.approx(0.6)  # six times as long as after a connection lost


@pytest.mark.fault("F19")
def test_a_k_line_keeps_us_away_for_long(servers: Servers, caplog: pytest.LogCaptureFixture) -> None:
    server = servers.ngircd()
    anna = servers.client(server)
    boss = servers.operator(server)
    with running(local={"port": server.port, "ban_pause": "1h"}) as relay:
        relay.wait_joined()
        boss.send("KLINE fedbot!*@* 3600 :go away")
        boss.send("KILL fedbot :go away")
        anna.wait(lambda line: line.command in ("QUIT", "KILL") and "fedbot" in line.text, "fedbot be killed")
        wait_until(lambda: relay.network._pauses._last == 3600.0, PATIENCE, "the long pause")
        for number in range(100):
            relay.say(f"{number}")
    assert "(banned)" in caplog.text
    assert anna.count("JOIN", "fedbot") == 1


@pytest.mark.fault("F19")
def test_a_kicked_bot_comes_back_ever_more_slowly(servers: Servers, caplog: pytest.LogCaptureFixture) -> None:
    server = servers.ngircd()
    boss = servers.client(server, "boss")
    with running(local={"port": server.port}) as relay:
        (channel,) = relay.network.channels
        pauses = []
        for number in range(1, 4):
            relay.wait_joined()
            boss.send("KICK #test fedbot :out\x03")
            # the log tells, whenever it is asked; it may be back in the channel already
            wait_until(lambda: caplog.text.count("kicked by boss: out;") == number, PATIENCE, "having been kicked")  # noqa: B023
            pauses.append(channel.join_pause)
        assert pauses[0] < pauses[1] < pauses[2]
        assert relay.network.connections == 1


@pytest.mark.fault("F19")
def test_a_channel_that_does_not_let_us_in_is_tried_ever_more_rarely(servers: Servers) -> None:
    server = servers.ngircd()
    boss = servers.client(server, "boss", "#test", "#open")
    boss.send("MODE #test +i")
    boss.wait(lambda line: line.command == "MODE" and "+i" in line.text, "the mode")
    with running(local={"port": server.port, "channels": {"#test": {}, "#open": {}}}) as relay:
        closed = relay.network.channels[0]
        wait_until(lambda: closed.join_pause >= 0.8, PATIENCE, "three refusals")
        relay.say("only in the open one")
        boss.wait_to_hear("only in the open one")
        boss.send("MODE #test -i")
        relay.wait_joined()
        boss.wait(lambda line: "only in" in line.text and line.words[1] == "#test", "what waited")
        assert relay.network.connections == 1


def test_a_channel_with_a_key_is_joined_with_the_key(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    server = servers.ngircd()
    boss = servers.client(server, "boss")
    boss.send("MODE #test +k sesame")
    boss.wait(lambda line: line.command == "MODE" and "+k" in line.text, "the mode")
    monkeypatch.setenv("FEDBUS_TEST_KEY", "sesame")
    with running(local={"port": server.port, "channels": {"#test": {"key": {"env": "FEDBUS_TEST_KEY"}}}}) as relay:
        relay.say("inside")
        boss.wait_to_hear("inside")


@pytest.mark.fault("F19")
def test_a_server_that_restarts_finds_the_bot_back_with_what_waited(servers: Servers) -> None:
    server = servers.ngircd()
    with running(local={"port": server.port}) as relay:
        relay.wait_joined()
        server.stop()
        wait_until(lambda: not relay.network.channels[0].joined, PATIENCE, "the end of the connection")
        for number in range(100):
            relay.say(f"number {number}")
        # the channel is new after the restart: who waits for the bot must be first
        server.start()
        anna = servers.client(server)
        relay.wait_joined()
        relay.say("afterwards")
        anna.wait_to_hear("afterwards")


@pytest.mark.fault("F19")
def test_a_netsplit_makes_the_bot_neither_leave_nor_join(servers: Servers) -> None:
    one = Ngircd(servers.folder / "one", name="one.irc.test")
    two = Ngircd(
        servers.folder / "two",
        name="two.irc.test",
        more=f"[Server]\nName = one.irc.test\nHost = 127.0.0.1\nPort = {one.port}\nMyPassword = a\nPeerPassword = b\n",
    )
    config = servers.folder / "one" / "ngircd.conf"
    config.write_text(config.read_text() + "[Server]\nName = two.irc.test\nMyPassword = b\nPeerPassword = a\n")
    for server in (one, two):
        servers.servers.append(server)
        server.start()
    near = servers.client(one, "near")
    with running(local={"port": one.port}) as relay:
        relay.wait_joined()
        for _ in range(2):
            since = len(near.lines)
            far = servers.client(two, "far")
            wait_until(lambda far=far: "fedbot" in far.names("#test"), PATIENCE, "the two servers to be linked")
            # and the other way: the server of the bot passes on what it says once it knows of somebody there
            wait_until(lambda: "far" in near.names("#test"), PATIENCE, "who is far to be known here")
            relay.say("to both sides")
            far.wait_to_hear("to both sides")
            two.stop()
            near.wait(lambda line: line.command == "QUIT" and line.source.startswith("far!"), "the split", since)
            relay.say("to one side")
            near.wait_to_hear("to one side", since=since)
            two.start()
        assert relay.network.connections == 1
        assert near.count("QUIT", "fedbot") == 0
    near.wait(lambda line: line.command == "QUIT" and line.source.startswith("fedbot!"), "fedbot leave")
    assert near.count("JOIN", "fedbot") == 1
    assert near.count("QUIT", "fedbot") == 1


@pytest.mark.fault("F19")
def test_tls_is_verified_and_a_certificate_that_is_expired_or_of_others_refused(
    servers: Servers, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = Authority(servers.folder, "ours"), Authority(servers.folder, "theirs")
    good = servers.ngircd("good", certificate=ours.issue("irc.test"))
    expired = Authority(servers.folder, "late")
    old = servers.ngircd("old", certificate=expired.issue("old.irc.test", days=-1))
    named = {"tls": True, "tls_name": "irc.test", "tls_ca": str(ours.path)}
    anna = servers.client(good)
    with running(
        good={"port": good.tls_port, **named},
        wrong={"port": good.tls_port, **named, "tls_ca": str(theirs.path), "nick": "wrong"},
        other={"port": good.tls_port, **named, "tls_name": "another.test", "nick": "other"},
        late={"port": old.tls_port, "tls": True, "tls_name": "old.irc.test", "tls_ca": str(expired.path)},
    ) as relay:
        relay.say("encrypted")
        anna.wait_to_hear("encrypted", "fedbot")
        wanted = ("irc wrong: ", "irc other: ", "irc late: ")
        wait_until(lambda: all(f"{one}no connection" in caplog.text for one in wanted), PATIENCE, "all refusals")
    for network, reason in (("wrong", "unable to get local issuer|self.signed"), ("other", "doesn't match|mismatch")):
        assert re.search(rf"irc {network}: .*\(tls\).*({reason})", caplog.text)
    assert re.search(r"irc late: .*\(tls\).*expired", caplog.text)
    assert {one.partition("!")[0] for one in (line.source for line in anna.lines) if "!" in one} <= {"anna", "fedbot"}


def test_commands_answer_those_who_are_allowed_and_no_more_than_a_few(servers: Servers) -> None:
    server = servers.ngircd()
    anna, mallory = servers.client(server), servers.client(server, "mallory")
    with running(local={"port": server.port, "commands": {"hostmasks": ["anna!*@127.0.0.*"]}}) as relay:
        relay.wait_joined()
        relay.say("first", url="https://example.org/1")
        relay.say("second", topic="git.push")
        anna.wait_to_hear("second")
        mallory.send("PRIVMSG #test :!mute 10m", "PRIVMSG #test :!status", "PRIVMSG fedbot :!mute 10m")
        anna.wait_to_hear("!status", "mallory")
        anna.send("PRIVMSG #test :!last koji")
        assert re.search(r"last: \[org\.x\.dev\.koji\.package\.build\] .*first", anna.wait_to_hear("last: ", "fedbot"))
        anna.send("PRIVMSG #test :!status")
        assert "2 said, 0 waiting here, 0 left out here, 1 connections" in anna.wait_to_hear("status: ", "fedbot")
        anna.send("PRIVMSG #test :!mute 10m")
        anna.wait_to_hear("muted for 10m", "fedbot")
        relay.say("unheard")
        relay.network._commands.burst, relay.network._commands._level = 10, 10.0  # time passes …
        anna.send("PRIVMSG #test :!unmute")
        anna.wait_to_hear("and 1 more", "fedbot")
        relay.network._commands.rate = 1e-9  # … and stands still, however long the next lines take
        relay.network._commands.burst, relay.network._commands._level = 3, 3.0
        for number in range(20):
            anna.send(f"PRIVMSG #test :!last koji.nothing{number}")
        relay.say("the end")
        anna.wait_to_hear("the end")
    heard = anna.heard("fedbot")
    assert sum("last: nothing" in text for text in heard) <= 3
    assert not any("unheard" in text for text in heard)
    assert not any("fedbot!" in line.source for line in mallory.lines if line.words[1:2] == ["mallory"])


def test_several_networks_do_not_wait_for_each_other(servers: Servers) -> None:
    one, two = servers.ngircd("one"), servers.ngircd("two")
    anna, ben = servers.client(one), servers.client(two, "ben")
    with running(one={"port": one.port}, two={"port": two.port}, down={"port": one.ports[0]}) as relay:
        relay.say("to both")
        anna.wait_to_hear("to both")
        ben.wait_to_hear("to both")
        one.stop()
        relay.say("to one")
        ben.wait_to_hear("to one")


def test_what_waits_at_the_end_is_said_as_far_as_there_is_time(servers: Servers) -> None:
    server = servers.ngircd()
    anna = servers.client(server)
    with running(linger=30.0, local={"port": server.port, "lines_per_second": 20, "burst": 1}) as relay:
        relay.wait_joined()
        for number in range(10):
            relay.say(f"number {number}")
    anna.wait(lambda line: line.command == "QUIT" and line.source.startswith("fedbot!"), "fedbot leave")
    assert len(anna.heard("fedbot")) == 10


def test_a_hub_announces_what_is_published_and_leaves_the_channel_when_it_ends(
    servers: Servers, bus_folder: Path, spawn: Callable[..., Running]
) -> None:
    server = servers.ngircd()
    anna = servers.client(server, "anna", "#builds")
    settings = {
        "networks": {"local": {**QUICK, "port": server.port, "channels": {"#builds": {"topics": ["koji.package"]}}}}
    }
    consumer = {"use": "fedbus_consumers.irc", "since": "beginning", "settings": settings}
    (bus_folder / "90-irc.yaml").write_text(yaml.safe_dump({"consumers": {"announce": consumer}}))
    with Bus.open(bus_folder) as bus, bus.publisher("koji.build01") as koji:
        koji.publish("package.build.complete", {"package": "bash", "owner": "ralph"})
        koji.publish("tag.add", {"package": "zsh"})
        hub = spawn("hub", config=bus_folder)
        assert re.match(r"\x03\d\d\[koji\]\x0f .*bash", anna.wait_to_hear("bash", "fedbot"))
        # while the server is away the hub goes on, and its cursor too
        server.stop()
        hub.wait_for("no connection to")
        koji.publish("package.build.complete", {"package": "away"})
        # whoever is to hear it must be in the channel first
        hub.send(signal.SIGSTOP)
        server.start()
        ben = servers.client(server, "ben", "#builds")
        hub.send(signal.SIGCONT)
        ben.wait_to_hear("away", "fedbot")
    hub.send(signal.SIGTERM)
    assert hub.wait() == 0
    ben.wait(lambda line: line.command == "QUIT" and line.source.startswith("fedbot!"), "fedbot leave")
    assert not any("zsh" in text for text in anna.heard("fedbot"))
    assert "Traceback" not in hub.err


@pytest.mark.fault("F19")
def test_a_line_that_cannot_be_sent_is_said_after_a_new_connection_and_a_killed_bot_goes_on_with_what_comes(
    servers: Servers, bus_folder: Path, spawn: Callable[..., Running]
) -> None:
    server = servers.ngircd()
    anna = servers.client(server, "anna", "#builds")
    networks = {"local": {**QUICK, "port": server.port, "channels": {"#builds": {"topics": ["koji"]}}}}
    consumer = {"use": "fedbus_consumers.irc", "since": "beginning", "settings": {"networks": networks}}
    (bus_folder / "90-irc.yaml").write_text(yaml.safe_dump({"consumers": {"announce": consumer}}))

    def heard() -> list[str]:
        return re.findall(r"number-(\d)", " ".join(anna.heard("fedbot")))

    with Bus.open(bus_folder) as bus, bus.publisher("koji.build01") as koji:
        for number in range(3):
            koji.publish("package.build.complete", {"package": f"number-{number}"})
        hub = spawn("hub", config=bus_folder, environment={"FEDBUS_FAILPOINTS": "irc.send=error:ECONNRESET@2"})
        wait_until(lambda: len(heard()) == 3, PATIENCE, "all three")
        hub.send(signal.SIGTERM)
        assert hub.wait() == 0
        assert heard() == ["0", "1", "2"]  # each once, the second after the bot was back
        hub = spawn("hub", config=bus_folder, environment={"FEDBUS_FAILPOINTS": "irc.send=kill"})
        koji.publish("package.build.complete", {"package": "number-3"})
        assert hub.wait() == -signal.SIGKILL
        hub = spawn("hub", config=bus_folder)
        koji.publish("package.build.complete", {"package": "number-4"})
        anna.wait_to_hear("number-4", "fedbot")
    hub.send(signal.SIGTERM)
    assert hub.wait() == 0
    # what waited in the killed bot is lost to the channel, or comes again where its cursor was not written yet
    assert heard()[:3] == ["0", "1", "2"] and heard()[-1] == "4"


def test_settings_that_are_wrong_are_told_by_the_hub_and_no_networks_are_right(
    bus_folder: Path, fedbus: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    path = bus_folder / "90-irc.yaml"
    example = "consumers:\n  announce:\n    use: fedbus_consumers.irc\n    settings: {networks: %s}\n"
    path.write_text(example % "{}")
    done = fedbus("hub", "--seconds", "0.5")
    assert done.returncode == 0
    assert "no networks are configured" in done.stderr
    path.write_text(example % '{a: {server: irc.example.org, nick: bot, channels: {"#a": {deny: [{text: ["("]}]}}}}')
    done = fedbus("hub", "--seconds", "0.5")
    assert "90-irc.yaml:" in done.stderr
    assert "is no regular expression" in done.stderr
