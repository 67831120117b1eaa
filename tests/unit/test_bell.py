"""Bells: whoever waits is woken once it was rung, and ringing one that is being closed harms nobody."""

from __future__ import annotations

import os
import select
import threading

import pytest

from fedbus.bell import Bell


def is_rung(bell: Bell) -> bool:
    poll = select.poll()
    poll.register(bell.descriptor, select.POLLIN)
    return bool(poll.poll(0))


def test_a_wait_ends_when_another_thread_rings() -> None:
    bell = Bell()
    threading.Thread(target=bell.release).start()
    bell.wait(60.0)
    assert not is_rung(bell)
    bell.release()
    bell.release()
    assert is_rung(bell)
    bell.hush()
    assert not is_rung(bell)
    bell.release()
    assert is_rung(bell)
    bell.close()


def test_a_wait_ends_for_other_descriptors_too() -> None:
    bell = Bell()
    other = os.eventfd(1)
    bell.wait(60.0, (other,))
    bell.close()
    os.close(other)


def test_a_closed_bell_is_silent_and_closing_it_twice_does_nothing() -> None:
    bell = Bell()
    bell.close()
    bell.close()
    bell.release()
    bell.hush()
    bell.wait(0.0)


def test_a_bell_is_not_closed_between_the_look_at_its_descriptor_and_the_ringing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bell = Bell()
    closing = threading.Thread(target=bell.close)
    real, rung = os.eventfd_write, []

    def write(descriptor: int, value: int) -> None:
        closing.start()
        closing.join(0.2)  # it would be over by then if nothing held it up
        real(descriptor, value)
        rung.append(descriptor)

    monkeypatch.setattr("fedbus.bell.os.eventfd_write", write)
    bell.release()
    closing.join(60.0)
    assert len(rung) == 1
    assert bell.descriptor < 0
