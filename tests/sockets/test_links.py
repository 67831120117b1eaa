"""Encrypted links: who has the right keys reads everything, everybody else nothing, and is told why."""

from __future__ import annotations

import logging
import re
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest
from buses import BODHI, GIT, KOJI, Bus, join, numbers, quick, take, take_until

from fedbus import Consumer, Message
from fedbus.config.init import create, free_ports
from fedbus.config.settings import Settings
from fedbus.errors import KeysError
from fedbus.transport.endpoint import Address, Endpoint
from fedbus.transport.subscriber import Subscriber
from fedbus.transport.zap import LinkFault
from fedbus.trust import curve
from tests.conftest import ENDPOINTS
from tests.support import wait_until


@pytest.fixture
def bus_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "bus"
    create(folder, ENDPOINTS, encrypted=True)
    return folder


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def reader(bus_folder: Path, tmp_path: Path, opened: ExitStack) -> Callable[..., Bus]:
    """Open a bus as on another host: no journal is there to be read as a file. Arguments change its settings."""

    def start(**changes: object) -> Bus:
        settings = quick(bus_folder)
        away = tmp_path / "another host"
        journals = {name: replace(one, directory=away / name) for name, one in settings.journals.items()}
        return opened.enter_context(Bus(replace(settings, journals=journals, **changes)))

    return start


def with_key(settings: Settings, pair: curve.CurvePair, path: Path) -> object:
    curve.write_pair(path, pair, "a test")
    return replace(settings.links, key=path)


def plain(settings: Settings, *names: str) -> dict[str, Endpoint]:
    """The endpoints as a file shows them that knows no key of *names*."""
    return {
        name: replace(one, curve="") if not names or name in names else one for name, one in settings.endpoints.items()
    }


def faults(subscriber: Subscriber) -> set[str]:
    return set(subscriber.stats.link_faults)


def test_who_has_the_keys_gets_the_past_the_present_and_beats(bus: Bus, reader: Callable[..., Bus]) -> None:
    with bus.publisher(KOJI) as koji:
        for number in range(5):
            koji.publish("build.start", {"n": number})
        with reader().subscribe(since="beginning") as subscriber:
            assert numbers(take(subscriber, 5)) == list(range(5))
            join(subscriber, KOJI)
            for number in range(5, 10):
                koji.publish("build.start", {"n": number})
            assert numbers(take(subscriber, 5)) == list(range(5, 10))
            link = next(one for one in subscriber.readers() if one.endpoint == KOJI)
            at = link.beat_at
            take_until(subscriber, lambda: link.beat_at != at)
            assert link.stats.gaps == 0
        assert bus.links.admitted >= 2
        assert not bus.links.refused


