"""What the tests of all stores share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fedbus import HistoryOptions, HistoryStore, open_history
from fedbus.clock import Clock

Open = Callable[..., HistoryStore]


def opener(store: str, clock: Clock) -> Open:
    """A function that opens the history *store*: `open_store(writable=True, period="day", keep=0.0)`."""

    def start(*, writable: bool = True, **changes: object) -> HistoryStore:
        options = replace(HistoryOptions(store=store), **changes)  # type: ignore[arg-type]
        return open_history(options, writable=writable, clock=clock)

    return start


def keys(store: HistoryStore, query: object) -> list[tuple[str, str, int]]:
    return [tuple(one.key) for one in store.find(query)]  # type: ignore[arg-type,misc]
