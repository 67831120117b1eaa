"""The relay on its real socket: who may hand in, what happens to bad input, and that each message counts once."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import random
import select
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from buses import PATIENCE, quick, take

from fedbus import (
    Bus,
    ConnectError,
    ForkedError,
    JournalWriteError,
    MessageError,
    PublisherClosed,
    QueueFull,
    RelayPublisher,
    TrustError,
)
from fedbus.clock import SystemClock
from fedbus.config.settings import Settings
from fedbus.errors import Reason
from fedbus.journal import spool
from fedbus.journal.journal import Journal
from fedbus.journal.spool import Spool
from fedbus.transport import relay_protocol as protocol
from fedbus.transport.options import RelayRule
from fedbus.transport.relay import Relay
from fedbus.transport.relay_door import Doorman
from fedbus.transport.relay_protocol import Request, new_submission
from tests.support import wait_until

HOOK = "koji.build01"
TOPIC = "build.start"


class Daemon:
    """A relay that serves in a thread of this process, with a bus of its own."""

    def __init__(self, settings: Settings, names: tuple[str, ...] = (HOOK,)) -> None:
        self.settings = settings
        self.bus = Bus(settings)
        self.relay = Relay(
            {name: settings.endpoint(name) for name in names},
            options=settings.relay,
            spools=settings.spools,
            limits=settings.limits,
            open_publisher=lambda name: self.bus.publisher(name, direct=True),
        )
        ready = threading.Event()
        self.thread = threading.Thread(target=lambda: self.relay.run(on_ready=ready.set), daemon=True)
        self.thread.start()
        assert ready.wait(PATIENCE)

    @property
    def outlet(self) -> Any:
        return self.relay.outlets[HOOK]

    def stop(self) -> None:
        self.relay.stop()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        self.bus.close()


@pytest.fixture
def settings(bus_folder: Path) -> Callable[..., Settings]:
    """Settings of `bus_folder` in which koji.build01 is an endpoint of the relay; ``relay={…}`` changes options."""

    def make(**parts: dict[str, Any]) -> Settings:
        found = quick(bus_folder, **parts)
        marked = dataclasses.replace(found.endpoints[HOOK], relay=True)
        return dataclasses.replace(found, endpoints={**found.endpoints, HOOK: marked})

    return make


@pytest.fixture
def start(settings: Callable[..., Settings]) -> Iterator[Callable[..., Daemon]]:
    running: list[Daemon] = []

    def go(**parts: dict[str, Any]) -> Daemon:
        running.append(Daemon(settings(**parts)))
        return running[-1]

    yield go
    for daemon in running:
        if daemon.thread.is_alive():
            daemon.stop()


@pytest.fixture
def client(settings: Callable[..., Settings]) -> Iterator[Callable[..., RelayPublisher]]:
    """Open publishers: `client(relay={…})`."""
    with contextlib.ExitStack() as stack:

        def make(**parts: dict[str, Any]) -> RelayPublisher:
            publisher = stack.enter_context(Bus(settings(**parts))).publisher(HOOK)
            assert isinstance(publisher, RelayPublisher)
            return publisher

        yield make


@pytest.fixture
def raw(settings: Callable[..., Settings]) -> Iterator[Callable[..., socket.socket]]:
    """Connect to the relay: `raw(data)` sends *data*."""
    opened: list[socket.socket] = []

    def connect(data: bytes = b"") -> socket.socket:
        one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        opened.append(one)
        one.connect(str(settings().relay.socket))  # waits for room among those that were not accepted yet
        one.settimeout(PATIENCE)
        one.sendall(data)
        return one

    yield connect
    for one in opened:
        one.close()


def stored(settings: Settings) -> list[tuple[int, Any, str]]:
    """What the journal holds, verified: sequence, the body's "n", submission."""
    found = []
    with Bus(settings) as bus, bus.subscribe(since="beginning", endpoints=[HOOK]) as subscriber:
        while True:
            messages = subscriber.receive(0.05)
            found += [(one.sequence, one.body.get("n"), one.attributes.get("submission", "")) for one in messages]
            if not messages and subscriber.caught_up:
                return found


def numbers(settings: Settings) -> list[Any]:
    return [number for _, number, _ in stored(settings)]


def request(number: int, **changes: Any) -> Request:
    values = {"do": "publish", "endpoint": HOOK, "topic": TOPIC, "submission": new_submission(time.time())}
    return Request(**{**values, "body": json.dumps({"n": number}).encode(), **changes})


def sent(*requests: Request) -> bytes:
    return b"".join(protocol.frame(protocol.encode_request(one)) for one in requests)


def answers(connection: socket.socket, count: int) -> list[protocol.Answer]:
    """Return the next *count* answers."""
    splitter = protocol.Splitter(protocol.ANSWER_BYTES)
    found: list[protocol.Answer] = []
    while len(found) < count:
        data = connection.recv(65536)
        assert data, f"the relay has closed the connection after {found}"
        splitter.feed(data)
        found += [protocol.decode_answer(content) for content in splitter.frames()]
    return found


