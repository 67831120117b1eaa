"""fedmsg 1.1.7, signed and validated: fedmsg's own publish() and tail_messages(), in an environment of its own.

Two shapes. As shipped, each publish reads and checks the private key again, which caps it at a few dozen messages a
second; "key cached" keeps the loaded key (what its M2Crypto back end did) and is the fair figure, `peer/fedmsg`.
The subscriber is as shipped in both: it validates signature, chain, revocation list and policy of each message.
fedmsg binds to every interface of the machine; here its one bind call is turned to 127.0.0.1.
"""

from __future__ import annotations

import datetime
import functools
import os
import socket
from pathlib import Path
from typing import Any

from bench.body import TOPIC, event
from bench.role import Arrivals, Departures, Line

SERVICE = "koji"
FULL_TOPIC = f"org.example.dev.{SERVICE}.{TOPIC}"


def measure(session: Any) -> None:
    """Record peer/fedmsg, peer/fedmsg-as-shipped and peer/fedmsg-hub.

    Raises:
        Skip: Its environment cannot be made.
    """
    from bench.harness import free_ports

    python = _environment(session)
    with session.scratch("fedmsg") as folder:
        _make_keys(folder)
        for row, cached, warm, count in (
            ("fedmsg", True, 200, session.pick(5_000, 1_500)),
            ("fedmsg-as-shipped", False, 5, session.pick(80, 25)),
        ):
            (port,) = free_ports(1)
            settings = {"port": port, "keys": str(folder), "cached": cached, "warm": warm, "count": count}
            outcome = session.pair("bench.fedmsg", settings, python=python)
            session.record(f"peer/{row}", outcome.rate, "msg/s")
            if cached:
                session.record("cpu/fedmsg", outcome.cpu_us, "us/msg")
        (port,) = free_ports(1)
        count = session.pick(3_000, 1_000)
        settings = {"port": port, "keys": str(folder), "cached": True, "warm": 200, "count": count}
        outcome = session.pair("bench.fedmsg", settings, consume="consume_hub", python=python)
        session.record("peer/fedmsg-hub", outcome.rate, "msg/s")


def _environment(session: Any) -> Path:
    from bench.fedmsg_environment import Unavailable, environment
    from bench.harness import WORK, Skip

    try:
        return environment(WORK / "fedmsg-venv", session.say)
    except Unavailable as error:
        raise Skip(f"its environment cannot be made ({error}); see bench/README.rst") from error


def _make_keys(folder: Path) -> None:
    """A throw-away authority, a service's RSA-2048 key and an empty revocation list."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.x509.oid import NameOID

    def name(common: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])

    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    end = start + datetime.timedelta(days=2)
    authority_key = rsa.generate_private_key(65537, 2048)
    service_key = rsa.generate_private_key(65537, 2048)
    certificates = {}
    for common, key, is_ca in (("bench CA", authority_key, True), (SERVICE, service_key, False)):
        certificates[common] = (
            x509.CertificateBuilder()
            .subject_name(name(common))
            .issuer_name(name("bench CA"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .sign(authority_key, hashes.SHA256())
        )
    revoked = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(name("bench CA"))
        .last_update(start)
        .next_update(end)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "ca.crt").write_bytes(certificates["bench CA"].public_bytes(pem))
    (folder / "crl.pem").write_bytes(revoked.public_bytes(pem))
    (folder / f"{SERVICE}.crt").write_bytes(certificates[SERVICE].public_bytes(pem))
    key_file = folder / f"{SERVICE}.key"
    with os.fdopen(os.open(key_file, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
        file.write(service_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))


def _context(settings: dict[str, Any], **own: Any) -> Any:
    import fedmsg.core

    host = socket.gethostname().split(".", 1)[0]
    return fedmsg.core.FedMsgContext(
        endpoints={f"{SERVICE}.{host}": [f"tcp://127.0.0.1:{settings['port']}"]},
        certnames={f"{SERVICE}.{host}": SERVICE},
        ssldir=settings["keys"],
        ca_cert_location=f"{settings['keys']}/ca.crt",
        crl_location=f"{settings['keys']}/crl.pem",
        crypto_backend="x509",
        crypto_validate_backends=["x509"],
        sign_messages=True,
        validate_signatures=True,
        routing_policy={FULL_TOPIC: [SERVICE]},  # without one it logs a warning for each message
        routing_nitpicky=True,
        topic_prefix="org.example",
        environment="dev",
        high_water_mark=0,  # what its setter asks for, pyzmq no longer knows
        io_threads=1,
        active=False,
        post_init_sleep=0.5,
        **own,
    )


def produce(line: Line, settings: dict[str, Any]) -> dict[str, Any]:
    """The publishing process, in fedmsg's environment."""
    import zmq
    from fedmsg.crypto import x509_ng

    socket_class: Any = zmq.Socket
    bind = socket_class.bind

    def bind_to_loopback(publisher: Any, address: str) -> Any:
        publisher.setsockopt(zmq.SNDHWM, 0)  # no limit: at the default of 1000 it drops silently when it is ahead
        return bind(publisher, address.replace("tcp://*", "tcp://127.0.0.1"))

    socket_class.bind = bind_to_loopback
    if settings["cached"]:
        serialization = x509_ng.serialization
        load = functools.lru_cache(serialization.load_pem_private_key)
        x509_ng.serialization = _Replaced(serialization, load_pem_private_key=load)
    host = socket.gethostname().split(".", 1)[0]
    context = _context(settings, name=f"{SERVICE}.{host}")
    departures = Departures(line, settings)
    line.say("ready")

    def publish(number: int) -> None:
        context.publish(topic=TOPIC, msg=event(number), modname=SERVICE)

    departures.greet(publish)
    for phase in (departures.warm_up, departures.measured):
        for number in phase():
            publish(number)
    report = departures.report()
    context.destroy()  # lingers until everything has left
    return report


class _Replaced:
    """A module with some of its names replaced."""

    def __init__(self, module: Any, **names: Any) -> None:
        self._module = module
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def consume(line: Line, settings: dict[str, Any]) -> dict[str, Any]:
    """The receiving process, in fedmsg's environment."""
    line.wait("ready")
    arrivals = Arrivals(line, settings)
    for _name, _endpoint, _topic, message in _context(settings).tail_messages(topic=FULL_TOPIC):
        arrivals(message["msg"])
        if arrivals.done:
            break
    return arrivals.report()


def consume_hub(line: Line, settings: dict[str, Any]) -> dict[str, Any]:
    """The receiving process, in fedmsg's environment: what `fedmsg-hub` runs, with one trivial consumer."""
    import fedmsg.consumers
    from moksha.hub import main
    from moksha.hub.reactor import reactor

    line.wait("ready")
    arrivals = Arrivals(line, settings)

    class Trivial(fedmsg.consumers.FedmsgConsumer):  # type: ignore[misc]
        topic = FULL_TOPIC
        config_key = "bench.trivial"

        def consume(self, message: dict[str, Any]) -> None:
            arrivals(message["body"]["msg"])
            if arrivals.done:
                reactor.callFromThread(self.end)

        def end(self) -> None:
            self.hub.stop()  # its consumers' threads first, or the reactor waits for them
            reactor.stop()

    options = {
        **_context(settings).c,
        "bench.trivial": True,
        "zmq_enabled": True,
        "zmq_subscribe_endpoints": f"tcp://127.0.0.1:{settings['port']}",
        "zmq_publish_endpoints": "",
    }
    main(options=options, consumers=[Trivial], producers=[], framework=False)
    return arrivals.report()
