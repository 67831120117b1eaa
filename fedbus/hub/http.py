"""The pages of the hub's local HTTP port: /live, /ready and /metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedbus.hub import metrics
from fedbus.monitor.http import StatusServer, daemon_pages

if TYPE_CHECKING:
    from fedbus.hub.hub import Hub

_LIVE_SECONDS = 30.0  # after which a hub whose own thread does not come round counts as hanging


def status_server(hub: Hub, address: str) -> StatusServer:
    """Return what serves the state of *hub* on ``HOST:PORT``, not started yet."""

    pages = daemon_pages(
        live=lambda: hub.source.clock.monotonic() - hub.beat_at < _LIVE_SECONDS,
        reasons=hub.reasons,
        metrics=lambda: metrics.of_hub(hub),
    )
    return StatusServer(address, pages, owner="hub", setting="hub.http or --http")