def closed(connection: socket.socket) -> bool:
    """Say whether the relay closes the connection, whatever it says before."""
    with contextlib.suppress(ConnectionResetError):  # it has not read all that was sent
        while connection.recv(65536):
            pass
    return True


# --- handing in ----------------------------------------------------------------------------------------------------


def test_what_is_handed_in_arrives_signed_and_in_order_with_its_submission(start, client, settings) -> None:
    start()
    publisher = client()
    with Bus(settings()) as bus, bus.subscribe("koji", since="beginning") as subscriber:
        receipts = [publisher.publish(TOPIC, {"n": number}, traceparent="00-1-2-3") for number in range(20)]
        messages = take(subscriber, 20)
    assert [one.body["n"] for one in messages] == list(range(20))
    for receipt, message in zip(receipts, messages, strict=True):
        assert not receipt.spooled
        assert (receipt.topic, receipt.endpoint) == (message.topic, message.endpoint)
        assert (receipt.epoch, receipt.sequence, receipt.id) == (message.epoch, message.sequence, message.id)
        assert message.attributes["submission"] == receipt.submission
        assert message.attributes["traceparent"] == "00-1-2-3"
        assert message.signer == HOOK


def test_many_threads_and_publishers_hand_in_at_the_same_time(start, client, settings) -> None:
    start()
    publishers = [client(), client()]

    def publish(name: int) -> None:
        publisher = publishers[name % 2]
        for number in range(50):
            if number % 5:
                publisher.enqueue(TOPIC, {"n": [name, number]})
            else:
                publisher.publish(TOPIC, {"n": [name, number]})

    threads = [threading.Thread(target=publish, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    for publisher in publishers:
        publisher.flush()
    found = numbers(settings())
    for name in range(6):
        assert [number for who, number in found if who == name] == list(range(50))
    assert sum(publisher.stats.published for publisher in publishers) == 300


def test_much_more_than_any_window_holds_goes_through(start, client, settings) -> None:
    daemon = start(relay={"window": 50}, publisher={"queue_messages": 100})
    publisher = client()
    waiting = [publisher.enqueue(TOPIC, {"n": number}) for number in range(12_000)]
    publisher.flush(60)
    assert [one.result(0).sequence for one in waiting] == list(range(1, 12_001))
    assert daemon.outlet.stats.accepted == 12_000


def test_large_messages_wait_for_room_and_all_arrive(start, raw, settings) -> None:
    daemon = start(relay={"queue_bytes": 1_000_000, "request_timeout": 3600.0})
    body = json.dumps({"n": 1, "padding": "x" * 700_000}).encode()
    ready = [sent(request(0, body=body)) for _ in range(6)]
    halves = [raw(data[:100_000]) for data in ready]
    wait_until(lambda: len(daemon.relay._starved) == 5, PATIENCE)
    for connection, data in zip(halves, ready, strict=True):
        threading.Thread(target=connection.sendall, args=(data[100_000:],), daemon=True).start()
    assert all(answers(connection, 1)[0].receipt for connection in halves)
    wait_until(lambda: daemon.relay._room == 1_000_000, PATIENCE)
    assert len(stored(settings())) == 6


def test_a_body_or_topic_that_cannot_be_published_is_an_error_at_the_caller(start, client, settings) -> None:
    start()
    publisher = client()
    with pytest.raises(MessageError):
        publisher.publish(TOPIC, {"n": float("nan")})
    with pytest.raises(MessageError):
        publisher.publish("Bad", {})
    with pytest.raises(TrustError):
        publisher.publish("org.example.dev.bodhi.update.create", {})
    with pytest.raises(MessageError):
        publisher.publish_json(TOPIC, b'{"n": 1, "n": 2}')
    with pytest.raises(MessageError):
        publisher.publish_json(TOPIC, b"[]")
    # an object that would end early, and say more about itself than it may
    with pytest.raises(MessageError):
        publisher.publish_json(TOPIC, b'{}, "topic": "other"')
    with pytest.raises(MessageError):
        publisher.publish(TOPIC, {"n": "x" * (2**20 - 200)})
    publisher.publish(TOPIC, {"n": 1})
    assert numbers(settings()) == [1]


def test_errors_that_nobody_asked_for_are_raised_by_flush(start, client) -> None:
    start()
    publisher = client()
    publisher._may_publish = None  # as where the policy of the relay is newer than ours
    publisher.enqueue("org.example.dev.bodhi.update.create", {})
    publisher.enqueue(TOPIC, {})
    with pytest.raises(TrustError):
        publisher.flush()
    publisher.flush()
    publisher.close()
    with pytest.raises(PublisherClosed):
        publisher.publish(TOPIC, {})


def test_it_tells_head_epoch_and_subscribers(start, client, settings) -> None:
    daemon = start()
    publisher = client()
    receipt = publisher.publish(TOPIC, {"n": 1})
    assert publisher.position == (receipt.epoch, 1)
    assert not publisher.wait_for_subscribers(1, timeout=0.0)
    with Bus(settings()) as bus, bus.subscribe("koji", since="beginning") as subscriber:
        take(subscriber, 1)
        assert publisher.wait_for_subscribers(1, timeout=PATIENCE)
    daemon.stop()
    with pytest.raises(ConnectError):
        _ = publisher.head


# --- each message once ---------------------------------------------------------------------------------------------


def test_a_submission_that_comes_again_gets_the_receipt_of_the_first_time(start, raw, settings) -> None:
    daemon = start()
    one = request(1)
    first = answers(raw(sent(one, one)), 2)
    again = answers(raw(sent(one._replace(again=True))), 1)
    assert {answer.receipt for answer in first} == {again[0].receipt}
    assert daemon.outlet.stats.repeated == 2
    daemon.stop()
    # the next relay knows it from the journal
    daemon = start()
    later = answers(raw(sent(one._replace(again=True), request(2))), 2)
    assert later[0].receipt == again[0].receipt
    assert later[1].receipt is not None
    assert later[1].receipt.sequence == 2
    assert numbers(settings()) == [1, 2]


@pytest.mark.badinput("B33")
def test_a_full_topic_of_another_environment_is_refused_by_relay_and_client(start, raw, client, settings) -> None:
    start()
    topic = "org.example.stg.koji.build.start"
    (answer,) = answers(raw(sent(request(1, topic=topic))), 1)
    assert isinstance(answer.error, TrustError) and answer.error.reason is Reason.ENVIRONMENT
    with pytest.raises(TrustError, match=r"this bus carries org\.example\.dev\.\* only"):
        client().publish(topic, {"n": 2})
    assert numbers(settings()) == []


@pytest.mark.badinput("B29")
def test_another_message_under_a_submission_that_was_used_is_refused_and_told(start, raw, settings, caplog) -> None:
    daemon = start()
    one = request(1)
    others = (one._replace(body=b'{"n": 2}'), one._replace(body=b'{"n": true}'), one._replace(topic="tag.add"))
    first = answers(raw(sent(one, *others)), 4)  # before it is in the journal, mostly
    again = answers(raw(sent(*(other._replace(again=True) for other in others), one)), 4)  # afterwards
    # errors may come before the receipts of earlier requests
    receipts = [answer.receipt for answer in (*first, *again) if answer.receipt is not None]
    receipt = receipts[0]
    assert receipts == [receipt, receipt] and receipt.topic.endswith(TOPIC)
    for answer in (*first, *again):
        if answer.receipt is not None:
            continue
        assert isinstance(answer.error, MessageError) and answer.error.reason is Reason.CONFLICT
    assert (daemon.outlet.stats.repeated, daemon.outlet.stats.refused) == (1, 6)
    assert f"another message was handed in as {one.submission}" in caplog.text
    # the same message in other words is the same
    (same,) = answers(raw(sent(one._replace(body=b' {"n":1e0}', topic=receipt.topic))), 1)
    assert same.error is not None  # 1.0 is another number
    (same,) = answers(raw(sent(one._replace(body=b' {"n":1} ', topic=receipt.topic))), 1)
    assert same.receipt == receipt
    assert numbers(settings()) == [1]


def test_one_that_is_older_than_what_is_remembered_is_not_published_again(start, raw, settings) -> None:
    start(relay={"remember": 10})
    old = request(0, submission=new_submission(time.time() - 3600))
    connection = raw(sent(old, *(request(number) for number in range(1, 21))))
    assert all(one.receipt for one in answers(connection, 21))
    (answer,) = answers(raw(sent(old._replace(again=True))), 1)
    assert "cannot be told" in str(answer.error)
    assert numbers(settings()) == list(range(21))


def test_what_retention_has_removed_is_known_still(start, raw, settings, monkeypatch) -> None:
    daemon = start()
    one = request(1)
    (first,) = answers(raw(sent(one)), 1)
    monkeypatch.setattr(type(daemon.outlet.publisher._journal), "read", lambda *_: spoiled)
    from fedbus.model.stream import Slice

    spoiled = Slice(b"", 1, True, ((1, 1),))
    (again,) = answers(raw(sent(one)), 1)
    assert first.receipt is not None and again.receipt is not None
    assert (again.receipt.epoch, again.receipt.sequence) == (first.receipt.epoch, 1)


# --- the spool -----------------------------------------------------------------------------------------------------


def test_without_a_relay_messages_are_spooled_and_the_next_one_sends_them_in_order(start, client, settings) -> None:
    publisher = client()
    receipts = [publisher.publish(TOPIC, {"n": number}) for number in range(5)]
    assert all(one.spooled and not one.sequence and one.submission for one in receipts)
    publisher.enqueue(TOPIC, {"n": 5}).result(0)
    daemon = start()
    wait_until(lambda: daemon.outlet.stats.spooled == 6, PATIENCE)
    # spooled or not, as it does not look for the relay each time
    publisher.publish(TOPIC, {"n": 6})
    wait_until(lambda: len(stored(settings())) == 7, PATIENCE)
    assert numbers(settings()) == [*range(7)]
    assert [submission for *_, submission in stored(settings())][:5] == [one.submission for one in receipts]
    wait_until(lambda: spool.list_waiting(settings().spools / HOOK) == [], PATIENCE)


def test_what_was_spooled_while_the_relay_runs_comes_before_what_is_handed_in_later(start, raw, settings) -> None:
    start()
    mine = Spool(settings().spools / HOOK, most_bytes=2**20)
    connection = raw()
    for number in range(0, 200, 2):
        mine.append([protocol.encode_request(request(number))], timeout=PATIENCE)
        connection.sendall(sent(request(number + 1)))
        assert answers(connection, 1)[0].receipt
    assert numbers(settings()) == [*range(200)]


def test_a_long_spool_does_not_keep_others_waiting_for_ever(start, raw, client, settings) -> None:
    mine = Spool(settings().spools / HOOK, most_bytes=2**26)
    mine.append([protocol.encode_request(request(number)) for number in range(5000)], timeout=PATIENCE)
    start()
    assert answers(raw(sent(request(5000))), 1)[0].receipt
    assert numbers(settings()) == [*range(5001)]


@pytest.mark.fault("F2")
def test_a_spool_that_was_partly_sent_is_sent_on_without_repeating_anything(start, raw, settings, bus_folder) -> None:
    mine = Spool(settings().spools / HOOK, most_bytes=2**20)
    messages = [request(number) for number in range(40)]
    mine.append([protocol.encode_request(one) for one in messages], timeout=PATIENCE)
    (waiting,) = spool.list_waiting(mine.directory)
    daemon = start(relay={"remember": 1})
    # as a relay leaves it that was killed in the middle
    answers(raw(), 0)
    wait_until(lambda: daemon.outlet.stats.spooled == 40, PATIENCE)
    epoch = daemon.outlet.publisher.epoch
    daemon.stop()
    more = [request(number) for number in range(40, 60)]
    left = mine.directory / f"{waiting.uid}.{epoch}.{20:020d}.sending"
    left.write_bytes(b"".join(spool.frame(protocol.encode_request(one)) for one in [*messages[20:], *more]))
    daemon = start(relay={"remember": 1})
    wait_until(lambda: daemon.outlet.stats.spooled == 20, PATIENCE)
    wait_until(lambda: not left.exists(), PATIENCE)
    assert numbers(settings()) == [*range(60)]


def test_a_message_that_was_journaled_and_spooled_too_is_published_once(start, raw, settings) -> None:
    daemon = start(relay={"remember": 1})
    messages = [request(number) for number in range(10)]
    answers(raw(sent(*messages)), 10)
    daemon.stop()
    # the relay was killed before it answered, so the client has spooled all of it; nine are not remembered
    mine = Spool(settings().spools / HOOK, most_bytes=2**20)
    late = [one._replace(again=True) for one in messages]
    mine.append([protocol.encode_request(one) for one in [*late, request(10)]], timeout=PATIENCE)
    daemon = start(relay={"remember": 1})
    wait_until(lambda: daemon.outlet.stats.spooled == 1, PATIENCE)
    assert daemon.outlet.stats.repeated == 10
    assert numbers(settings()) == [*range(11)]


@pytest.mark.fault("F4")
def test_a_damaged_spool_gives_what_is_whole_and_what_cannot_be_published_is_kept(start, settings, caplog) -> None:
    mine = Spool(settings().spools / HOOK, most_bytes=2**20)
    good = [protocol.encode_request(request(number)) for number in range(3)]
    denied = protocol.encode_request(request(7, topic="org.example.dev.bodhi.update.create"))
    mine.append([good[0], denied, b"no request", good[1], good[2]], timeout=PATIENCE)
    (waiting,) = spool.list_waiting(mine.directory)
    data = bytearray(waiting.path.read_bytes())
    data[len(data) - len(spool.frame(good[2])) - 3] ^= 1  # in the body of the last but one
    waiting.path.write_bytes(data + b"torn")
    daemon = start()
    wait_until(lambda: daemon.outlet.stats.spooled == 2, PATIENCE)
    assert numbers(settings()) == [0, 2]
    assert daemon.outlet.stats.spool_refused == 2
    lines = (mine.directory / f"{os.geteuid()}.refused").read_text().splitlines()
    kept = [json.loads(line) for line in lines]
    assert kept[0]["topic"] == "org.example.dev.bodhi.update.create"
    assert json.loads(kept[0]["body"]) == {"n": 7}
    assert bytes.fromhex(kept[1]["bytes"]) == b"no request"
    assert "is damaged" in caplog.text


@pytest.mark.fault("F5")
def test_a_disk_that_refuses_is_an_error_at_the_caller_and_keeps_the_spool(
    start, client, settings, monkeypatch
) -> None:
    mine = Spool(settings().spools / HOOK, most_bytes=2**20)
    daemon = start()
    publisher = client()
    publisher.publish(TOPIC, {"n": 1})
    with monkeypatch.context() as patch:

        def refuse(*_: object, **__: object) -> None:
            raise JournalWriteError("no space left on device")

        patch.setattr(Journal, "append", refuse)
        with pytest.raises(JournalWriteError):
            publisher.publish(TOPIC, {"n": 2})
        mine.append([protocol.encode_request(request(3))], timeout=PATIENCE)
        wait_until(lambda: "no space left" in daemon.outlet.spool_problem, PATIENCE)
        wait_until(lambda: any("no space left" in one for one in daemon.relay.reasons()), PATIENCE)
    wait_until(lambda: daemon.outlet.stats.spooled == 1, PATIENCE)
    publisher.publish(TOPIC, {"n": 4})
    wait_until(lambda: not daemon.relay.reasons(), PATIENCE)
    assert numbers(settings()) == [1, 3, 4]


def test_a_spool_that_is_full_or_cannot_be_written_is_an_error(client, settings, bus_folder) -> None:
    publisher = client(relay={"spool_bytes": 500})
    publisher.publish(TOPIC, {"n": 1})
    with pytest.raises(QueueFull, match="no relay answers"):
        publisher.publish(TOPIC, {"n": "x" * 500})
    other = client()
    other._spool = bus_folder / "10-bus.yaml" / "spool"
    with pytest.raises(JournalWriteError, match="no relay answers"):
        other.publish(TOPIC, {"n": 2})


def test_what_cannot_be_published_is_not_spooled(client, settings) -> None:
    publisher = client()
    with pytest.raises(MessageError):
        publisher.publish_json(TOPIC, b'{"n": NaN}')
    with pytest.raises(MessageError):
        publisher.publish_json(TOPIC, b'{"n": "' + b"x" * (2**20 - 100) + b'"}')
    assert publisher.publish_json(TOPIC, b'{"n": 1}').spooled


def test_a_publisher_that_opens_the_endpoint_itself_sends_the_spool_first(client, bus_folder, settings) -> None:
    publisher = client()
    for number in range(300):
        publisher.enqueue(TOPIC, {"n": number})
    publisher.flush()
    with Bus(quick(bus_folder)) as bus, bus.publisher(HOOK) as direct:
        assert direct.publish(TOPIC, {"n": 300}).sequence == 301
    assert numbers(settings()) == [*range(301)]
    assert spool.list_waiting(settings().spools / HOOK) == []


def test_a_relay_that_does_not_answer_in_time_gets_the_message_from_the_spool_once(client, settings, start) -> None:
    daemon = start()
    publisher = client()
    publisher.publish(TOPIC, {"n": 1})
    halt, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        halt.set()
        assert go_on.wait(PATIENCE)

    daemon.outlet.settle, before = (lambda: (wait(), setattr(daemon.outlet, "settle", before))), daemon.outlet.settle
    receipt = publisher.publish(TOPIC, {"n": 2}, timeout=0.3)
    assert receipt.spooled
    assert halt.wait(PATIENCE)
    assert publisher.publish(TOPIC, {"n": 3}, timeout=0.3).spooled
    go_on.set()
    wait_until(lambda: len(stored(settings())) == 3, PATIENCE)
    wait_until(lambda: spool.list_waiting(settings().spools / HOOK) == [], PATIENCE)
    assert numbers(settings()) == [1, 2, 3]


def test_an_endpoint_that_another_process_holds_is_spooled_for_and_taken_up_when_it_is_free(
    start, client, settings, bus_folder
) -> None:
    with Bus(quick(bus_folder)) as bus:
        holder = bus.publisher(HOOK, direct=True)
        daemon = Daemon(settings(), (HOOK, "git.host01"))
        try:
            assert any(HOOK in one for one in daemon.relay.reasons())
            publisher = client()
            assert publisher.publish(TOPIC, {"n": 1}).spooled
            holder.close()

            def sent_on() -> bool:
                daemon.outlet.retry_at = 0.0  # a try that is under way, and in vain, sets it anew
                return bool(daemon.outlet.stats.spooled == 1)

            wait_until(sent_on, PATIENCE)
            wait_until(lambda: not publisher.publish(TOPIC, {"n": 2}).spooled, PATIENCE)
        finally:
            daemon.stop()
    found = numbers(settings())
    assert found[0] == 1
    assert set(found[1:]) == {2}


def test_a_publisher_that_fails_is_opened_anew(start, client, settings, monkeypatch) -> None:
    daemon = start()
    publisher = client()
    publisher.publish(TOPIC, {"n": 1})
    failing = daemon.outlet.publisher
    with monkeypatch.context() as patch:

        def fail(*_: object) -> None:
            raise ValueError("on purpose")

        patch.setattr(failing, "_on_beat", fail)
        wait_until(lambda: daemon.outlet.publisher is not failing, PATIENCE)
    for number in range(2, 6):
        publisher.publish(TOPIC, {"n": number})  # spooled, unless it is open again already
    wait_until(lambda: len(stored(settings())) == 5, PATIENCE)
    assert numbers(settings()) == [1, 2, 3, 4, 5]


# --- forks ---------------------------------------------------------------------------------------------------------


def test_a_publisher_works_in_the_children_of_a_fork_also_while_messages_are_on_their_way(
    start, client, settings, fork
) -> None:
    start()
    publisher = client()
    publisher.publish(TOPIC, {"n": "parent 0"})
    pending = [publisher.enqueue(TOPIC, {"n": f"parent {number}"}) for number in range(1, 50)]

    def child() -> None:
        with pytest.raises(ForkedError):
            pending[-1].result()
        assert not publisher.publish(TOPIC, {"n": "child 1"}).spooled
        publisher.enqueue(TOPIC, {"n": "child 2"})
        publisher.close()

    # nobody takes answers but who waits for one
    assert not pending[-1].done
    assert fork(child) == "done"
    publisher.flush()
    found = numbers(settings())
    assert [one for one in found if one.startswith("child")] == ["child 1", "child 2"]
    assert [one for one in found if one.startswith("parent")] == [f"parent {n}" for n in range(len(pending) + 1)]


# --- who may hand in -----------------------------------------------------------------------------------------------


def test_only_the_relays_own_user_gets_to_the_socket_unless_its_mode_says_more(start, settings) -> None:
    daemon = start()
    path = settings().relay.socket
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (settings().spools / HOOK).stat().st_mode & 0o7777 == 0o700
    daemon.stop()
    assert not path.exists()
    start(relay={"mode": "0666", "group": os.getegid()})
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    assert (settings().spools / HOOK).stat().st_mode & 0o7777 == 0o3777


@pytest.mark.parametrize(
    ("rules", "allowed"),
    [
        ((), False),
        ((RelayRule(endpoints=("koji.build01",), users=(4000,)),), True),
        ((RelayRule(endpoints=("koji.*",), groups=(50, 5000)),), True),
        ((RelayRule(endpoints=("*.build01",), users=("nobody", 4000)),), True),
        ((RelayRule(endpoints=("bodhi.*", "koji"), users=(4000,), groups=(5000,)),), False),
        ((RelayRule(endpoints=("koji.*",), users=(4001,), groups=(1,)),), False),
        ((RelayRule(endpoints=("koji.*",), users=("no such user",), groups=("no such group",)),), False),
    ],
)
def test_rules_grant_endpoints_to_users_and_groups(rules: tuple[RelayRule, ...], allowed: bool) -> None:
    doorman = Doorman(rules)
    assert doorman.allows("koji.build01", 4000, frozenset({4000, 5000})) is allowed
    assert doorman.allows("koji.build01", os.geteuid(), frozenset())
    assert doorman.allows("koji.build01", 0, frozenset())
    assert not doorman.allows_user("koji.build01", 4_000_000)


def as_user(uid: int, act: Callable[[], str]) -> str:
    """Run *act* in a child that is the user *uid*, and return what it returns."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            said = act()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def reachable(tmp_path: Path) -> Iterator[None]:
    """Let every user get to this test's folders."""
    changed = []
    for folder in [tmp_path, *tmp_path.parents]:
        mode = stat.S_IMODE(folder.stat().st_mode)
        if not mode & 0o001:
            changed.append((folder, mode))
            folder.chmod(mode | 0o011)
    yield
    for folder, mode in changed:
        folder.chmod(mode)


@needs_root
@pytest.mark.badinput("B27")
def test_another_user_is_kept_out_by_the_mode_then_by_the_rules_then_by_the_policy(
    start, client, settings, reachable, bus_folder
) -> None:
    for folder in (bus_folder, bus_folder / "state"):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o711)

    publisher = client()  # a child has one of its own
    publisher._may_publish = None
    folder = settings().spools / HOOK

    def hand_in(topic: str = TOPIC) -> str:
        return f"spooled {publisher.publish(topic, {'n': 1}).spooled}"

    daemon = start()
    assert as_user(4000, hand_in).startswith("TrustError: user 4000 may not use the relay's socket")
    daemon.stop()
    daemon = start(relay={"mode": "0666"})
    assert "add a rule to relay.allow" in as_user(4000, hand_in)
    daemon.stop()
    rule = RelayRule(endpoints=("koji.*",), users=(4000,))
    daemon = start(relay={"mode": "0666", "allow": (rule,)})
    assert as_user(4000, hand_in) == "spooled False"
    assert as_user(4001, hand_in).startswith("TrustError")
    assert "no rule grants it" in as_user(4000, lambda: hand_in("org.example.dev.bodhi.update.create"))
    daemon.stop()
    # nobody is there: who may hand in may spool, and what is spooled counts as the word of its owner
    assert as_user(4000, hand_in) == "spooled True"
    assert as_user(4001, hand_in) == "spooled True"
    # and what is another's can be neither removed nor replaced
    assert "Operation not permitted" in as_user(4001, lambda: str((folder / "4000.messages").unlink()))
    daemon = start(relay={"mode": "0666", "allow": (rule,)})
    wait_until(lambda: daemon.outlet.stats.spooled == 1, PATIENCE)
    wait_until(lambda: "4001 may not hand in" in daemon.outlet.spool_problem, PATIENCE)
    assert numbers(settings()) == [1, 1]


@needs_root
@pytest.mark.badinput("B45")
def test_a_file_under_another_users_name_is_not_sent(start, settings, reachable, bus_folder) -> None:
    for folder in (bus_folder, bus_folder / "state"):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o711)
    daemon = start(relay={"mode": "0666"})
    daemon.stop()
    folder = settings().spools / HOOK
    record = spool.frame(protocol.encode_request(request(1)))

    def plant() -> str:
        for name in ("0.lock", "0.messages"):
            (folder / name).write_bytes(record if name.endswith("messages") else b"")
        return "planted"

    assert as_user(4000, plant) == "planted"
    daemon = start(relay={"mode": "0666"})
    wait_until(lambda: "belongs to user 4000" in daemon.outlet.spool_problem, PATIENCE)
    assert stored(settings()) == []


