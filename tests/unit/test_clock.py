"""Clocks: what is read of two of them at one moment belongs together, however often others have their turn."""

from __future__ import annotations

import pytest

from fedbus.clock import ManualClock, both


class Interrupted(ManualClock):
    """Somebody else has his turn for a second behind each of the first readings."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def monotonic(self) -> float:
        found = super().monotonic()
        self._pass()
        return found

    def wall(self) -> float:
        found = super().wall()
        self._pass()
        return found

    def _pass(self) -> None:
        if self.times:
            self.times -= 1
            self.advance(1.0)


@pytest.mark.parametrize("times", [0, 1, 2, 3, 7])
def test_two_readings_are_of_one_moment(times: int) -> None:
    clock = Interrupted(times)
    monotonic, wall = both(clock)
    assert (monotonic, wall) == (clock.monotonic(), clock.wall())


def test_where_no_moment_is_quiet_the_monotonic_time_is_the_later_one() -> None:
    clock = Interrupted(10**9)
    begun_monotonic, begun_wall = ManualClock().monotonic(), ManualClock().wall()
    monotonic, wall = both(clock)
    assert monotonic - begun_monotonic > wall - begun_wall
