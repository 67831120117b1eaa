"""fedbus and the real fedmsg 1.1.7, both ways: publishers, tail, moksha hub, relay, gateway, bridge."""

from __future__ import annotations

import ast
import json
import signal
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from fedbus import Bus, Message
from fedbus.config.init import create, free_ports
from fedbus.fedmsg import codec
from fedbus.fedmsg.signer import FedmsgSigner
from fedbus.monitor.text import parse
from tests.conftest import Running
from tests.services.fedmsg_site import HOST, Publishing, Site, fedmsg_python
from tests.support import wait_until

PATIENCE = 120.0


@pytest.fixture(scope="session")
def python() -> Path:
    return fedmsg_python()


@pytest.fixture
def site(tmp_path: Path, python: Path, spawn: Callable[..., Running]) -> Site:
    return Site(tmp_path, python, spawn)


class Ours:
    """A fedbus beside the site, whose configuration is written when a bus is opened."""

    def __init__(self, site: Site, *endpoints: str) -> None:
        self.folder = site.folder / "bus"
        self.site = site
        create(self.folder, endpoints or ("koji.build01",))
        self.fedmsg: dict[str, Any] = {
            "ca": str(site.pki.folder / "ca.crt"),
            "crl": str(site.pki.folder / "crl.pem"),
            "routing_nitpicky": False,
        }
        self.endpoints: dict[str, Any] = {}
        self.more: dict[str, Any] = {}
        self._opened: list[Bus] = []

    def add(self, name: str, port: int, stem: str = "") -> None:
        """An endpoint that speaks fedmsg."""
        self.endpoints[name] = {"publish": f"tcp://127.0.0.1:{port}", "wire": "fedmsg"}
        if stem:
            pki = self.site.pki.folder
            self.endpoints[name] |= {"certificate": str(pki / f"{stem}.crt"), "key": str(pki / f"{stem}.key")}

    def write(self) -> Path:
        whole = {"fedmsg": self.fedmsg, "endpoints": self.endpoints, **self.more}
        path = self.folder / "50-fedmsg.yaml"
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(whole))
        return self.folder

    def open(self) -> Bus:
        self._opened.append(Bus.open(self.write()))
        return self._opened[-1]

    def close(self) -> None:
        for one in self._opened:
            one.close()


@pytest.fixture
def ours(site: Site) -> Iterator[Ours]:
    made = Ours(site)
    yield made
    made.close()


def take(subscriber: Any, count: int) -> list[Message]:
    found: list[Message] = []
    wait_until(lambda: found.extend(subscriber.receive(0.1)) or len(found) >= count, PATIENCE, f"{count} messages")
    return found


def numbers(subscriber: Any, count: int) -> list[int]:
    """Return the numbers of the next *count* messages that have one."""
    found: list[int] = []

    def more() -> bool:
        found.extend(one.body["n"] for one in subscriber.receive(0.1) if "n" in one.body)
        return len(found) >= count

    wait_until(more, PATIENCE, f"{count} messages with numbers")
    return found


def heard(subscriber: Any, publish: Publishing, topic: str = "hello") -> None:
    """Publish until something is heard, for PUB and SUB take a moment to find each other, and read the last of it."""
    sent: list[str] = []
    came: list[str] = []

    def receive() -> None:
        came.extend(one.body["hello"] for one in subscriber.receive(0.2) if "hello" in one.body)

    def once() -> bool:
        sent.append(uuid4().hex)
        publish({"topic": topic, "msg": {"hello": sent[-1]}})
        receive()
        return any(one in came for one in sent)

    wait_until(once, PATIENCE, "the first message")
    wait_until(lambda: receive() or sent[-1] in came, PATIENCE, "the last of them")


def taken(feed: Any) -> dict[str, list[int]]:
    """Note from now on the numbers of the messages that come from each endpoint, whether it is their first copy."""
    numbers: dict[str, list[int]] = {name: [] for name in feed.streams}
    take = feed._take

    def noted(stream: Any, frames: list[bytes], now: float) -> Message | None:
        body = json.loads(frames[1])["msg"]
        if "n" in body:
            numbers[stream.endpoint].append(body["n"])
        return take(stream, frames, now)

    feed._take = noted
    return numbers


def lines(running: Running) -> list[dict[str, Any]]:
    """Return the messages in lines of stdout, which are JSON, or what Python writes."""
    found = [line for line in running.out.split("\n")[:-1] if line.startswith("{")]
    return [json.loads(line) if line.startswith('{"') else ast.literal_eval(line) for line in found]


