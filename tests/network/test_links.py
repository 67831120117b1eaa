"""Connections that end without a word or into the arms of another service, through a proxy that misbehaves.

Each test has one endpoint for every kind of fault, and one without, all read by one subscriber.
"""

from __future__ import annotations

import logging
import random
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import zmq

from fedbus import Bus
from fedbus.config.init import create
from fedbus.config.settings import Settings
from fedbus.model.message import Message
from fedbus.transport.endpoint import Address
from fedbus.transport.publisher import Publisher
from fedbus.transport.reader import StreamReader
from fedbus.transport.state import Loss
from fedbus.transport.subscriber import Subscriber
from tests.network.proxy import GARBAGE, Proxy
from tests.sockets import buses
from tests.sockets.buses import join, numbers, quick
from tests.support import wait_until

START = "build.start"
SILENCE = 4.0  # seconds; beats come every 0.1, and on a busy machine some do not
FINE = "fine.host01"
# What was silent for long is connected anew, and asked again, after pauses that have grown to half a minute.
take = partial(buses.take, timeout=180.0)
take_until = partial(buses.take_until, timeout=180.0)


class Faults:
    """Endpoints named after the faults that they are to meet, each behind a proxy, and one that meets none."""

    def __init__(self, folder: Path, kinds: Sequence[str], encrypted: bool, **parts: dict[str, Any]) -> None:
        self.names = {kind: f"{kind}.host01" for kind in kinds}
        create(folder / "bus", [*self.names.values(), FINE], encrypted=encrypted)
        self.settings = quick(folder / "bus", **{"subscriber": {"silence": SILENCE}, **parts})
        self.stack = ExitStack()
        self.bus = self.stack.enter_context(Bus(self.settings))
        self.proxies = {kind: self.stack.enter_context(self._proxy(name)) for kind, name in self.names.items()}
        self.far = self.stack.enter_context(Bus(self._far(folder / "far")))
        self.publishers: dict[str, Publisher] = {}

    def _proxy(self, name: str) -> Proxy:
        endpoint = self.settings.endpoints[name]
        return Proxy({"publish": port_of(endpoint.publish), "replay": port_of(endpoint.replay)})

    def _far(self, elsewhere: Path) -> Settings:
        """What a reader on another host has: other addresses, and no journal of anybody in its files."""
        settings = self.settings
        moved = {
            self.names[kind]: replace(
                settings.endpoints[self.names[kind]],
                publish=f"tcp://127.0.0.1:{proxy.ports['publish']}",
                replay=f"tcp://127.0.0.1:{proxy.ports['replay']}",
            )
            for kind, proxy in self.proxies.items()
        }
        return replace(
            settings,
            endpoints={**settings.endpoints, **moved},
            journals={name: replace(one, directory=elsewhere / name) for name, one in settings.journals.items()},
            journal=replace(settings.journal, directory=elsewhere),
            state=elsewhere,
        )

    def start(self) -> None:
        """Open a publisher for every endpoint."""
        for name in (*self.names.values(), FINE):
            self.publishers[name] = self.bus.publisher(name)

    def say(self, number: int) -> None:
        """Every endpoint publishes one message."""
        for one in self.publishers.values():
            one.publish(START, {"n": number})

    def set(self, mode: Callable[[str], str], route: str | None = None) -> None:
        for kind, proxy in self.proxies.items():
            proxy.set(mode(kind), route=route)

    def close(self) -> None:
        self.stack.close()


@pytest.fixture
def faults(tmp_path: Path) -> Iterator[Callable[..., Faults]]:
    opened: list[Faults] = []

    def start(*kinds: str, encrypted: bool = False, **parts: dict[str, Any]) -> Faults:
        opened.append(Faults(tmp_path, kinds, encrypted, **parts))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


@pytest.fixture
def losses() -> list[Loss]:
    return []


def port_of(address: str) -> int:
    return Address.parse(address).port