@needs_root
def test_who_keeps_his_spool_locked_keeps_only_himself_waiting(start, raw, settings) -> None:
    rule = RelayRule(endpoints=(HOOK,), users=(4000,))
    folder = settings().spools / HOOK
    Spool(folder, most_bytes=2**20).append([protocol.encode_request(request(2))], timeout=PATIENCE)
    (folder / "4000.messages").write_bytes(spool.frame(protocol.encode_request(request(1))))
    (folder / "4000.lock").touch()
    for name in ("4000.messages", "4000.lock"):
        os.chown(folder / name, 4000, -1)
    with spool.lock(folder, 0, timeout=PATIENCE):
        daemon = start(relay={"allow": (rule,)})
        connection = raw(sent(request(3)))
        wait_until(lambda: daemon.outlet.stats.spooled == 1, PATIENCE)
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        assert not poll.poll(0)
    assert answers(connection, 1)[0].receipt
    assert numbers(settings()) == [1, 2, 3]


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.badinput("B1")
@pytest.mark.badinput("B2")
@pytest.mark.badinput("B7")
@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\0\0\0\0",
        b"\xff\xff\xff\xff",
        protocol.frame(b"x"),
        protocol.frame(b"\0\0\0\x02{}"),
        protocol.frame(b"\0\0\xff\xff{}"),
        protocol.frame(b"\0\0\x13\x88" + b"[" * 5000),
        protocol.frame(b"\0\0\0\x03\xef\xbb\xbf"),
        random.Random(7).randbytes(3000),
    ],
)
def test_garbage_is_answered_and_hurts_nobody_else(start, raw, client, settings, data: bytes) -> None:
    daemon = start()
    good = raw(sent(request(1)))
    assert answers(good, 1)[0].receipt
    bad = raw(sent(request(2)) + data)
    bad.shutdown(socket.SHUT_WR)
    found = answers(bad, 2)
    assert found[0].receipt or found[1].receipt
    assert any(one.error and not one.submission for one in found)
    assert closed(bad)
    good.sendall(sent(request(3)))
    assert answers(good, 1)[0].receipt
    assert daemon.relay.stats.refused == {"protocol": 1}
    assert numbers(settings()) == [1, 2, 3]


