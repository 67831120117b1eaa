"""Keeps every message once, with its signed bytes and its seal, in SQLite or PostgreSQL; see ``fedbus history``."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import Any, ClassVar

from fedbus import (
    Batch,
    Consumer,
    Fenced,
    Halt,
    HistoryDamaged,
    HistoryOptions,
    HistoryStore,
    HistoryUnavailable,
    Message,
    Retry,
    open_history,
    parse_duration,
)

log = logging.getLogger(__name__)

_LONGEST_PAUSE = 30.0  # seconds between two tries while the store is away


class History(Consumer):
    """Store each message. It moves its cursor only when they are on disk, so a crash makes some come again, and the
    store knows them by their key.
    """

    topics = ("#",)
    since = "beginning"
    batch = Batch(messages=4000, seconds=0.2)
    schema: ClassVar[dict[str, Any]] = {
        "type": "object",
        "properties": {
            "store": {"type": "string", "pattern": "^(/|~/|postgres(ql)?://)", "maxLength": 2000},
            "period": {"enum": ["day", "month", "year"]},
            "keep": {"type": ["number", "string"]},
        },
        "additionalProperties": False,
    }

    def __init__(self, store: str = "", period: str = "month", keep: float | str = 0.0) -> None:
        """*store*: a folder, or a ``postgresql://`` URL; empty: the folder ``history`` of the bus's state.

        *period* is what one partition holds, *keep* how long messages are kept at least (``400d``); 0: for ever.

        Raises:
            ValueError: *keep* is no duration.
        """
        self._place = store
        self._period = period
        self._keep = parse_duration(keep)
        self._store: HistoryStore | None = None
        self._pause = 1.0

    def start(self) -> None:
        """Open the store; the hub tries again while that fails."""
        self._opened()

    def stop(self) -> None:
        """Close the store."""
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def consume(self, message: Message) -> None:
        """Store one message."""
        self.consume_batch([message])

    def consume_batch(self, messages: Sequence[Message]) -> None:
        """Store messages; on return they outlive the machine.

        Raises:
            Retry: The store is away, busy, full or damaged, which no message is to blame for.
            Halt: Another hub has taken over.
        """
        try:
            self._opened().write(messages, texts=self.texts)
        except Fenced as error:
            raise Halt(1, str(error)) from error
        except (HistoryUnavailable, HistoryDamaged) as error:
            # whoever mends it may put another file or server into its place
            self.stop()
            pause = self._pause * random.uniform(0.8, 1.2)
            self._pause = min(_LONGEST_PAUSE, self._pause * 2)
            log.warning("the history waits for %.3g s: %s", pause, error)
            raise Retry(after=pause, reason=str(error)) from error
        self._pause = 1.0

    def _opened(self) -> HistoryStore:
        if self._store is None:
            place = self._place or (str(self.state / "history") if self.state is not None else "")
            options = HistoryOptions(store=place, period=self._period, keep=self._keep)
            self._store = open_history(options, writable=True)
        return self._store
