"""A subscriber that was there before the endpoint came up misses nothing of what it says first."""

from __future__ import annotations

from fedbus.bus import Bus


def test_what_is_published_before_the_first_request_arrives_is_not_older_than_now(bus_folder):
    with Bus.open(bus_folder) as reading, reading.subscribe("koji", since="now") as subscriber:
        assert subscriber.receive(0.1) == []  # its request now waits in the socket for the endpoint
        with Bus.open(bus_folder) as writing, writing.publisher("koji.build01") as publisher:
            publisher.publish("build.start", {"n": 1})
            assert [message.body for message in subscriber.receive(60.0)] == [{"n": 1}]
