"""fedbus: a decentralized, signed and durable message bus for infrastructure services."""

from fedbus.bus import Bus
from fedbus.errors import (
    ConfigError,
    DeadlineExceeded,
    FedbusError,
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
    TrustError,
    WireError,
)
from fedbus.model.message import Message, MessageKey
from fedbus.model.position import Cursor, Position
from fedbus.transport.asubscriber import AsyncSubscriber
from fedbus.transport.publisher import Pending, Publisher, Receipt
from fedbus.transport.reader import Loss
from fedbus.transport.subscriber import Subscriber

__version__ = "0.1.0"

__all__ = [
    "AsyncSubscriber",
    "Bus",
    "ConfigError",
    "Cursor",
    "DeadlineExceeded",
    "FedbusError",
    "ForkedError",
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
    "Subscriber",
    "TrustError",
    "WireError",
]
