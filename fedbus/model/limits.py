"""What a message may be at most; enforced where bytes come in, before anything parses them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Upper bounds of one message; the same on both ends, so that what could be published can be received."""

    message_bytes: int = 2**20  # one envelope
    nesting: int = 64  # levels of objects and lists, the envelope being the first
    members: int = 100_000  # values in all objects and lists together
    key_bytes: int = 4096  # one member's name, UTF-8
