"""How fast signatures of fedmsg are checked: fedmsg's own `crypto.validate` and ours, on the same messages, in turn.

Both begin with the JSON as it comes from the socket, in one process and thread, and check signature, certificate,
revocation list and routing policy of each message. Sockets are left out, and so is the second check that a moksha hub
makes of every message.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.body import TOPIC, event

SERVICE = "koji"
FULL_TOPIC = f"org.example.dev.{SERVICE}.{TOPIC}"
ROOT = Path(__file__).resolve().parents[1]


def measure(session: Any) -> None:
    """Record check/fedbus and check/fedmsg.

    Raises:
        Skip: The environment of fedmsg cannot be made.
    """
    from bench.fedmsg import _environment, _make_keys

    python = _environment(session)
    seconds = session.pick(2, 1)
    with session.scratch("fedmsg-check") as folder:
        _make_keys(folder)
        messages = folder / "messages"
        _sign(folder, messages)
        session.record("check/fedbus", _ours(folder, messages, seconds), "msg/s")
        command = [str(python), "-m", "bench.fedmsg_check", str(folder), str(messages), str(seconds)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
        session.record("check/fedmsg", float(done.stdout.split()[-1]), "msg/s")


def _sign(folder: Path, messages: Path) -> None:
    from fedbus.fedmsg.signer import FedmsgSigner

    signer = FedmsgSigner.load(folder / f"{SERVICE}.crt", folder / f"{SERVICE}.key")
    now = int(time.time())
    with messages.open("wb") as file:
        for number in range(500):
            fields = {
                "topic": FULL_TOPIC,
                "msg": event(number),
                "msg_id": f"2026-00000000-0000-4000-8000-{number:012d}",
                "timestamp": now,
                "i": number + 1,
                "username": "apache",
            }
            file.write(signer.sign(fields) + b"\n")


def _rate(lines: list[bytes], seconds: float, check: Callable[[bytes], None]) -> float:
    """Return messages a second, of whole rounds over *lines* in about so many *seconds*."""
    for line in lines[:50]:
        check(line)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for line in lines:
            check(line)
        count += len(lines)
    return count / (time.perf_counter() - started)


def _ours(folder: Path, messages: Path, seconds: float) -> float:
    from fedbus.fedmsg.codec import parse
    from fedbus.fedmsg.options import FedmsgOptions
    from fedbus.fedmsg.validator import Validator
    from fedbus.model.limits import Limits

    policy = {FULL_TOPIC: (SERVICE,)}
    validator = Validator(FedmsgOptions(ca=folder / "ca.crt", crl=folder / "crl.pem", routing_policy=policy))
    topic, limits = FULL_TOPIC.encode(), Limits()

    def check(line: bytes) -> None:
        validator.check(parse((topic, line), limits))

    return _rate(messages.read_bytes().splitlines(), seconds, check)


def _theirs(folder: Path, messages: Path, seconds: float) -> float:
    import fedmsg.crypto

    config = {
        "ssldir": str(folder),
        "ca_cert_location": str(folder / "ca.crt"),
        "crl_location": str(folder / "crl.pem"),
        "crypto_backend": "x509",
        "crypto_validate_backends": ["x509"],
        "routing_policy": {FULL_TOPIC: [SERVICE]},
        "routing_nitpicky": True,
    }

    def check(line: bytes) -> None:
        if not fedmsg.crypto.validate(json.loads(line), **config):
            raise SystemExit("fedmsg refuses its own message")

    return _rate(messages.read_bytes().splitlines(), seconds, check)


if __name__ == "__main__":
    print(_theirs(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])))
