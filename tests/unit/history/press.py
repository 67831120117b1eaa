"""Signed messages as a consumer gets them, made without a publisher and its sockets."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from fedbus import Message
from fedbus.clock import ManualClock
from fedbus.model.limits import Limits
from fedbus.model.topic import Naming
from fedbus.transport.batch import Pending, Sealer, Topic
from fedbus.trust.authority import Authority
from fedbus.trust.keyring import Keyring, KeyringOptions
from fedbus.trust.policy import Policy
from fedbus.trust.signer import Signer
from fedbus.trust.verifier import Verifier
from fedbus.wire import parcel as parcels
from fedbus.wire.envelope import open_parcel

NAMING = Naming("org.example", "dev")
WALL = 1_800_000_000.0  # 2027-01-15T08:00:00Z
KOJI, BODHI = "koji.build01", "bodhi.web01"
BUILD = "package.build.complete"


class Press:
    """A CA and the streams of its endpoints; each call of :meth:`batch` is one signed batch."""

    def __init__(self, folder: Path, clock: ManualClock | None = None) -> None:
        self.clock = clock or ManualClock(WALL)
        self.authority = Authority.create(folder, common_name="Test CA", clock=self.clock)
        self.options = KeyringOptions(ca=self.authority.certificate_path, crl=self.authority.crl_path)
        self.verifier = Verifier(Keyring.load(self.options, clock=self.clock), Policy(NAMING), clock=self.clock)
        self._sealers: dict[str, Sealer] = {}
        self._topics: dict[tuple[str, str], Topic] = {}
        self.epochs: dict[str, str] = {}

    def batch(
        self,
        bodies: Iterable[dict[str, Any]],
        topic: str | Iterable[str] = BUILD,
        *,
        endpoint: str = KOJI,
        wall: float | None = None,
        parcel_messages: int = 64,
    ) -> list[Message]:
        """Seal one batch, of one topic or one for each body, and return its messages in their order."""
        sealer = self._sealer(endpoint)
        sealer._parcel_messages = parcel_messages
        given = list(bodies)
        names = [topic] * len(given) if isinstance(topic, str) else list(topic)
        pending = [
            Pending(self._topic(endpoint, name), orjson.dumps(body), b"")
            for name, body in zip(names, given, strict=True)
        ]
        sealed = sealer.seal(pending, self.clock.wall() if wall is None else wall)
        found: list[Message] = []
        for _, _, frame in sealed.parcels:
            found += unpack(frame)
        return sorted(found, key=lambda message: message.sequence)

    def _sealer(self, endpoint: str) -> Sealer:
        if endpoint not in self._sealers:
            issued = self.authority.issue(endpoint)
            number = len(self._sealers) + 1
            self.epochs[endpoint] = f"0192f0c0-0000-7000-8000-{number:012d}"
            self._sealers[endpoint] = Sealer(
                endpoint=endpoint,
                epoch=self.epochs[endpoint],
                head=0,
                heads={},
                signer=Signer.load(endpoint, issued.certificate_path, issued.key_path, clock=self.clock),
                parcel_bytes=2**20,
                parcel_messages=64,
            )
        return self._sealers[endpoint]

    def _topic(self, endpoint: str, short: str) -> Topic:
        key = (endpoint, short)
        if key not in self._topics:
            name = NAMING.expand(endpoint.partition(".")[0], short)
            self._topics[key] = Topic.make(name, endpoint, self.epochs[endpoint])
        return self._topics[key]


def unpack(frame: bytes) -> list[Message]:
    """The messages of a parcel."""
    parcel = parcels.decode(frame, parcel_bytes=len(frame))

    def refuse(error: Exception) -> None:
        raise error

    return list(open_parcel(parcel, parcel.endpoint, Limits(), refuse))
