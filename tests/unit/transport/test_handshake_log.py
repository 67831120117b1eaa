"""Which failed handshakes are worth a warning."""

from __future__ import annotations

import logging

import pytest

from fedbus.transport.zap import Handshake, HandshakeLog, LinkFault

LEFT = Handshake("tcp://127.0.0.1:1", LinkFault.HANDSHAKE)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "fedbus")
    return caplog


def levels(told: pytest.LogCaptureFixture) -> list[int]:
    found = [record.levelno for record in told.records]
    told.clear()
    return found


def fail(handshakes: HandshakeLog, now: float, one: Handshake = LEFT, endpoint: str = "koji.build01") -> None:
    handshakes.failed(endpoint, one, "it ended the handshake", now)


def test_a_peer_that_leaves_in_the_middle_is_a_warning_only_when_that_happens_again(
    told: pytest.LogCaptureFixture,
) -> None:
    handshakes = HandshakeLog(logging.getLogger("fedbus.test"))
    fail(handshakes, 0.0)
    assert levels(told) == [logging.DEBUG]
    fail(handshakes, 30.0)
    assert "no connection to endpoint koji.build01: handshake: it ended the handshake" in told.text
    assert levels(told) == [logging.WARNING]


def test_a_handshake_that_succeeds_in_between_is_a_new_beginning(told: pytest.LogCaptureFixture) -> None:
    handshakes = HandshakeLog(logging.getLogger("fedbus.test"))
    for now in range(5):
        fail(handshakes, float(now))
        handshakes.succeeded("koji.build01")
    assert levels(told) == [logging.DEBUG] * 5


def test_publishers_that_end_now_and_then_while_somebody_connects_are_no_warning(
    told: pytest.LogCaptureFixture,
) -> None:
    handshakes = HandshakeLog(logging.getLogger("fedbus.test"))
    for hour in range(5):
        fail(handshakes, hour * 3600.0)
    assert levels(told) == [logging.DEBUG] * 5


def test_each_endpoint_is_told_of_by_itself(told: pytest.LogCaptureFixture) -> None:
    handshakes = HandshakeLog(logging.getLogger("fedbus.test"))
    fail(handshakes, 0.0)
    fail(handshakes, 1.0, endpoint="bodhi.web01")
    assert levels(told) == [logging.DEBUG] * 2


@pytest.mark.parametrize(
    "one",
    [
        Handshake("tcp://127.0.0.1:1", LinkFault.MECHANISM, final=True),
        Handshake("tcp://127.0.0.1:1", LinkFault.BANNED, final=True),
        Handshake("tcp://127.0.0.1:1", LinkFault.HANDSHAKE, final=True),  # what answered was no ZeroMQ
    ],
)
def test_what_names_its_reason_is_a_warning_at_once(told: pytest.LogCaptureFixture, one: Handshake) -> None:
    fail(HandshakeLog(logging.getLogger("fedbus.test")), 0.0, one)
    assert levels(told) == [logging.WARNING]
