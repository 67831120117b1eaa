"""What can be set about the hub and its consumers; `config` fills these in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Batch:
    """How many messages a consumer is given at once: at most *messages*, and those there are *seconds* after the first.

    Raises:
        ValueError: Fewer than one message, or no bounded time.
    """

    messages: int = 1000
    seconds: float = 0.2

    def __post_init__(self) -> None:
        if self.messages < 1 or not 0.0 <= self.seconds <= 86400.0:
            raise ValueError(f"{self}: at least one message, and 0 seconds to a day, are needed")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubOptions:
    """Where consumers are found, and how the hub delivers, stops and shows itself."""

    folder: Path | None = None  # consumers as files; each is loaded that the configuration names
    http: str | None = None  # HOST:PORT of /live, /ready and /metrics; None: not served
    drain_timeout: float = 10.0  # seconds that consumers have to finish on SIGTERM
    queue_messages: int = 10_000  # waiting for one consumer; what does not fit is read from the journals later
    queue_bytes: int = 64 * 2**20  # and as much again where it has several workers, or takes batches
    commit_interval: float = 1.0  # seconds between two writes of a cursor: what a crash makes come again
    retry_pause: float = 1.0  # seconds before the first new try of a message that failed; each later one is longer
    stuck_after: float = 60.0  # seconds that one message may be tried again and again before /ready says so
    stuck_failures: int = 10  # calls that fail in a row, of any message, before it says so
    dead_messages: int = 10_000  # dead letters of one consumer; where no more fit it waits, and gives nothing up
    dead_bytes: int = 256 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerSettings:
    """One consumer of the hub, as the configuration enables it.

    ``use`` names the code: an entry point of the group ``fedbus.consumers``, ``module``, ``module:Class``, or
    ``file.py[:name]`` in the folder of the hub. ``settings`` is for the consumer itself, which checks it. ``origin`` is
    the ``FILE:LINE`` that names it.
    """

    name: str
    use: str
    enabled: bool = True
    topics: tuple[str, ...] = ()  # empty: those that the consumer itself declares
    since: str = ""  # where a consumer without a cursor begins; empty: what it declares itself, or now
    workers: int = 1  # calls at the same time
    ordered_by: str = "stream"  # or endpoint, topic, none, body.KEY: what is equal there is worked on in order
    batch: Batch | None = None  # several messages in one call; None: as the consumer declares
    timeout: float = 60.0  # seconds for one call
    isolation: str = "thread"  # or "process": a process of its own, which may crash, hang and leak
    memory_bytes: int = 0  # of that process, resident; it is started anew beyond; 0: not watched
    nice: int = 10  # by how much that process is nicer than the hub: nice(2), so 0 to 19
    attempts: int = 4  # the first try and three more; then the message is given up
    settings: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""
