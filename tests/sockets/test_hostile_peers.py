"""Peers that flood, overstep limits or hold connections without a word cost a publisher nothing but themselves."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest
import zmq
from buses import KOJI, PATIENCE, Bus, join, numbers, quick, take
from hostile import FOE, GREETING, Flood, command, dial, ends, frame, shake, subscription

from fedbus.clock import Clock, SystemClock
from fedbus.transport.publisher import Publisher
from fedbus.transport.subscriber import Subscriber
from fedbus.transport.zap import Gate, LinkFault, _Connection
from tests.support import wait_until

FRIEND = "127.0.0.1"


class Later(SystemClock):
    """The clock of this machine, until a test lets time pass at once."""

    passed = 0.0

    def monotonic(self) -> float:  # type: ignore[override]
        return time.monotonic() + self.passed


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def guarded(bus_folder: Path, opened: ExitStack) -> Callable[..., Bus]:
    """Open a bus with other limits for links: `guarded(subscriptions=10)`."""

    def start(clock: Clock | None = None, **links: object) -> Bus:
        settings = quick(bus_folder)
        return opened.enter_context(Bus(replace(settings, links=replace(settings.links, **links)), clock=clock))

    return start


def works(koji: Publisher, subscriber: Subscriber, start: int) -> None:
    """Publish ten messages, which the subscriber gets."""
    for number in range(start, start + 10):
        koji.publish("build.start", {"n": number})
    assert numbers(take(subscriber, 10)) == list(range(start, start + 10))


@pytest.mark.badinput("B4")
def test_a_flood_of_subscriptions_ends_in_a_ban_and_disturbs_nobody(guarded: Callable[..., Bus]) -> None:
    bus = guarded()
    endpoint = bus.settings.endpoint(KOJI)
    with bus.publisher(KOJI) as koji, bus.subscribe(since="now") as subscriber:
        join(subscriber, KOJI)
        works(koji, subscriber, 0)
        row = b"".join(subscription(b"%020d" % number) for number in range(2000))
        flood = Flood(endpoint.publish, row)
        try:
            wait_until(lambda: bus.links.bans[LinkFault.SUBSCRIPTIONS], PATIENCE)
            works(koji, subscriber, 10)
            wait_until(lambda: flood.refused >= 3, PATIENCE)
        finally:
            flood.stop()
        assert bus.links.refused[LinkFault.BANNED] >= 3
        works(koji, subscriber, 20)
        wait_until(lambda: koji.stats.subscribers == 1)
        reader = next(one for one in subscriber.readers() if one.endpoint == KOJI)
        assert reader.stats.gaps == 0
        # the address of the readers is another one
        with closing(shake(endpoint.publish, source=FRIEND)):
            pass


@pytest.mark.badinput("B4")
def test_subscriptions_that_come_and_go_without_end_are_a_flood_too(guarded: Callable[..., Bus]) -> None:
    bus = guarded(subscriptions=100)
    endpoint = bus.settings.endpoint(KOJI)
    with bus.publisher(KOJI) as koji, bus.subscribe(since="now") as subscriber:
        join(subscriber, KOJI)
        # the beat's mark makes a publisher sign a beat for each reader that comes
        flood = Flood(endpoint.publish, (subscription(b"\2") + frame(b"\0\2")) * 100)
        try:
            wait_until(lambda: flood.refused >= 3, PATIENCE)
        finally:
            flood.stop()
        assert bus.links.bans == {LinkFault.SUBSCRIPTIONS: 1}
        works(koji, subscriber, 0)
        wait_until(lambda: koji.stats.subscribers == 1)


@pytest.mark.badinput("B4")
def test_a_peer_within_its_limits_is_left_alone(guarded: Callable[..., Bus]) -> None:
    bus = guarded(subscriptions=100)
    with bus.publisher(KOJI) as koji, closing(shake(bus.settings.endpoint(KOJI).publish)) as peer:
        peer.sendall(b"".join(subscription(b"%03d" % number) for number in range(99)) + subscription(b"\2") * 1)
        assert koji.wait_for_subscribers(1, PATIENCE)
        peer.settimeout(PATIENCE)
        assert peer.recv(1), "no beat has come"
        assert not bus.links.bans


@pytest.mark.badinput("B4")
def test_a_local_process_that_floods_is_banned_as_that_process(
    bus_folder: Path, opened: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    settings = quick(bus_folder)
    here = replace(
        settings.endpoint(KOJI), publish=f"ipc://{bus_folder}/state/pub", replay=f"ipc://{bus_folder}/state/replay"
    )
    bus = opened.enter_context(Bus(replace(settings, endpoints={KOJI: here})))
    with bus.publisher(KOJI) as koji, bus.subscribe(since="now") as subscriber:
        join(subscriber, KOJI)
        with closing(shake(here.publish)) as peer, contextlib.suppress(OSError):
            peer.sendall(b"".join(subscription(b"%020d" % number) for number in range(2000)))
            assert ends(peer)
        wait_until(lambda: bus.links.bans == {LinkFault.SUBSCRIPTIONS: 1}, PATIENCE)
        wait_until(lambda: f":{os.getpid()} is banned" in caplog.text)  # counted first, then told
        works(koji, subscriber, 0)


@pytest.mark.badinput("B5")
def test_a_peer_that_freezes_is_dropped_and_not_banned(guarded: Callable[..., Bus]) -> None:
    bus = guarded()
    with bus.publisher(KOJI) as koji, closing(shake(bus.settings.endpoint(KOJI).publish)) as peer:
        peer.sendall(subscription(b"\2"))
        assert koji.wait_for_subscribers(1, PATIENCE)
        # it answers no heartbeat
        wait_until(lambda: bus.links.connections == 0 and koji.stats.subscribers == 0, PATIENCE)
        with closing(shake(bus.settings.endpoint(KOJI).publish)):
            pass
        assert not bus.links.bans


@pytest.mark.badinput("B4")
@pytest.mark.parametrize("size", [1100, 100_000])
def test_an_oversize_subscription_bans_its_sender_for_a_while(guarded: Callable[..., Bus], size: int) -> None:
    clock = Later()
    bus = guarded(clock, ban=3600.0)
    endpoint = bus.settings.endpoint(KOJI)
    with bus.publisher(KOJI) as koji, bus.subscribe(since="now") as subscriber:
        join(subscriber, KOJI)
        with closing(shake(endpoint.publish)) as bystander, closing(shake(endpoint.publish)) as peer:
            peer.sendall(subscription(b"\2") + subscription(b"x" * size))
            assert ends(peer)
            wait_until(lambda: bus.links.bans == {LinkFault.PROTOCOL: 1}, PATIENCE)
            with pytest.raises(OSError):
                shake(endpoint.publish).close()
            # what else that address has open may go on
            bystander.sendall(subscription(b"\2"))
            assert koji.wait_for_subscribers(2, PATIENCE)
            works(koji, subscriber, 0)
        assert not can_connect(endpoint.publish)
        clock.passed = 3600.0
        wait_until(lambda: can_connect(endpoint.publish), PATIENCE)
        wait_until(lambda: bus.links.banned == 0, PATIENCE)


@pytest.mark.badinput("B4")
def test_a_connection_is_known_before_its_handshake_may_end_however_late_the_gate_is(
    guarded: Callable[..., Bus], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(zmq.Poller):
        """Shows a gate what has come and gone only together with a question."""

        def poll(self, timeout: float | None = None) -> list[tuple[object, int]]:
            ready = super().poll(timeout)
            guards = [one for one, _ in self.sockets if isinstance(one, zmq.Socket)]
            asked = [one for one in guards if one.getsockopt(zmq.LAST_ENDPOINT).startswith(b"inproc://zeromq.zap.")]
            if not asked or any(one is asked[0] for one, _ in ready):
                return ready
            return [(one, events) for one, events in ready if one not in guards]

    calls: list[str] = []
    for name in ("_accepted", "_decide"):
        real = getattr(Gate, name)
        monkeypatch.setattr(Gate, name, lambda *a, real=real, name=name: (calls.append(name), real(*a))[1])
    monkeypatch.setattr(zmq, "Poller", Late)
    bus = guarded()
    with bus.publisher(KOJI), closing(shake(bus.settings.endpoint(KOJI).publish)):
        wait_until(lambda: "_decide" in calls, PATIENCE)
        assert calls == ["_accepted", "_decide"]


def can_connect(address: str) -> bool:
    try:
        shake(address).close()
    except OSError:
        return False
    return True


@pytest.mark.badinput("B4")
def test_an_oversize_request_bans_its_sender_too(guarded: Callable[..., Bus]) -> None:
    bus = guarded()
    endpoint = bus.settings.endpoint(KOJI)
    with bus.publisher(KOJI) as koji, bus.subscribe(since="now") as subscriber:
        join(subscriber, KOJI)
        with closing(shake(endpoint.replay, b"DEALER")) as peer, contextlib.suppress(OSError):
            peer.sendall(frame(b"x" * 10**6))
            assert ends(peer)
        wait_until(lambda: bus.links.bans == {LinkFault.PROTOCOL: 1}, PATIENCE)
        works(koji, subscriber, 0)


@pytest.mark.badinput("B4")
@pytest.mark.badinput("B5")
def test_peers_that_leave_politely_or_not_are_never_banned(guarded: Callable[..., Bus]) -> None:
    bus = guarded()
    endpoint = bus.settings.endpoint(KOJI)
    with bus.publisher(KOJI):
        for number in range(100):
            with closing(shake(endpoint.publish)) as peer:
                peer.sendall(subscription(b"\2"))
                if number % 2:
                    # a reset in place of an end
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wait_until(lambda: bus.links.admitted == 100 and bus.links.connections == 0, PATIENCE)
        with closing(shake(endpoint.publish)):
            pass
        assert not bus.links.bans


@pytest.mark.badinput("B5")
@pytest.mark.parametrize("left", [True, False])
def test_who_has_left_is_not_banned_where_a_busy_gate_took_one_connection_for_another(
    guarded: Callable[..., Bus], left: bool
) -> None:
    bus = guarded()
    with bus.publisher(KOJI):
        gate = bus._gate
        assert gate is not None
        ours, theirs = socket.socketpair()
        with closing(theirs):
            if left:
                theirs.close()
            suspect = _Connection(FOE, ((), ()), 0.0, ours)
            gate._suspects.append((0.0, KOJI, suspect, -1))  # the number that it had is nobody's now
            wait_until(lambda: suspect.handle is None, PATIENCE)
        assert bus.links.bans == ({} if left else {LinkFault.PROTOCOL: 1})


@pytest.mark.badinput("B4")
def test_who_has_broken_the_protocol_is_banned_however_late_its_descriptor_is_closed(
    guarded: Callable[..., Bus],
) -> None:
    clock = Later()
    bus = guarded(clock)
    with bus.publisher(KOJI):
        gate = bus._gate
        assert gate is not None
        ours, theirs = socket.socketpair()
        with closing(theirs):
            number = os.dup(ours.fileno())
            suspect = _Connection(FOE, ((), ()), clock.monotonic(), ours)
            gate._suspects.append((0.0, KOJI, suspect, number))
            wait_until(lambda: [due for due, *_ in list(gate._suspects) if due > 0.0], PATIENCE)
            assert not bus.links.bans
            os.close(number)
            wait_until(lambda: bus.links.bans == {LinkFault.PROTOCOL: 1}, PATIENCE)


@pytest.mark.badinput("B5")
def test_what_is_no_handshake_is_counted_and_disturbs_nobody(guarded: Callable[..., Bus]) -> None:
    bus = guarded()
    endpoint = bus.settings.endpoint(KOJI)
    with bus.publisher(KOJI) as koji, bus.subscribe(since="now") as subscriber:
        join(subscriber, KOJI)
        for number in range(20):
            dial(endpoint.publish).close()
            wait_until(lambda: bus.links.refused[LinkFault.HANDSHAKE] > number, PATIENCE)  # noqa: B023
        assert not bus.links.bans
        for data in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100, GREETING[:20], GREETING + command(b"READY", b"rubbish")):
            with closing(dial(endpoint.publish)) as peer:
                peer.sendall(data)
        works(koji, subscriber, 0)
        wait_until(lambda: bus.links.connections == 1, PATIENCE)


@pytest.mark.badinput("B5")
def test_idle_connections_of_one_address_end_at_a_cap_and_others_come_in(guarded: Callable[..., Bus]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))  # both ends of a thousand are in this process
    bus = guarded(connections_per_address=50)
    endpoint = bus.settings.endpoint(KOJI)
    try:
        with bus.publisher(KOJI) as koji, ExitStack() as held:
            for number in range(1000):
                idle = held.enter_context(closing(dial(endpoint.publish)))
                with contextlib.suppress(OSError):
                    # nothing at all, half a greeting, and a handshake that stops in the middle
                    idle.sendall((b"", GREETING[:30], GREETING)[number % 3])
            wait_until(lambda: bus.links.refused[LinkFault.CONNECTIONS] >= 900, PATIENCE)
            started = time.monotonic()
            with bus.subscribe(since="now") as subscriber:
                join(subscriber, KOJI)
                works(koji, subscriber, 0)
            print(f"a reader beside 1000 idle connections joined and read in {time.monotonic() - started:.3f} s")
            wait_until(lambda: bus.links.connections <= 60, PATIENCE)
            # those that stay under the cap do not shake hands in time
            wait_until(lambda: bus.links.connections == 0, PATIENCE)
            assert bus.links.refused[LinkFault.HANDSHAKE] >= 45
            assert not bus.links.bans
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.badinput("B5")
def test_connections_that_are_complete_and_silent_are_capped_too(guarded: Callable[..., Bus]) -> None:
    bus = guarded(connections_per_address=20, connections=30)
    endpoint = bus.settings.endpoint(KOJI)
    with bus.publisher(KOJI) as koji, ExitStack() as held:
        for source in (FOE, "127.0.0.67"):
            for _ in range(40):
                with contextlib.suppress(OSError):
                    held.enter_context(closing(shake(endpoint.publish, source=source)))
        # of some the handshake is done before they are counted
        wait_until(lambda: bus.links.refused[LinkFault.CONNECTIONS] >= 50, PATIENCE)
        wait_until(lambda: bus.links.connections <= 30, PATIENCE)
        held.close()
        wait_until(lambda: bus.links.connections == 0, PATIENCE)
        with bus.subscribe(since="now") as subscriber:
            join(subscriber, KOJI)
            works(koji, subscriber, 0)
