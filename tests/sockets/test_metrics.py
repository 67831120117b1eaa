"""What programs show of themselves on a local HTTP port, and what that port refuses."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import select
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from buses import GIT, KOJI, PATIENCE, join, quick, take, take_until

import fedbus
from fedbus import Bus, Loss
from fedbus.clock import SystemClock
from fedbus.config.init import free_ports
from fedbus.errors import BindError, ConfigError
from fedbus.monitor import http as monitor_http
from fedbus.monitor.http import Answer, StatusServer, daemon_pages, json_answer
from fedbus.transport.state import LossCause, Mode
from tests.support import wait_until

OpenBus = Callable[..., Bus]
TOPIC = "package.build.complete"
# (name, labels) -> value
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(text: str) -> Samples:
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, _, rest = line.partition("{")
            labels, _, value = rest.rpartition("} ") if rest else ("", "", line.rpartition(" ")[2])
            pairs = tuple(sorted(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels)))
            found[name.partition(" ")[0], pairs] = float(value)
    return found


def value(found: Samples, name: str, **labels: str) -> float:
    return found[f"fedbus_{name}", tuple(sorted(labels.items()))]


def get(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


# --- what is counted


def test_a_program_shows_what_it_publishes_and_reads(open_bus: OpenBus) -> None:
    bus = open_bus()
    server = bus.serve_metrics("127.0.0.1:0")
    assert get(server.address, "/live") == (200, '{"live": true}\n')
    with bus.publisher(KOJI) as koji, bus.subscribe("koji", since="now", cursor="nightly") as subscriber:
        join(subscriber, KOJI)
        for number in range(20):
            koji.publish(TOPIC, {"n": number})
        assert len(take(subscriber, 20)) == 20
        subscriber.receive(0.0)  # the last has been worked on
        take_until(subscriber, lambda: subscriber.readers()[0].lag == 0)
        wait_until(lambda: bus.links.connections)
        status, text = get(server.address, "/metrics")
        found = samples(text)
        assert status == 200 and "org.example" not in text and TOPIC not in text
        assert value(found, "publisher_published_total", endpoint=KOJI) == 20
        assert value(found, "publisher_batches_total", endpoint=KOJI) == 20
        assert value(found, "publisher_bytes_total", endpoint=KOJI) > 20 * 500
        assert value(found, "publisher_queued_messages", endpoint=KOJI) == 0
        assert value(found, "publisher_subscribers", endpoint=KOJI) == 1
        assert value(found, "publisher_journal_start", endpoint=KOJI) == 1
        assert value(found, "publisher_journal_head", endpoint=KOJI) == 20
        assert value(found, "publisher_journal_limit_bytes", endpoint=KOJI) == 2**30
        path = next(bus.settings.journal_for(KOJI).directory.glob("*.journal"))
        assert value(found, "publisher_journal_bytes", endpoint=KOJI) == path.stat().st_size
        assert value(found, "publisher_syncs_total", endpoint=KOJI) >= 20
        seconds = value(found, "publisher_sync_seconds_total", endpoint=KOJI)
        assert 0 < value(found, "publisher_sync_longest_seconds", endpoint=KOJI) <= seconds
        assert value(found, "publisher_certificate_expires_seconds", endpoint=KOJI) > 86400
        mine = {"endpoint": KOJI, "cursor": "nightly"}
        assert value(found, "endpoint_messages_total", **mine) == 20
        assert value(found, "endpoint_lag_messages", **mine) == 0
        assert value(found, "endpoint_live", **mine) == 1
        assert value(found, "endpoint_beat_age_seconds", **mine) < PATIENCE
        assert abs(value(found, "endpoint_clock_skew_seconds", **mine)) < 60
        assert value(found, "endpoint_beat_age_seconds", endpoint=GIT, cursor="nightly") > 0  # never heard
        assert value(found, "link_connections") >= 1
    found = samples(get(server.address, "/metrics")[1])
    assert not any("endpoint" in dict(labels) for _, labels in found), "closed ones are not shown"
    bus.close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", server.port), PATIENCE)


def test_the_address_comes_from_the_configuration_where_the_program_gives_none(bus_folder: Path) -> None:
    # a port that no outgoing connection takes as soon as it is free
    with socket.create_server(("127.0.0.1", free_ports(1)[0])) as taken, Bus(quick(bus_folder)) as bus:
        with pytest.raises(ConfigError, match=r"set metrics\.http"):
            bus.serve_metrics()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        path = bus_folder / "90-metrics.yaml"
        path.write_text(f"metrics: {{http: '{address}'}}\n")
        path.chmod(0o600)
        with Bus(quick(bus_folder)) as other:
            with pytest.raises(BindError, match=r"choose another with metrics\.http"):
                other.serve_metrics()
            taken.close()
            assert other.serve_metrics().address == address
            assert get(address, "/live")[0] == 200


def test_the_same_stream_read_twice_is_one_sample_and_cursors_are_told_apart(open_bus: OpenBus) -> None:
    bus = open_bus()
    with bus.publisher(KOJI) as koji, contextlib.ExitStack() as stack:
        koji.publish(TOPIC, {})
        for cursor in (None, None, "a"):
            one = stack.enter_context(bus.subscribe(since="beginning", endpoints=[KOJI], cursor=cursor))
            assert len(take(one, 1)) == 1
        found = samples(bus.metrics())
        assert value(found, "endpoint_messages_total", endpoint=KOJI, cursor="") == 2
        assert value(found, "endpoint_messages_total", endpoint=KOJI, cursor="a") == 1


@pytest.mark.fault("F7")
def test_a_subscriber_that_does_not_keep_up_shows_it_on_both_sides_until_it_has_caught_up(open_bus: OpenBus) -> None:
    bus = open_bus(publisher={"send_hwm": 2}, subscriber={"receive_hwm": 2, "pending_bytes": 50_000})
    mine = {"endpoint": KOJI, "cursor": ""}
    with bus.publisher(KOJI) as koji, bus.subscribe("koji", since="now") as snail:
        join(snail, KOJI)
        for number in range(3000):
            koji.enqueue(TOPIC, {"n": number, "padding": "x" * 4000})
        koji.flush()
        seen: list[Samples] = []

        def look() -> bool:
            found = samples(bus.metrics())
            if value(found, "endpoint_behind_seconds", **mine) > 0:
                seen.append(found)
            return bool(seen)

        messages = take_until(snail, look)
        assert value(seen[0], "endpoint_gaps_total", **mine) == 1
        assert value(seen[0], "endpoint_live", **mine) == 0
        assert value(seen[0], "endpoint_lag_messages", **mine) > 0
        messages += take(snail, 3000 - len(messages))
        assert [message.body["n"] for message in messages] == list(range(3000))
        take_until(snail, lambda: snail.readers()[0].mode is Mode.LIVE and not snail.readers()[0].lag)
        found = samples(bus.metrics())
        assert value(found, "endpoint_behind_seconds", **mine) == 0
        assert value(found, "endpoint_lag_messages", **mine) == 0
        assert value(found, "endpoint_fetched_total", **mine) > 0
        assert value(found, "endpoint_lost_total", **mine) == 0
        assert value(found, "publisher_replay_requests_total", endpoint=KOJI) > 1
        assert value(found, "publisher_replay_bytes_total", endpoint=KOJI) > 1_000_000


def test_losses_are_counted_by_cause_and_have_a_number(open_bus: OpenBus) -> None:
    bus = open_bus(journal={"segment_bytes": 20_000, "retain_bytes": 60_000})
    losses: list[Loss] = []
    with bus.publisher(KOJI) as koji:
        first = koji.publish(TOPIC, {"n": 1})
        for number in range(2, 601):
            koji.publish(TOPIC, {"n": number}, wait=False)
            if number % 20 == 0:
                koji.flush()
        key = f"{KOJI}/{first.epoch}/{first.sequence}"
        with bus.subscribe("koji", since=key, on_loss=losses.append, endpoints=[KOJI]) as subscriber:
            take_until(subscriber, lambda: losses and subscriber.readers()[0].mode is Mode.LIVE)
            found = samples(bus.metrics())
    (loss,) = losses
    assert (loss.cause, loss.number, loss.last) == (LossCause.RETENTION, 1, loss.last)
    mine = {"endpoint": KOJI, "cursor": ""}
    assert value(found, "endpoint_losses_total", cause="retention", **mine) == 1
    assert value(found, "endpoint_lost_total", **mine) == 1
    assert value(found, "endpoint_lost_messages_total", **mine) == (loss.last or 0) - 1
    assert [cause.number for cause in LossCause] == [1, 2, 3, 4, 5]


class SkewedClock(SystemClock):
    """A host whose clock is wrong."""

    def __init__(self, ahead: float) -> None:
        self.ahead = ahead

    def wall(self) -> float:
        return super().wall() + self.ahead


@pytest.mark.fault("F12")
@pytest.mark.parametrize("ahead", [3600.0, 86400.0, -240.0])
def test_a_publisher_with_a_wrong_clock_is_read_in_order_and_its_skew_is_shown(bus_folder: Path, ahead: float) -> None:
    with (
        Bus(quick(bus_folder)) as bus,
        Bus(quick(bus_folder), clock=SkewedClock(ahead)) as wrong,
        wrong.publisher(KOJI) as koji,
        bus.subscribe("koji", since="beginning", endpoints=[KOJI]) as subscriber,
    ):
        for number in range(10):
            koji.publish(TOPIC, {"n": number})
        assert [message.body["n"] for message in take(subscriber, 10)] == list(range(10))
        take_until(subscriber, lambda: subscriber.readers()[0].beat_at is not None)
        skew = value(samples(bus.metrics()), "endpoint_clock_skew_seconds", endpoint=KOJI, cursor="")
        assert abs(skew - ahead) < 60


# --- what is refused


@pytest.fixture
def server() -> Iterator[StatusServer]:
    pages = {
        "/metrics": lambda here: Answer(200, "text/plain", "a 1\n"),
        "/where": lambda here: json_answer(200, {"here": here}),
        "/broken": lambda here: json_answer(200, {"no": object()}),
        "/large": lambda here: Answer(200, "text/plain", "x" * 20_000_000),
    }
    one = StatusServer("127.0.0.1:0", pages, owner="test", setting="nothing")
    one.start()
    yield one
    one.stop()


def raw(server: StatusServer, data: bytes) -> bytes:
    """Send *data* and return all that comes until the other side closes."""
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
        found = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                found += part
        return found


def statuses(answer: bytes) -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/1\.[01] (\d{3}) ", answer)]


HOST = b"Host: 127.0.0.1\r\n"


@pytest.mark.badinput("B49")
@pytest.mark.parametrize(
    ("request_bytes", "allowed"),
    [
        (b"GET /metrics HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 100_000 + b"\r\n\r\n", {400, 431}),
        (b"GET /metrics HTTP/1.1\r\n" + HOST + b"X: a\r\n" * 20_000 + b"\r\n", {400, 431}),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", {400, 414, 431}),
        (
            b"GET /metrics HTTP/1.1\r\n" + HOST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            {400},
        ),
        (b"GET /metrics HTTP/1.1\r\n" + HOST + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde", {400}),
        (b"GET /metrics HTTP/1.1\r\n" + HOST + b"Content-Length: +4\r\n\r\nabcd", {400}),
        (b"GET /metrics HTTP/1.1\r\n" + HOST + b"Content-Length: 1000000000\r\n\r\nabcd", {400, 413}),
        (b"GET /metrics HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nffffffff\r\nabcd", {400, 413}),
        (b"GET /metrics HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: xchunked\r\n\r\n", {400, 501}),
        (b"POST /metrics HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\n\r\n", {405}),
        (b"DELETE /metrics HTTP/1.1\r\n" + HOST + b"\r\n", {405}),
        (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", {404, 405}),
        (b"TRACE /metrics HTTP/1.1\r\n" + HOST + b"\r\n", {405}),
        (b"CONNECT evil:1 HTTP/1.1\r\n" + HOST + b"\r\n", {400, 404, 405}),
        (b"FOO /metrics HTTP/1.1\r\n" + HOST + b"\r\n", {405}),
        (b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n", {421}),
        (b"GET /nothing HTTP/1.1\r\nHost: evil.example\r\n\r\n", {421}),
        (b"GET /metrics HTTP/1.1\r\n\r\n", {400, 421}),
        (b"GET /metrics HTTP/1.1\r\n" + HOST + b"Host: evil.example\r\n\r\n", {400, 421}),
        (b"GET http://evil.example/metrics HTTP/1.1\r\n" + HOST + b"\r\n", {400, 404, 421}),
        (b"GET /../metrics HTTP/1.1\r\n" + HOST + b"\r\n", {404}),
        (b"GET /debug HTTP/1.1\r\n" + HOST + b"\r\n", {404}),
        (b"GET /metrics\x00 HTTP/1.1\r\n" + HOST + b"\r\n", {400, 404}),
        (b"GET /metrics HTTP/1.1\r\n" + HOST + b"X\x00: 1\r\n\r\n", {400}),
        (b"GET /metrics HTTP/1.1\r\n" + HOST + b" folded: 1\r\n\r\n", {200, 400}),
        (b"GET /metrics HTTP/9.9\r\n" + HOST + b"\r\n", {400, 505}),
        (b"GET /metrics HTTP/1.1\r\n" + HOST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", {400}),
        (b"GET /metrics HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n", {400, 501}),
        (b"GET /metrics HTTP/1.1\r\n" + HOST + b"Content-Length: 0x4\r\n\r\nabcd", {400}),
        (b"GET /metrics HTTP/1.1\r\n" + HOST + b"Content-Length: 4, 4\r\n\r\nabcd", {400, 413}),
        (
            b"GET /metrics HTTP/1.1\r\n" + HOST + b"Content-Length: 9\r\n\r\nGET /where HTTP/1.1\r\n" + HOST + b"\r\n",
            {400, 413},
        ),
        (
            b"GET /metrics HTTP/1.1\r\n" + HOST + b"Upgrade: h2c\r\nConnection: Upgrade\r\n\r\nPRI * HTTP/2.0\r\n\r\n",
            {200},
        ),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400}),
        (b"GET /metrics HTTP/1.1\nHost: 127.0.0.1\n\nGET /where HTTP/1.1\nHost: 127.0.0.1\n\n", {200, 400}),
        (b"GET /metrics HTTP/1.1\r\n" + HOST + b"X-Forwarded-Host: evil.example\r\n\r\n", {200}),
        (b"GET //evil.example/metrics HTTP/1.1\r\n" + HOST + b"\r\n", {404}),
        (b"GET /metrics/ HTTP/1.1\r\n" + HOST + b"\r\n", {404}),
        (b"GET /metrics%2f..%2fready HTTP/1.1\r\n" + HOST + b"\r\n", {404}),
        (b"GET /metrics HTTP/1.1\r\n" + HOST + b"Range: bytes=0-0,0-0,0-0,0-0\r\n\r\n", {200, 416}),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 300 + b"\r\n\r\n", {400}),
        (b"GET /metrics HTTP/1.1\r\n" + HOST + b"Range: bytes=-99999999999999999999,a-b\r\n\r\n", {200, 416}),
    ],
)
def test_what_no_monitor_asks_gets_an_error_and_the_port_goes_on(
    server: StatusServer, request_bytes: bytes, allowed: set[int]
) -> None:
    found = statuses(raw(server, request_bytes))
    # nothing at all is an answer too: the connection was closed; and never is a second request taken from the first
    assert len(found) <= 1 and set(found) <= allowed
    assert get(server.address, "/metrics") == (200, "a 1\n")


@pytest.mark.badinput("B49")
@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /metrics HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 9_000 + b"\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 2_000_000 + b"\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n" + HOST + b"X: a\r\n" * 2_000 + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
        b"\x00" * 100_000,
    ],
)
def test_headers_that_are_too_long_are_told_so_however_much_of_them_still_comes(
    server: StatusServer, request_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor_http, "_LINGER_SECONDS", PATIENCE)  # a slow machine needs longer to send it
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as connection:
        connection.sendall(request_bytes)  # all of it, before the answer is looked at
        found = b""
        while part := connection.recv(65536):
            found += part
    assert statuses(found) == [431]
    head, _, body = found.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head and "error" in json.loads(body)
    assert get(server.address, "/metrics") == (200, "a 1\n")


@pytest.mark.badinput("B49")
def test_a_part_of_a_page_is_never_served(server: StatusServer) -> None:
    for wanted in (b"bytes=0-0", b"bytes=5-2", b"bytes=-1", b"lines=1-2", b"bytes=" + b"0-1," * 500):
        answer = raw(server, b"GET /metrics HTTP/1.1\r\n" + HOST + b"Range: " + wanted + b"\r\n\r\n")
        assert statuses(answer) == [200] and answer.endswith(b"\r\n\r\na 1\n") and b"Content-Range" not in answer


@pytest.mark.badinput("B49")
def test_a_port_without_a_host_is_one_of_the_loopback() -> None:
    one = StatusServer(":0", {"/a": lambda here: json_answer(200, {})}, owner="hub", setting="hub.http")
    one.start()
    try:
        # proc(5): of all sockets that listen (0A) on this port the address is 127.0.0.1
        listening = re.findall(rf" ([0-9A-F]+):{one.port:04X} [0-9A-F]+:0000 0A ", Path("/proc/net/tcp").read_text())
        assert listening == ["0100007F"]
    finally:
        one.stop()


@pytest.mark.badinput("B49")
def test_the_pages_of_a_daemon_tell_others_neither_topics_nor_reasons() -> None:
    reasons = ["consumer irc: busy with org.example.dev.koji.secret.build"]
    alive = [True]
    pages = daemon_pages(live=lambda: alive[0], reasons=lambda: reasons, metrics=lambda: "a 1\n")
    assert set(pages) == {"/live", "/ready", "/metrics"}
    status, kind, text = pages["/ready"](False)
    assert (status, kind) == (503, "application/json")
    assert json.loads(text) == {"ready": False, "reasons": ["1, told on this host only"]}
    assert json.loads(pages["/ready"](True).text) == {"ready": False, "reasons": reasons}
    assert all("secret" not in pages[path](False).text for path in pages)
    reasons.clear()
    assert pages["/ready"](False) == Answer(200, "application/json", '{"ready": true, "reasons": []}\n')
    assert pages["/live"](False).status == 200
    alive[0] = False
    assert pages["/live"](False).status == 503
    found = samples(pages["/metrics"](False).text)
    assert found["a", ()] == 1.0
    assert value(found, "build_info", version=fedbus.__version__) == 1
    for name in ("cpu_seconds_total", "threads", "resident_memory_bytes", "open_fds", "max_fds", "start_time_seconds"):
        assert found[f"process_{name}", ()] > 0, name


def test_a_program_with_a_port_says_when_it_is_not_as_it_should_be(bus_folder: Path) -> None:
    class Later(SystemClock):
        ahead = 0.0

        def wall(self) -> float:
            return super().wall() + self.ahead

    clock = Later()
    with Bus(quick(bus_folder), clock=clock) as bus:
        server = bus.serve_metrics("127.0.0.1:0")
        with bus.publisher(KOJI) as koji:
            koji.publish(TOPIC, {})
            assert get(server.address, "/ready") == (200, '{"ready": true, "reasons": []}\n')
            clock.ahead = 4000 * 86400
            status, text = get(server.address, "/ready")
            assert status == 503 and "certificate has expired" in text
        assert get(server.address, "/ready")[0] == 200  # closed, and nobody's concern


@pytest.mark.badinput("B49")
def test_one_connection_gets_one_answer(server: StatusServer) -> None:
    one = b"GET /metrics HTTP/1.1\r\n" + HOST + b"\r\n"
    assert statuses(raw(server, one * 3)) == [200]


def test_head_is_answered_without_a_body_and_an_error_of_ours_is_500(server: StatusServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    connection.request("HEAD", "/metrics")
    answer = connection.getresponse()
    assert (answer.status, answer.read(), answer.headers["Content-Length"]) == (200, b"", "4")
    connection.close()
    assert get(server.address, "/broken")[0] == 500
    assert get(server.address, "/metrics")[0] == 200


def answered(server: StatusServer) -> bool:
    """Whether a question was answered; where time is short it may be cut off on a slow machine."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        return get(server.address, "/metrics")[0] == 200
    return False


