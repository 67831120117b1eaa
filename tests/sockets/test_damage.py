"""A disk that changes what a running publisher wrote: readers are told what is lost, and get the rest."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from buses import KOJI, take_until

from fedbus import Bus, Loss
from fedbus.journal.segment import RECORD, decode_fixed


@pytest.mark.fault("F4")
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_damage_under_a_running_publisher_is_a_loss_and_not_an_endless_question(
    open_bus: Callable[..., Bus], place: str
) -> None:
    bus = open_bus()
    losses: list[Loss] = []
    with bus.publisher(KOJI) as koji:
        for number in range(1, 21):
            koji.publish("package.build.complete", {"n": number})
        (path,) = bus.settings.journal_for(KOJI).directory.glob("*.journal")
        data = path.read_bytes()
        fixed = decode_fixed(data)
        assert fixed is not None
        at, starts = fixed.data_start, []
        while at < len(data):
            starts.append(at)
            at += RECORD.size + RECORD.unpack_from(data, at)[0]
        hurt = {"first": 0, "middle": 9, "last": len(starts) - 1}[place]
        fd = os.open(path, os.O_WRONLY)
        try:
            os.pwrite(fd, b"\xff\x00\xff", starts[hurt] + RECORD.size + 200)
        finally:
            os.close(fd)
        with bus.subscribe(since="beginning", endpoints=[KOJI], on_loss=losses.append) as subscriber:
            reader = subscriber.readers()[0]
            messages = take_until(subscriber, lambda: reader.accounted == 20 and losses)
            koji.publish("package.build.complete", {"n": 21})
            messages += take_until(subscriber, lambda: reader.accounted == 21)
    assert [(loss.first, loss.last, loss.cause) for loss in losses] == [(hurt + 1, hurt + 1, "damage")]
    assert [message.body["n"] for message in messages] == [n for n in range(1, 22) if n != hurt + 1]
