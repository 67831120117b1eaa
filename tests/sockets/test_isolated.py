"""Consumers in processes of their own: whatever they do to these, the hub and the other consumers go on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedbus import Bus, Consumer, Message, Publisher
from fedbus.errors import ConfigError
from fedbus.hub.hub import Hub
from fedbus.hub.isolated import Isolated
from fedbus.hub.options import ConsumerSettings
from fedbus.hub.registry import find
from tests.support import wait_until

KOJI = "koji.build01"

SOURCE = """
import logging, os, signal, sys, time
import fedbus

class Wild(fedbus.Consumer):
    topics = ("koji",)
    since = "beginning"
    schema = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"],
              "additionalProperties": False}
    def __init__(self, path):
        self.path = path
        self.kept = []
    def start(self):
        self.note("start")
    def stop(self):
        self.note("stop")
    def note(self, text):
        with open(self.path, "a") as file:
            file.write(f"{os.getpid()} {text}\\n")
    def consume(self, message):
        number = message.body["i"]
        self.note(number)
        TROUBLE
"""

TROUBLES = {
    "raises": ("raise RuntimeError('boom')", "RuntimeError: boom"),
    "exits": ("sys.exit(3)", "SystemExit: 3"),
    "leaves at once": ("os._exit(3)", "its process ended with exit code 3"),
    "is killed": ("os.kill(os.getpid(), signal.SIGKILL)", "its process was ended by signal 9 (SIGKILL)"),
    "segfaults": ("import ctypes; ctypes.string_at(8)", "its process was ended by signal 11 (SIGSEGV)"),
    "hangs": ("time.sleep(3600)", "not done within its timeout of 3 s"),
    "hangs and ignores all": ("[signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; time.sleep(3600)", "timeout"),
    "blows up": (
        "kept = [bytearray(2**20) for _ in range(2000)]; time.sleep(3600)",
        "over 2 times its memory_bytes 200000000",
    ),
}


class Well(Consumer):
    name = "well"
    topics = ("#",)
    since = "beginning"

    def __init__(self) -> None:
        self.seen: list[int] = []

    def consume(self, message: Message) -> None:
        self.seen.append(message.body["i"])


@pytest.fixture
def bus(bus_folder: Path) -> Iterator[Bus]:
    with Bus.open(bus_folder) as opened:
        yield opened


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.txt"


Write = Callable[[str], ConsumerSettings]


@pytest.fixture
def write(tmp_path: Path, out: Path) -> Write:
    folder = tmp_path / "consumers"
    folder.mkdir(mode=0o700)

    def make(trouble: str = "pass", source: str = SOURCE, **changes: Any) -> ConsumerSettings:
        path = folder / "wild.py"
        path.write_text(source.replace("TROUBLE", trouble))
        path.chmod(0o600)
        values = {"attempts": 2, "timeout": 60.0, "settings": {"path": str(out)}, **changes}
        return ConsumerSettings(name="wild", use="wild.py", isolation="process", origin="a.yaml:3", **values)

    return make


@contextmanager
def running(bus: Bus, wanted: ConsumerSettings, folder: Path, *others: Consumer, **changes: Any) -> Iterator[Hub]:
    found = find({"wild": wanted}, folder=folder)
    assert found.problems == []
    # a slow machine takes its time to end
    quick = {"retry_pause": 0.01, "commit_interval": 0.05, "drain_timeout": 60.0}
    options = replace(bus.settings.hub, **{**quick, **changes})
    hub = bus.hub([*found.consumers, *others], options=options)
    thread = threading.Thread(target=hub.run)
    thread.start()
    try:
        wait_until(lambda: hub.intake is not None and hub.intake.is_alive(), what="the hub's start")
        yield hub
    finally:
        hub.stop()
        thread.join(90)
        assert not thread.is_alive()


def publish(publisher: Publisher, first: int, last: int) -> None:
    for number in range(first, last + 1):
        publisher.enqueue("package.build.start", {"i": number})
    publisher.flush()


def notes(out: Path) -> list[tuple[int, str]]:
    rows = out.read_text().splitlines() if out.exists() else []
    return [(int(row.split()[0]), row.split()[1]) for row in rows]


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def has_ended(pid: int) -> bool:
    """Whether it is gone, or its parent has still to ask for its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.fault("F8")
