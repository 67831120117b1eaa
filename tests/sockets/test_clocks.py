"""Clocks of publishers that are wrong: told as skew, used for nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from buses import KOJI, PATIENCE, Bus, join, numbers, quick, take, take_until


class OffClock:
    """A wall clock that is off by some seconds; durations are right."""

    monotonic = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self.off = 0.0

    def wall(self) -> float:
        return time.time() + self.off


@pytest.mark.fault("F12")
@pytest.mark.badinput("B31")
def test_a_publisher_whose_clock_is_wrong_is_read_in_order_and_its_skew_is_told(
    open_bus: Callable[..., Bus], bus_folder: Path
) -> None:
    bus = open_bus()
    clock = OffClock()
    with Bus(quick(bus_folder), clock=clock) as wrong, wrong.publisher(KOJI) as koji:
        with bus.subscribe("koji", since="now") as early:
            join(early, KOJI)
            for turn, off in enumerate((3600.0, -3600.0, 86400.0, -86400.0, 10.0 * 365 * 86400, 0.0)):
                clock.off = off
                koji.publish("build.start", {"n": turn})
                (message,) = take(early, 1)
                assert abs(datetime.fromisoformat(message.time).timestamp() - time.time() - off) < 60.0
                with bus.subscribe(since="beginning", endpoints=[KOJI]) as late:
                    assert numbers(take(late, turn + 1)) == list(range(turn + 1))
                    (reader,) = late.readers()
                    take_until(late, lambda one=reader, wanted=off: abs(one.stats.skew - wanted) < 60.0)
                    assert reader.silent_since is None
        assert koji.publish("build.start", {"n": 6}, timeout=PATIENCE).sequence == 7