@pytest.mark.badinput("B49")
def test_many_connections_that_say_nothing_keep_nobody_out_for_long(
    server: StatusServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor_http, "_REQUEST_SECONDS", 0.5)  # as the connections that follow are opened
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port), PATIENCE)) for _ in range(300)]
        for one in idle[:10]:
            one.sendall(b"GET /metrics HTTP/1.1\r\nX-Slow: ")  # headers that never end

        def closed() -> int:
            ready, _, _ = select.select(idle, [], [], 0)
            return len(ready)

        # those beyond the bound are closed as they come, the others when their time is over
        wait_until(lambda: closed() == 300, PATIENCE, "all idle connections to be closed")
        wait_until(lambda: answered(server), PATIENCE, "an answer")


@pytest.mark.badinput("B49")
def test_a_reader_that_takes_nothing_is_dropped(server: StatusServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor_http, "_REQUEST_SECONDS", 2.0)  # enough for a slow machine to begin with its answer
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as connection:
        own = connection.getsockname()[1]
        # proc(5): local and remote address, port in hexadecimal, and the state, of which 01 is ESTABLISHED
        there = re.compile(rf" 0100007F:{server.port:04X} 0100007F:{own:04X} 01 ")

        def held() -> bool:
            return bool(there.search(Path("/proc/net/tcp").read_text()))

        connection.sendall(b"GET /large HTTP/1.1\r\n" + HOST + b"\r\n")
        wait_until(lambda: answered(server), PATIENCE, "an answer to others")
        wait_until(lambda: not held(), PATIENCE, "the other side to close")
        size = 0
        with contextlib.suppress(OSError):
            while part := connection.recv(2**20):
                size += len(part)
        assert 0 < size < 20_000_000


