"""Places in streams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

FencingToken = NewType("FencingToken", int)
"""The ever-growing number of a lease; a writer with a lower one than was seen before is refused."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far a reader of one stream has come: everything up to *sequence* of *epoch* is behind it; 0 is the start."""

    epoch: str
    sequence: int


Cursor = dict[str, Position]
"""A reader's place in all of its streams, by the endpoint's name."""
