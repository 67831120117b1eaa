"""fedbus: a decentralized, signed and durable message bus for infrastructure services.

The public names are gathered here, and each is imported when it is first used: so `fedbus --help`, and a program that
needs only the errors, do not load sockets, cryptography and asyncio first.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedbus.bus import Bus
    from fedbus.cli.escaping import escape
    from fedbus.config.units import parse_duration
    from fedbus.errors import (
        BindError,
        ConfigError,
        ConnectError,
        DeadlineExceeded,
        FedbusError,
        Fenced,
        ForkedError,
        JournalError,
        JournalLocked,
        JournalWriteError,
        KeysError,
        LossError,
        MessageError,
        PublisherClosed,
        QueueFull,
        Reason,
        Refused,
        SchemaError,
        TrustError,
        WireError,
    )
    from fedbus.fedmsg.publisher import FedmsgPublisher, FedmsgReceipt
    from fedbus.history.errors import HistoryDamaged, HistoryError, HistoryUnavailable
    from fedbus.history.options import HistoryOptions
    from fedbus.history.query import HistoryQuery
    from fedbus.history.store import HistoryStore, open_history
    from fedbus.hub.consumer import Consumer, Drop, Halt, Retry, consumer
    from fedbus.hub.hub import Hub
    from fedbus.hub.options import Batch
    from fedbus.model.message import Message, MessageKey
    from fedbus.model.position import Cursor, Position
    from fedbus.model.receipt import Receipt, RelayReceipt
    from fedbus.model.topic import TopicFilter
    from fedbus.schemas.registry import Schemas
    from fedbus.texts.text import Text
    from fedbus.texts.texts import Texts
    from fedbus.transport.asubscriber import AsyncSubscriber
    from fedbus.transport.batch import Pending
    from fedbus.transport.publisher import Publisher
    from fedbus.transport.relay_client import RelayPublisher
    from fedbus.transport.state import Loss
    from fedbus.transport.subscriber import Subscriber

__version__ = "0.1.0"

# where each public name is defined; those that are not here are errors
_HOMES = {
    "AsyncSubscriber": "fedbus.transport.asubscriber",
    "Batch": "fedbus.hub.options",
    "Bus": "fedbus.bus",
    "Consumer": "fedbus.hub.consumer",
    "Cursor": "fedbus.model.position",
    "Drop": "fedbus.hub.consumer",
    "FedmsgPublisher": "fedbus.fedmsg.publisher",
    "FedmsgReceipt": "fedbus.fedmsg.publisher",
    "Halt": "fedbus.hub.consumer",
    "HistoryDamaged": "fedbus.history.errors",
    "HistoryError": "fedbus.history.errors",
    "HistoryOptions": "fedbus.history.options",
    "HistoryQuery": "fedbus.history.query",
    "HistoryStore": "fedbus.history.store",
    "HistoryUnavailable": "fedbus.history.errors",
    "Hub": "fedbus.hub.hub",
    "Loss": "fedbus.transport.state",
    "Message": "fedbus.model.message",
    "MessageKey": "fedbus.model.message",
    "Pending": "fedbus.transport.batch",
    "Position": "fedbus.model.position",
    "Publisher": "fedbus.transport.publisher",
    "Receipt": "fedbus.model.receipt",
    "RelayPublisher": "fedbus.transport.relay_client",
    "RelayReceipt": "fedbus.model.receipt",
    "Retry": "fedbus.hub.consumer",
    "Schemas": "fedbus.schemas.registry",
    "Subscriber": "fedbus.transport.subscriber",
    "Text": "fedbus.texts.text",
    "Texts": "fedbus.texts.texts",
    "TopicFilter": "fedbus.model.topic",
    "consumer": "fedbus.hub.consumer",
    "escape": "fedbus.cli.escaping",
    "open_history": "fedbus.history.store",
    "parse_duration": "fedbus.config.units",
}

__all__ = [
    "AsyncSubscriber",
    "Batch",
    "BindError",
    "Bus",
    "ConfigError",
    "ConnectError",
    "Consumer",
    "Cursor",
    "DeadlineExceeded",
    "Drop",
    "FedbusError",
    "FedmsgPublisher",
    "FedmsgReceipt",
    "Fenced",
    "ForkedError",
    "Halt",
    "HistoryDamaged",
    "HistoryError",
    "HistoryOptions",
    "HistoryQuery",
    "HistoryStore",
    "HistoryUnavailable",
    "Hub",
    "JournalError",
    "JournalLocked",
    "JournalWriteError",
    "KeysError",
    "Loss",
    "LossError",
    "Message",
    "MessageError",
    "MessageKey",
    "Pending",
    "Position",
    "Publisher",
    "PublisherClosed",
    "QueueFull",
    "Reason",
    "Receipt",
    "Refused",
    "RelayPublisher",
    "RelayReceipt",
    "Retry",
    "SchemaError",
    "Schemas",
    "Subscriber",
    "Text",
    "Texts",
    "TopicFilter",
    "TrustError",
    "WireError",
    "consumer",
    "escape",
    "open_history",
    "parse_duration",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES.get(name, "fedbus.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
