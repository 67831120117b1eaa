"""The pages of the hub's local HTTP port: /live, /ready and /metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedbus.hub import metrics
from fedbus.monitor.http import StatusServer, daemon_pages

if TYPE_CHECKING:
    from fedbus.hub.hub import Hub


def status_server(hub: Hub, address: str) -> StatusServer:
    """Return what serves the state of *hub* on ``HOST:PORT``, not started yet."""

    pages = daemon_pages(
        live=hub.live,
        reasons=hub.reasons,
        metrics=lambda: metrics.of_hub(hub),
    )
    return StatusServer(address, pages, owner="hub", setting="hub.http or --http")
