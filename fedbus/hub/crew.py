"""Who works on the messages of one consumer: what the thread that reads them, and the hub, ask of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from fedbus.hub.dead import Letter
from fedbus.model.message import Message, MessageKey
from fedbus.model.position import Cursor
from fedbus.transport.state import Loss


class Crew(ABC):
    """One worker or several. What the reader's thread calls may raise :class:`~fedbus.hub.calls.Stopped`."""

    # --- for the reader's thread -------------------------------------------------------------------------------

    @abstractmethod
    def begin(self) -> None:
        """Start the consumer; raises what its ``start`` raises."""

    @abstractmethod
    def work(self, messages: Sequence[Message]) -> None:
        """Have *messages*, one or more of one stream and in its order, worked on; may return before they are."""

    @abstractmethod
    def letters(self, found: Sequence[tuple[Letter, Message]]) -> None:
        """Have dead letters worked on, outside the order of their streams."""

    @abstractmethod
    def lost(self, loss: Loss) -> None:
        """Tell the consumer, behind all that it was given of that stream."""

    @abstractmethod
    def end(self, *, started: bool) -> None:
        """Return when nobody works any more, after the consumer's stop() if it was *started*; raises what that does."""

    # --- for any thread ----------------------------------------------------------------------------------------

    @abstractmethod
    def adopt(self, *, messages: int, size: int) -> None:
        """Have at most so many *messages* and bytes in hand from now on, where there are ever more than one."""

    @abstractmethod
    def stop(self) -> None:
        """Nothing else is to be begun; the consumer's :class:`~fedbus.hub.trying.Trying` was told so before."""

    @abstractmethod
    def kill(self) -> None:
        """End the consumer's processes at once, where it has such."""

    @property
    @abstractmethod
    def failure(self) -> str:
        """Why a worker cannot work; empty when all can."""

    @property
    @abstractmethod
    def currents(self) -> Sequence[Message | None]:
        """What each worker has in a call to the consumer."""

    @property
    @abstractmethod
    def in_hand(self) -> int:
        """Messages that were read, and are not done with."""

    @abstractmethod
    def places(self, read: Cursor) -> Cursor:
        """Return *read*, up to where streams were handed in, with the places up to which all is done."""

    @abstractmethod
    def ahead(self) -> Sequence[MessageKey]:
        """Return messages that are done while one before them in their stream is not."""
