"""What the service manager is told, over a real datagram socket."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbus.monitor.notify import Keeper, Notifier
from tests.support import wait_until

PATIENCE = 60.0


class Manager:
    """Takes notifications as systemd does."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + name[1:] if name.startswith("@") else name)
        self.socket.settimeout(0.02)
        self.got: list[dict[str, str]] = []

    def environment(self, **more: str) -> dict[str, str]:
        return {"NOTIFY_SOCKET": self.name, **more}

    def take(self) -> list[dict[str, str]]:
        """All notifications so far, in their order."""
        with contextlib.suppress(TimeoutError):
            while data := self.socket.recv(65536):
                self.got.append(dict(line.split("=", 1) for line in data.decode().split("\n")))
        return self.got

    def told(self, name: str) -> list[str]:
        return [one[name] for one in self.take() if name in one]


@pytest.fixture
def manager() -> Iterator[Manager]:
    one = Manager(f"@fedbus-{uuid4()}")
    yield one
    one.socket.close()


@pytest.fixture
def keeper(manager: Manager) -> Iterator[Callable[..., Keeper]]:
    with contextlib.ExitStack() as stack:

        def start(
            turned_at: Callable[[], float], reasons: Callable[[], list[str]] = lambda: [], **environment: str
        ) -> Keeper:
            notifier = Notifier(manager.environment(**environment))
            return stack.enter_context(Keeper(turned_at=turned_at, reasons=reasons, notifier=notifier))

        yield start


def test_a_daemon_that_nobody_manages_tells_nobody_and_has_no_thread() -> None:
    for environment in ({}, {"NOTIFY_SOCKET": "vsock:2:1234"}, {"NOTIFY_SOCKET": "/"}, {"NOTIFY_SOCKET": ""}):
        notifier = Notifier(environment)
        assert not notifier.listening and not notifier.send(READY=1)
        with Keeper(turned_at=time.monotonic, reasons=list, notifier=notifier) as one:
            one.ready("x")
            one.reloading()
            one.stopping(1.0)
            assert not one.is_alive() and not one.watched


@pytest.mark.parametrize("abstract", [True, False])
def test_a_path_and_an_abstract_name_are_both_told(abstract: bool, tmp_path: Path) -> None:
    where = os.open(tmp_path, os.O_RDONLY)  # sun_path holds 108 bytes, and folders of tests may be long
    one = Manager(f"@fedbus-{uuid4()}" if abstract else f"/proc/self/fd/{where}/notify")
    environment = one.environment()
    notifier = Notifier(environment)
    assert environment == {}  # no child speaks for us
    assert notifier.send(READY=1, STATUS="at work")
    assert one.take() == [{"READY": "1", "STATUS": "at work"}]
    one.socket.close()
    assert notifier.send(READY=1) is False  # a manager that is gone stops nothing
    notifier.close()
    assert notifier.send(READY=1) is False
    os.close(where)


@pytest.mark.badinput("B42")
@given(st.text())
def test_no_status_brings_assignments_of_its_own(text: str) -> None:
    one = Manager(f"@fedbus-{uuid4()}")
    notifier = Notifier(one.environment())
    assert notifier.send(STATUS=text, READY=1)
    data = one.socket.recv(65536)
    assert data.count(b"\n") == 1 and data.startswith(b"STATUS=") and data.endswith(b"\nREADY=1")
    notifier.close()
    one.socket.close()


def test_the_watchdog_is_ours_only_where_the_process_is_the_one_it_was_set_for(manager: Manager) -> None:
    for environment, seconds in (
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "-5"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
        ({}, 0.0),
    ):
        notifier = Notifier(manager.environment(**environment))
        assert notifier.watchdog_seconds == seconds
        notifier.close()


def test_signs_of_life_come_only_while_the_loop_turns(manager: Manager, keeper: Callable[..., Keeper]) -> None:
    rounds = [1.0]
    asked = [0]

    def turned_at() -> float:
        asked[0] += 1
        return rounds[0]

    keeper(turned_at, WATCHDOG_USEC="40000")  # looked at every 10 ms
    wait_until(lambda: asked[0] > 10, PATIENCE)
    assert manager.told("WATCHDOG") == []
    for count in range(1, 4):
        rounds[0] += 1.0
        wait_until(lambda count=count: len(manager.told("WATCHDOG")) == count, PATIENCE)
        before = asked[0]
        wait_until(lambda before=before: asked[0] > before + 10, PATIENCE)
        assert len(manager.told("WATCHDOG")) == count  # once for each time that it has turned


def test_it_is_told_when_a_daemon_is_ready_reloads_and_stops(manager: Manager, keeper: Callable[..., Keeper]) -> None:
    rounds = [time.monotonic()]
    one = keeper(lambda: rounds[0])
    one.reloading()  # before it is ready there is nothing to reload
    one.ready("consumers=irc")
    assert manager.take() == [{"READY": "1", "STATUS": "consumers=irc"}]
    for _ in range(100):  # a storm of SIGHUP is one reload
        one.reloading()
    assert [int(usec) <= time.monotonic() * 1e6 for usec in manager.told("MONOTONIC_USEC")] == [True]
    assert manager.told("READY") == ["1"]
    # two rounds that have begun since: in the first the files are read

    def turn() -> bool:
        rounds[0] = time.monotonic()
        return len(manager.told("READY")) == 2

    wait_until(turn, PATIENCE)
    one.reloading()
    assert len(manager.told("RELOADING")) == 2
    one.stopping(12.5)
    one.stopping(12.5)
    one.reloading()
    assert manager.take()[-1] == {"STOPPING": "1", "STATUS": "stopping", "EXTEND_TIMEOUT_USEC": "12500000"}


def test_the_status_says_why_a_daemon_is_not_as_it_should_be(
    manager: Manager, keeper: Callable[..., Keeper], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedbus.monitor.notify._STATUS_SECONDS", 0.02)
    reasons: list[str] = []
    one = keeper(time.monotonic, lambda: list(reasons))
    one.ready("endpoints=3")
    reasons += ["consumer irc: busy", "intake: x\nREADY=0"]
    wait_until(lambda: len(manager.told("STATUS")) == 2, PATIENCE)
    assert manager.told("STATUS")[1] == "degraded, 2 reasons: consumer irc: busy; intake: x READY=0"
    reasons.clear()
    wait_until(lambda: manager.told("STATUS")[-1] == "endpoints=3", PATIENCE)
