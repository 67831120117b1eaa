"""Publisher and readers whose clocks are set while they run, forth and back, by an hour and by a day (libfaketime)."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedbus.transport.state import Loss
from tests.processes import own_ports
from tests.sockets.buses import Bus, numbers, quick, take
from tests.support import need_program, wait_until

KOJI = "koji.build01"
HOUR, DAY = 3600, 86400
JUMPS = (HOUR, -HOUR, DAY, -DAY, 0)

# publishes twenty messages for each line of stdin
PUBLISH = textwrap.dedent("""
    import sys
    import fedbus

    with fedbus.Bus.open() as bus, bus.publisher("koji.build01") as koji:
        number = 0
        for line in sys.stdin:
            for _ in range(20):
                number += 1
                koji.publish("build.start", {"n": number}, timeout=60.0)
            print(number, flush=True)
""")


class FakeClock:
    """The wall clock of one process, which a test may set; its monotonic clock is that of the machine."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set(0)
        told = subprocess.run(
            [need_program("faketime"), "-m", "-f", "+0", "env"], capture_output=True, text=True, check=True, timeout=60
        )
        preload = next(line for line in told.stdout.splitlines() if line.startswith("LD_PRELOAD="))
        self.environment = {
            "LD_PRELOAD": preload.partition("=")[2],
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",  # its name before 0.9.10
        }

    def set(self, seconds: int) -> None:
        """Set the clock off by *seconds* from the machine's."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.replace(self._file)


@pytest.mark.fault("F12")
@pytest.mark.badinput("B31")
def test_clocks_that_jump_by_an_hour_and_a_day_change_nothing_but_the_stamps(
    tmp_path: Path, spawn: Callable[..., Any]
) -> None:
    publishers, readers = FakeClock(tmp_path / "publisher.clock"), FakeClock(tmp_path / "reader.clock")
    config, far = tmp_path / "bus", tmp_path / "far"
    # certificates that were made three days ago are valid on a clock that is a day behind
    readers.set(-3 * DAY)
    made = spawn("init", config, "--endpoint", KOJI, environment=readers.environment, command=own_ports.command(1))
    assert made.wait() == 0, made.err
    readers.set(0)
    shutil.copytree(config, far)
    publisher = spawn(
        PUBLISH,
        config=config,
        environment=publishers.environment,
        stdin=subprocess.PIPE,
        command=(sys.executable, "-c"),
    )
    last = 0

    def publish() -> None:
        nonlocal last
        last += 20
        publisher.process.stdin.write(b"\n")
        publisher.process.stdin.flush()
        wait_until(lambda: publisher.code is not None or publisher.out.endswith(f"{last}\n"), 60.0, "the receipts")
        assert publisher.code is None, publisher.err

    publish()
    jumping = spawn("tail", "--json", "--since", "beginning", config=far, environment=readers.environment)
    losses: list[Loss] = []
    # a jump would seem longer than this silence; a machine that is slow does not
    with (
        Bus(quick(far, subscriber={"silence": 60.0})) as bus,
        bus.subscribe(since="beginning", on_loss=losses.append) as steady,
    ):
        (reader,) = steady.readers()
        got = take(steady, 20)
        unanswered = reader.stats.unanswered  # before anything jumps, because a machine is slow
        for jump in JUMPS:
            publishers.set(jump)
            publish()
            got += take(steady, 20)
            # a new reader, from the beginning, of a journal whose stamps go forth and back
            late = spawn("tail", "--json", "--since", "beginning", "--count", str(last), config=far)
            readers.set(-jump)
            publish()
            got += take(steady, 20)
            assert late.wait() == 0, late.err
            assert [one["body"]["n"] for one in late.records()] == list(range(1, last - 19))
            wait_until(lambda: [one["body"]["n"] for one in jumping.records()][-1:] == [last], 60.0, "the tail")
    assert numbers(got) == list(range(1, last + 1))
    assert [one["body"]["n"] for one in jumping.records()] == list(range(1, last + 1))
    assert (reader.stats.reconnects, reader.stats.unanswered, losses) == (0, unanswered, [])
    assert "warning" not in jumping.err
