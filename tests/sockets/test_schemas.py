"""Schemas on a real bus: what is refused before it is published, and what a reader makes of what others publish."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from buses import KOJI, PATIENCE, join, take
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from fedbus import Bus, RelayPublisher, SchemaError
from fedbus.config.init import free_ports
from fedbus.errors import ConfigError
from tests.support import wait_until

TOPIC = "package.build.complete"
SCHEMA = {
    "type": "object",
    "required": ["package"],
    "properties": {"package": {"type": "string"}},
    "x-fedbus": {"title": "Build", "summary": "{package} is built[ by {owner}]"},
}


def write(folder: Path, name: str, document: dict[str, Any]) -> None:
    (folder / "schemas").mkdir(exist_ok=True)
    # whole or not at all: a bus that looks at this moment reads one or the other
    new = folder / "schemas" / f".{name}.new"
    new.write_text(json.dumps(document), "utf-8")
    new.chmod(0o644)
    new.rename(folder / "schemas" / name)


def configure(folder: Path, text: str) -> None:
    (folder / "60-schemas.yaml").write_text(text, "utf-8")


def test_a_body_that_does_not_fit_is_not_queued_and_the_next_one_is_published(bus_folder: Path) -> None:
    write(bus_folder, "koji.package.build.json", SCHEMA)
    with Bus.open(bus_folder) as bus, bus.publisher(KOJI) as koji:  # type: ignore[attr-defined]
        with pytest.raises(SchemaError, match=r"body\.package: is missing \(rule required\)"):
            koji.publish(TOPIC, {"n": 1})
        with pytest.raises(SchemaError):
            koji.enqueue(TOPIC, {"package": 3})
        assert koji.publish(TOPIC, {"package": "bash"}).sequence == 1
        assert 'fedbus_schema_misfits_total{outcome="refused"} 2' in bus.metrics()
        assert "fedbus_schemas 1" in bus.metrics()


def test_a_reader_drops_what_does_not_fit_counts_it_and_its_cursor_goes_on(
    bus_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Bus.open(bus_folder) as loose, loose.publisher(KOJI) as koji:
        write(bus_folder, "koji.json", SCHEMA)
        configure(bus_folder, "schemas: {receive: drop}\n")
        with Bus.open(bus_folder) as strict, caplog.at_level(logging.WARNING):
            subscriber = strict.subscribe(cursor="reader", since="beginning")
            for body in ({"n": 1}, {"package": "a"}, {"package": 2}, {"package": "b"}, {"n": 5}):
                koji.publish(TOPIC, body)
            assert [message.body["package"] for message in take(subscriber, 2)] == ["a", "b"]
            # the last one is dropped too, and the place in the stream moves behind it
            wait_until(lambda: subscriber.receive(0.05) == [] and subscriber.positions()[KOJI].sequence == 5, PATIENCE)
            (reader,) = (one for one in subscriber.readers() if one.endpoint == KOJI)
            assert reader.stats.refusals == {"schema": 3}
            assert 'fedbus_schema_misfits_total{outcome="dropped"} 3' in strict.metrics()
    assert "body.package" in caplog.text


def test_a_reader_that_warns_gets_everything(bus_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Bus.open(bus_folder) as loose, loose.publisher(KOJI) as koji:
        write(bus_folder, "koji.json", SCHEMA)
        with Bus.open(bus_folder) as warning, caplog.at_level(logging.WARNING):
            subscriber = warning.subscribe(since="beginning")
            koji.publish(TOPIC, {"n": 1})
            koji.publish(TOPIC, {"package": "a"})
            assert [message.sequence for message in take(subscriber, 2)] == [1, 2]
    assert "received all the same" in caplog.text


def test_changed_schemas_and_texts_count_without_a_restart(bus_folder: Path) -> None:
    configure(bus_folder, "discovery: {look_interval: 0.05}\n")
    with Bus.open(bus_folder) as bus, bus.publisher(KOJI) as koji:
        subscriber = bus.subscribe(since="now")
        join(subscriber, KOJI)
        koji.publish(TOPIC, {"package": 1})
        (message,) = take(subscriber, 1)
        write(bus_folder, "koji.json", SCHEMA)
        wait_until(lambda: subscriber.receive(0.05) == [] and len(bus.schemas) == 1, PATIENCE)
        with pytest.raises(SchemaError):
            koji.publish(TOPIC, {"package": 1})
        assert bus.texts.of(message).title == "Build"
        # one that cannot be used is refused as a whole
        write(bus_folder, "koji.json", {"type": "nothing"})
        wait_until(lambda: subscriber.receive(0.05) == [] and bus.discovery.refused, PATIENCE)
        assert "koji.json" in bus.discovery.refused
        with pytest.raises(SchemaError):
            koji.publish(TOPIC, {"package": 1})


def test_faulty_schemas_are_told_when_they_are_needed(bus_folder: Path) -> None:
    write(bus_folder, "koji.json", {"type": "nothing"})
    write(bus_folder, "git.json", {"x-fedbus": {"titel": "x"}})
    with Bus.open(bus_folder) as bus, pytest.raises(ConfigError) as caught:
        bus.publisher(KOJI)
    assert len(caught.value.problems) == 2


def test_consumers_get_the_texts_of_the_configuration(open_bus: Callable[..., Bus], bus_folder: Path) -> None:
    from fedbus import Consumer, Message

    said: list[str] = []

    class Say(Consumer):
        topics = ("koji",)
        since = "beginning"

        def consume(self, message: Message) -> None:
            said.append(self.texts.of(message).summary)

    write(bus_folder, "koji.json", SCHEMA)
    bus = open_bus()
    with bus.publisher(KOJI) as koji:
        koji.publish(TOPIC, {"package": "bash", "owner": "ralph"})
        with bus.hub([Say()]):
            wait_until(lambda: said, PATIENCE)
    assert said == ["bash is built by ralph"]


def test_what_does_not_fit_is_not_spooled_for_a_relay_that_is_away(bus_folder: Path) -> None:
    write(bus_folder, "koji.json", SCHEMA)
    endpoints = bus_folder / "20-endpoints.yaml"
    endpoints.write_text(endpoints.read_text("utf-8").replace(f"  {KOJI}:\n", f"  {KOJI}:\n    relay: true\n"), "utf-8")
    with Bus.open(bus_folder) as bus:
        koji = bus.publisher(KOJI)
        assert isinstance(koji, RelayPublisher)
        with pytest.raises(SchemaError):
            koji.publish(TOPIC, {"n": 1})
        with pytest.raises(SchemaError):
            koji.publish_json(TOPIC, b"{}")
        assert koji.publish(TOPIC, {"package": "bash"}, timeout=1.0).spooled
        assert koji.stats.spooled == 1


def test_what_is_published_in_the_fedmsg_format_is_checked_too(bus_folder: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "koji")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    (bus_folder / "f.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (bus_folder / "f.key").touch(0o600)
    (bus_folder / "f.key").write_bytes(private)
    (port,) = free_ports(1)
    write(bus_folder, "irc.json", SCHEMA)
    bot = {"publish": f"tcp://127.0.0.1:{port}", "wire": "fedmsg", "certificate": "f.crt", "key": "f.key"}
    configure(bus_folder, json.dumps({"endpoints": {"irc.bot": bot}}))
    with Bus.open(bus_folder) as bus:
        publisher = bus.publisher("irc.bot")
        with pytest.raises(SchemaError, match=r"body\.package"):
            publisher.publish("karma.give", {"n": 1})
        publisher.publish("karma.give", {"package": "bash"})