@pytest.mark.badinput("B49")
def test_whoever_is_not_on_this_host_gets_no_reasons(open_bus: OpenBus, server: StatusServer) -> None:
    assert json.loads(get(server.address, "/where")[1]) == {"here": True}
    bus = open_bus()
    hub = bus.hub([], options=replace(bus.settings.hub, http="127.0.0.1:0"), problems=["a.yaml:7: secret topic"])
    with hub:
        here = json.loads(get(str(hub.http_address), "/ready")[1])["reasons"]
        assert any("secret topic" in reason for reason in here)
        ready = hub._http._pages["/ready"] if hub._http is not None else None  # as a peer of another host would get it
        assert ready is not None
        status, _, text = ready(False)
        assert status == 503 and "secret" not in text and "told on this host only" in text


def test_a_port_that_is_open_to_other_hosts_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    one = StatusServer("0.0.0.0:0", {"/a": lambda here: json_answer(200, {})}, owner="hub", setting="hub.http")
    one.start()
    one.stop()
    assert "open to other hosts on 0.0.0.0, without a password" in caplog.text


def test_metrics_may_be_asked_for_while_subscribers_come_and_go(open_bus: OpenBus) -> None:
    bus = open_bus()
    server = bus.serve_metrics("127.0.0.1:0")
    stop = threading.Event()
    answers: list[int] = []

    def scrape() -> None:
        while not stop.is_set():
            answers.append(get(server.address, "/metrics")[0])

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        with bus.publisher(KOJI) as koji:
            for number in range(30):
                koji.publish(TOPIC, {"n": number})
                with bus.subscribe(since="beginning", endpoints=[KOJI]) as subscriber:
                    assert len(take(subscriber, 1)) >= 1
                    subscriber.update([bus.settings.endpoint(GIT)])
                    subscriber.receive(0.0)
    finally:
        stop.set()
        thread.join(PATIENCE)
    assert answers and set(answers) == {200}
