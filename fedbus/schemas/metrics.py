"""What schemas count, as metrics."""

from __future__ import annotations

from fedbus.monitor.text import Family
from fedbus.schemas.registry import Schemas


def of_schemas(schemas: Schemas | None) -> list[Family]:
    """Return the metrics of *schemas*; zero where none were loaded."""
    known = Schemas() if schemas is None else schemas
    stats = known.stats
    return [
        Family("fedbus_schemas", "gauge", "Schemas in force.", [({}, len(known))]),
        Family(
            "fedbus_schema_checked_total",
            "counter",
            "Bodies that were held against a schema.",
            [({"direction": "publish"}, stats.published), ({"direction": "receive"}, stats.received)],
        ),
        Family(
            "fedbus_schema_misfits_total",
            "counter",
            "Bodies that did not fit, by what became of them.",
            [
                ({"outcome": "refused"}, stats.refused),
                ({"outcome": "dropped"}, stats.dropped),
                ({"outcome": "warned"}, stats.warned),
            ],
        ),
        Family("fedbus_schema_unknown_topics_total", "counter", "Topics met without a schema.", [({}, stats.unknown)]),
    ]
