"""A subscriber slower than the burst that it gets: nothing is dropped, and its memory stays as it was."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedbus import Bus
from tests.support import wait_until

KOJI = "koji.build01"
BURST = 60_000
WORK = 0.0001  # seconds for each message; the first takes as long as the whole burst
PATIENCE = 600.0
ROOM = 64 * 2**20  # bytes that the subscriber may grow by; the burst has more than twice as many

READ = textwrap.dedent("""
    import json, os, sys, time
    import fedbus

    count, work, over = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]

    def memory():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    with fedbus.Bus.open() as bus, bus.subscribe("koji", since="beginning", strict=True) as subscriber:
        began = most = wrong = seen = 0
        for message in subscriber:
            seen += 1
            wrong += message.sequence != seen
            if seen == 1:
                began = memory()
                print("joined", flush=True)
                while not os.path.exists(over):
                    time.sleep(0.01)
            if seen % 500 == 1:
                most = max(most, memory())
            until = time.perf_counter() + work
            while time.perf_counter() < until:
                pass
            if seen == count:
                break
        (reader,) = [one for one in subscriber.readers() if one.endpoint == "koji.build01"]
        print(json.dumps({"seen": seen, "wrong": wrong, "grown": most - began, "gaps": reader.stats.gaps,
                          "fetched": reader.stats.fetched, "reconnects": reader.stats.reconnects}), flush=True)
""")


@pytest.mark.fault("F7")
@pytest.mark.timeout(2 * PATIENCE)
def test_a_burst_that_the_ancestors_lost_most_of_arrives_whole_and_in_order(
    bus_folder: Path, spawn: Callable[..., Any], tmp_path: Path
) -> None:
    with Bus.open(bus_folder) as bus, bus.publisher(KOJI) as koji:
        koji.publish("build.start", {"n": 1})
        over = tmp_path / "over"
        reader = spawn(str(BURST), str(WORK), over, config=bus_folder, command=(sys.executable, "-c", READ))
        reader.wait_for("joined")
        padding = "x" * 2000
        for number in range(2, BURST + 1):
            # many topics make many parcels, more than the queues between the two hold
            koji.enqueue(f"build{number % 97}.start", {"n": number, "padding": padding}, timeout=PATIENCE)
        koji.flush(PATIENCE)
        over.touch()
        assert koji.stats.bytes > 2 * ROOM
        assert koji.stats.unsent == 0
        wait_until(lambda: reader.code is not None, PATIENCE, "the end of the reader")
    assert reader.code == 0, reader.err
    told = json.loads(reader.out.splitlines()[-1])
    print(told)
    assert (told["seen"], told["wrong"]) == (BURST, 0)
    assert told["gaps"] > 0, "the queues held all of it: the test proves nothing"
    assert told["fetched"] > 0
    assert told["grown"] < ROOM, f"{told['grown'] / 2**20:.0f} MiB more than at the beginning"
