"""For tests of programs that use fedbus: a whole bus in one process, and publishing without any.

``LocalBus`` is a real bus (keys, journals, sockets, a hub) in a folder of its own. ``mock_publishes`` replaces
publishing and checks what was published. With pytest there are the fixtures ``fedbus_bus`` and ``mock_publishes``, too.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedbus.testing.local import DeadMessage, LocalBus
    from fedbus.testing.matching import Expected, Published, containing
    from fedbus.testing.mock import mock_publishes, record_publishes

# pytest loads the plugin in this package in every run of everybody, so nothing is imported before it is used
_HOMES = {
    "DeadMessage": "fedbus.testing.local",
    "Expected": "fedbus.testing.matching",
    "LocalBus": "fedbus.testing.local",
    "Published": "fedbus.testing.matching",
    "containing": "fedbus.testing.matching",
    "mock_publishes": "fedbus.testing.mock",
    "record_publishes": "fedbus.testing.mock",
}

__all__ = ["DeadMessage", "Expected", "LocalBus", "Published", "containing", "mock_publishes", "record_publishes"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
