"""Where a hub reads from: what its subscribers are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import zmq

from fedbus.clock import Clock
from fedbus.hub.dead import DeadLetters
from fedbus.journal.cursors import CursorStore
from fedbus.model.limits import Limits
from fedbus.model.position import Cursor
from fedbus.model.stream import StreamHome
from fedbus.model.topic import Naming, TopicFilter
from fedbus.schemas.registry import Schemas
from fedbus.texts.texts import Texts
from fedbus.transport.endpoint import Endpoint
from fedbus.transport.names import Names
from fedbus.transport.options import SubscriberOptions
from fedbus.transport.state import Loss, Since
from fedbus.transport.subscriber import Subscriber
from fedbus.trust.curve import CurvePair
from fedbus.trust.verifier import Verifier


@dataclass(slots=True, kw_only=True, eq=False)
class Source:
    """Parts that all subscribers of a hub share. ``endpoints`` and ``version`` are replaced when the list changes."""

    endpoints: Mapping[str, Endpoint]
    naming: Naming
    verifier: Verifier
    limits: Limits
    options: SubscriberOptions
    context: zmq.Context[zmq.Socket[bytes]]
    clock: Clock
    store: CursorStore
    dead: DeadLetters
    hands: Path
    """The folder of the notes of what each consumer has in hand."""
    local: Callable[[str], StreamHome | None]
    parse_since: Callable[[str], tuple[Since, Cursor]]
    """From the text that people write; raises ValueError."""
    texts: Texts = field(default_factory=Texts)
    """What messages say to people; each consumer gets it."""
    version: int = field(default=0)
    names: Names | None = None
    pair: CurvePair | None = None
    schemas: Schemas | None = None

    def filters(self, topics: Iterable[str]) -> list[TopicFilter]:
        """Return what people wrote as filters.

        Raises:
            MessageError: One is none.
        """
        return [TopicFilter.parse(text, self.naming) for text in topics]

    def subscribe(
        self,
        endpoints: Iterable[Endpoint],
        filters: list[TopicFilter],
        *,
        since: Since,
        positions: Cursor,
        on_loss: Callable[[Loss], None],
    ) -> Subscriber:
        """Open a subscriber, which then belongs to the calling thread."""
        return Subscriber(
            endpoints,
            filters,
            since=since,
            verifier=self.verifier,
            limits=self.limits,
            options=self.options,
            context=self.context,
            clock=self.clock,
            positions=positions,
            local=self.local,
            on_loss=on_loss,
            names=self.names,
            pair=self.pair,
            schemas=self.schemas,
        )
