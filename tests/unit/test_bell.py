"""Bells: whoever waits is woken once it was rung, and ringing one that is being closed harms nobody."""

from __future__ import annotations

import os
import select
import threading

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


def test_threads_that_ring_while_it_is_closed_never_write_to_what_has_its_number_next() -> None:
    failures: list[BaseException] = []

    def ring(bell: Bell, start: threading.Barrier) -> None:
        start.wait()
        try:
            for _ in range(20):
                bell._rung = False  # as if somebody had looked
                bell.release()
        except BaseException as error:
            failures.append(error)

    for _ in range(200):
        bell, start = Bell(), threading.Barrier(3)
        threads = [threading.Thread(target=ring, args=(bell, start)) for _ in range(2)]
        for thread in threads:
            thread.start()
        start.wait()
        bell.close()
        next_one = os.eventfd(0, os.EFD_NONBLOCK)  # the lowest free number: mostly the one that was just closed
        for thread in threads:
            thread.join()
        try:
            os.eventfd_read(next_one)
        except BlockingIOError:
            pass
        else:
            failures.append(AssertionError("the bell was rung at a descriptor of somebody else"))
        os.close(next_one)
    assert not failures