@pytest.mark.badinput("B23")
def test_fedbus_reads_a_real_publisher_and_checks_what_it_signs(site: Site, ours: Ours) -> None:
    (port,) = free_ports(1)
    publish = site.publisher("koji", port)
    ours.add("koji.old01", port)
    with ours.open() as bus, bus.subscribe("koji.package") as subscriber:
        heard(subscriber, publish, "package.hello")
        body = {
            "package": "bash",
            "name": "Zoë 😀",
            "ratio": 1e-07,
            "big": 2**53,
            "deep": {"b": [1, None, True], "a": 0.1},
        }
        publish({"topic": "package.build", "msg": body})
        (message,) = take(subscriber, 1)
        assert message.body == body
        assert (message.topic, message.endpoint) == ("org.example.dev.koji.package.build", "koji.old01")
        assert (message.wire, message.signer) == ("fedmsg", "koji")
        assert message.id.endswith(message.epoch)
        assert message.sequence == message.attributes["fedmsg"]["i"] > 1
        assert message.record()["wire"] == "fedmsg"
        assert json.loads(message.sealed)["signature"]
        assert not bus.fedmsg_validator.rejections


def test_the_real_tail_and_a_real_hub_take_what_fedbus_publishes(site: Site, ours: Ours) -> None:
    (port,) = free_ports(1)
    site.pki.issue("koji-new")
    site.config["endpoints"]["koji.new"] = [f"tcp://127.0.0.1:{port}"]
    site.config["routing_policy"] = {"org.example.dev.koji.package.build": ["koji-new"]}
    site.config["routing_nitpicky"] = True
    ours.add("koji.new", port, "koji-new")
    bus = ours.open()
    tail, hub = site.tail("--validate"), site.start("hub", stdin=None)
    publisher = bus.publisher("koji.new")
    assert publisher.wait_for_subscribers(2, PATIENCE)
    assert publisher.publish("package.build", {"n": -1}).sequence == 1

    def both_there() -> bool:
        # one reader may hold two subscriptions
        publisher.publish("package.build", {"n": -1})
        return bool(lines(tail) and lines(hub))

    wait_until(both_there, PATIENCE, "both readers")
    body = {"package": "bash", "name": "Zoë 😀", "ratio": 1e-07, "list": [1, 2.5, None], "text": 'a"b\\c\n'}
    receipts = [publisher.publish("package.build", {**body, "n": number}) for number in range(5)]
    publisher.publish("not.allowed", {"n": 99})
    receipts.append(publisher.publish("package.build", {**body, "n": 5}))
    assert receipts[0].subscriptions >= 2

    def built(running: Running) -> list[dict[str, Any]]:
        return [one for one in lines(running) if one["msg"]["n"] >= 0]

    for running in (tail, hub):
        wait_until(lambda one=running: len(built(one)) >= 6, PATIENCE, "six messages")
        found = built(running)
        assert [one["msg"]["n"] for one in found] == [0, 1, 2, 3, 4, 5]
        assert [one["msg_id"] for one in found] == [one.id for one in receipts]
        assert found[0]["msg"] == {**body, "n": 0}
        assert found[0]["topic"] == "org.example.dev.koji.package.build"


def test_what_came_through_a_real_relay_and_gateway_is_read_once(site: Site, ours: Ours) -> None:
    inbound, outbound, gateway = free_ports(3)
    site.config["relay_inbound"] = [f"tcp://127.0.0.1:{inbound}"]
    site.config["endpoints"]["relay_outbound"] = [f"tcp://127.0.0.1:{outbound}"]
    site.config["fedmsg.consumers.gateway.port"] = gateway
    site.config["fedmsg.consumers.gateway.high_water_mark"] = 1000
    site.pki.issue("koji")
    site.start("run", "fedmsg.commands.relay:relay", stdin=None)
    site.start("run", "fedmsg.commands.gateway:gateway", stdin=None)
    site.config["certnames"][f"shell.{HOST}"] = "koji"
    site.write()
    publish = Publishing(site.start("publish", json.dumps({"name": "relay_inbound", "active": True})))
    ours.add("relay.host01", outbound)
    ours.add("gateway.host01", gateway)
    bus = ours.open()
    relay = bus.subscribe(endpoints=["relay.host01"])
    far = bus.subscribe(endpoints=["gateway.host01"])
    both = bus.subscribe()
    for one in (relay, far):
        heard(one, publish)
    heard(both, publish)
    feed = both.foreign

    def each_heard() -> bool:
        publish({"topic": "hello", "msg": {}})
        both.receive(0.2)
        return all(one.stats.messages + one.stats.duplicates for one in feed.streams.values())

    wait_until(each_heard, PATIENCE, "relay and gateway in one subscriber")
    copies = taken(feed)
    publish(*[{"topic": "package.build", "msg": {"n": number}} for number in range(3)])
    assert numbers(relay, 3) == [0, 1, 2]
    assert numbers(far, 3) == [0, 1, 2]
    once: list[int] = []

    def all_copies() -> bool:
        once.extend(one.body["n"] for one in both.receive(0.1) if "n" in one.body)
        return all(one == [0, 1, 2] for one in copies.values())

    wait_until(all_copies, PATIENCE, "two copies of each")
    assert once == [0, 1, 2]
    assert sum(one.stats.duplicates for one in feed.streams.values()) >= 3


