"""What can be set about schemas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaOptions:
    """Where schemas are, and what becomes of messages that do not fit theirs, or that have none."""

    folder: Path | None = None  # of *.json and *.yaml files; None: `schemas` below the configuration, where it exists
    installed: bool = True  # those of packages too, by the entry point group fedbus.schemas
    publish: str = "refuse"  # a body that does not fit: refuse, warn, pass (it is not looked at)
    receive: str = "warn"  # the same of one that was received: drop, warn, pass
    unknown: str = "allow"  # a topic without a schema: allow, warn, refuse
    formats: bool = True  # whether `format` (date-time, uri, …) is a rule; otherwise it only describes
    topics: Mapping[str, Any] = field(default_factory=dict)  # filter -> schema
