"""Readers in user code go on with the endpoints that the files name now: nothing is lost, and nothing comes twice."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from buses import BODHI, GIT, KOJI, PATIENCE, Bus, join, numbers, take, take_until

from fedbus import Hub, Message, consumer
from fedbus.config.init import free_ports
from fedbus.config.settings import Settings
from fedbus.errors import Reason
from fedbus.trust.authority import Authority
from fedbus.trust.options import KeyringOptions
from tests.support import wait_until

QUICK = "discovery: {look_interval: 50ms}\nsubscriber: {refresh_interval: 100ms, silence: 1s}\n"


@dataclass
class Files:
    """The endpoints file of `folder`: with all endpoints (`whole`) or without one."""

    folder: Path
    whole: str

    def change(self, text: str) -> None:
        """Put *text* in its place."""
        new = self.folder / ".new"
        new.write_text(text)
        new.chmod(0o600)
        new.replace(self.folder / "20-endpoints.yaml")

    def without(self, name: str) -> str:
        """Return the text without the endpoint *name*."""
        lines = self.whole.splitlines(keepends=True)
        begin = lines.index(f"  {name}:\n")
        return "".join(lines[:begin] + lines[begin + 3 :])

    def moved(self, name: str) -> str:
        """Return the text with other addresses of the endpoint *name*."""
        lines = self.whole.splitlines(keepends=True)
        begin = lines.index(f"  {name}:\n")
        publish, replay = free_ports(2)
        lines[begin + 1 : begin + 3] = [
            f"    publish: tcp://127.0.0.1:{publish}\n",
            f"    replay: tcp://127.0.0.1:{replay}\n",
        ]
        return "".join(lines)


@pytest.fixture
def files(bus_folder: Path) -> Files:
    more = bus_folder / "15-quick.yaml"
    more.write_text(QUICK)
    more.chmod(0o600)
    return Files(bus_folder, (bus_folder / "20-endpoints.yaml").read_text())


@pytest.fixture
def start(bus_folder: Path, files: Files) -> Iterator[Callable[[], Bus]]:
    """Open buses that follow the folder."""
    opened: list[Bus] = []

    def open_one() -> Bus:
        opened.append(Bus.open(bus_folder))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def names(bus_reader: object) -> set[str]:
    return {one.endpoint for one in bus_reader.readers()}  # type: ignore[attr-defined]


@pytest.mark.fault("F11")
def test_a_subscriber_takes_up_endpoints_that_are_added_removed_and_come_back(start, files):
    files.change(files.without(BODHI))
    reading = start()
    with reading.subscribe(since="now") as subscriber:
        assert names(subscriber) == {KOJI, GIT}
        files.change(files.whole)
        with start().publisher(BODHI) as bodhi:
            bodhi.publish("update.new", {"n": 1})  # before the subscriber has looked, and after it began
            assert numbers(take(subscriber, 1)) == [1]
            files.change(files.without(BODHI))
            take_until(subscriber, lambda: BODHI not in names(subscriber))
            bodhi.publish("update.new", {"n": 2})
            files.change(files.whole)
            bodhi.publish("update.new", {"n": 3})
            assert numbers(take(subscriber, 2)) == [2, 3]


@pytest.mark.fault("F11")
def test_an_endpoint_that_moves_is_read_on_at_its_new_place(start, files, bus_folder):
    with start().subscribe(since="now") as subscriber:
        with start().publisher(KOJI) as koji:
            join(subscriber, KOJI)
            koji.publish("build.start", {"n": 1})
            assert numbers(take(subscriber, 1)) == [1]
            koji.publish("build.start", {"n": 2})
        files.change(files.moved(KOJI))
        with start().publisher(KOJI) as koji:
            koji.publish("build.start", {"n": 3})
            assert numbers(take(subscriber, 2)) == [2, 3]


@pytest.mark.fault("F11")
def test_a_bad_file_is_refused_whole_and_traffic_goes_on(start, files, caplog):
    reading = start()
    with reading.subscribe(since="now") as subscriber, start().publisher(KOJI) as koji:
        join(subscriber, KOJI)
        files.change(files.without(GIT) + "  bad.host01: {publish: nonsense}\n")
        take_until(subscriber, lambda: reading.discovery.refused)
        koji.publish("build.start", {"n": 1})
        assert numbers(take(subscriber, 1)) == [1]
        assert names(subscriber) == {KOJI, BODHI, GIT}
        assert "fedbus_config_refused 1" in reading.metrics()
        files.change(files.without(GIT))
        take_until(subscriber, lambda: names(subscriber) == {KOJI, BODHI})
        assert "fedbus_config_refused 0" in reading.metrics()
        assert "fedbus_config_taken_total 1" in reading.metrics()
    refused = [one for one in caplog.records if "is refused as a whole" in one.message]
    assert [one.levelno for one in refused] == [logging.ERROR]


@pytest.mark.fault("F11")
def test_a_subscriber_of_named_endpoints_reads_no_other(start, files):
    files.change(files.without(BODHI))
    reading = start()
    with reading.subscribe(since="now", endpoints=[KOJI]) as subscriber:
        files.change(files.whole)
        take_until(subscriber, lambda: reading.discovery.version)
        take_until(subscriber, lambda: subscriber.next_timer() > 0)
        assert names(subscriber) == {KOJI}


@pytest.mark.fault("F11")
def test_asyncio_readers_follow_too(start, files):
    files.change(files.without(BODHI))

    async def read() -> list[Message]:
        async with start().asubscribe(since="now") as subscriber:
            files.change(files.whole)
            with start().publisher(BODHI) as bodhi:
                bodhi.publish("update.new", {"n": 1})
                return await subscriber.receive(PATIENCE)

    assert numbers(asyncio.run(read())) == [1]


@pytest.mark.fault("F11")
def test_a_hub_in_a_program_of_ones_own_follows_too(start, files):
    files.change(files.without(BODHI))
    seen: list[int] = []

    @consumer("bodhi.update")
    def collect(message: Message) -> None:
        seen.append(message.body["n"])

    reading = start()
    hub: Hub = reading.hub([collect])
    with hub:
        files.change(files.whole)

        def known() -> bool:
            hub.tick()
            return BODHI in hub.source.endpoints

        wait_until(known, PATIENCE)
        with start().publisher(BODHI) as bodhi:
            bodhi.publish("update.new", {"n": 1})
            wait_until(lambda: seen == [1], PATIENCE)
        files.change(files.whole + "  bad.host01: {publish: nonsense}\n")

        def refused() -> bool:
            hub.tick()
            return any("configuration refused" in reason for reason in hub.reasons())

        wait_until(refused, PATIENCE)


@pytest.mark.fault("F11")
def test_a_new_rule_and_its_end_reach_running_readers_and_publishers(start, files, bus_folder):
    reading, writing = start(), start()
    rules = bus_folder / "50-rules.yaml"
    topic = "org.example.dev.git.commit.push"
    with reading.subscribe("git", since="now") as subscriber, writing.publisher(BODHI) as bodhi:
        join(subscriber, BODHI)
        with pytest.raises(Exception, match="no rule"):
            bodhi.publish(topic, {"n": 1})
        rules.write_text("policy:\n  - {signer: bodhi.web01, topics: ['git.#']}\n")
        rules.chmod(0o600)
        take_until(subscriber, lambda: reading.discovery.version)

        def said() -> bool:
            try:
                bodhi.publish(topic, {"n": 2})
            except Exception:
                return False
            return True

        wait_until(said, PATIENCE)
        assert numbers(take(subscriber, 1)) == [2]
        rules.unlink()
        version = reading.discovery.version
        take_until(subscriber, lambda: reading.discovery.version > version)
        bodhi.publish(topic, {"n": 3})
        take_until(subscriber, lambda: subscriber.stats.refused.get(Reason.POLICY))
        assert reading.verifier.rejections[Reason.POLICY]


@pytest.mark.fault("F22")
def test_another_ca_file_is_trusted_as_soon_as_the_configuration_names_it(start, files, bus_folder, tmp_path):
    other = Authority.create(tmp_path / "other", common_name="other")
    other.issue(KOJI)
    other.write_crl()
    keys = tmp_path / "other"
    settings = Settings.load(bus_folder, {})
    koji = replace(settings.endpoints[KOJI], certificate=keys / f"{KOJI}.crt", key=keys / f"{KOJI}.key")
    theirs = replace(
        settings,
        endpoints={**settings.endpoints, KOJI: koji},
        keyring=KeyringOptions(ca=keys / "ca.crt", crl=keys / "crl.pem"),
    )
    reading = start()
    with (
        reading.subscribe("koji", since="now") as subscriber,
        Bus(theirs) as writing,
        writing.publisher(KOJI) as publisher,
    ):
        take_until(subscriber, lambda: subscriber.stats.refused.get(Reason.UNKNOWN_CA))
        (bus_folder / "60-keys.yaml").write_text(f"keys: {{ca: {keys / 'ca.crt'}, crl: {keys / 'crl.pem'}}}\n")
        (bus_folder / "60-keys.yaml").chmod(0o600)
        take_until(subscriber, lambda: reading.discovery.version)
        publisher.publish("build.start", {"n": 1})
        assert numbers(take(subscriber, 1)) == [1]


@pytest.mark.fault("F11")
def test_the_cursor_of_an_endpoint_that_was_removed_is_kept(start, files):
    reading, writing = start(), start()
    with writing.publisher(KOJI) as koji:
        with reading.subscribe(since="now", cursor="report") as subscriber:
            join(subscriber, KOJI)
            koji.publish("build.start", {"n": 1})
            (message,) = take(subscriber, 1)
            files.change(files.without(KOJI))
            take_until(subscriber, lambda: KOJI not in names(subscriber))
            subscriber.done(message)
        files.change(files.whole)
        koji.publish("build.start", {"n": 2})
        with start().subscribe(since="beginning", cursor="report") as subscriber:
            assert numbers(take(subscriber, 1)) == [2]
