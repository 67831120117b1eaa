"""Daemons and tails whose log is no longer read, or is moved away under them, as logrotate does."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedbus import Bus
from tests.conftest import Running
from tests.support import wait_until

KOJI = "koji.build01"
PATIENCE = 120.0


def break_configuration(folder: Path, number: int) -> None:
    """Give a running program something to complain about."""
    path = folder / "90-wrong.yaml"
    fresh = path.with_suffix(".new")
    fresh.write_text(f"wrong{number}: 1\n")
    fresh.chmod(0o600)
    fresh.replace(path)


@pytest.fixture
def relayed(bus_folder: Path) -> Path:
    endpoints = bus_folder / "20-endpoints.yaml"
    endpoints.write_text(endpoints.read_text().replace(f"  {KOJI}:\n", f"  {KOJI}:\n    relay: true\n"))
    return bus_folder


@pytest.mark.fault("F20")
def test_a_relay_goes_on_when_nobody_reads_its_log_any_more(
    relayed: Path, spawn: Callable[..., Running], fedbus, tmp_path: Path
) -> None:
    ended = tmp_path / "reader-ended"
    program = f"exec '{sys.executable}' -m fedbus.cli relay <&- 2> >(head -n 1; touch '{ended}')"
    running = spawn("-c", program, command=("bash",), config=relayed)
    wait_until(ended.exists, PATIENCE)  # it has said that it is ready, and whoever reads has gone
    for number in range(20):
        break_configuration(relayed, number)
        running.send(signal.SIGHUP)
    (relayed / "90-wrong.yaml").unlink()  # it is wrong for those who start now, too
    done = fedbus("publish", "package.build.start", "{}", "--as", KOJI, "--json", "--timeout", "50", config=relayed)
    assert done.returncode == 0 and "spooled" not in done.stdout
    assert running.code is None
    running.send(signal.SIGTERM)
    assert running.wait() == 0


@pytest.mark.fault("F20")
def test_a_tail_goes_on_when_nobody_reads_its_notices_any_more(
    bus_folder: Path, spawn: Callable[..., Running], tmp_path: Path
) -> None:
    ended = tmp_path / "reader-ended"
    tail = f"'{sys.executable}' -m fedbus.cli tail -v -o '{{body.n}}' koji"
    program = f"exec {tail} <&- 2> >(head -n 1 >/dev/null; touch '{ended}')"
    running = spawn("-c", program, command=("bash",), config=bus_folder)
    wait_until(ended.exists, PATIENCE)
    with Bus.open(bus_folder) as bus, bus.publisher(KOJI) as koji:
        for number in range(20):
            break_configuration(bus_folder, number)
            running.send(signal.SIGHUP)
            koji.publish("package.build.start", {"n": number})
            wait_until(lambda number=number: f"{number}\n" in running.out, PATIENCE)
    running.send(signal.SIGTERM)
    assert running.wait() == 128 + signal.SIGTERM
    assert running.out.split() == [str(number) for number in range(20)]


@pytest.mark.fault("F20")
def test_a_log_that_is_cut_to_nothing_where_it_is_goes_on_from_its_beginning(
    relayed: Path, spawn: Callable[..., Running], tmp_path: Path
) -> None:
    log = tmp_path / "relay.log"
    program = f"exec '{sys.executable}' -m fedbus.cli relay 2>>'{log}'"
    running = spawn("-c", program, command=("sh",), config=relayed)
    wait_until(lambda: log.exists() and "ready " in log.read_text(), PATIENCE)
    os.truncate(log, 0)  # what logrotate calls copytruncate
    break_configuration(relayed, 1)
    running.send(signal.SIGHUP)
    wait_until(lambda: "the old one stays in force" in log.read_text(), PATIENCE)
    assert "\0" not in log.read_text()
    running.send(signal.SIGTERM)
    assert running.wait() == 0