def test_random_changes_of_good_requests_never_stop_it(start, raw, settings) -> None:
    start()
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(150):
        data = bytearray(sent(request(0), request(0)))
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        connection = raw()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        if chance.random() < 0.7:
            assert closed(connection)
        connection.close()
    assert answers(raw(sent(request(1))), 1)[0].receipt
    assert numbers(settings())[-1] == 1


@pytest.mark.badinput("B5")
def test_a_thousand_idle_connections_make_room_for_those_who_have_something_to_say(start, raw, settings) -> None:
    daemon = start(relay={"connections": 50})
    idle = [raw() for _ in range(300)]
    busy = raw(sent(request(0)))
    assert answers(busy, 1)[0].receipt
    for number in range(1, 60):
        one = raw(sent(request(number)))
        assert answers(one, 1)[0].receipt
        one.close()
    assert len(daemon.relay.connections) <= 50
    assert daemon.relay.stats.dropped["connections"] >= 250
    poll = select.poll()
    for one in idle[:200]:
        poll.register(one, select.POLLIN)
    assert len(poll.poll(0)) == 200, "those that came first were closed"
    assert len(stored(settings())) == 60


@pytest.mark.badinput("B5")
def test_who_begins_a_request_and_never_ends_it_is_dropped_and_holds_up_nobody(start, raw, settings) -> None:
    daemon = start(relay={"request_timeout": 0.4, "idle_timeout": 3600.0})
    data = sent(request(9, body=json.dumps({"n": "x" * 200_000}).encode()))
    lame = [raw(data[:size]) for size in (1, 3, 4, 5, 100, 150_000)]
    assert answers(raw(sent(request(1))), 1)[0].receipt
    # bytes that drip do not help
    stop = threading.Event()

    def drip() -> None:
        slow = raw(data[:10])
        with contextlib.suppress(OSError):
            for at in range(10, 10_000):
                if stop.wait(0.02):
                    return
                slow.sendall(data[at : at + 1])

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        assert all(closed(one) for one in lame)
        thread.join(PATIENCE)
        assert not thread.is_alive()
    finally:
        stop.set()
    assert daemon.relay.stats.dropped == {"slow": 7}
    assert numbers(settings()) == [1]


