"""SIGHUP: consumers and hub options that were added, changed and removed, while the hub runs."""

from __future__ import annotations

import json
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedbus import Bus, Publisher
from fedbus.config.init import free_ports
from tests.conftest import Running
from tests.support import wait_until

KOJI = "koji.build01"

SOURCE = """
import time, fedbus

class Note(fedbus.Consumer):
    topics = ("koji.package",)
    schema = {"type": "object", "properties": {"path": {"type": "string"}, "mark": {"type": "string"}},
              "required": ["path"], "additionalProperties": False}
    def __init__(self, path, mark="-"):
        self.path, self.mark = path, mark
    def start(self):
        self.file = open(self.path, "a", buffering=1)
        self.file.write(f"start {self.mark}\\n")
    def consume(self, message):
        self.file.write(f"{message.body['i']} {self.mark}\\n")
        SLOW
    def stop(self):
        self.file.write(f"stop {self.mark}\\n")
"""


class Site:
    """A bus whose hub runs what `consumers` says."""

    def __init__(self, config: Path, folder: Path, koji: Publisher) -> None:
        self.config, self.folder, self.koji = config, folder, koji
        self.port = free_ports(1)[0]
        self.hub: Running
        self.code = config / "consumers"
        self.code.mkdir(mode=0o700)
        self.source("note.py", SOURCE.replace("SLOW", "pass"))
        self.source("slow.py", SOURCE.replace("SLOW", "time.sleep(3600)"))

    def source(self, name: str, text: str) -> None:
        (self.code / name).write_text(text)
        (self.code / name).chmod(0o600)

    def write(self, *consumers: str, hub: str = "") -> None:
        body = "".join(f"  {one}\n" for one in consumers)
        text = f"hub: {{folder: consumers, http: '127.0.0.1:{self.port}'{hub}}}\nconsumers:\n{body}"
        (self.config / "50-hub.new").write_text(text)
        (self.config / "50-hub.new").chmod(0o600)
        (self.config / "50-hub.new").replace(self.config / "50-hub.yaml")

    def note(self, name: str, mark: str = "-", use: str = "note.py", **more: str) -> str:
        extra = "".join(f", {key}: {value}" for key, value in more.items())
        return f"{name}: {{use: {use}, settings: {{path: '{self.folder}/{name}.txt', mark: '{mark}'}}{extra}}}"

    def lines(self, name: str) -> list[str]:
        path = self.folder / f"{name}.txt"
        return path.read_text().splitlines() if path.exists() else []

    def publish(self, first: int, last: int, topic: str = "package.build.start") -> None:
        for number in range(first, last + 1):
            self.koji.enqueue(topic, {"i": number})
        self.koji.flush()

    def reasons(self) -> list[str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ready", timeout=60) as answer:
                content = json.load(answer)
        except urllib.error.HTTPError as error:
            content = json.load(error)
        except OSError:
            return ["no answer"]
        return list(content["reasons"])

    def hangup(self) -> None:
        self.hub.send(signal.SIGHUP)

    def end(self) -> None:
        self.hub.send(signal.SIGTERM)
        assert self.hub.wait() == 0
        assert "Traceback" not in self.hub.err


@pytest.fixture
def site(bus_folder: Path, tmp_path: Path, spawn: Callable[..., Running]) -> Iterator[Site]:
    with Bus.open(bus_folder) as bus, bus.publisher(KOJI) as koji:
        made = Site(bus_folder, tmp_path, koji)

        def run(*consumers: str, **changes: str) -> None:
            made.write(*consumers, **changes)
            made.hub = spawn("hub", config=bus_folder)
            made.hub.wait_for("ready")
            wait_until(lambda: made.reasons() == [], what="readiness")

        made.run = run  # type: ignore[attr-defined]
        yield made


def test_consumers_that_were_added_start_removed_ones_stop_and_changed_ones_go_on_where_they_were(site):
    site.run(site.note("same"), site.note("changed", "old"), site.note("gone"))
    site.publish(1, 3)
    wait_until(lambda: all(len(site.lines(name)) == 4 for name in ("same", "changed", "gone")))
    site.write(site.note("same"), site.note("changed", "new", topics="[koji.package, koji.tag]"), site.note("fresh"))
    site.hangup()
    site.hub.wait_for("consumers: added fresh; changed changed; removed gone")
    wait_until(lambda: "start new" in site.lines("changed") and "start -" in site.lines("fresh"))
    wait_until(lambda: site.reasons() == [], what="readiness")
    site.publish(4, 6)
    site.publish(7, 7, "tag.add")
    wait_until(lambda: "7 new" in site.lines("changed"))
    wait_until(lambda: "6 -" in site.lines("same") and "6 -" in site.lines("fresh"))
    assert site.lines("same") == ["start -", *[f"{number} -" for number in range(1, 7)]], "it was not touched"
    old, new = ["start old", "1 old", "2 old", "3 old", "stop old"], ["start new", "4 new", "5 new", "6 new", "7 new"]
    assert site.lines("changed") == old + new
    wait_until(lambda: "stop -" in site.lines("gone"))
    assert site.lines("gone") == ["start -", "1 -", "2 -", "3 -", "stop -"]
    assert site.lines("fresh") == ["start -", "4 -", "5 -", "6 -"], "it begins with the reload"
    site.end()


def test_a_file_that_cannot_be_used_is_refused_as_a_whole_and_the_old_runs_on(site):
    site.run(site.note("one"), site.note("two"))
    site.write(site.note("one", "other"), "two: {use: note.py, unknown: 1}")
    site.hangup()
    site.hub.wait_for("the old one stays in force")
    wait_until(lambda: any("unknown key" in one for one in site.reasons()))
    # the file can be read, but one consumer of it cannot run so
    site.write(site.note("one", "other"), "two: {use: note.py, settings: {path: 7}}", site.note("three"))
    site.hangup()
    site.hub.wait_for("refused as a whole, those that run go on")
    wait_until(lambda: any("consumers.two.settings.path" in one for one in site.reasons()))
    site.write(site.note("one", "other"), site.note("two", since="yesterdayish"))
    site.hangup()
    wait_until(lambda: any("'yesterdayish' is not a place" in one for one in site.reasons()))
    site.publish(1, 2)
    wait_until(lambda: site.lines("one") == site.lines("two") == ["start -", "1 -", "2 -"])
    assert site.lines("three") == []
    site.write(site.note("one", "other"))
    site.hangup()
    site.hub.wait_for("consumers: changed one; removed two")
    wait_until(lambda: site.reasons() == [])
    site.publish(3, 3)
    wait_until(lambda: site.lines("one")[-1] == "3 other")
    wait_until(lambda: site.lines("two")[-1] == "stop -")
    site.end()


def test_a_change_waits_for_sighup_and_the_log_says_so(site):
    site.run(site.note("one"))
    site.write(site.note("one", "new"))
    site.hub.wait_for("changed, and in force after SIGHUP: consumers")
    assert site.lines("one") == ["start -"]
    site.hangup()
    wait_until(lambda: "start new" in site.lines("one"))
    assert "only after a restart: consumers" not in site.hub.err
    site.end()


def test_the_source_of_a_consumer_in_the_folder_counts_as_a_change(site):
    site.run(site.note("one"), site.note("apart", isolation="process"))
    site.source("note.py", SOURCE.replace("SLOW", "self.file.write('new code\\n')"))
    site.hangup()
    wait_until(lambda: site.lines("one").count("start -") == site.lines("apart").count("start -") == 2)
    site.publish(1, 1)
    wait_until(lambda: "new code" in site.lines("one") and "new code" in site.lines("apart"))
    site.end()


@pytest.mark.fault("F20")
def test_a_storm_of_hangups_while_consumers_come_and_go_loses_nothing_for_the_one_that_stays(site):
    site.run(site.note("same"), site.note("other", "0"))
    for number in range(1, 61):
        site.write(site.note("same"), site.note("other", str(number)))
        site.hangup()
        site.publish(number, number)
    wait_until(lambda: "60 -" in site.lines("same"))
    wait_until(lambda: "start 60" in site.lines("other"), what="the last of the changes")
    wait_until(lambda: len([one for one in site.lines("other") if one[0].isdigit()]) == 60)
    assert site.lines("same") == ["start -", *[f"{number} -" for number in range(1, 61)]]
    given = [int(one.split()[0]) for one in site.lines("other") if one[0].isdigit()]
    assert given == list(range(1, 61)), "its cursor goes from each to the next"
    site.end()


@pytest.mark.fault("F1")
def test_a_consumer_that_comes_back_gets_what_it_missed_at_once_and_not_with_the_next_message(site):
    site.run(site.note("same"), site.note("other"))
    site.publish(1, 1)
    wait_until(lambda: "1 -" in site.lines("other"))
    site.write(site.note("same"))
    site.hangup()
    wait_until(lambda: "stop -" in site.lines("other"))
    site.publish(2, 4)
    wait_until(lambda: "4 -" in site.lines("same"))
    site.write(site.note("same"), site.note("other"), site.note("late", since="beginning"))
    site.hangup()
    wait_until(lambda: "4 -" in site.lines("other"), what="what it missed")
    assert site.lines("other") == ["start -", "1 -", "stop -", "start -", "2 -", "3 -", "4 -"]
    wait_until(lambda: site.lines("late") == ["start -", "1 -", "2 -", "3 -", "4 -"], what="all from the beginning")
    site.end()


@pytest.mark.fault("F8")
def test_one_that_does_not_end_is_told_of_and_its_successor_waits(site):
    site.run(site.note("same"), site.note("hangs", use="slow.py"), hub=", drain_timeout: 200ms")
    site.publish(1, 1)
    wait_until(lambda: "1 -" in site.lines("hangs"))
    site.write(site.note("same"), site.note("hangs", "new", use="note.py"), hub=", drain_timeout: 200ms")
    site.hangup()
    wait_until(lambda: any("hangs: was to stop, and has not finished koji.build01/" in one for one in site.reasons()))
    wait_until(lambda: any("hangs: waits until the one before it" in one for one in site.reasons()))
    site.publish(2, 2)
    wait_until(lambda: "2 -" in site.lines("same"))
    assert "start new" not in site.lines("hangs")
    site.end()


def test_options_of_the_hub_are_in_force_too(site):
    site.run(site.note("one"))
    before = site.port
    site.port = free_ports(1)[0]
    site.write(site.note("one"))
    site.hangup()
    wait_until(lambda: site.reasons() == [])
    after, site.port = site.port, before
    wait_until(lambda: site.reasons() == ["no answer"])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        site.port = taken.getsockname()[1]
        site.write(site.note("one", "new"))
        site.port = after
        site.hangup()
        wait_until(lambda: any("cannot bind" in one for one in site.reasons()))
    assert site.lines("one") == ["start -"], "nothing of the file is in force"
    site.end()
