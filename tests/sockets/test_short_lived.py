"""Publishers that are gone before a reader has shaken hands with them."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import pytest
from buses import KOJI, PATIENCE, Bus, quick, take_until

from fedbus.transport.endpoint import Address


def test_a_publisher_that_ends_while_a_reader_connects_is_a_warning_only_when_it_happens_again(
    bus_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "fedbus")
    settings = quick(bus_folder)
    address = Address.parse(settings.endpoint(KOJI).publish)

    def live_shortly() -> None:
        with socket.create_server((address.host, address.port)) as server:
            server.settimeout(PATIENCE)
            connection, _ = server.accept()
        # nobody listens any more, so there is no second connection
        connection.close()

    def warnings() -> list[str]:
        return [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]

    with Bus(settings) as bus, bus.subscribe(since="now") as subscriber:
        live_shortly()
        take_until(subscriber, lambda: subscriber.stats.link_faults == {"handshake": 1})
        assert not [text for text in warnings() if "no connection to" in text]
        assert "endpoint koji.build01 went away in the middle of a handshake" in caplog.text
        live_shortly()
        take_until(subscriber, lambda: subscriber.stats.link_faults == {"handshake": 2})
        assert any("no connection to endpoint koji.build01: handshake: " in text for text in warnings())
