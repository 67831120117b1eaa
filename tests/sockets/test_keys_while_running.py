"""Keys that change while publishers and subscribers run: rotated, revoked, expired lists, a new CA."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from buses import BODHI, KOJI, PATIENCE, Bus, join, numbers, quick, take, take_until

from fedbus import Message
from fedbus.clock import SystemClock
from fedbus.errors import Reason
from fedbus.transport.publisher import Publisher
from fedbus.transport.subscriber import Subscriber
from fedbus.trust.authority import CRL_DAYS, Authority
from tests.support import wait_until

TOPIC = "build.start"


@pytest.fixture
def authority(bus: Bus) -> Authority:
    return Authority.open(bus.settings.keys)


def say_until_signed_anew(koji: Publisher, before: bytes, bus: Bus) -> list[bytes]:
    """Publish until the signer has taken up its new certificate; return the certificates in order."""
    used = []
    with bus.subscribe("koji", since="now") as own:
        join(own, KOJI)

        def changed() -> bool:
            koji.publish(TOPIC, {"n": koji.head + 1})
            used.append(take(own, 1)[-1].parcel.certificate)  # type: ignore[attr-defined]
            return used[-1] != before

        wait_until(changed, PATIENCE)
    return used


def test_a_rotated_key_is_taken_up_and_everything_said_before_still_verifies(bus: Bus, authority: Authority) -> None:
    with bus.publisher(KOJI) as koji, bus.subscribe("koji", since="now") as subscriber:
        join(subscriber, KOJI)
        koji.publish(TOPIC, {"n": 1})
        (message,) = take(subscriber, 1)
        authority.rotate(KOJI)
        say_until_signed_anew(koji, message.parcel.certificate, bus)  # type: ignore[attr-defined]
        assert numbers(take(subscriber, koji.head - 1)) == list(range(2, koji.head + 1))
        with bus.subscribe("koji", since="beginning") as late:
            assert numbers(take(late, koji.head)) == list(range(1, koji.head + 1))
        assert subscriber.stats.refused == late.stats.refused == {}


@pytest.mark.fault("F22")
def test_a_certificate_revoked_while_running_is_refused_and_a_new_one_heals(
    bus: Bus, authority: Authority, open_bus: Callable[..., Bus]
) -> None:
    writing, losses = open_bus(), []
    with (
        writing.publisher(KOJI) as koji,
        writing.publisher(BODHI) as bodhi,
        bus.subscribe(since="now", on_loss=losses.append) as subscriber,
    ):
        join(subscriber, KOJI, BODHI)
        koji.publish(TOPIC, {"n": 1})
        assert numbers(take(subscriber, 1)) == [1]
        authority.revoke(KOJI, "keyCompromise")
        publish_until(subscriber, koji, lambda: "revoked" in subscriber.stats.refused)
        bodhi.publish("update.new", {"n": 2})
        messages = take_until(subscriber, lambda: accounted(subscriber, BODHI) == 1)
        assert [(one.endpoint, one.body["n"]) for one in messages] == [(BODHI, 2)], "another endpoint suffers"
        assert bus.verifier.rejections[Reason.REVOKED] > 0
        refused = koji.head
        authority.rotate(KOJI)
        reader = next(one for one in subscriber.readers() if one.endpoint == KOJI)
        before = reader.stats.messages
        messages = publish_until(subscriber, koji, lambda: reader.stats.messages > before)
        assert {one.signer for one in messages} == {KOJI}
        assert min(one.sequence for one in messages) > refused
        assert {loss.cause for loss in losses} == {"refused"}
        assert max(loss.last for loss in losses) == min(one.sequence for one in messages) - 1


@pytest.mark.fault("F22")
@pytest.mark.badinput("B25")
def test_an_expired_revocation_list_fails_closed_until_a_new_one_is_there(bus: Bus, bus_folder: Path) -> None:
    clock = Shifted()
    with (
        Bus(quick(bus_folder), clock=clock) as reading,
        bus.publisher(KOJI) as koji,
        reading.subscribe("koji", since="now") as subscriber,
    ):
        join(subscriber, KOJI)
        koji.publish(TOPIC, {"n": 1})
        assert numbers(take(subscriber, 1)) == [1]
        clock.shift = (CRL_DAYS + 1) * 86400.0
        publish_until(subscriber, koji, lambda: "crl" in subscriber.stats.refused)
        reader = next(one for one in subscriber.readers() if one.endpoint == KOJI)
        before = reader.stats.messages
        Authority.open(bus_folder / "keys", clock=clock).write_crl()
        publish_until(subscriber, koji, lambda: reader.stats.messages > before)


def test_a_new_ca_and_the_old_one_are_both_trusted_while_running(bus: Bus, authority: Authority) -> None:
    with bus.publisher(KOJI) as koji, bus.subscribe("koji", since="now") as subscriber:
        join(subscriber, KOJI)
        koji.publish(TOPIC, {"n": 1})
        (message,) = take(subscriber, 1)
        authority.roll_over()
        authority.rotate(KOJI)
        say_until_signed_anew(koji, message.parcel.certificate, bus)  # type: ignore[attr-defined]
        assert numbers(take(subscriber, koji.head - 1)) == list(range(2, koji.head + 1))
        assert subscriber.stats.refused == {}


class Shifted(SystemClock):
    """The clock of this machine, with the wall time so many seconds off."""

    shift = 0.0

    def wall(self) -> float:  # type: ignore[override]
        return time.time() + self.shift


def accounted(subscriber: Subscriber, endpoint: str) -> int:
    return next(one.accounted for one in subscriber.readers() if one.endpoint == endpoint)


def publish_until(subscriber: Subscriber, koji: Publisher, condition: Callable[[], bool]) -> list[Message]:
    """Publish one message after the other until *condition* is true; return what *subscriber* handed on."""

    def step() -> bool:
        if condition():
            return True
        koji.publish(TOPIC, {"n": koji.head + 1})
        return False

    return take_until(subscriber, step)
