"""What can be set about the metrics of programs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsOptions:
    """Where a program that publishes or subscribes shows its metrics when it asks for that."""

    http: str | None = None  # HOST:PORT of /live, /ready and /metrics; None: where the program says
