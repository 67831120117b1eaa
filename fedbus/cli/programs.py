"""What running programs of this host say of themselves on their HTTP ports, for checks."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from fedbus.config.settings import Settings
from fedbus.monitor.text import parse

_BYTES = 16 * 2**20  # of one page
_SHOWN_REASONS = 20

Sample = tuple[str, dict[str, str], float]


@dataclass(slots=True)
class Program:
    """One program that was asked."""

    name: str  # hub, relay, bridge, or metrics for a program with metrics.http
    setting: str  # where its address stands
    address: str
    fault: str = ""  # why it has not answered
    reasons: list[str] = field(default_factory=list)  # why it is not ready
    samples: list[Sample] = field(default_factory=list)

    @property
    def consumers(self) -> set[str]:
        """The consumers that it runs, where it is a hub."""
        return {labels["consumer"] for _, labels, _ in self.samples if "consumer" in labels}


def ask(settings: Settings, timeout: float) -> Iterator[Program]:
    """Yield those programs that have an address in the configuration, and what they say within *timeout* seconds."""
    for name, setting, address in (
        ("hub", "hub.http", settings.hub.http),
        ("relay", "relay.http", settings.relay.http),
        ("bridge", "bridge.fedmsg.http", settings.bridge.http),
        ("metrics", "metrics.http", settings.metrics.http),
    ):
        if address is None:
            continue
        program = Program(name, setting, address)
        try:
            status, text = _fetch(address, "/metrics", timeout)
            if status != 200:
                raise OSError(f"it says {status}")
            program.samples = list(parse(text))
            program.reasons = _reasons(*_fetch(address, "/ready", timeout))
        except (OSError, http.client.HTTPException, ValueError) as error:
            program.fault = str(error)
        yield program


def _reasons(status: int, text: str) -> list[str]:
    if status == 404:
        return []  # a release that did not have it
    found = json.loads(text)
    reasons = found.get("reasons") if isinstance(found, dict) else None
    if not isinstance(reasons, list):
        raise ValueError("/ready is not that of fedbus")
    return [str(one) for one in reasons[:_SHOWN_REASONS]] or ([] if status == 200 else [f"it says {status}"])


def _fetch(address: str, path: str, timeout: float) -> tuple[int, str]:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    connection = http.client.HTTPConnection(host, int(port), timeout)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read(_BYTES).decode("utf-8", "replace")
