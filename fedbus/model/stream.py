"""What every home of a stream offers to the readers of it, be it a journal on disk or a topic elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of a stream: whole records, one behind the other, and what they cover.

    ``data`` holds records as `doc/wire.rst` lays them out; ``through`` is the last sequence that the slice covers, even
    where no record of it was wanted; ``end`` says that this was the head. ``lost`` names ranges (first, last) of
    sequences that should be here and cannot be read.
    """

    data: bytes
    through: int
    end: bool
    lost: tuple[tuple[int, int], ...] = ()


class StreamHome(Protocol):
    """Where one endpoint's stream can be read from."""

    @property
    def epoch(self) -> str:
        """Identity of the journal, a UUID."""

    @property
    def start(self) -> int:
        """First sequence still kept; ``head + 1`` when there is none."""

    @property
    def head(self) -> int:
        """Last sequence; 0 before the first message."""

    def read(self, after: int, budget: int, wanted: Callable[[str], bool] | None = None) -> Slice:
        """Return records from the batch that holds ``after + 1`` on, about *budget* bytes, at least one batch."""

    def position_at(self, time_ms: int) -> int:
        """Return the last sequence written before that wall time."""