@pytest.mark.badinput("B1")
@pytest.mark.badinput("B20")
@pytest.mark.badinput("B29")
@pytest.mark.badinput("B32")
def test_no_hostile_message_ends_a_reader_and_each_is_counted_under_its_reason(site: Site, ours: Ours) -> None:
    (port,) = free_ports(1)
    site.pki.issue("koji")
    ours.add("koji.old01", port)
    signer = FedmsgSigner.load(site.pki.folder / "koji.crt", site.pki.folder / "koji.key")
    bus = ours.open()
    topic = "org.example.dev.koji.package.build"
    now = int(site.pki.now.timestamp())

    def fields(number: int, at: int = now) -> dict[str, Any]:
        identifier = f"2026-00000000-0000-4000-8000-{number:012d}"
        return {
            "topic": topic,
            "msg": {"n": number},
            "msg_id": identifier,
            "timestamp": at,
            "i": number,
            "username": "x",
        }

    good = signer.sign(fields(1))
    head = topic.encode()
    bad = json.loads(good)
    cases = [
        ((head, codec.canonical({**bad, "certificate": "Z2FyYmFnZQ==\n"})), "certificate"),
        ((good,), "frames"),
        ((head, good, b"more"), "frames"),
        ((head, b"not json"), "json"),
        ((b"\xff\xfe", good), "encoding"),
        ((head, b"null"), "json"),
        ((head, b"[1, 2]"), "json"),
        ((head, codec.canonical(fields(2))), "unsigned"),
        ((b"org.example.dev.bodhi.update", good), "topic-mismatch"),
        ((head, signer.sign(fields(3, now - 90_000))), "stale"),
        ((head, codec.canonical({**bad, "msg": {"n": 7}})), "signature"),
        ((head, codec.canonical({**bad, "signature": bad["signature"].replace("\n", "", 1)[:-8]})), "signature"),
        ((head, codec.canonical({**bad, "crypto": "gpg"})), "algorithm"),
    ]
    sender = Publishing(site.start("frames", json.dumps({"address": f"tcp://127.0.0.1:{port}"})))
    with bus.subscribe() as subscriber:
        subscriber.receive(0.1)
        sender("wait")
        sender.frames(*[frames for frames, _ in cases], (head, good), (head, good), (head, signer.sign(fields(9))))
        messages = take(subscriber, 2)
        assert [one.body["n"] for one in messages] == [1, 9]
        stats = subscriber.foreign.streams["koji.old01"].stats
        expected: dict[str, int] = {}
        for _, reason in cases:
            expected[reason] = expected.get(reason, 0) + 1
        assert stats.refused == expected
        assert stats.duplicates == 1


def test_the_same_id_with_another_body_is_refused(site: Site, ours: Ours) -> None:
    (port,) = free_ports(1)
    site.pki.issue("koji")
    ours.add("koji.old01", port)
    signer = FedmsgSigner.load(site.pki.folder / "koji.crt", site.pki.folder / "koji.key")
    bus = ours.open()
    topic = "org.example.dev.koji.package.build"
    base = {"topic": topic, "msg_id": "2026-a", "timestamp": int(site.pki.now.timestamp()), "i": 1}
    sender = Publishing(site.start("frames", json.dumps({"address": f"tcp://127.0.0.1:{port}"})))
    with bus.subscribe() as subscriber:
        subscriber.receive(0.1)
        sender("wait")
        sender.frames(*[(topic.encode(), signer.sign({**base, "msg": {"n": number}})) for number in (1, 2)])
        sender.frames((topic.encode(), signer.sign({**base, "msg_id": "2026-b", "msg": {"n": 3}})))
        assert [one.body["n"] for one in take(subscriber, 2)] == [1, 3]
        assert subscriber.foreign.streams["koji.old01"].stats.refused == {"conflict": 1}