def test_one_request_right_behind_the_other_is_not_slow_however_long_that_goes_on(start, raw) -> None:
    class Later(SystemClock):
        passed = 0.0

        def monotonic(self) -> float:  # type: ignore[override]
            return time.monotonic() + self.passed

    daemon = start(relay={"request_timeout": 1000.0})
    daemon.relay._clock = clock = Later()
    data = [sent(request(number)) for number in range(6)]
    connection = raw(data[0][:10])
    for one, following in itertools.pairwise(data):
        # a request is always under way, and never the same for long
        connection.sendall(one[10:] + following[:10])
        assert answers(connection, 1)[0].receipt
        clock.passed += 400.0
        moment = clock.monotonic()
        wait_until(lambda: daemon.relay._tick_at > moment, PATIENCE, "a look at the deadlines")  # noqa: B023
    assert not daemon.relay.stats.dropped


def test_idle_connections_end_and_a_publisher_does_not_notice(start, client, raw, settings) -> None:
    daemon = start(relay={"idle_timeout": 0.2})
    publisher = client()
    idle = raw()
    publisher.publish(TOPIC, {"n": 1})
    assert closed(idle)
    wait_until(lambda: not daemon.relay.connections, PATIENCE)
    assert not publisher.publish(TOPIC, {"n": 2}).spooled
    # a slow machine may leave one idle more often
    assert daemon.relay.stats.dropped.keys() == {"idle"}
    assert daemon.relay.stats.dropped["idle"] >= 2
    assert numbers(settings()) == [1, 2]


