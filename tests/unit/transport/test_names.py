"""Host names are looked up beside the receive loop, and again when the answer is old."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from fedbus.clock import ManualClock
from fedbus.transport.names import Names, look_up
from tests.support import wait_until

HOST = "tcp://build01.example.org:3000"


class Server:
    """Answers like the system's resolver: late, when `gate` is closed; with an error for hosts that it lacks."""

    def __init__(self) -> None:
        self.known: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, host: str) -> list[str]:
        self.asked.append(host)
        assert self.gate.wait(100.0)
        if host not in self.known:
            raise OSError(-2, "Name or service not known")
        return self.known[host]


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def known(names: Names, address: str = HOST) -> tuple[str, ...]:
    return wait_until(lambda: names.addresses(address))


def answered(names: Names, server: Server, count: int) -> Callable[[], bool]:
    return lambda: len(server.asked) == count and not names.asking(HOST, since=float("-inf"))


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:3000", "tcp://[::1]:3000", "ipc:///run/koji.sock"])
def test_an_address_stands_for_itself_and_nobody_is_asked(address, server, clock):
    assert Names(clock, ask=server).addresses(address) == (address,)
    assert server.asked == []


def test_a_name_stands_for_its_addresses_in_the_order_of_the_answer(server, clock):
    server.known["build01.example.org"] = ["192.0.2.1", "2001:db8::1"]
    assert known(Names(clock, ask=server)) == ("tcp://192.0.2.1:3000", "tcp://[2001:db8::1]:3000")


def test_a_question_without_an_answer_keeps_nobody_waiting_and_is_put_once(server, clock):
    server.known["build01.example.org"] = ["192.0.2.1"]
    server.gate.clear()
    names = Names(clock, ask=server)
    assert [names.addresses(HOST) for _ in range(100)] == [()] * 100
    wait_until(lambda: server.asked == ["build01.example.org"])
    assert names.asking(HOST, since=clock.monotonic() - 1.0)
    clock.advance(60.0)
    assert names.addresses(HOST) == ()
    assert not names.asking(HOST, since=clock.monotonic() - 1.0)
    server.gate.set()
    assert known(names)
    assert server.asked == ["build01.example.org"]


def test_hosts_that_nobody_answers_for_leave_room_for_one_that_is_known(server, clock):
    names = Names(clock, ask=server)
    server.gate.clear()
    for number in range(5):
        assert names.addresses(f"tcp://dead{number}.example.org:1") == ()
    wait_until(lambda: len(server.asked) == 5)
    silent, server.gate = server.gate, threading.Event()
    server.gate.set()
    server.known["build01.example.org"] = ["192.0.2.1"]
    assert known(names)
    silent.set()


@pytest.mark.fault("F11")
def test_a_host_that_moved_is_found_at_its_new_address_when_the_answer_is_old(server, clock):
    server.known["build01.example.org"] = ["192.0.2.1"]
    names = Names(clock, ask=server)
    assert known(names) == ("tcp://192.0.2.1:3000",)
    server.known["build01.example.org"] = ["192.0.2.2"]
    assert known(names) == ("tcp://192.0.2.1:3000",)
    assert len(server.asked) == 1
    clock.advance(6.0)
    assert known(names) == ("tcp://192.0.2.1:3000",), "the old answer counts until the new one is there"
    wait_until(lambda: names.addresses(HOST) == ("tcp://192.0.2.2:3000",))


def test_a_host_that_is_forgotten_by_its_server_keeps_its_address(server, clock):
    server.known["build01.example.org"] = ["192.0.2.1"]
    names = Names(clock, ask=server)
    assert known(names)
    server.known.clear()
    clock.advance(6.0)
    assert names.addresses(HOST)
    wait_until(answered(names, server, 2))
    assert names.addresses(HOST) == ("tcp://192.0.2.1:3000",)


def test_an_unknown_host_is_asked_for_again_after_pauses_that_grow(server, clock, caplog):
    names = Names(clock, ask=server)
    assert names.addresses(HOST) == ()
    wait_until(answered(names, server, 1))
    for count, pause in enumerate((0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0), start=2):
        clock.advance(pause - 0.01)
        names.addresses(HOST)
        assert len(server.asked) == count - 1
        clock.advance(0.02)
        names.addresses(HOST)
        wait_until(answered(names, server, count))
    server.known["build01.example.org"] = ["192.0.2.1"]
    clock.advance(31.0)
    assert known(names)
    assert caplog.text.count("host build01.example.org is not known here") == 1


def test_threads_end_when_there_is_nothing_to_ask(server, clock, monkeypatch):
    monkeypatch.setattr("fedbus.transport.names._IDLE_SECONDS", 0.05)
    server.known["build01.example.org"] = ["192.0.2.1"]
    names = Names(clock, ask=server)
    for number in range(100):
        names.addresses(f"tcp://host{number}.example.org:1")
    assert known(names)
    wait_until(lambda: len(server.asked) == 101 and names._threads == 0)
    clock.advance(6.0)
    names.addresses(HOST)
    wait_until(lambda: len(server.asked) == 102)


def test_the_system_is_asked_as_publishers_ask_it_and_ipv4_comes_first():
    assert look_up("localhost")[0] == "127.0.0.1"
    with pytest.raises(OSError):
        look_up("no-such-host.invalid")