def test_fedbus_and_fedmsg_agree_on_every_message(site: Site, ours: Ours) -> None:
    site.pki.issue("koji")
    gone = site.pki.issue("gone")
    site.pki.revoked.append(gone.serial_number)
    site.pki.write_list()
    site.config["routing_policy"] = {"org.example.dev.a.b": ["koji"], "org.example.dev.a.c": ["other"]}
    site.config["routing_nitpicky"] = True
    site.write()
    pki = site.pki.folder
    koji = FedmsgSigner.load(pki / "koji.crt", pki / "koji.key")
    revoked = FedmsgSigner.load(pki / "gone.crt", pki / "gone.key")

    def fields(topic: str, **more: Any) -> dict[str, Any]:
        return {
            "topic": f"org.example.dev.{topic}",
            "msg": {"f": 1e22, "é": "€"},
            "msg_id": "x",
            "timestamp": 1.5,
            **more,
        }

    texts = [
        koji.sign(fields("a.b")),
        koji.sign(fields("a.b", msg={"a": 1e16, "b": 123456789.123, "c": -0.0, "d": 1e-5, "e": "\u2028\U0001f600"})),
        koji.sign(fields("a.c")),
        koji.sign(fields("a.unlisted")),
        revoked.sign(fields("a.b")),
        koji.sign(fields("a.b")).replace(b'"msg_id":"x"', b'"msg_id":"y"'),
        koji.sign(fields("a.b", headers={"x": 1}, extra=[1])),
    ]
    path = site.folder / "messages"
    path.write_bytes(b"\n".join(texts) + b"\n")
    running = site.start("validate", str(path), stdin=None)
    assert running.wait(PATIENCE) == 0
    theirs = [json.loads(line) for line in running.out.splitlines()]
    ours.fedmsg |= {
        "routing_nitpicky": True,
        "routing_policy": {topic: list(signers) for topic, signers in site.config["routing_policy"].items()},
    }
    bus = ours.open()

    def verdict(text: bytes) -> bool:
        envelope = codec.from_fields(codec.decode(text, bus.settings.limits), text)
        try:
            bus.fedmsg_validator.check(envelope)
        except Exception:
            return False
        return True

    assert [verdict(text) for text in texts] == theirs == [True, True, False, False, False, False, True]


