"""A site that runs fedmsg: its CA, certificates and configuration, and processes of the real thing."""

from __future__ import annotations

import base64
import datetime
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from bench.fedmsg_environment import HOME, Unavailable, environment
from tests.conftest import Running
from tests.support import wait_until

HOST = socket.gethostname().split(".", 1)[0]
PEER = Path(__file__).with_name("fedmsg_peer.py")
PEM = serialization.Encoding.PEM


def fedmsg_python() -> Path:
    """The Python of fedmsg's environment; without an index of packages skip the test, or fail in CI."""
    try:
        return environment(HOME, lambda text: sys.stderr.write(f"{text}\n"))
    except Unavailable as error:
        reason = f"fedmsg 1.1.7 cannot be installed here: {error}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@dataclass
class Pki:
    """A CA for fedmsg, as of *now*; what it issues is valid a day on each side."""

    folder: Path
    now: datetime.datetime = field(default_factory=lambda: datetime.datetime.now(datetime.UTC))
    bits: int = 2048
    revoked: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.key = rsa.generate_private_key(65537, self.bits)
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
        self.certificate = self.sign("test CA", self.key, ca=True)
        (self.folder / "ca.crt").write_bytes(self.certificate.public_bytes(PEM))
        self.write_list()

    def sign(self, common: str, key: Any, *, ca: bool = False, **days: int) -> x509.Certificate:
        day = datetime.timedelta(days=1)
        start = self.now - day * days.get("before", 1)
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)]))
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(self.now + day * days.get("after", 1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )

    def issue(self, stem: str, **days: int) -> x509.Certificate:
        """Write STEM.crt and STEM.key."""
        key = rsa.generate_private_key(65537, self.bits)
        certificate = self.sign(stem, key, **days)
        (self.folder / f"{stem}.crt").write_bytes(certificate.public_bytes(PEM))
        path = self.folder / f"{stem}.key"
        path.touch(mode=0o600)
        path.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        return certificate

    def write_list(self, **days: int) -> None:
        day = datetime.timedelta(days=1)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.name)
            .last_update(self.now - 3 * day)
            .next_update(self.now + day * days.get("after", 1))
        )
        for serial in self.revoked:
            one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(self.now - day)
            builder = builder.add_revoked_certificate(one.build())
        (self.folder / "crl.pem").write_bytes(builder.sign(self.key, hashes.SHA256()).public_bytes(PEM))


class Site:
    """A folder with `fedmsg.d`, in which processes of fedmsg run."""

    def __init__(self, folder: Path, python: Path, spawn: Callable[..., Running]) -> None:
        self.folder = folder
        self.python = python
        self.pki = Pki(folder / "pki")
        self.config: dict[str, Any] = {
            "endpoints": {},
            "certnames": {},
            "topic_prefix": "org.example",
            "environment": "dev",
            "ssldir": str(folder / "pki"),
            "ca_cert_location": str(folder / "pki" / "ca.crt"),
            "crl_location": str(folder / "pki" / "crl.pem"),
            "crypto_backend": "x509",
            "crypto_validate_backends": ["x509"],
            "sign_messages": True,
            "validate_signatures": True,
            "routing_policy": {},
            "routing_nitpicky": False,
            "high_water_mark": 0,
            "io_threads": 1,
            "post_init_sleep": 0.3,
            "zmq_enabled": True,
            "zmq_strict": False,
            "active": False,
            "relay_inbound": ["tcp://127.0.0.1:1"],
            "logging": {
                "version": 1,
                "formatters": {"bare": {"format": "%(message)s"}},
                "handlers": {
                    "out": {"class": "logging.StreamHandler", "formatter": "bare", "stream": "ext://sys.stdout"},
                },
                "loggers": {"fedmsg": {"level": "INFO", "propagate": False, "handlers": ["out"]}},
            },
        }
        self._spawn = spawn

    def write(self) -> None:
        (self.folder / "fedmsg.d").mkdir(exist_ok=True)
        (self.folder / "fedmsg.d" / "site.py").write_text(f"config = {self.config!r}\n")

    def start(self, *arguments: str, stdin: int | None = subprocess.PIPE) -> Running:
        self.write()
        return self._spawn(
            PEER,
            *arguments,
            command=(str(self.python),),
            stdin=stdin,
            cwd=self.folder,
            environment={"HOME": str(self.folder)},
        )

    def publisher(self, name: str, port: int, **settings: Any) -> Publishing:
        """A process that publishes as *name*, which has a certificate of that name."""
        service = f"{name}.{HOST}"
        self.config["endpoints"][service] = [f"tcp://127.0.0.1:{port}"]
        self.config["certnames"][service] = name
        if not (self.pki.folder / f"{name}.crt").exists():
            self.pki.issue(name)
        return Publishing(self.start("publish", json.dumps({"name": service, **settings})))

    def tail(self, *arguments: str) -> Running:
        """`fedmsg-tail`; it validates, as the configuration says."""
        return self.start("run", "fedmsg.commands.tail:tail", *arguments, stdin=subprocess.DEVNULL)


class Publishing:
    """A process that publishes what it is told."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.sent = 0
        running.wait_for("ready", 120.0)

    def __call__(self, *messages: Any) -> None:
        """Publish, and wait until it is done."""
        stdin = self.running.process.stdin
        assert stdin is not None
        for message in messages:
            stdin.write(json.dumps(message).encode() + b"\n")
        stdin.flush()
        self.sent += len(messages)
        wait_until(
            lambda: (
                self.running.out.count("sent") + self.running.out.count("subscribed") >= self.sent
                or self.running.code is not None
            ),
            120.0,
            "publishing",
        )
        assert self.running.code is None, self.running.err

    def frames(self, *messages: Sequence[bytes]) -> None:
        """Send frames as they are."""
        self(*[[base64.b64encode(part).decode() for part in one] for one in messages])
