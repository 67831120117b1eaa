"""Messages as user code meets them: verified, decoded, and still holding the bytes that were signed."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import msgspec
import orjson


class Sealed(Protocol):
    """The parcel that a message came in."""

    @property
    def topic(self) -> str: ...
    @property
    def endpoint(self) -> str: ...
    @property
    def epoch(self) -> str: ...
    @property
    def envelopes(self) -> list[bytes]: ...
    def single(self, index: int) -> bytes: ...


class MessageKey(NamedTuple):
    """What tells a message from all others: its stream and its sequence in it."""

    endpoint: str
    epoch: str
    sequence: int

    def __str__(self) -> str:
        return f"{self.endpoint}/{self.epoch}/{self.sequence}"


class Message(msgspec.Struct, frozen=True, eq=False):
    """One message. Equal messages have equal :attr:`key`.

    ``body`` is the body, a JSON object, ``sequence`` the message's place in its stream, and ``signer`` the name in the
    certificate that signed it.
    """

    body: dict[str, Any]
    sequence: int
    signer: str
    parcel: Sealed
    index: int
    wire: str = "native"
    _attributes: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"<Message {self.key} {self.topic}>"

    @property
    def topic(self) -> str:
        """The full topic."""
        return self.parcel.topic

    @property
    def attributes(self) -> dict[str, Any]:
        """The whole CloudEvents object; decoded when it is first asked for, since most readers want the body alone."""
        attributes = self._attributes
        if attributes is None:
            attributes = orjson.loads(self.parcel.envelopes[self.index])
            assert attributes is not None
            msgspec.structs.force_setattr(self, "_attributes", attributes)
        return attributes

    @property
    def endpoint(self) -> str:
        """The name of the endpoint that published it."""
        return self.parcel.endpoint

    @property
    def epoch(self) -> str:
        """The identity of the journal that it stands in."""
        return self.parcel.epoch

    @property
    def id(self) -> str:
        """A UUIDv7."""
        identifier: str = self.attributes["id"]
        return identifier

    @property
    def time(self) -> str:
        """When it was published, RFC 3339 in UTC, by the publisher's clock."""
        stamp: str = self.attributes["time"]
        return stamp

    @property
    def key(self) -> MessageKey:
        """Stream and sequence; the same for every delivery of the same message."""
        return MessageKey(self.parcel.endpoint, self.parcel.epoch, self.sequence)

    def record(self) -> dict[str, Any]:
        """What scripts get of it, ready for JSON: the object that ``fedbus tail --json`` prints.

        ``topic``, ``endpoint``, ``epoch``, ``sequence``, ``id``, ``time``, ``signer``, ``wire`` and ``body``, and those
        of ``dataschema`` and ``traceparent`` that it has.
        """
        attributes = self.attributes
        shown: dict[str, Any] = {
            "topic": self.topic,
            "endpoint": self.endpoint,
            "epoch": self.epoch,
            "sequence": self.sequence,
            "id": attributes["id"],
            "time": attributes["time"],
            "signer": self.signer,
            "wire": self.wire,
            "body": self.body,
        }
        for name in ("dataschema", "traceparent"):
            value = attributes.get(name)
            if value is not None:
                shown[name] = value
        return shown

    @property
    def envelope(self) -> bytes:
        """The signed bytes."""
        return self.parcel.envelopes[self.index]

    @property
    def sealed(self) -> bytes:
        """A parcel of this message alone: it verifies with nothing but the CA."""
        return self.parcel.single(self.index)