def test_its_process_leaves_the_processor_to_the_hub(bus: Bus, write: Write, out: Path) -> None:
    wanted = write()
    own = os.getpriority(os.PRIO_PROCESS, 0)
    with running(bus, wanted, out.parent / "consumers"), bus.publisher(KOJI) as koji:
        koji.publish("build.start", {"i": 1})
        wait_until(lambda: out.exists() and "1\n" in out.read_text().partition(" start")[2])
        process = int(out.read_text().split()[0])
        assert os.getpriority(os.PRIO_PROCESS, process) == min(19, own + 10)


def test_an_isolated_consumer_gets_its_messages_in_order_from_one_process(bus, write, out, tmp_path):
    with bus.publisher(KOJI) as koji, running(bus, write(), tmp_path / "consumers") as hub:
        publish(koji, 1, 500)
        wait_until(lambda: len(notes(out)) >= 501)
        wait_until(lambda: not hub.reasons())
    got = notes(out)
    assert [text for _, text in got] == ["start", *map(str, range(1, 501)), "stop"]
    assert len({pid for pid, _ in got}) == 1
    assert got[0][0] != os.getpid()
    assert is_gone(got[0][0])
    assert bus.cursors.load("hub.wild")[KOJI].sequence == 500


@pytest.mark.fault("F8")
@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_wild_consumer_harms_nobody_and_its_message_dies_after_its_attempts(bus, write, out, tmp_path, trouble):
    code, reason = TROUBLES[trouble]
    wanted = write(
        f"\n        if number == 2:\n            {code}",
        timeout=3.0 if "hangs" in trouble else 60.0,  # enough for the messages that do not hang
        memory_bytes=200_000_000 if trouble == "blows up" else 0,
    )
    well = Well()
    with bus.publisher(KOJI) as koji, running(bus, wanted, tmp_path / "consumers", well):
        publish(koji, 1, 3)
        wait_until(lambda: well.seen == [1, 2, 3], what="the others' messages")
        wait_until(lambda: "3" in [text for _, text in notes(out)], 60, "the message behind the bad one")
    assert [text for _, text in notes(out) if text.isdigit()] == ["1", "2", "2", "3"]
    (letter,) = bus.dead.list()
    assert (letter.key.sequence, letter.attempts) == (2, 2)
    assert reason in letter.reason
    if trouble == "raises":
        assert "wild.py" in bus.dead.get(letter.id)[1].traceback
    assert all(is_gone(pid) for pid, _ in notes(out))


@pytest.mark.fault("F8")
def test_a_consumer_that_leaks_is_started_anew_between_messages_and_none_fails(bus, write, out, tmp_path):
    wanted = write("self.kept.append(bytearray(2**20) * 20); time.sleep(0.05)", memory_bytes=400_000_000)
    with bus.publisher(KOJI) as koji, running(bus, wanted, tmp_path / "consumers") as hub:
        publish(koji, 1, 40)
        wait_until(lambda: [text for _, text in notes(out)].count("40") == 1, 60)
        assert hub.deliveries[0].stats.failed == 0
    assert [text for _, text in notes(out) if text.isdigit()] == [str(number) for number in range(1, 41)]
    assert len({pid for pid, _ in notes(out)}) >= 2