def test_the_bridge_carries_a_fedmsg_bus_in_and_ours_out_each_message_once(
    site: Site, ours: Ours, spawn: Callable[..., Running]
) -> None:
    port, out_port, http = free_ports(3)
    create(ours.folder, ("koji.build01", "fedmsg.bridge01"), force=True)
    site.pki.issue("bridge")
    site.config["endpoints"]["fedbus.out"] = [f"tcp://127.0.0.1:{out_port}"]
    publish = site.publisher("bodhi", port)
    ours.add("bodhi.old01", port)
    ours.add("fedmsg.out01", out_port, "bridge")
    ours.more = {
        "policy": [{"signer": "fedmsg.bridge01", "topics": ["#"]}],
        "bridge": {"fedmsg": {"endpoint": "fedmsg.bridge01", "publish": "fedmsg.out01", "settle": 0.5}},
    }
    folder = ours.write()
    bridge = spawn("bridge", "fedmsg", "--http", f"127.0.0.1:{http}", config=folder)
    bridge.wait_for("ready")
    tail = site.tail("--validate")

    def carried_out() -> list[dict[str, Any]]:
        return [one for one in lines(tail) if one["topic"] == "org.example.dev.koji.package.build"]

    bus = ours.open()
    with bus.subscribe("bodhi", "koji", endpoints=["fedmsg.bridge01", "koji.build01"]) as subscriber:
        koji = bus.publisher("koji.build01")

        def both() -> bool:
            publish({"topic": "hello", "msg": {}, "modname": "bodhi"})
            koji.publish("hello.start", {})
            return "koji.hello.start" in tail.out and bool(subscriber.receive(0.2))

        wait_until(both, PATIENCE, "both directions")
        publish(*[{"topic": "update.comment", "msg": {"n": number}, "modname": "bodhi"} for number in range(20)])
        found: list[Message] = []

        def all_in() -> bool:
            found.extend(one for one in subscriber.receive(0.1) if "n" in one.body)
            return len(found) >= 20

        wait_until(all_in, PATIENCE, "twenty messages")
        for number in range(20):
            koji.publish("package.build", {"n": number})
        wait_until(lambda: len(carried_out()) >= 20, PATIENCE, "twenty messages at the tail")
    assert [one.body["n"] for one in found] == list(range(20))
    first = found[0]
    assert (first.topic, first.endpoint, first.wire) == (
        "org.example.dev.bodhi.update.comment",
        "fedmsg.bridge01",
        "native",
    )
    assert first.attributes["fedmsgsigner"] == "bodhi"
    assert [one.sequence for one in found] == list(range(first.sequence, first.sequence + 20))
    assert [one["msg"]["n"] for one in carried_out()] == list(range(20))
    assert [one for one in lines(tail) if one["topic"].startswith("org.example.dev.bodhi") and "fedbus" in one] == []

    def all_counted() -> bool:
        text = urllib.request.urlopen(f"http://127.0.0.1:{http}/metrics", timeout=PATIENCE).read().decode()
        figures = {name + labels.get("direction", ""): value for name, labels, value in parse(text)}
        return all(figures[f"fedbus_bridge_carried_total{way}"] >= 20 for way in ("in", "out"))

    wait_until(all_counted, PATIENCE, "what was carried to be counted")
    bridge.send(signal.SIGTERM)
    assert bridge.wait() == 0
    assert "Traceback" not in bridge.err


