"""The relay as tests run it: fast, and against servers of this machine."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fedbus_consumers.irc import IrcRelay
from fedbus_consumers.irc_parts.network import Network

from fedbus import Text, Texts
from tests.services.irc_servers import Authority, Client, Inspircd, Ngircd, Server, folder_of_servers
from tests.support import wait_until

ROOT = "org.x.dev"
PATIENCE = 90.0
QUICK: dict[str, Any] = {
    "server": "127.0.0.1",
    "tls": False,
    "nick": "fedbot",
    "channels": {"#test": {}},
    "lines_per_second": 200,
    "burst": 20,
    "retry_pause": 0.1,
    "retry_most": 0.5,
}


class Plain(Texts):
    """Texts that are whatever the body says: what reaches the relay need not be clean."""

    def of(self, message: Any) -> Text:
        return Text("", message.body["summary"], message.body.get("url", ""))


class Relay:
    """An `IrcRelay` with one network or more, and short ways to ask for what it does."""

    def __init__(self, networks: dict[str, dict[str, Any]], linger: float = 5.0) -> None:
        self.relay = IrcRelay(networks={name: {**QUICK, **one} for name, one in networks.items()}, linger=linger)
        self.relay.texts = Plain(root=ROOT)

    def say(self, summary: str, topic: str = "koji.package.build", **body: Any) -> None:
        """Have a message announced as *summary*."""
        message: Any = SimpleNamespace(topic=f"{ROOT}.{topic}", body={"summary": summary, **body})
        self.relay.consume(message)

    @property
    def network(self) -> Network:
        return self.relay._networks[0]

    def wait_joined(self, channel: str = "#test") -> None:
        (found,) = (one for one in self.network.channels if one.name == channel)
        wait_until(lambda: found.joined, PATIENCE, f"having joined {channel}")


@contextlib.contextmanager
def running(linger: float = 5.0, **networks: dict[str, Any]) -> Iterator[Relay]:
    """Run a relay; *networks* are settings beyond those of `QUICK`, such as the port."""
    relay = Relay(networks, linger)
    relay.relay.start()
    try:
        yield relay
    finally:
        relay.relay.stop()


class Servers:
    """Starts servers and clients, and ends them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.servers: list[Server] = []
        self.clients: list[Client] = []

    def ngircd(self, name: str = "one", **more: Any) -> Ngircd:
        server = Ngircd(self.folder / name, name=f"{name}.irc.test", **more)
        self.servers.append(server)
        server.start()
        return server

    def inspircd(self, *, services: bool = True, **more: Any) -> Inspircd:
        self.authority = Authority(self.folder)
        certificate = self.authority.issue("irc.test")
        server = Inspircd(self.folder / "inspircd", certificate, self.authority.path, services=services, **more)
        self.servers.append(server)
        server.start()
        return server

    def client(self, server: Server, nick: str = "anna", *channels: str) -> Client:
        client = Client(server.port, nick, *(channels or ("#test",)))
        self.clients.append(client)
        return client

    def operator(self, server: Server) -> Client:
        client = self.client(server, "boss")
        client.send("OPER oper operpass")
        client.wait(lambda line: line.command == "381", "being operator")
        return client


@contextlib.contextmanager
def starting() -> Iterator[Servers]:
    """Yield what starts servers and clients, and end them all."""
    with folder_of_servers() as folder:
        made = Servers(folder)
        try:
            yield made
        finally:
            for client in made.clients:
                client.close()
            for server in made.servers:
                server.stop()


HOSTILE = (
    "bye\r\nQUIT :injected",
    "\nPRIVMSG #test :injected\n",
    "a\0b\r\nJOIN #injected",
    "\x01ACTION injects\x01",
    "\x01DCC SEND x 1 2 3\x01",
    "\x02\x1f\x16\x0304,05colours",
    "/quit now",
    "!op mallory",
    "@everyone look",
    "\u202egnirts desrever",
    "語" * 400,
    "👩\u200d👩\u200d👧" * 60,
)


def flood(relay: Relay, client: Client, messages: int = 2000) -> None:
    """Announce *messages* hostile ones at once; check that the channel stays readable and that nothing is injected."""
    for number in range(messages):
        relay.say(f"{number} {HOSTILE[number % len(HOSTILE)]}")
    client.wait_to_hear(f"{messages - 1}", "fedbot")
    relay.say("the end")
    client.wait_to_hear("the end", "fedbot")
    heard = client.heard()
    summaries = [int(match[1]) for text in heard if (match := re.fullmatch("… and ([0-9]+) more .koji.", text))]
    first = [text for text in heard if text.startswith("\x03")]
    assert len(first) + sum(summaries) == messages + 1
    assert len(heard) < messages // 10
    assert 1 <= len(summaries) < 10
    check_nothing_was_injected(client)


def check_nothing_was_injected(client: Client) -> None:
    for line in client.lines:
        if line.source.startswith("fedbot!"):
            assert line.command in ("JOIN", "PRIVMSG", "QUIT", "PING")
            assert line.command == "QUIT" or line.words[1] == "#test", line.raw
            assert len(line.raw) <= 510
            line.raw.decode("utf-8")
            if line.command == "PRIVMSG":
                text = line.words[2]
                assert re.match(r"(\x03\d\d\[koji\]\x0f |… )", text), text
                assert not re.search(r"[\x00-\x1f\x7f]", re.sub(r"^\x03\d\d\[koji\]\x0f ", "", text))
                assert "@everyone" not in text
