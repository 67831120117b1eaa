"""The IRC relay and servers that are none: garbage, endless lines, silence, floods. A socket of the test plays them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fedbus_consumers.irc import IrcRelay
from fedbus_consumers.irc_parts import session
from fedbus_consumers.irc_parts.network import Network
from fedbus_consumers.irc_parts.settings import NetworkOptions
from fedbus_consumers.irc_parts.wire import Ended, Wire
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedbus import Texts
from tests.support import wait_until

PATIENCE = 45.0
WELCOME = b":s 001 fedbot :hi\r\n:s 422 fedbot :no motd\r\n"


class FalseServer:
    """Accepts connections and gives each to *play*, in a thread of its own; counts them."""

    def __init__(self, play: Callable[[socket.socket], None]) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # connections inherit it
        self.port = self._socket.getsockname()[1]
        self.accepted = 0
        self._play = play
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.accepted += 1
            self._open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self._play(connection)
        connection.close()

    def close(self) -> None:
        for one in (self._socket, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@contextlib.contextmanager
def relay_to(play: Callable[[socket.socket], None], **more: Any) -> Iterator[tuple[FalseServer, Network, IrcRelay]]:
    server = FalseServer(play)
    options = {
        **{"server": "127.0.0.1", "port": server.port, "tls": False, "nick": "fedbot", "channels": {"#a": {}}},
        **{"retry_pause": 0.1, "retry_most": 0.2, "lines_per_second": 1000, "burst": 100, **more},
    }
    relay = IrcRelay(networks={"false": options}, linger=0)
    relay.texts = Texts(root="org.x.dev")
    relay.start()
    try:
        yield server, relay._networks[0], relay
    finally:
        server.close()
        relay.stop()


def say(relay: IrcRelay, text: str) -> None:
    message: Any = SimpleNamespace(topic="org.x.dev.koji.build", body={"summary": text})
    relay.consume(message)


def until(connection: socket.socket, text: bytes) -> bytes:
    """Read until *text* was read."""
    seen = b""
    while text not in seen:
        data = connection.recv(65536)
        if not data:
            raise OSError("closed")
        seen += data
    return seen


def endless_line(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"x" * 4096)


def other_protocol(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


def bytes_without_meaning(connection: socket.socket) -> None:
    connection.sendall(bytes(range(256)) * 40 + b"\r\n")


def taken_for_ever(connection: socket.socket) -> None:
    while True:
        until(connection, b"NICK ")
        connection.sendall(b":s 433 * x :taken\r\n")


@pytest.mark.badinput("B50")
@pytest.mark.parametrize(
    ("play", "said"),
    [
        (endless_line, "a line of more than 16384 bytes"),
        (other_protocol, "(lost)"),
        (bytes_without_meaning, "(lost)"),
        (taken_for_ever, "is taken or refused"),
    ],
)
def test_what_is_no_irc_server_is_left_and_tried_again_after_a_pause(
    play: Callable[[socket.socket], None], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with relay_to(play) as (server, network, relay):
        say(relay, "still here")
        wait_until(lambda: caplog.text.count(said) >= 2, PATIENCE, "two tries")
        assert network.connections == 0
        assert len(network.channels[0].backlog) == 1
        assert server.accepted >= 2
    assert "Traceback" not in caplog.text


@pytest.mark.fault("F19")
def test_why_a_server_hung_up_in_the_middle_of_our_lines_is_heard_though_writing_failed_first() -> None:
    async def write_into_what_is_over(server: socket.socket) -> None:
        wanted = {"server": "127.0.0.1", "port": server.getsockname()[1], "tls": False, "nick": "bot", "channels": {}}
        options = NetworkOptions("false", wanted, "")
        one = session.Session(Network(options))
        one.encoding, one.connection = "utf-8", Wire(options)
        await one.connection.connect()
        try:
            peer, _ = server.accept()
            peer.sendall(b":s NOTICE * :slower\r\nERROR :Closing link: (Excess Flood)\r\n")
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, as of unread lines
            peer.close()
            while True:  # the loop, which would read, has no turn in between
                await one._send("PRIVMSG #a :one more\r\n")
        finally:
            one.close()

    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(Ended, match="Excess Flood") as caught:
        asyncio.run(write_into_what_is_over(server))
    assert caught.value.cause == "flood"


@pytest.mark.badinput("B50")
def test_a_server_that_only_trickles_is_left_at_the_deadline(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_REGISTER_SECONDS", 0.5)
    kinds = itertools.cycle([b":s NOTICE * :wait\r\n", b"x"])
    over = threading.Event()

    def trickle(connection: socket.socket) -> None:
        kind = next(kinds)
        while not over.wait(0.01):
            connection.sendall(kind)

    with contextlib.closing(SimpleNamespace(close=over.set)), relay_to(trickle):
        wait_until(lambda: caplog.text.count("no welcome within") >= 2, PATIENCE, "two deadlines")


@pytest.mark.badinput("B50")
def test_a_server_that_falls_silent_is_asked_and_then_left(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_IDLE_SECONDS", 0.3)
    asked = threading.Event()

    def silent(connection: socket.socket) -> None:
        connection.sendall(WELCOME)
        until(connection, b"PING fedbus\r\n")
        asked.set()
        until(connection, b"never")

    with relay_to(silent):
        # a slow server may read the question only when it was left already, and is asked again
        wait_until(lambda: "no answer to a PING" in caplog.text and asked.is_set(), PATIENCE, "the deadline")


@pytest.mark.badinput("B50")
def test_a_server_that_takes_nothing_is_left_and_what_waits_is_bounded(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_SEND_SECONDS", 0.5)

    def deaf(connection: socket.socket) -> None:
        until(connection, b"USER")
        connection.sendall(WELCOME + b":fedbot!u@h JOIN #a\r\n")
        while True:  # asks for ever, and never reads the answers
            connection.sendall(b"PING :" + b"x" * 400 + b"\r\n")

    with relay_to(deaf) as (_, network, relay):
        for number in range(500):
            say(relay, f"number {number}")
        wait_until(lambda: "the server took nothing for" in caplog.text, PATIENCE, "the deadline")
        assert len(network.channels[0].backlog) <= 30


@pytest.mark.badinput("B50")
def test_endless_lines_of_a_server_cost_neither_memory_nor_the_other_networks() -> None:
    sent = 0

    def gushing(connection: socket.socket) -> None:
        nonlocal sent
        connection.sendall(WELCOME + b":fedbot!u@h JOIN #a\r\n")
        while True:
            block = b"".join(
                b":s 005 fedbot A%d=x%d :are supported\r\n:s CAP * NEW :cap-%d\r\n:s 372 fedbot :motd\r\n"
                b":n%d!u@h PRIVMSG #a :!status\r\n:s 353 fedbot = #a :@op @op @op\r\n:garbage %d\r\n" % ((number,) * 5)
                for number in range(sent, sent + 20)
            )
            connection.sendall(block)
            sent += 20

    answered = threading.Event()

    def good(connection: socket.socket) -> None:
        until(connection, b"USER")
        connection.sendall(WELCOME + b":fedbot!u@h JOIN #a\r\n")
        until(connection, b"heard")
        answered.set()

    tracemalloc.start()
    try:
        other = FalseServer(good)
        with relay_to(gushing) as (_, _, relay):
            wait_until(lambda: sent > 200, PATIENCE, "a flood of lines")
            before = tracemalloc.get_traced_memory()[0]
            second = IrcRelay(
                networks={
                    "good": {
                        **{"server": "127.0.0.1", "port": other.port, "tls": False, "nick": "fedbot"},
                        "channels": {"#a": {}},
                    }
                },
                linger=0,
            )
            second.start()
            say(second, "heard")
            assert answered.wait(PATIENCE)
            second.stop()
            mark = sent
            wait_until(lambda: sent > mark + 400, PATIENCE, "more of the flood")
            assert tracemalloc.get_traced_memory()[0] - before < 4 * 2**20
            say(relay, "x")
        other.close()
    finally:
        tracemalloc.stop()


@pytest.mark.badinput("B50")
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=80),
            st.tuples(
                st.sampled_from([b":a!u@h ", b":fedbot!u@h ", b":@!@! ", b"@account=x;;=;a :s ", b"", b":s "]),
                st.sampled_from(
                    b"JOIN PART KICK NICK QUIT ACCOUNT CHGHOST PRIVMSG CAP AUTHENTICATE PING KILL 001 005 353 354 396 "
                    b"404 433 437 471 900 903 MODE 999999999999 \xd9\xa3".split()
                ),
                st.lists(st.sampled_from([b"#a", b"fedbot", b"a", b"*", b"LS", b"ACK", b"sasl", b":", b"+", b"\xff"])),
            ).map(lambda parts: parts[0] + parts[1] + b"".join(b" " + one for one in parts[2])),
        ),
        max_size=40,
    )
)
def test_any_lines_leave_the_relay_alive(lines: list[bytes]) -> None:
    over = threading.Event()
    heard = threading.Event()

    def play(connection: socket.socket) -> None:
        if not over.is_set():
            over.set()
            connection.sendall(WELCOME + b":fedbot!u@h JOIN #a\r\n" + b"".join(one + b"\r\n" for one in lines))
            return  # closes the connection; the next one is good
        until(connection, b"USER")
        connection.sendall(WELCOME + b":fedbot!u@h JOIN #a\r\n")
        until(connection, b"after all that")
        heard.set()

    with relay_to(play, ban_pause=0.1) as (_, _, relay):
        assert over.wait(PATIENCE)

        def said() -> bool:
            say(relay, "after all that")  # what was written to the first connection went with it
            return heard.wait(0.05)

        wait_until(said, PATIENCE, "a message after the hostile lines")
