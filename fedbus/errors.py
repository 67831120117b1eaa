"""The errors that fedbus raises, branched by who can mend them: the operator, the peer, the caller, nobody."""

from __future__ import annotations

from enum import StrEnum
from typing import Any


class Reason(StrEnum):
    """Why a frame, a message or a certificate was refused; each has a counter of its own.

    The value is the label of the metric and the word in logs, so it never changes once released.
    """

    # the bytes
    FRAMES = "frames"  # not exactly one frame, or an empty one
    MALFORMED = "malformed"  # not laid out as doc/wire.rst says
    VERSION = "version"  # a wire version that this release does not speak
    OVERSIZE = "oversize"  # larger than the configured limit
    TOPIC = "topic"  # not a well-formed topic
    TOPIC_MISMATCH = "topic-mismatch"  # the frame's topic is not the envelope's type
    ENCODING = "encoding"  # not UTF-8, or begins with a byte order mark
    JSON = "json"  # not one JSON object
    NESTING = "nesting"  # nested deeper than the limit
    DUPLICATE_KEY = "duplicate-key"
    NUMBER = "number"  # NaN, an infinity, or an integer that 64 bits cannot hold
    TEXT = "text"  # a lone surrogate or U+0000 in a string
    COUNT = "count"  # too many members, or a key too long
    ENVELOPE = "envelope"  # an attribute is missing or of the wrong type
    SEQUENCE = "sequence"  # the envelope's sequence does not fit its place in the batch
    EPOCH = "epoch"
    CONFLICT = "conflict"  # two different messages carry one sequence
    SCHEMA = "schema"  # the body does not fit the schema of its topic
    # the proof
    UNSIGNED = "unsigned"
    SIGNATURE = "signature"  # does not verify, or is of a wrong length
    CERTIFICATE = "certificate"  # cannot be parsed, is too large, or is no leaf for this use
    UNKNOWN_CA = "unknown-ca"
    EXPIRED = "expired"
    NOT_YET_VALID = "not-yet-valid"
    REVOKED = "revoked"
    CRL = "crl"  # the revocation list is missing, expired, older than before, or of another issuer
    ALGORITHM = "algorithm"  # a key or hash that the native format does not allow
    # the right to say it
    ENDPOINT_MISMATCH = "endpoint-mismatch"  # the certificate's name is not the endpoint in the seal
    UNKNOWN_ENDPOINT = "unknown-endpoint"
    ENVIRONMENT = "environment"  # the topic's prefix or environment is not ours
    POLICY = "policy"  # the signer may not say this topic
    # of the fedmsg format alone
    STALE = "stale"  # older, or further in the future, than fedmsg.max_age allows: replayed


class FedbusError(Exception):
    """Everything that fedbus raises on purpose."""


# --- the operator can mend these -------------------------------------------------------------------------------


class ConfigError(FedbusError):
    """The configuration cannot be used; ``problems`` lists every fault found, each with its file and line."""

    def __init__(self, problems: str | list[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class KeysError(FedbusError):
    """A key, certificate, or revocation list of our own is missing, unreadable, exposed, or does not fit."""


class BindError(FedbusError):
    """An endpoint's address cannot be bound."""

    def __init__(self, text: str, *, endpoint: str, address: str, in_use: bool = False) -> None:
        super().__init__(text)
        self.endpoint = endpoint
        self.address = address
        self.in_use = in_use  # by another socket, which may go; otherwise waiting mends nothing


class ConnectError(FedbusError):
    """A peer cannot be reached."""


class JournalError(FedbusError):
    """The journal cannot be opened or read."""


class JournalLocked(JournalError):
    """Another process has this journal open for writing."""


class JournalWriteError(JournalError):
    """The disk refused a write or a sync; nothing of the refused batch is kept, and publishing may be tried again."""


# --- the peer can mend these -----------------------------------------------------------------------------------


class Refused(FedbusError):
    """Input that was refused; ``reason`` is the counter that it went to."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class WireError(Refused):
    """Bytes that are not what ``doc/wire.rst`` specifies."""


class TrustError(Refused):
    """Bytes whose proof does not hold, or whose signer may not say this."""


# --- the caller can mend these ---------------------------------------------------------------------------------


class MessageError(FedbusError, ValueError):
    """What was to be published cannot be a message: a bad topic, or a body that JSON cannot carry unchanged."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class SchemaError(MessageError):
    """The body does not fit the schema of its topic, or the topic has none where it must have one.

    ``topic`` is the full topic, ``schema`` the schema's name (empty where there is none), and ``faults`` holds for each
    fault its ``field``, such as ``body.build.id``, the ``rule`` that it breaks, such as ``type``, and a ``text``.
    """

    def __init__(self, text: str, *, topic: str, schema: str = "", faults: tuple[Any, ...] = ()) -> None:
        super().__init__(Reason.SCHEMA, text)
        self.topic = topic
        self.schema = schema
        self.faults = faults


class PublisherClosed(FedbusError):
    """The publisher has been closed, or its thread has ended with an error."""


class ForkedError(FedbusError):
    """The object was made before a fork and is used in the child; open a new one there."""


class QueueFull(FedbusError):
    """The publisher's queue stayed full until the deadline: the disk or the signer does not keep up."""


class DeadlineExceeded(FedbusError, TimeoutError):
    """What was waited for did not happen in time."""


class LossError(FedbusError):
    """Messages are known to be lost for this reader, and it asked to be told by an error (``strict``)."""


# --- nobody can mend these -------------------------------------------------------------------------------------


class Fenced(FedbusError):
    """A holder with a newer fencing token has already written here; step down."""
