"""A journal that was put back from an older copy: its numbers are given out a second time, to other messages."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from buses import BODHI, KOJI, Bus, numbers, take, take_until

from fedbus.transport.state import Loss


@pytest.mark.badinput("B29")
@pytest.mark.badinput("B30")
def test_a_journal_put_back_from_an_older_copy_is_quarantined_until_the_right_one_is_there(
    open_bus: Callable[..., Bus], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bus = open_bus()
    journal = bus.settings.journal_for(KOJI).directory
    older, right = tmp_path / "older", tmp_path / "right"
    losses: list[Loss] = []

    def say(first: int, last: int) -> None:
        with bus.publisher(KOJI) as koji:
            for number in range(first, last + 1):
                koji.publish("build.start", {"n": number})

    say(1, 5)
    shutil.copytree(journal, older)
    say(6, 10)
    with (
        bus.subscribe(since="beginning", cursor="report", on_loss=losses.append) as subscriber,
        bus.publisher(BODHI) as bodhi,
    ):
        assert numbers(take(subscriber, 10)) == list(range(1, 11))
        assert subscriber.receive(0.0) == []  # asking for more says that these were worked on
        subscriber.commit()
        reader = next(one for one in subscriber.readers() if one.endpoint == KOJI)
        shutil.copytree(journal, right)
        shutil.rmtree(journal)
        shutil.copytree(older, journal)
        with bus.publisher(KOJI) as koji:
            koji.publish("build.start", {"n": "another sixth"})
            assert take_until(subscriber, lambda: reader.quarantined) == []
            assert "epoch" in reader.quarantined
            koji.publish("build.start", {"n": "another seventh"})
            bodhi.publish("update.new", {"n": 1})
            assert [one.endpoint for one in take(subscriber, 1)] == [BODHI]
            # a reader that remembers no batch, but its place, is not deceived either
            with open_bus().subscribe("koji", cursor="report", endpoints=[KOJI]) as restarted:
                (again,) = restarted.readers()
                assert take_until(restarted, lambda: again.quarantined) == []
        assert "is quarantined" in caplog.text
    shutil.rmtree(journal)
    shutil.copytree(right, journal)
    say(11, 11)
    with open_bus().subscribe("koji", cursor="report", endpoints=[KOJI], on_loss=losses.append) as healed:
        assert numbers(take(healed, 1)) == [11]
    assert losses == []