def readers_of(subscriber: Subscriber) -> tuple[dict[str, StreamReader], StreamReader]:
    """The readers of the endpoints that meet faults, and of the one that does not."""
    found = {one.endpoint: one for one in subscriber.readers()}
    return found, found.pop(FINE)


def said_of(caplog: pytest.LogCaptureFixture, words: str, name: str) -> list[str]:
    texts = [one.getMessage() for one in caplog.records if one.levelno >= logging.INFO]
    return [text for text in texts if words in text and f"endpoint {name} " in text]


def by_endpoint(messages: list[Message]) -> dict[str, list[int]]:
    names = sorted({one.endpoint for one in messages})
    return {name: numbers([one for one in messages if one.endpoint == name]) for name in names}


# --- the live feed -------------------------------------------------------------------------------------------------

FEEDS = ("half-open", "deaf", "garbage", "vanish", "oversize", "refuse")


@pytest.mark.fault("F9")
@pytest.mark.fault("F10")
@pytest.mark.badinput("B2")
def test_feeds_that_die_are_noticed_and_opened_anew_and_others_go_on(
    faults: Callable[..., Faults], losses: list[Loss], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    world = faults(*FEEDS)
    world.start()
    with world.far.subscribe(since="now", on_loss=losses.append) as subscriber:
        join(subscriber)
        readers, fine = readers_of(subscriber)
        began = {one: one.heard_at or 0.0 for one in readers.values()}
        # heard for longer than a command that comes and goes
        take_until(subscriber, lambda: all((one.heard_at or 0.0) - began[one] > 2 * SILENCE for one in began))
        world.set(lambda kind: kind, "publish")
        world.proxies["oversize"].set("garbage", route="publish")
        world.say(1)
        messages = take_until(subscriber, lambda: all(one.silent_since is not None for one in readers.values()))
        assert by_endpoint(messages) == {FINE: [1]}
        world.say(2)
        world.set(lambda kind: "pass", "publish")
        everybody = [*readers.values(), fine]
        messages += take_until(
            subscriber, lambda: all(one.accounted == 2 and one.silent_since is None for one in everybody)
        )
        world.say(3)
        messages += take(subscriber, 7)
    assert by_endpoint(messages) == {name: [1, 2, 3] for name in [FINE, *readers]}
    assert (fine.stats.reconnects, fine.stats.gaps, fine.stats.unanswered) == (0, 0, 0)
    assert losses == []
    for name, reader in readers.items():
        assert reader.stats.reconnects >= 1
        # once for each silence, not with each attempt; the machine may have made another one
        silences = len(said_of(caplog, "nothing that verifies has come", name))
        assert 1 <= len(said_of(caplog, "is heard again", name)) <= silences <= reader.stats.reconnects
        assert silences <= len(said_of(caplog, "is heard again", name)) + 1
    assert said_of(caplog, "", FINE) == []


# the last one speaks CURVE where the readers do not, and does not where they do
INTRUDERS = {False: ("other-service", "other-socket", "wants-curve"), True: ("other-service", "is-plain")}


def take_port(kind: str, address: str) -> Callable[[], None]:
    """Let another service have the port of *address*; return what ends it."""
    if kind == "other-service":
        return serve_garbage(port_of(address))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    intruder = context.socket(zmq.REP if kind == "other-socket" else zmq.XPUB)
    intruder.linger = 0
    if kind == "wants-curve":
        _, intruder.curve_secretkey = zmq.curve_keypair()
        intruder.curve_server = True
    wait_until(lambda: binds(intruder, address), what="the port")

    def leave() -> None:
        intruder.close()
        context.term()

    return leave


def binds(intruder: zmq.Socket[bytes], address: str) -> bool:
    try:
        intruder.bind(address)
    except zmq.ZMQError:
        return False
    return True


def serve_garbage(port: int) -> Callable[[], None]:
    """Answer whoever connects with what is no ZMTP; return what ends it."""
    server = wait_until(lambda: listening(port), what="the port")
    stopping = threading.Event()
    connections: list[socket.socket] = []

    def serve() -> None:
        server.settimeout(0.05)
        while not stopping.is_set():
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            connections.append(connection)
            connection.sendall(GARBAGE)

    thread = threading.Thread(target=serve)
    thread.start()

    def end() -> None:
        stopping.set()
        thread.join()
        for one in (*connections, server):
            one.close()

    return end


def listening(port: int) -> socket.socket | None:
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError:
        return None


@pytest.mark.fault("F10")
@pytest.mark.fault("F23")
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_ports_that_another_service_had_for_a_while_are_heard_again(
    faults: Callable[..., Faults], losses: list[Loss], encrypted: bool
) -> None:
    """The proxies are only there to count who comes; both sockets of each endpoint change hands."""
    world = faults(*INTRUDERS[encrypted], encrypted=encrypted)
    world.start()
    count = len(INTRUDERS[encrypted]) + 1
    with world.far.subscribe(since="now", on_loss=losses.append) as subscriber:
        join(subscriber)
        readers, fine = readers_of(subscriber)
        world.say(1)
        messages = take(subscriber, count)
        for name in readers:
            world.publishers.pop(name).close()
        ends = []
        try:
            for kind, name in world.names.items():
                endpoint = world.settings.endpoints[name]
                ends += [take_port(kind, address) for address in (endpoint.publish, endpoint.replay)]
            came = {kind: proxy.accepted("publish") for kind, proxy in world.proxies.items()}
            messages += take_until(subscriber, lambda: all(one.silent_since is not None for one in readers.values()))
            messages += take_until(
                subscriber, lambda: all(one.accepted("publish") > came[kind] for kind, one in world.proxies.items())
            )
            world.say(2)
        finally:
            for end in ends:
                end()
        for name in readers:
            world.publishers[name] = world.bus.publisher(name)
            world.publishers[name].publish(START, {"n": 2})
        messages += take(subscriber, count)
        world.say(3)
        messages += take(subscriber, count)
        take_until(subscriber, lambda: all(one.silent_since is None for one in readers.values()))
    assert by_endpoint(messages) == {name: [1, 2, 3] for name in [FINE, *readers]}
    assert (fine.stats.reconnects, fine.stats.gaps) == (0, 0)
    assert losses == []


@pytest.mark.fault("F10")
def test_endpoints_that_were_never_heard_join_later(
    faults: Callable[..., Faults], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    world = faults("refuse", "garbage", "half-open", "mute", subscriber={"silence": 1.0})
    world.set(lambda kind: kind)
    world.start()
    world.say(1)
    with world.far.subscribe(since="beginning") as subscriber:
        readers, fine = readers_of(subscriber)
        messages = take_until(subscriber, lambda: all(one.stats.reconnects for one in readers.values()))
        assert by_endpoint(messages) == {FINE: [1]}
        assert all(one.heard_at is None and one.silent_since is not None for one in readers.values())
        world.set(lambda kind: "pass")
        messages += take(subscriber, 4)
        world.say(2)
        messages += take(subscriber, 5)
        take_until(subscriber, lambda: all(one.silent_since is None for one in readers.values()))
    assert by_endpoint(messages) == {name: [1, 2] for name in [FINE, *readers]}
    assert fine.stats.reconnects == 0
    # it may come any time, which is no alarm
    assert not [one for one in caplog.records if "nothing that verifies" in one.getMessage()]


@pytest.mark.fault("F9")
def test_connections_that_are_reset_at_random_lose_and_repeat_nothing(
    faults: Callable[..., Faults], losses: list[Loss]
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    world = faults("reset")
    world.start()
    publisher, proxy = world.publishers[world.names["reset"]], world.proxies["reset"]
    count = 0
    messages: list[Message] = []
    with world.far.subscribe("reset.build", since="now", on_loss=losses.append) as subscriber:
        join(subscriber)
        for _ in range(25):
            for _ in range(chance.randrange(1, 60)):
                count += 1
                publisher.enqueue(START, {"n": count, "padding": "x" * chance.randrange(2000)})
                publisher.enqueue("tag.add", {"n": 0})
            messages += take(subscriber, chance.randrange(1, 40), timeout=0.1)
            proxy.set("reset", route=chance.choice(["publish", "replay", None]))
        publisher.flush()
        messages += take(subscriber, count - len(messages))
    assert numbers(messages) == list(range(1, count + 1))
    assert losses == []


# --- replay --------------------------------------------------------------------------------------------------------


@pytest.mark.fault("F9")
@pytest.mark.fault("F10")
def test_journals_that_cannot_be_asked_are_asked_again_while_others_go_on(
    faults: Callable[..., Faults], losses: list[Loss], caplog: pytest.LogCaptureFixture
) -> None:
    world = faults("half-open", "deaf", "mute", "garbage", "vanish", "refuse")
    world.start()
    world.say(1)
    world.set(lambda kind: kind, "replay")
    with world.far.subscribe(since="beginning", on_loss=losses.append) as subscriber:
        readers, fine = readers_of(subscriber)
        messages = take_until(
            subscriber, lambda: all(one.stats.unanswered >= 2 and one.heard_at for one in readers.values())
        )
        world.say(2)
        messages += take(subscriber, 1)
        assert by_endpoint(messages) == {FINE: [1, 2]}, "live traffic waits its turn"
        world.set(lambda kind: "pass", "replay")
        messages += take(subscriber, 12)
    assert by_endpoint(messages) == {name: [1, 2] for name in [FINE, *readers]}
    assert {one.stats.reconnects for one in (*readers.values(), fine)} == {0}, "the feeds were fine"
    assert losses == []


def publish_padded(publisher: Publisher, count: int, size: int) -> None:
    for number in range(1, count + 1):
        publisher.publish(START, {"n": number, "padding": "x" * size}, wait=False)
        if number % 20 == 0:
            publisher.flush()


@pytest.mark.fault("F9")
def test_an_answer_that_stalls_in_the_middle_is_asked_for_again_from_there(
    faults: Callable[..., Faults], losses: list[Loss]
) -> None:
    world = faults("slow")
    world.start()
    publish_padded(world.publishers[world.names["slow"]], 600, 4000)
    proxy = world.proxies["slow"]
    proxy.set("rate", 2**21, route="replay")
    with world.far.subscribe("slow", since="beginning", on_loss=losses.append) as subscriber:
        messages = take(subscriber, 100)
        proxy.set("half-open", route="replay")
        (reader,) = readers_of(subscriber)[0].values()
        messages += take_until(subscriber, lambda: reader.stats.unanswered)
        assert len(messages) < 600
        proxy.set("pass", route="replay")
        messages += take(subscriber, 600 - len(messages))
    assert numbers(messages) == list(range(1, 601))
    assert losses == []


@pytest.mark.fault("F9")
def test_a_link_too_slow_for_whole_answers_gets_smaller_ones(faults: Callable[..., Faults], losses: list[Loss]) -> None:
    """A frame of 256 KiB would take 13 s, and an answer that pauses for 2 s is given up."""
    world = faults("slow")
    world.start()
    publish_padded(world.publishers[world.names["slow"]], 300, 2000)
    proxy = world.proxies["slow"]
    proxy.set("rate", 20_000, route="replay")
    with world.far.subscribe("slow", since="beginning", on_loss=losses.append) as subscriber:
        (reader,) = readers_of(subscriber)[0].values()
        messages = take(subscriber, 30, timeout=240.0)
        assert len(messages) >= 30, "nothing gets through"
        assert reader.stats.unanswered >= 1, "the link was quick enough, so the test proves nothing"
        proxy.set("pass")
        messages += take(subscriber, 300 - len(messages))
    assert numbers(messages) == list(range(1, 301))
    assert losses == []
