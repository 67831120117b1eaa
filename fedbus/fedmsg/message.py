"""Messages of fedmsg as user code meets them: a :class:`~fedbus.Message` whose ``wire`` is ``fedmsg``."""

from __future__ import annotations

from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from fedbus.fedmsg.codec import Envelope
from fedbus.model.message import Message
from fedbus.wire.envelope import rfc3339

WIRE = "fedmsg"


class FedmsgParcel:
    """What stands in for a parcel: one message, and the two frames that it came in."""

    __slots__ = ("_envelope", "endpoint", "envelopes", "epoch", "topic")

    def __init__(self, envelope: Envelope, endpoint: str, epoch: str) -> None:
        self.topic = envelope.topic
        self.endpoint = endpoint
        self.epoch = epoch
        self.envelopes = [envelope.signed]
        self._envelope = envelope

    @property
    def original(self) -> Envelope:
        """The message as it came."""
        return self._envelope

    def single(self, index: int) -> bytes:
        """Return the second frame: the object with its signature and certificate."""
        return self._envelope.data


def epoch_of(envelope: Envelope) -> str:
    """Return what tells the message from all others, in the place of an epoch, which fedmsg has not.

    It is the UUID in its ``msg_id``, or one made of all that was signed where that holds none. ``i`` alone tells
    nothing: each thread of each process counts from 1.
    """
    _, _, text = envelope.id.partition("-")
    try:
        return str(UUID(text))
    except ValueError:
        return str(uuid5(NAMESPACE_URL, envelope.signed.decode("ascii")))


def to_message(envelope: Envelope, *, endpoint: str, signer: str) -> Message:
    """Return the message for a validated *envelope* that came from *endpoint*.

    ``sequence`` is its ``i``, which begins anew with each thread and process of its publisher, so neither it nor the
    epoch says anything about order or loss.
    """
    stamp = envelope.timestamp
    attributes: dict[str, Any] = {
        "specversion": "1.0",
        "id": envelope.id,
        "source": f"fedbus:{endpoint}",
        "type": envelope.topic,
        "time": "" if stamp is None or stamp > 253402300799 else rfc3339(stamp),
        "datacontenttype": "application/json",
        "data": envelope.body,
        "fedmsg": {key: value for key, value in envelope.fields.items() if key != "msg"},
    }
    parcel = FedmsgParcel(envelope, endpoint, epoch_of(envelope))
    return Message(envelope.body, envelope.count, signer, parcel, 0, wire=WIRE, _attributes=attributes)
