"""Messages as user code meets them."""

from __future__ import annotations

import pytest

from fedbus.model.limits import Limits
from fedbus.model.message import MessageKey
from fedbus.model.position import Position
from fedbus.wire import parcel
from tests.support import open_parcel
from tests.vectors import make


def test_a_message_tells_all_that_its_envelope_and_its_seal_say() -> None:
    one = parcel.decode(make.single(make.KOJI), parcel_bytes=2**21)
    (message,), refused = open_parcel(one, "koji.build01", Limits())
    assert not refused
    assert message.topic == "org.example.dev.koji.package.build.complete"
    assert message.body == {"package": "bash"}
    assert message.endpoint == message.signer == "koji.build01"
    assert message.epoch == make.EPOCH
    assert message.sequence == 5
    assert message.time == make.NOW_TEXT
    assert message.id == message.attributes["id"]
    assert message.key == MessageKey("koji.build01", make.EPOCH, 5)
    assert str(message.key) == f"koji.build01/{make.EPOCH}/5"
    assert message.envelope == one.envelopes[0]
    assert message.sealed == one.frame
    assert message.wire == "native"


def test_a_message_cannot_be_changed() -> None:
    one = parcel.decode(make.single(make.KOJI), parcel_bytes=2**21)
    (message,), _ = open_parcel(one, "koji.build01", Limits())
    with pytest.raises(AttributeError):
        message.sequence = 6  # type: ignore[misc]


def test_positions_are_values() -> None:
    assert Position("e", 1) == Position("e", 1)
    assert len({Position("e", 1), Position("e", 1), Position("e", 2)}) == 2