@pytest.mark.fault("F23")
def test_a_client_whose_key_is_not_listed_gets_nothing_and_disturbs_nobody(
    bus: Bus,
    reader: Callable[..., Bus],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fedbus.transport.refusals._EVERY", 3600.0)  # however long three tries take
    links = with_key(bus.settings, curve.make(), tmp_path / "other.curve")
    with bus.publisher(KOJI) as koji, reader().subscribe(since="beginning") as good:
        join(good, KOJI)
        with reader(links=links).subscribe(since="beginning") as bad:
            koji.publish("build.start", {"n": 1})
            assert take_until(bad, lambda: "banned" in faults(bad)) == []
            assert numbers(take(good, 1)) == [1]
            # it is tried again and again, and told of at a limited rate
            assert take_until(bad, lambda: bus.links.refused[LinkFault.KEY] >= 3) == []
            # before it leaves, perhaps in the middle of another handshake
            assert bus.links.refused.keys() == {LinkFault.KEY}
        koji.publish("build.start", {"n": 2})
        assert numbers(take(good, 1)) == [2]
    told = [one for one in caplog.records if "is not in" in one.getMessage()]
    assert len(told) == 1 and told[0].levelno == logging.WARNING
    assert not bus.links.bans


@pytest.mark.fault("F23")
@pytest.mark.fault("F10")
def test_a_plain_reader_of_an_encrypted_endpoint_is_told_why_and_heals_with_its_endpoints_file(
    bus: Bus, reader: Callable[..., Bus], caplog: pytest.LogCaptureFixture
) -> None:
    with bus.publisher(KOJI) as koji, reader().subscribe(since="beginning") as good:
        join(good, KOJI)
        behind = reader(endpoints=plain(bus.settings))
        with behind.subscribe(since="beginning") as bad:
            koji.publish("build.start", {"n": 1})
            assert take_until(bad, lambda: "mechanism" in faults(bad)) == []
            assert numbers(take(good, 1)) == [1]
            # which side sees the difference first is chance; the other one sees an end only
            take_until(bad, lambda: bus.links.refused.keys() & {LinkFault.MECHANISM, LinkFault.HANDSHAKE})
            told = re.search(
                r'fedbus_endpoint_link_faults_total\{endpoint="koji.build01".*fault="mechanism"\} (\d+)',
                behind.metrics(),
            )
            assert told is not None and int(told[1]) > 0
            bad.update(bus.settings.endpoints.values())
            assert numbers(take(bad, 1)) == [1]
            koji.publish("build.start", {"n": 2})
            assert numbers(take(bad, 1)) == [2]
        assert numbers(take(good, 1)) == [2]
    assert "has no `curve` key" in caplog.text
    assert not bus.links.bans


@pytest.mark.fault("F23")
@pytest.mark.fault("F10")
def test_a_reader_that_expects_encryption_takes_nothing_plain_and_hears_the_endpoint_once_it_encrypts(
    bus_folder: Path, reader: Callable[..., Bus], opened: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    settings = quick(bus_folder)
    before = opened.enter_context(Bus(replace(settings, endpoints=plain(settings))))
    koji = before.publisher(KOJI)
    with reader().subscribe(since="beginning") as subscriber:
        koji.publish("build.start", {"n": 1})
        assert take_until(subscriber, lambda: "mechanism" in faults(subscriber)) == []
        assert "does not encrypt yet" in caplog.text
        koji.close()
        after = opened.enter_context(Bus(settings))
        with after.publisher(KOJI) as koji:
            koji.publish("build.start", {"n": 2})
            assert numbers(take(subscriber, 2)) == [1, 2]
            koji.publish("build.start", {"n": 3})
            assert numbers(take(subscriber, 1)) == [3]


def test_a_reader_that_knows_another_key_of_the_endpoint_is_refused_and_told_where_to_look(
    bus: Bus, reader: Callable[..., Bus], caplog: pytest.LogCaptureFixture
) -> None:
    wrong = {**bus.settings.endpoints, KOJI: replace(bus.settings.endpoint(KOJI), curve=curve.make().public)}
    with bus.publisher(KOJI) as koji, reader(endpoints=wrong).subscribe(since="beginning") as bad:
        koji.publish("build.start", {"n": 1})
        assert take_until(bad, lambda: "handshake" in faults(bad)) == []
        wait_until(lambda: bus.links.refused[LinkFault.KEY])
        # a peer that leaves once without a word may just have ended
        take_until(bad, lambda: "is the public key in its key file" in caplog.text)
    assert not bus.links.bans


@pytest.mark.fault("F23")
def test_one_reader_hears_plain_and_encrypted_endpoints_side_by_side(
    bus_folder: Path, reader: Callable[..., Bus], opened: ExitStack
) -> None:
    settings = quick(bus_folder)
    mixed = plain(settings, BODHI)
    bus = opened.enter_context(Bus(replace(settings, endpoints=mixed)))
    publishers = {name: opened.enter_context(bus.publisher(name)) for name in (KOJI, BODHI, GIT)}
    with reader(endpoints=mixed).subscribe(since="beginning") as subscriber:
        for number in range(20):
            for publisher in publishers.values():
                publisher.publish("thing.change", {"n": number})
        found = take(subscriber, 60)
        for name in publishers:
            assert numbers([one for one in found if one.endpoint == name]) == list(range(20))
        assert not subscriber.stats.link_faults


class Wire:
    """Passes a TCP port on to another one and keeps what went through."""

    def __init__(self, target: int) -> None:
        self.bytes = bytearray()
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        try:
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._open += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=pair, daemon=True).start()
        except OSError:
            pass

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                self.bytes += data
                target.sendall(data)
        except OSError:
            pass

    def close(self) -> None:
        for one in self._open:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            one.close()


@pytest.mark.parametrize("encrypted", [True, False])
def test_a_listener_on_an_encrypted_link_sees_neither_topics_nor_bodies(
    bus_folder: Path, reader: Callable[..., Bus], opened: ExitStack, encrypted: bool
) -> None:
    settings = quick(bus_folder)
    if not encrypted:
        settings = replace(settings, endpoints=plain(settings))
    koji = settings.endpoint(KOJI)
    wires = [opened.enter_context(closing(Wire(Address.parse(one).port))) for one in (koji.publish, koji.replay)]
    publish, replay = (f"tcp://127.0.0.1:{one.port}" for one in wires)
    through = {**settings.endpoints, KOJI: replace(koji, publish=publish, replay=replay)}
    bus = opened.enter_context(Bus(settings))
    with ExitStack() as stack:
        publisher = stack.enter_context(bus.publisher(KOJI))
        publisher.publish("build.start", {"secret": "swordfish", "n": 1})  # before anybody listens, so it is replayed
        subscriber = stack.enter_context(reader(endpoints=through).subscribe("koji", since="beginning"))
        assert numbers(take(subscriber, 1)) == [1]
        join(subscriber, KOJI)
        publisher.publish("build.start", {"secret": "swordfish", "n": 2})
        assert numbers(take(subscriber, 1)) == [2]
    for wire in wires:
        assert wire.bytes
        for word in (b"swordfish", b"build.start", b"koji", b"specversion"):
            assert (word in wire.bytes) is not encrypted, (word, bytes(wire.bytes))


def test_a_hub_reads_encrypted_endpoints(bus: Bus, reader: Callable[..., Bus]) -> None:
    class Keep(Consumer):
        topics = ("koji",)

        def __init__(self) -> None:
            self.seen: list[Message] = []

        def consume(self, message: Message) -> None:
            self.seen.append(message)

    keep = Keep()
    hub = reader().hub([keep])
    thread = threading.Thread(target=hub.run)
    thread.start()
    try:
        with bus.publisher(KOJI) as koji:
            assert koji.wait_for_subscribers(1, 60)
            koji.publish("build.start", {"n": 1})
            wait_until(lambda: numbers(keep.seen) == [1])
    finally:
        hub.stop()
        thread.join(60)
    assert not thread.is_alive()


def test_the_list_of_clients_is_taken_up_while_publishers_run(
    bus: Bus, bus_folder: Path, reader: Callable[..., Bus], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pair = curve.make()
    links = with_key(bus.settings, pair, tmp_path / "other.curve")
    clients = bus_folder / "keys" / "clients"
    before = clients.read_text()

    def write(text: str) -> None:
        """In one step: an empty list would cut everybody off."""
        new = clients.with_suffix(".new")
        new.write_text(text)
        new.chmod(0o600)
        new.replace(clients)

    with bus.publisher(KOJI) as koji, reader(links=links).subscribe(since="beginning") as other:
        koji.publish("build.start", {"n": 1})
        assert take_until(other, lambda: bus.links.refused[LinkFault.KEY]) == []
        write(f"{before}{pair.public} other host\n")
        assert numbers(take(other, 1)) == [1]
        write(f"{before}\nrubbish\n")
        take_until(other, lambda: "stays as it was" in caplog.text)
        koji.publish("build.start", {"n": 2})
        assert numbers(take(other, 1)) == [2]
        # who is taken out loses the connection that stands
        refused = bus.links.refused[LinkFault.KEY]
        write(before)
        take_until(other, lambda: bus.links.refused[LinkFault.KEY] > refused)
        koji.publish("build.start", {"n": 3})
        assert (
            take_until(other, lambda: koji.stats.subscribers == 0 and bus.links.refused[LinkFault.KEY] > refused) == []
        )


@pytest.mark.fault("F23")
def test_an_endpoint_can_offer_both_kinds_of_links_at_two_pairs_of_addresses(
    bus_folder: Path, reader: Callable[..., Bus], opened: ExitStack
) -> None:
    settings = quick(bus_folder)
    koji = settings.endpoint(KOJI)
    more = [f"tcp://127.0.0.1:{port}" for port in free_ports(2)]
    text = (bus_folder / "20-endpoints.yaml").read_text()
    addition = f"    also: {{publish: {more[0]}, replay: {more[1]}}}\n"
    line = f'    curve: "{koji.curve}"\n'
    assert line in text
    (bus_folder / "20-endpoints.yaml").write_text(text.replace(line, line + addition))
    bus = opened.enter_context(Bus(quick(bus_folder)))
    old = replace(koji, publish=more[0], replay=more[1], curve="")
    with (
        bus.publisher(KOJI) as publisher,
        reader().subscribe(since="beginning") as new_reader,
        reader(endpoints={KOJI: old}).subscribe(since="beginning") as old_reader,
    ):
        for number in range(5):
            publisher.publish("build.start", {"n": number})
        assert numbers(take(new_reader, 5)) == numbers(take(old_reader, 5)) == list(range(5))
        # and moves over while it runs
        old_reader.update([koji])
        publisher.publish("build.start", {"n": 5})
        assert numbers(take(old_reader, 1)) == numbers(take(new_reader, 1)) == [5]


def test_keys_that_others_can_read_or_that_do_not_fit_are_refused(bus_folder: Path, opened: ExitStack) -> None:
    path = bus_folder / "keys" / f"{KOJI}.curve"
    path.chmod(0o640)
    with Bus(quick(bus_folder)) as bus, pytest.raises(KeysError, match="chmod 600"):
        bus.publisher(KOJI)
    path.chmod(0o600)
    other = curve.make()
    curve.write_pair(path, other, "a test")
    with Bus(quick(bus_folder)) as bus, pytest.raises(KeysError) as raised:
        bus.publisher(KOJI)
    assert f'curve: "{other.public}"' in str(raised.value)
    assert "20-endpoints.yaml:" in str(raised.value)
    (bus_folder / "keys" / "link.curve").chmod(0o604)
    with Bus(quick(bus_folder)) as bus, pytest.raises(KeysError, match=r"link\.curve"):
        bus.subscribe()
    (bus_folder / "keys" / "clients").chmod(0o622)
    with Bus(quick(bus_folder)) as bus, pytest.raises(KeysError, match="clients"):
        bus.publisher(BODHI)


def test_what_init_writes_is_secret(bus_folder: Path) -> None:
    for path in (bus_folder / "keys").glob("*.curve"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_reader_without_a_key_of_its_own_may_read_where_every_client_may(
    bus_folder: Path, reader: Callable[..., Bus], opened: ExitStack
) -> None:
    settings = quick(bus_folder)
    (bus_folder / "keys" / "link.curve").unlink()
    bus = opened.enter_context(Bus(replace(settings, links=replace(settings.links, clients=None))))
    keyless = reader(links=replace(settings.links, key=None))
    with bus.publisher(KOJI) as koji, keyless.subscribe(since="beginning") as subscriber:
        koji.publish("build.start", {"n": 1})
        assert numbers(take(subscriber, 1)) == [1]


def test_a_forked_child_leaves_the_gate_of_its_parent_alone(
    bus: Bus, reader: Callable[..., Bus], fork: Callable[[Callable[[], None]], str]
) -> None:
    with bus.publisher(KOJI) as koji, reader().subscribe(since="beginning") as subscriber:
        join(subscriber, KOJI)
        assert fork(bus.close) == "done"
        koji.publish("build.start", {"n": 1})
        assert numbers(take(subscriber, 1)) == [1]
        with reader().subscribe(since="beginning") as late:
            assert numbers(take(late, 1)) == [1]


def test_threads_and_descriptors_end_with_the_bus(bus_folder: Path) -> None:
    def open_and_close() -> None:
        with Bus(quick(bus_folder)) as bus, bus.publisher(KOJI), bus.subscribe(since="beginning") as subscriber:
            join(subscriber, KOJI)

    open_and_close()  # what is opened once for all time
    threads, descriptors = threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        open_and_close()
    wait_until(
        lambda: threading.active_count() <= threads and len(list(Path("/proc/self/fd").iterdir())) <= descriptors
    )
