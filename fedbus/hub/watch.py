"""How a hub learns of other endpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from fedbus.monitor.discovery import DiscoveryFigures
from fedbus.transport.endpoint import Endpoint


@runtime_checkable
class Watch(Protocol):
    """Is asked for a changed list of endpoints, in the hub's own thread; tells the log by itself what it finds."""

    def __call__(self, forced: bool) -> Mapping[str, Endpoint] | None:
        """Return all endpoints where something was taken up, else None; *forced*: even if the files look the same."""

    @property
    def refused(self) -> str:
        """Why the files are not in force as they are; empty when they are."""

    @property
    def pending(self) -> bool:
        """Whether the files are still to be read, after they were asked for by *forced*."""

    def figures(self) -> DiscoveryFigures:
        """Return what a metric can be made of."""
