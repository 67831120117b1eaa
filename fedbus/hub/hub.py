"""The hub: delivers the bus to consumers, each at its own pace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class HubOptions:
    """Where consumers are found, and how the hub stops and shows itself."""

    folder: Path | None = None  # consumers as files; each is loaded that the configuration names
    http: str | None = None  # HOST:PORT of /live, /ready and /metrics; None: not served
    drain_timeout: float = 10.0  # seconds that consumers have to finish on SIGTERM
