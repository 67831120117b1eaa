"""Messages as consumers get them, without a bus."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from fedbus import Message

TIME = "2026-11-21T12:34:56.123456Z"


@dataclass
class Parcel:
    """What a message is asked for that it has from its parcel."""

    topic: str
    endpoint: str
    epoch: str
    envelopes: list[bytes] = field(default_factory=list)

    def single(self, index: int) -> bytes:
        return self.envelopes[index]


def message(body: dict[str, Any], topic: str = "org.example.dev.koji.package.build", sequence: int = 7) -> Message:
    """A message with its envelope, in the layout of doc/wire.rst."""
    attributes = {
        "specversion": "1.0",
        "id": f"01890a5d-ac96-774b-bcce-{sequence:012x}",
        "source": "fedbus:koji.build01",
        "type": topic,
        "time": TIME,
        "datacontenttype": "application/json",
        "epoch": "018f5e5c-0000-7000-8000-000000000000",
        "sequence": f"{sequence:020d}",
        "data": body,
    }
    parcel = Parcel(topic, "koji.build01", attributes["epoch"], [orjson.dumps(attributes)])
    return Message(body=body, sequence=sequence, signer="koji.build01", parcel=parcel, index=0)