def test_who_does_not_read_its_answers_is_not_read_either_and_dropped_in_the_end(start, raw, settings) -> None:
    daemon = start(relay={"request_timeout": 0.5})
    deaf = raw()
    deaf.setblocking(False)
    data = sent(*(request(0, do="status", topic="", submission="", body=b"") for _ in range(100)))
    asked = 0

    def fill() -> bool:
        nonlocal asked
        with contextlib.suppress(BlockingIOError):
            asked += deaf.send(data)
        return "deaf" in daemon.relay.stats.dropped

    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        wait_until(fill, PATIENCE)
    wait_until(lambda: daemon.relay.stats.dropped == {"deaf": 1}, PATIENCE)
    assert asked < 20_000_000
    assert answers(raw(sent(request(1))), 1)[0].receipt


@pytest.mark.fault("F21")
def test_without_descriptors_it_gives_up_idle_connections_and_goes_on(start, raw, settings) -> None:
    import resource

    daemon = start()
    idle = [raw() for _ in range(20)]
    wait_until(lambda: len(daemon.relay.connections) == 20, PATIENCE)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    late = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(5)]
    path = str(settings().relay.socket)
    highest = max(int(one.name) for one in Path("/proc/self/fd").iterdir())
    filler = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 3, limits[1]))
        with contextlib.suppress(OSError):
            while True:
                filler.append(os.open("/dev/null", os.O_RDONLY))
        for one in late:
            one.settimeout(PATIENCE)
            one.connect(path)
            one.sendall(sent(request(1)))
        for one in late:
            assert answers(one, 1)[0].receipt
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in filler:
            os.close(fd)
        for one in late:
            one.close()
    assert daemon.relay.stats.dropped["descriptors"] >= 5
    assert len(idle) == 20


def test_a_second_relay_is_refused_and_a_socket_left_behind_is_replaced(start, settings) -> None:
    daemon = start()
    path = settings().relay.socket
    from fedbus import BindError

    with pytest.raises(BindError, match="another relay has it"):
        Relay(
            {},
            options=settings().relay,
            spools=settings().spools,
            limits=settings().limits,
            open_publisher=lambda name: pytest.fail("never"),
        ).run()
    assert path.exists()
    path.with_name("file").touch()
    with pytest.raises(BindError, match=r": (?!.*stop the other one).*; mend its folder, or name another path"):
        Relay(
            {},
            options=dataclasses.replace(settings().relay, socket=path.with_name("file") / "relay.sock"),
            spools=settings().spools,
            limits=settings().limits,
            open_publisher=lambda name: pytest.fail("never"),
        ).run()
    daemon.stop()
    left = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    left.bind(str(path))
    left.close()
    assert path.exists()
    start()
