"""A consumer that is to run, and how; what is counted of it."""

from __future__ import annotations

from dataclasses import dataclass

from fedbus.hub.consumer import Consumer
from fedbus.hub.options import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Enabled:
    """A consumer that is to run, and how. ``made_of`` tells it from one with other settings or another source."""

    name: str
    consumer: Consumer
    topics: tuple[str, ...]
    since: str = "now"
    attempts: int = 4
    timeout: float = 60.0
    workers: int = 1
    ordered_by: str = "stream"
    batch: Batch | None = None  # None: one message for each call
    origin: str = ""
    made_of: str = ""


@dataclass(slots=True)
class DeliveryStats:
    """Counters of one consumer, in messages."""

    delivered: int = 0  # its call returned
    failed: int = 0  # calls that raised an error
    retried: int = 0  # calls that asked for another try
    dropped: int = 0  # given up by the consumer
    gave_up: int = 0  # made dead letters, after the last try
    requeued: int = 0  # dead letters that were given to it once more
    lost: int = 0  # reports of loss
    caught_up: int = 0  # times that it came back from the journal to the live feed
    broken_batches: int = 0  # batches that failed, and were given message by message
