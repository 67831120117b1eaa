"""The queue between the intake and a consumer."""

from __future__ import annotations

import threading

import pytest

from fedbus.hub.feed import Feed, Item
from tests.support import wait_until


@pytest.fixture
def feed():
    made = Feed(messages=10, size=1000)
    yield made
    made.close()


def item(after, count, size=0, endpoint="koji.a"):
    return Item(endpoint, "epoch", after, after + count, [object()] * count, size)


def test_items_come_out_in_their_order_and_are_counted(feed):
    feed.put(item(0, 3))
    feed.put(item(3, 4))
    assert feed.waiting == 7
    assert [feed.pop().through, feed.pop().through, feed.pop()] == [3, 7, None]
    assert feed.waiting == 0
    assert feed.empty


@pytest.mark.parametrize("too_much", [item(5, 6), item(5, 1, size=1001)])
def test_what_does_not_fit_detaches_its_stream_and_leaves_a_mark(feed, too_much):
    feed.put(item(0, 5))
    feed.put(too_much)
    feed.put(item(99, 1))
    feed.put(item(0, 1, endpoint="bodhi.a"))
    assert feed.detached == {"koji.a"}
    assert feed.pop().through == 5
    mark = feed.pop()
    assert (mark.endpoint, mark.after, list(mark.messages)) == ("koji.a", too_much.through, [])
    assert feed.pop().endpoint == "bodhi.a"
    assert feed.pop() is None


def test_an_item_larger_than_the_whole_queue_gets_through_when_it_is_alone(feed):
    feed.put(item(0, 50, size=10_000))
    assert feed.pop().through == 50
    assert not feed.detached


def test_an_attached_stream_is_fed_again(feed):
    feed.put(item(0, 10))
    feed.put(item(10, 1))
    feed.pop()
    feed.pop()
    feed.detached.discard("koji.a")
    feed.put(item(11, 1))
    assert feed.pop().through == 12


def test_waiting_ends_with_an_item_or_when_somebody_wakes_it(feed):
    for end in (lambda: feed.put(item(0, 1)), feed.wake):
        thread = threading.Thread(target=feed.wait, args=(60.0,))
        thread.start()
        wait_until(lambda: feed._sleeping)
        end()
        thread.join(60)
        assert not thread.is_alive()
        feed.pop()


def test_waiting_does_not_begin_when_something_is_here(feed):
    feed.put(item(0, 1))
    feed.wait(60.0)
    feed.close()
    feed.wake()
