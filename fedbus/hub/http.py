"""The pages of the hub's local HTTP port: /live, /ready and /metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedbus.hub import metrics
from fedbus.monitor.http import Answer, StatusServer, json_answer
from fedbus.monitor.text import CONTENT_TYPE

if TYPE_CHECKING:
    from fedbus.hub.hub import Hub

_LIVE_SECONDS = 30.0  # after which a hub whose own thread does not come round counts as hanging


def status_server(hub: Hub, address: str) -> StatusServer:
    """Return what serves the state of *hub* on ``HOST:PORT``, not started yet."""

    def live(here: bool) -> Answer:
        silent = hub.source.clock.monotonic() - hub.beat_at
        return json_answer(200 if silent < _LIVE_SECONDS else 503, {"live": silent < _LIVE_SECONDS})

    def ready(here: bool) -> Answer:
        reasons = hub.reasons()
        # they name messages, and errors of consumers that may quote them: not for everybody in the network
        shown = reasons if here else [f"{len(reasons)}, told on this host only"] if reasons else []
        return json_answer(503 if reasons else 200, {"ready": not reasons, "reasons": shown})

    def show(here: bool) -> Answer:
        return Answer(200, CONTENT_TYPE, metrics.of_hub(hub))

    pages = {"/live": live, "/ready": ready, "/metrics": show}
    return StatusServer(address, pages, owner="hub", setting="hub.http or --http")
