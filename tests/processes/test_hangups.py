"""Hundreds of SIGHUP while traffic flows: nothing crashes, is lost, comes twice, or leaks."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from fedbus import Bus
from fedbus.config.init import free_ports
from tests.conftest import Running
from tests.support import wait_until

KOJI = "koji.build01"
COUNT = 2000
WARM = 50  # of them, before descriptors and threads are counted
PATIENCE = 120.0
HUB = """
import fedbus

@fedbus.consumer("koji")
def say(message):
    print(message.body["n"], flush=True)
"""
READER = """
import signal, fedbus

with fedbus.Bus.open() as bus, bus.subscribe("koji", since="now") as subscriber:
    signal.signal(signal.SIGHUP, lambda *_: bus.reload())
    signal.signal(signal.SIGTERM, lambda *_: subscriber.stop())
    subscriber.receive(0.0)
    print("ready", flush=True)
    for message in subscriber:
        print(message.body["n"], flush=True)
"""


def descriptors(process: Running) -> int:
    return len(list(Path(f"/proc/{process.process.pid}/fd").iterdir()))


def threads(process: Running) -> int:
    return len(list(Path(f"/proc/{process.process.pid}/task").iterdir()))


def numbers(process: Running) -> list[int]:
    return [int(line) for line in process.out.split("\n")[:-1] if line.isdigit()]


@pytest.mark.fault("F20")
@pytest.mark.fault("F11")
@pytest.mark.parametrize("what", ["tail", "hub", "program"])
def test_a_storm_of_sighup_in_traffic_costs_nothing(what, bus_folder: Path, spawn, tmp_path):
    file = tmp_path / "code.py"
    file.write_text(HUB if what == "hub" else READER)
    file.chmod(0o600)
    if what == "tail":
        reader = spawn("tail", "-o", "{body.n}", "-v", "koji", config=bus_folder)
        reader.wait_for("reading ")
    elif what == "hub":
        reader = spawn("hub", "--consumer", file, config=bus_folder)
        reader.wait_for("ready", PATIENCE)
    else:
        reader = spawn(file, config=bus_folder, command=(sys.executable,))
        reader.wait_for("ready", PATIENCE)
    endpoints = bus_folder / "20-endpoints.yaml"
    text = endpoints.read_text()

    def change(new: str) -> None:
        other = endpoints.with_suffix(".new")
        other.write_text(new)
        other.chmod(0o600)
        other.replace(endpoints)

    with Bus.open(bus_folder) as bus, bus.publisher(KOJI) as koji:
        koji.publish("build.start", {"n": 0})
        wait_until(lambda: numbers(reader) == [0], PATIENCE)
        wait_until(lambda: koji.stats.subscribers, PATIENCE, "the connection, which is not needed to get the first")
        before = 0, 0
        for number in range(1, COUNT + 1):
            koji.publish("build.start", {"n": number})
            reader.send(signal.SIGHUP)
            if number == WARM:
                # by now all is open that is opened when it is needed for the first time
                wait_until(lambda: numbers(reader)[-1:] == [WARM], PATIENCE)
                before = descriptors(reader), threads(reader)
            if number % 250 == 0:
                # good and bad files in turn, in the middle of it
                publish, replay = free_ports(2)
                more = f"  git.host{number}: {{publish: 'tcp://127.0.0.1:{publish}', replay: 'tcp://127.0.0.1:{replay}'}}\n"
                change(text + (more if number % 500 else "  bad: {}\n"))
        wait_until(lambda: len(numbers(reader)) > COUNT, PATIENCE)
        change(text)
        reader.send(signal.SIGHUP)
        koji.publish("build.start", {"n": COUNT + 1})
        wait_until(lambda: numbers(reader)[-1:] == [COUNT + 1], PATIENCE)
        wait_until(
            lambda: descriptors(reader) <= before[0] and threads(reader) <= before[1],
            PATIENCE,
            "what was opened to be closed",
        )
    assert numbers(reader) == list(range(COUNT + 2))
    assert reader.code is None
    reader.send(signal.SIGTERM)
    assert reader.wait() in (0, 128 + signal.SIGTERM)
    assert "Traceback" not in reader.err
