"""What is told of a stream that is being read: where it begins, how it is read, what is lost, and counters."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, StrEnum

from fedbus.model.position import Position


class LossCause(StrEnum):
    """Why messages are lost; neither word nor number ever changes once released."""

    RETENTION = "retention"  # removed by age or size before we came to them
    DAMAGE = "damage"  # the journal cannot read them
    REFUSED = "refused"  # their proof did not hold
    MISSING = "missing"  # signed words say that they were published, and the publisher does not have them
    EPOCH = "epoch"  # the journal was replaced

    @property
    def number(self) -> int:
        """The number of this cause, from 1."""
        return _NUMBERS[self]


_NUMBERS = {cause: number for number, cause in enumerate(LossCause, 1)}


@dataclass(frozen=True, slots=True)
class Loss:
    """Messages of a stream that this reader will not get; reported once, in their place in the order.

    ``first`` and ``last`` bound them (``last`` is None where nobody knows how many there were). ``cause`` is
    ``retention`` (removed by age or size), ``damage`` (unreadable in the journal), ``refused`` (their proof did not
    hold), ``missing`` (the publisher does not have them) or ``epoch`` (the journal was replaced); ``number`` is the
    same as a number: 1 to 5, in this order.
    """

    endpoint: str
    epoch: str
    first: int
    last: int | None
    cause: str

    @property
    def number(self) -> int:
        """The number of the cause."""
        return LossCause(self.cause).number

    def __str__(self) -> str:
        span = f"{self.first} to {self.last}" if self.last is not None else f"from {self.first} on"
        return f"{self.endpoint}: messages {span} of epoch {self.epoch} are lost ({self.cause})"


@dataclass(frozen=True, slots=True)
class Since:
    """Where to begin where no cursor says so: exactly one field is set, or none for the beginning."""

    position: Position | None = None
    time_ms: int | None = None
    age: tuple[float, float] | None = None  # (seconds, monotonic time at which that was asked for)


class Mode(Enum):
    """How a stream is being read."""

    JOINING = "joining"  # where it begins is not known yet
    BEHIND = "behind"  # reading from the journal
    LIVE = "live"


@dataclass(slots=True)
class ReaderStats:
    """Counters of one stream at one subscriber."""

    messages: int = 0
    duplicates: int = 0
    gaps: int = 0  # times that live traffic showed a hole; refilled unless `lost` grows too
    lost: int = 0  # reports of loss
    lost_messages: int = 0  # in these, as far as anybody knows how many they were
    losses: dict[str, int] = field(default_factory=dict)  # reports of loss by cause
    refused: int = 0
    refusals: dict[str, int] = field(default_factory=dict)  # by reason
    link_faults: dict[str, int] = field(default_factory=dict)  # handshakes that failed, by what went wrong
    skew: float = 0.0  # seconds that the publisher's clock is ahead of ours, by its last beat; never used for order
    fetched: int = 0  # records read from the journal
    reconnects: int = 0  # times that the endpoint was connected anew because it was silent
    unanswered: int = 0  # requests to its journal that brought no whole answer
