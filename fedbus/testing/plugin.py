"""The pytest plugin: the fixtures ``fedbus_bus`` and ``mock_publishes``, and the marker ``fedbus``.

pytest loads this in every run on a machine where fedbus is installed, so nothing of it runs by itself, and nothing is
imported before a test asks for a fixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fedbus.testing.local import LocalBus


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers",
        "fedbus(endpoints=(...), config={...}, prefix=..., environment=...): how the bus of fedbus_bus is to be",
    )


@pytest.fixture
def fedbus_bus(request: pytest.FixtureRequest) -> Iterator[LocalBus]:
    """A whole fedbus in this process, for one test: keys, journals, sockets, and a hub for the consumer under test.

    See `fedbus.testing.LocalBus`, whose arguments ``@pytest.mark.fedbus(endpoints=("koji.build01",))`` names.
    """
    from fedbus.testing.local import LocalBus

    marker = request.node.get_closest_marker("fedbus")
    arguments: dict[str, Any] = dict(marker.kwargs) if marker is not None else {}
    if marker is not None and marker.args:
        raise pytest.UsageError("the marker fedbus takes keyword arguments only, such as endpoints=('koji.build01',)")
    with LocalBus(**arguments) as bus:
        yield bus


@pytest.fixture
def mock_publishes() -> Any:
    """`fedbus.testing.mock_publishes`: ``with mock_publishes("package.build.complete"): code()``."""
    from fedbus.testing.mock import mock_publishes

    return mock_publishes