def test_a_call_that_is_still_running_at_the_deadline_is_ended_and_does_not_count_as_tried(bus, write, out, tmp_path):
    with (
        bus.publisher(KOJI) as koji,
        running(bus, write("time.sleep(3600)"), tmp_path / "consumers", drain_timeout=0.2) as hub,
    ):
        publish(koji, 1, 1)
        wait_until(lambda: ("1") in [text for _, text in notes(out)])
    wait_until(lambda: not hub.unfinished())
    assert bus.dead.attempts("wild", {}) == {}
    assert all(is_gone(pid) for pid, _ in notes(out))


def test_a_process_that_is_killed_between_messages_costs_nothing(bus, write, out, tmp_path):
    with bus.publisher(KOJI) as koji, running(bus, write(attempts=1), tmp_path / "consumers") as hub:
        publish(koji, 1, 1)
        enabled = hub.deliveries[0].enabled
        wait_until(lambda: len(notes(out)) == 2 and hub.deliveries[0].stats.delivered == 1)
        child = enabled.consumer._process
        os.kill(notes(out)[0][0], signal.SIGKILL)
        wait_until(lambda: child.poll() is not None)
        publish(koji, 2, 2)
        wait_until(lambda: "2" in [text for _, text in notes(out)])
    assert bus.dead.list() == []


@pytest.mark.parametrize(
    ("source", "settings", "problem"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", {}, "ended by signal 11"),
        ("raise SystemExit(0)", {}, "SystemExit"),
        (SOURCE, {"path": 7}, "consumers.wild.settings.path: 7 is not of type 'string'"),
    ],
)
@pytest.mark.badinput("B48")
def test_an_isolated_consumer_that_cannot_be_loaded_is_a_problem_of_its_own(write, tmp_path, source, settings, problem):
    wanted = write(source=source, settings=settings)
    found = find({"wild": wanted}, folder=tmp_path / "consumers")
    assert found.consumers == []
    (said,) = found.problems
    assert problem in said
    assert "a.yaml:3" in said


def test_what_an_isolated_consumer_logs_is_in_the_log_of_the_hub(bus, write, out, tmp_path, caplog):
    wanted = write("logging.getLogger('mine').warning('seen %d', number)")
    with bus.publisher(KOJI) as koji, running(bus, wanted, tmp_path / "consumers"):
        publish(koji, 1, 1)
        wait_until(lambda: any("consumer wild: mine: seen 1" in record.getMessage() for record in caplog.records))


def test_an_isolated_consumer_has_the_texts_of_the_configuration(bus_folder, write, out, tmp_path):
    file = bus_folder / "60-texts.yaml"
    file.write_text("texts: {koji.package: {summary: 'number {body.i}', packages: ['{body.p}', two], title: Built}}\n")
    file.chmod(0o600)
    wanted = write(
        "t = self.texts.of(message); self.note('/'.join([t.summary, *t.packages, t.title]).replace(' ', '-'))"
    )
    with Bus.open(bus_folder) as bus, bus.publisher(KOJI) as koji, running(bus, wanted, tmp_path / "consumers"):
        koji.publish("package.build.start", {"i": 5, "p": "bash"})
        wait_until(lambda: "number-5/bash/two/Built" in [text for _, text in notes(out)])


def test_a_child_ends_with_the_hub_however_that_ends(write, tmp_path, out):
    folder, wanted = tmp_path / "consumers", write()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:  # pragma: no cover
        try:
            isolated = find({"wild": wanted}, folder=folder).consumers[0].consumer
            assert isinstance(isolated, Isolated)
            os.write(writing, str(isolated._process.pid).encode())
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.close(writing)
    os.waitpid(pid, 0)
    child = int(os.read(reading, 20))
    os.close(reading)
    wait_until(lambda: has_ended(child))


def test_find_tells_of_a_consumer_that_is_missing(tmp_path):
    wanted = ConsumerSettings(name="wild", use="wild.py", isolation="process", origin="a.yaml:3")
    with pytest.raises(ConfigError):
        find({}, folder=tmp_path)
    found = find({"wild": wanted}, folder=tmp_path)
    assert "cannot read" in found.problems[0]
