"""Endpoints from a real DNS server (nsd): they come, move and go; whatever the server does, what is known stays."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import dns.flags
import dns.message
import dns.rrset
import pytest

from fedbus import Bus
from fedbus.bus import Subscriber
from fedbus.clock import SystemClock
from fedbus.config.discovery_dns import DnsDiscovery, NoList, listing, look_up
from fedbus.config.init import free_ports
from fedbus.config.options import DnsOptions
from fedbus.errors import ConfigError, ConnectError
from tests.support import wait_until

KOJI, BODHI, GIT = "koji.build01", "bodhi.web01", "git.host01"
DOMAIN = "_fedbus._tcp.example.org"
PATIENCE = 90.0
ROOT = Path(__file__).resolve().parents[2]


class Host:
    """What is in `bus_folder`: the endpoints of its file, which publishers of this host use, as records of the DNS."""

    def __init__(self, folder: Path, readers: Path, server: str) -> None:
        self.folder = folder
        self.readers = readers  # a folder for readers, whose endpoints come from the DNS
        self.ports = {
            name: (int(publish), int(replay))
            for name, publish, replay in re.findall(
                r"  (\S+):\n    publish: tcp://127.0.0.1:(\d+)\n    replay: tcp://127.0.0.1:(\d+)",
                (folder / "20-endpoints.yaml").read_text(),
            )
        }
        readers.mkdir(mode=0o700)
        (readers / "10-bus.yaml").write_text(
            f"topic_prefix: org.example\nenvironment: dev\nstate: {readers / 'state'}\n"
            f"keys: {{directory: {folder / 'keys'}}}\n"
            "subscriber: {silence: 1s, refresh_interval: 100ms}\n"
            f"discovery:\n  look_interval: 50ms\n  dns: {{domain: {DOMAIN}, servers: ['{server}'], timeout: 5s, "
            "min_interval: 100ms, max_interval: 1s}\n"
        )
        (readers / "10-bus.yaml").chmod(0o600)

    def records(self, *names: str) -> str:
        """Return the records of some endpoints."""
        return "".join(
            f"_fedbus._tcp IN PTR {name}._fedbus._tcp\n"
            f"{name}._fedbus._tcp IN SRV 0 0 {self.ports[name][0]} localhost.\n"
            f'{name}._fedbus._tcp IN TXT "replay={self.ports[name][1]}"\n'
            for name in names
        )


@pytest.fixture
def host(bus_folder: Path, nsd, tmp_path: Path) -> Host:
    return Host(bus_folder, tmp_path / "readers", nsd.address)


@pytest.fixture
def bus(host: Host) -> Iterator[Bus]:
    with Bus.open(host.readers) as bus:
        yield bus


def take_until(subscriber: Subscriber, condition: Callable[[], object]) -> list[int]:
    found: list[int] = []

    def step() -> object:
        found.extend(message.body["n"] for message in subscriber.receive(0.02))
        return condition()

    wait_until(step, PATIENCE)
    return found


def take(subscriber: Subscriber, count: int) -> list[int]:
    found: list[int] = []
    found += take_until(subscriber, lambda: True)
    while len(found) < count:
        messages = subscriber.receive(PATIENCE)
        assert messages, f"only {found} of {count}"
        found += [message.body["n"] for message in messages]
    return found


def names(subscriber: Subscriber) -> set[str]:
    return {one.endpoint for one in subscriber.readers()}


@pytest.mark.fault("F11")
def test_endpoints_of_the_dns_are_read_from_the_start_and_as_they_come_and_go(host, nsd, bus):
    nsd.write(host.records(KOJI))
    nsd.start()
    with (
        Bus.open(host.folder) as writing,
        writing.publisher(KOJI) as koji,
        writing.publisher(BODHI) as bodhi,
        bus.subscribe(since="beginning") as subscriber,
    ):
        assert names(subscriber) == {KOJI}, "the first answer was waited for"
        koji.publish("build.start", {"n": 1})
        assert take(subscriber, 1) == [1]
        bodhi.publish("update.new", {"n": 2})
        nsd.write(host.records(KOJI, BODHI))
        assert take(subscriber, 1) == [2]
        nsd.write(host.records(BODHI))
        take_until(subscriber, lambda: names(subscriber) == {BODHI})
        koji.publish("build.start", {"n": 3})
        nsd.write(host.records(KOJI, BODHI))
        assert take(subscriber, 1) == [3], "it goes on where it was"
        assert 'fedbus_discovery_endpoints{source="dns"} 2' in bus.metrics()
        take_until(subscriber, lambda: "fedbus_discovery_dns_failing 0" in bus.metrics())


@pytest.mark.fault("F11")
def test_a_server_that_is_down_changes_nothing_and_is_asked_again(host, nsd, bus):
    nsd.write(host.records(KOJI))
    nsd.start()
    with (
        Bus.open(host.folder) as writing,
        writing.publisher(KOJI) as koji,
        bus.subscribe(since="beginning") as subscriber,
    ):
        koji.publish("build.start", {"n": 1})
        assert take(subscriber, 1) == [1]
        nsd.stop()
        failures = bus.discovery.dns.failures
        take_until(subscriber, lambda: bus.discovery.dns.failures >= failures + 2)
        assert names(subscriber) == {KOJI}
        assert "fedbus_discovery_dns_failing 1" in bus.metrics()
        koji.publish("build.start", {"n": 2})
        assert take(subscriber, 1) == [2]
        nsd.write(host.records(KOJI, BODHI))
        nsd.start()
        take_until(subscriber, lambda: names(subscriber) == {KOJI, BODHI})
        take_until(subscriber, lambda: "fedbus_discovery_dns_failing 0" in bus.metrics())


@pytest.mark.fault("F11")
def test_with_a_server_that_is_down_at_the_start_endpoints_join_later(host, nsd, bus, caplog):
    with bus.subscribe(since="now", endpoints=[KOJI]) as subscriber:
        assert names(subscriber) == set()
        assert "koji.build01 is not known yet" in caplog.text
        with Bus.open(host.folder) as writing, writing.publisher(KOJI) as koji:
            koji.publish("build.start", {"n": 1})
            nsd.write(host.records(KOJI, BODHI))
            nsd.start()
            assert take(subscriber, 1) == [1], "now is when the subscriber began"
        assert names(subscriber) == {KOJI}
    assert caplog.text.count("cannot be looked up") == 1


def test_asyncio_readers_do_not_wait_for_the_first_answer(host, nsd, bus):
    async def read() -> int:
        async with bus.asubscribe(since="now") as subscriber:
            assert not bus.discovery.dns.answers
            nsd.write(host.records(KOJI))
            nsd.start()
            with Bus.open(host.folder) as writing, writing.publisher(KOJI) as koji:
                koji.publish("build.start", {"n": 1})
                (message,) = await subscriber.receive(PATIENCE)
                return message.body["n"]

    assert asyncio.run(read()) == 1


@pytest.mark.fault("F11")
def test_a_hub_and_a_tail_take_up_what_the_dns_lists(host, nsd, spawn, tmp_path):
    nsd.write(host.records(KOJI))
    nsd.start()
    tail = spawn("tail", "-v", "--json", config=host.readers)
    tail.wait_for("reading everything of koji.build01")
    consumer = tmp_path / "say.py"
    consumer.write_text(
        "import fedbus\n@fedbus.consumer('#')\ndef say(message):\n    print('hub has', message.body['n'], flush=True)\n"
    )
    consumer.chmod(0o600)
    hub = spawn("hub", "--consumer", consumer, config=host.readers)
    hub.wait_for("ready")
    with Bus.open(host.folder) as writing, writing.publisher(BODHI) as bodhi:
        nsd.write(host.records(KOJI, BODHI))
        tail.wait_for("endpoints by DNS: added bodhi.web01")
        hub.wait_for("endpoints by DNS: added bodhi.web01")
        bodhi.publish("update.new", {"n": 7})
        tail.wait_for('"n":7')
        hub.wait_for("hub has 7")
    for one in (tail, hub):
        assert "Traceback" not in one.err


def test_a_publisher_is_told_that_its_own_endpoint_stands_in_a_file(host, nsd, bus):
    nsd.write(host.records(KOJI))
    nsd.start()
    with pytest.raises(ConfigError, match=r"koji\.build01"):
        bus.publisher(KOJI)


# --- what it must refuse ---------------------------------------------------------------------------------------


@pytest.fixture
def ask(nsd) -> Callable[..., object]:
    """Look up once, as it is done while running; return the checked list."""

    def once(**more: object):
        options = DnsOptions(domain=DOMAIN, servers=(nsd.address,), **{"timeout": 30.0, **more})
        return listing(asyncio.run(look_up(options)).instances, DOMAIN)

    return once


def test_the_zone_of_the_documentation_says_what_it_says(nsd, ask):
    page = (ROOT / "doc" / "discovery.rst").read_text()
    zone = re.search(r":name: zone\n\n((?:   .*\n|\n)+)", page)[1].replace("\n   ", "\n").lstrip()
    nsd.write_zone("\n" + zone)
    nsd.start()
    found = ask()
    assert found.refused == []
    assert {name: (one.publish, one.replay, bool(one.curve)) for name, one in found.endpoints.items()} == {
        KOJI: ("tcp://build01.example.org:3000", "tcp://build01.example.org:3001", False),
        BODHI: ("tcp://web01.example.org:3000", "tcp://web01.example.org:3001", True),
    }


def test_bad_records_are_refused_one_by_one_and_good_ones_count(host, nsd, ask):
    nsd.write(
        host.records(KOJI)
        + "_fedbus._tcp IN PTR *._fedbus._tcp\n"
        + "*._fedbus._tcp IN SRV 0 0 1 localhost.\n"
        + '*._fedbus._tcp IN TXT "replay=2"\n'
        + "_fedbus._tcp IN PTR wild.other01._fedbus._tcp\n"  # by the wildcard: as good as its own
        + "_fedbus._tcp IN PTR www.example.net.\n"
        + "_fedbus._tcp IN PTR _fedbus._tcp\n"
        + "_fedbus._tcp IN PTR none.host01._fedbus._tcp\n"
        + 'none.host01._fedbus._tcp IN TXT "replay=2"\n'
        + "_fedbus._tcp IN PTR root.host01._fedbus._tcp\n"
        + "root.host01._fedbus._tcp IN SRV 0 0 0 .\n"
        + 'root.host01._fedbus._tcp IN TXT "replay=2"\n'
        + "_fedbus._tcp IN PTR text.host01._fedbus._tcp\n"
        + "text.host01._fedbus._tcp IN SRV 0 0 5 localhost.\n"
        + "_fedbus._tcp IN PTR koji\\.build01._fedbus._tcp\n"
        + "koji\\.build01._fedbus._tcp IN SRV 0 0 8 localhost.\n"
        + 'koji\\.build01._fedbus._tcp IN TXT "replay=9"\n'
    )
    nsd.start()
    found = ask()
    assert set(found.endpoints) == {KOJI, "wild.other01"}
    assert sorted(one.reason for one in found.refused) == [
        "duplicate",
        "name",
        "name",
        "name",
        "service",
        "service",
        "text",
    ]


def test_aliases_are_followed_and_loops_of_them_refused(host, nsd, ask):
    nsd.write(
        host.records(KOJI)
        + "_fedbus._tcp IN PTR alias.host01._fedbus._tcp\n"
        + "alias.host01._fedbus._tcp IN CNAME real\n"
        + "real IN SRV 0 0 5 localhost.\n"
        + 'real IN TXT "replay=6"\n'
        + "_fedbus._tcp IN PTR loop.host01._fedbus._tcp\n"
        + "loop.host01._fedbus._tcp IN CNAME loop2\n"
        + "loop2 IN CNAME loop.host01._fedbus._tcp\n"
    )
    nsd.start()
    found = ask()
    assert set(found.endpoints) == {KOJI, "alias.host01"}
    assert [one.endpoint for one in found.refused] == ["loop.host01"]


def test_an_empty_list_and_one_too_long_are_refused_whole(host, nsd, ask):
    nsd.write("")
    nsd.start()
    with pytest.raises(NoList, match="no PTR record"):
        ask()
    nsd.write("".join(f"_fedbus._tcp IN PTR a{number}.host01._fedbus._tcp\n" for number in range(900)))

    def refused() -> str:
        try:
            ask(endpoints=100)
        except NoList as error:
            return error.reason if error.reason == "count" else ""
        return ""

    assert wait_until(refused, PATIENCE) == "count"


def test_an_answer_that_needs_tcp_is_read_whole(host, nsd, ask):
    names = [f"svc{number}.some-long-name-of-a-host-{number}" for number in range(200)]
    nsd.write(
        "".join(
            f"_fedbus._tcp IN PTR {name}._fedbus._tcp\n{name}._fedbus._tcp IN SRV 0 0 {2 * place + 1} localhost.\n"
            f'{name}._fedbus._tcp IN TXT "replay={2 * place + 2}"\n'
            for place, name in enumerate(names)
        )
    )
    nsd.start()
    found = ask()
    assert found.refused == []
    assert set(found.endpoints) == set(names)


def test_a_bad_entry_leaves_the_last_good_one_of_that_endpoint(host, nsd, bus):
    nsd.write(host.records(KOJI, BODHI))
    nsd.start()
    with bus.subscribe(since="now") as subscriber:
        assert names(subscriber) == {KOJI, BODHI}
        before = bus.discovery.settings.endpoints[BODHI]
        nsd.write(host.records(KOJI, GIT) + host.records(BODHI).replace("replay=", "reply="))
        take_until(subscriber, lambda: names(subscriber) == {KOJI, BODHI, GIT})
        assert bus.discovery.settings.endpoints[BODHI] == before
        assert bus.discovery.dns.refused["text"] > 0
        assert 'fedbus_discovery_dns_refused_total{reason="text"}' in bus.metrics()
        nsd.write("")
        take_until(subscriber, lambda: bus.discovery.dns.refused["empty"] and bus.discovery.dns.failure)
        assert names(subscriber) == {KOJI, BODHI, GIT}


def test_check_shows_what_the_dns_lists_refuses_and_whether_it_answers(host, nsd, fedbus):
    nsd.write(host.records(KOJI, BODHI).replace("replay=", "reply=", 1))
    nsd.start()
    report = json.loads(fedbus("check", "--json", config=host.readers).stdout)
    shown = [one["text"] for one in report["results"] if one["name"] == "dns"]
    assert any("1 endpoint below _fedbus._tcp.example.org" in text for text in shown), shown
    assert any("refused, text: DNS: koji.build01" in text for text in shown), shown
    assert any("bodhi.web01" in one["name"] for one in report["results"])
    nsd.stop()
    done = fedbus("check", config=host.readers)
    assert "cannot be looked up" in done.stdout
    assert done.returncode == 5


# --- whoever answers in the server's place ---------------------------------------------------------------------


class Liar(threading.Thread):
    """Answers questions at a UDP port, and the same port of TCP, with what `lie` makes of them."""

    def __init__(self, lie: Callable[[dns.message.Message, bytes], list[bytes]]) -> None:
        super().__init__(daemon=True)
        self.lie = lie
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        (self.port,) = free_ports(1)  # nobody holds it for TCP
        self.udp.bind(("127.0.0.1", self.port))
        self.udp.settimeout(0.1)
        self.asked = 0
        self.over = False

    def run(self) -> None:
        while not self.over:
            try:
                data, peer = self.udp.recvfrom(4096)
            except TimeoutError:
                continue
            self.asked += 1
            for answer in self.lie(dns.message.from_wire(data), data):
                self.udp.sendto(answer, peer)
        self.udp.close()


@pytest.fixture
def lies() -> Iterator[Callable[..., Liar]]:
    started: list[Liar] = []

    def start(lie: Callable[[dns.message.Message, bytes], list[bytes]]) -> Liar:
        started.append(Liar(lie))
        started[-1].start()
        return started[-1]

    yield start
    for one in started:
        one.over = True
        one.join(PATIENCE)


def answer(query: dns.message.Message, *records: str, flags: int = 0) -> bytes:
    response = dns.message.make_response(query)
    response.flags |= flags
    name = query.question[0].name
    for record in records:
        kind, _, text = record.partition(" ")
        response.answer.append(dns.rrset.from_text(name, 5, "IN", kind, text))
    return response.to_wire(max_size=65535)


def wrong_number(query: dns.message.Message, data: bytes) -> list[bytes]:
    forged = bytearray(answer(query, f"PTR evil.host01.{DOMAIN}."))
    forged[0] ^= 0xFF
    return [bytes(forged)] * 50


def another_question(query: dns.message.Message, data: bytes) -> list[bytes]:
    other = dns.message.make_query("other.example.org", "PTR", id=query.id)
    return [answer(other, f"PTR evil.host01.{DOMAIN}.")]


LIES: dict[str, Callable[[dns.message.Message, bytes], list[bytes]]] = {
    "garbage": lambda query, data: [b"", b"\0", bytes(range(256)), data[:2] + b"\xff" * 500],
    "cut": lambda query, data: [answer(query, f"PTR a.b.{DOMAIN}.")[:-7]],
    "another number": wrong_number,
    "another question": another_question,
    "the question itself": lambda query, data: [data],
    "a refusal": lambda query, data: [data[:2] + b"\x80\x05" + data[4:]],
    "truncated, and nobody at the TCP port": lambda query, data: [answer(query, flags=dns.flags.TC)],
    "a pointer to itself": lambda query, data: [data[:2] + b"\x80\0\0\1\0\1\0\0\0\0\xc0\x0c\0\x0c\0\1"],
    "a loop of aliases": lambda query, data: [answer(query, f"CNAME {query.question[0].name}")],
    "nothing": lambda query, data: [],
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_what_is_no_answer_to_our_question_is_a_failure_within_the_deadline(lies, lie):
    liar = lies(lie)
    options = DnsOptions(domain=DOMAIN, servers=(f"127.0.0.1:{liar.port}",), timeout=1.0)
    with pytest.raises((ConnectError, NoList)) as caught:
        asyncio.run(look_up(options))
    assert str(caught.value).isprintable() or "\n" in str(caught.value)


def test_an_answer_over_tcp_that_never_ends_is_given_up_at_the_deadline(lies):
    liar = lies(lambda query, data: [answer(query, flags=dns.flags.TC)])
    server = socket.create_server(("127.0.0.1", liar.port))
    server.settimeout(0.1)
    over = threading.Event()

    def drip() -> None:
        peers: list[socket.socket] = []
        while not over.wait(0.05):
            try:
                peers.append(server.accept()[0])
                peers[-1].sendall(b"\xff\xff")
            except TimeoutError:
                pass
            for peer in peers:
                with contextlib.suppress(OSError):
                    peer.sendall(b"\0")
        for peer in (*peers, server):
            peer.close()

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        options = DnsOptions(domain=DOMAIN, servers=(f"127.0.0.1:{liar.port}",), timeout=1.0)
        with pytest.raises(ConnectError):
            asyncio.run(look_up(options))
    finally:
        over.set()
        thread.join(PATIENCE)


def test_a_program_that_ends_while_it_is_asking_ends_quietly(host, lies, spawn, tmp_path):
    liar = lies(lambda query, data: [])
    config = (host.readers / "10-bus.yaml").read_text()
    text = re.sub(r"servers: \[.*?\]", f"servers: ['127.0.0.1:{liar.port}']", config)
    (host.readers / "10-bus.yaml").write_text(text)
    script = tmp_path / "ends.py"
    script.write_text("import fedbus\nbus = fedbus.Bus.open()\nreader = bus.asubscribe()\nprint('over')\n")
    program = spawn(script, config=host.readers, command=(sys.executable,))
    assert program.wait() == 0
    assert program.out == "over\n"
    assert "Traceback" not in program.err


def test_a_liar_changes_nothing_of_what_is_known(host, nsd, lies):
    nsd.write(host.records(KOJI))
    nsd.start()
    discovery = DnsDiscovery(
        DnsOptions(domain=DOMAIN, servers=(nsd.address,), min_interval=0.05, max_interval=0.1), clock=SystemClock()
    )
    discovery.start()
    try:
        wait_until(lambda: set(discovery.endpoints) == {KOJI}, PATIENCE)
        for lie in LIES.values():
            liar = lies(lie)
            object.__setattr__(discovery.options, "servers", (f"127.0.0.1:{liar.port}",))
            object.__setattr__(discovery.options, "timeout", 0.3)
            failures = discovery.failures
            wait_until(lambda: discovery.failures > failures + 1, PATIENCE)  # noqa: B023
            assert set(discovery.endpoints) == {KOJI}
    finally:
        discovery.stop()
    wait_until(lambda: not discovery._thread.is_alive(), PATIENCE)
