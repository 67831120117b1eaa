"""What a publisher gives back for a message that it has taken."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof for the caller that a message is in the journal."""

    topic: str
    endpoint: str
    epoch: str
    sequence: int
    id: str
    time: str

    @property
    def spooled(self) -> bool:
        """Whether the message only waits on this host's disk for its publisher; see :class:`RelayReceipt`."""
        return False


@dataclass(frozen=True, slots=True)
class RelayReceipt(Receipt):
    """A receipt for what was handed in to the relay of this host.

    ``submission`` is the number that the message keeps on its whole way, an attribute of its envelope. Where the relay
    could not be reached the message is ``spooled``: on this host's disk, to be sent once when the relay is back. Then
    ``epoch`` and ``id`` are empty, ``sequence`` is 0, and ``time`` is when it was spooled.
    """

    submission: str

    @property
    def spooled(self) -> bool:
        """Whether the message only waits on this host's disk for its publisher."""
        return not self.sequence