@pytest.mark.fault("F5")
def test_what_a_bridge_has_carried_is_known_again_after_it_was_killed_and_a_full_disk_makes_it_wait(
    site: Site, ours: Ours, spawn: Callable[..., Running], tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    create(ours.folder, ("koji.build01", "fedmsg.bridge01"), force=True)
    site.pki.issue("koji")
    ours.add("koji.old01", port)
    ours.more = {"policy": [{"signer": "fedmsg.bridge01", "topics": ["#"]}]}
    folder = ours.write()
    signer = FedmsgSigner.load(site.pki.folder / "koji.crt", site.pki.folder / "koji.key")
    topic = "org.example.dev.koji.package.build"

    def message(number: int) -> tuple[bytes, bytes]:
        stamp = int(site.pki.now.timestamp())
        fields = {"topic": topic, "msg": {"n": number}, "msg_id": f"2026-{number}", "timestamp": stamp, "i": number}
        return topic.encode(), signer.sign(fields)

    sender = Publishing(site.start("frames", json.dumps({"address": f"tcp://127.0.0.1:{port}"})))
    command = ("bridge", "fedmsg", "--endpoint", "fedmsg.bridge01")
    bridge = spawn(*command, config=folder)
    sender("wait")
    sender.frames(*map(message, range(1, 6)))
    bus = ours.open()
    with bus.subscribe(since="beginning", endpoints=["fedmsg.bridge01"]) as subscriber:
        assert numbers(subscriber, 5) == [1, 2, 3, 4, 5]
        bridge.send(signal.SIGKILL)
        bridge.wait()
        http = free_ports(1)[0]
        full = tmp_path / "full"
        faults = {"FEDBUS_FAILPOINTS": f"journal.write.before=error:ENOSPC?{full}"}
        bridge = spawn(*command, "--http", f"127.0.0.1:{http}", config=folder, environment=faults)
        wait_until(lambda: "subscribed" in sender.running.out, PATIENCE)
        sender("wait", "wait")  # the end of the first subscription, and the second one
        sender.frames(*map(message, (2, 5, 9, 10, 11, 12)))
        assert numbers(subscriber, 4) == [9, 10, 11, 12]

        def missing() -> float:
            text = urllib.request.urlopen(f"http://127.0.0.1:{http}/metrics", timeout=PATIENCE).read().decode()
            found = [value for name, _, value in parse(text) if name == "fedbus_fedmsg_missing_total"]
            return found[0]

        wait_until(missing, PATIENCE)
        assert missing() == 3  # 6, 7 and 8 were sent while nobody was there, as their numbers tell
        full.touch()
        sender.frames(*map(message, range(13, 33)))
        bridge.wait_for("what comes in is not journaled, and tried again: cannot write")
        full.unlink()
        assert numbers(subscriber, 20) == list(range(13, 33))
        bridge.send(signal.SIGTERM)
        assert bridge.wait() == 0


def test_the_commands_publish_to_and_show_what_comes_from_fedmsg(
    site: Site, ours: Ours, spawn: Callable[..., Running]
) -> None:
    port, new_port = free_ports(2)
    site.pki.issue("koji-new")
    publish = site.publisher("koji", port)
    site.config["endpoints"]["koji.new"] = [f"tcp://127.0.0.1:{new_port}"]
    ours.add("koji.old01", port)
    ours.add("koji.new", new_port, "koji-new")
    folder = ours.write()
    shown = spawn("tail", "koji.package", config=folder)
    objects = spawn("tail", "--json", "--count", "1", config=folder)
    tail = site.tail("--validate")

    def once() -> bool:
        publish({"topic": "package.build", "msg": {"package": "bash"}})
        return "package.build" in shown.out and objects.code is not None and "package.build" in tail.out

    wait_until(once, PATIENCE, "all three")
    assert "[fedmsg]" in shown.out
    (found,) = objects.records()
    assert (found["wire"], found["endpoint"], found["signer"]) == ("fedmsg", "koji.old01", "koji")
    assert found["body"] == {"package": "bash"}
    sent = spawn("publish", "tag.add", '{"tag": "f42"}', "--as", "koji.new", "--wait", "90", "--json", config=folder)
    assert sent.wait(PATIENCE) == 0, sent.err
    (receipt,) = sent.records()
    wait_until(lambda: receipt["id"] in tail.out, PATIENCE, "the message of the command")
    checked = spawn("check", "config", config=folder)
    assert checked.wait(PATIENCE) == 0, checked.out + checked.err


def test_a_program_shows_what_it_reads_and_publishes_in_its_metrics(site: Site, ours: Ours) -> None:
    port, new_port = free_ports(2)
    site.pki.issue("koji-new")
    publish = site.publisher("koji", port)
    ours.add("koji.old01", port)
    ours.add("koji.new", new_port, "koji-new")
    bus = ours.open()
    with bus.subscribe() as subscriber:
        heard(subscriber, publish)
        publisher = bus.publisher("koji.new")
        publisher.publish("tag.add", {})
        figures = {(name, labels.get("endpoint")): value for name, labels, value in parse(bus.metrics())}
    assert figures["fedbus_fedmsg_messages_total", "koji.old01"] >= 1
    assert figures["fedbus_fedmsg_published_total", "koji.new"] == 1


def test_endpoints_that_speak_fedmsg_come_go_and_come_back_while_somebody_reads(site: Site, ours: Ours) -> None:
    port, other = free_ports(2)
    site.pki.issue("koji")
    signer = FedmsgSigner.load(site.pki.folder / "koji.crt", site.pki.folder / "koji.key")
    topic = "org.example.dev.koji.package.build"
    stamp = int(site.pki.now.timestamp())

    def message(number: int) -> tuple[bytes, bytes]:
        fields = {"topic": topic, "msg": {"n": number}, "msg_id": f"2026-{number}", "timestamp": stamp, "i": number}
        return topic.encode(), signer.sign(fields)

    bus = ours.open()
    first = Publishing(site.start("frames", json.dumps({"address": f"tcp://127.0.0.1:{port}"})))
    with bus.subscribe() as subscriber:
        ours.add("koji.old01", port)
        ours.write()
        bus.reload()

        def subscribed(running: Publishing) -> bool:
            subscriber.receive(0.05)
            return "subscribed" in running.running.out

        assert first.running.process.stdin is not None
        first.running.process.stdin.write(b'"wait"\n')
        first.running.process.stdin.flush()
        first.sent += 1
        wait_until(lambda: subscribed(first), PATIENCE, "a subscription")
        first.frames(message(1))
        assert numbers(subscriber, 1) == [1]
        ours.add("koji.old01", other)
        ours.write()
        bus.reload()
        second = Publishing(site.start("frames", json.dumps({"address": f"tcp://127.0.0.1:{other}"})))
        assert second.running.process.stdin is not None
        second.running.process.stdin.write(b'"wait"\n')
        second.running.process.stdin.flush()
        second.sent += 1
        wait_until(lambda: subscribed(second), PATIENCE, "a subscription")
        second.frames(message(2))
        assert numbers(subscriber, 1) == [2]
