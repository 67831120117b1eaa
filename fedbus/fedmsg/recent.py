"""What was taken in lately: ids that come once more, and counts that leave something out. No socket, no clock."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from fedbus.errors import Reason, TrustError
from fedbus.fedmsg.codec import Envelope

_SURE = 3  # messages that must follow on each other behind a hole before it counts as one
_SIGNERS = 256  # of one endpoint


class Recent:
    """Knows the ids of the last messages, a bounded number of them, so that each is handed on once.

    A message comes several times where a publisher, a relay and a gateway are all read; or since somebody replays it.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen: dict[str, tuple[bytes, str]] = {}  # id -> digest of what was signed, signer

    def known(self, envelope: Envelope) -> str:
        """Return who has signed this very message, where it was taken before; then it need not be checked again."""
        digest, signer = self._seen.get(envelope.id, (b"", ""))
        return signer if digest and digest == _digest(envelope.signed) else ""

    def take(self, envelope: Envelope, signer: str) -> bool:
        """Note a validated message; return False where it was taken before.

        Raises:
            TrustError: Another one had the same id (``Reason.CONFLICT``).
        """
        digest = _digest(envelope.signed)
        known = self._seen.get(envelope.id)
        if known is not None and known[0] and known[0] != digest:
            raise TrustError(Reason.CONFLICT, f"another message had the id {envelope.id[:80]!a} before")
        self.remember(envelope.id, digest, signer)
        return known is None

    def remember(self, identifier: str, digest: bytes = b"", signer: str = "") -> None:
        """Note an id, the newest one; of what came with it the digest, if that is known."""
        self._seen[identifier] = digest, signer
        while len(self._seen) > self._most:
            del self._seen[next(iter(self._seen))]

    def __len__(self) -> int:
        return len(self._seen)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


@dataclass(slots=True)
class Counter:
    """Follows the ``i`` of one signer at one endpoint.

    A publisher's thread counts 1, 2, 3 … on a socket of its own, so a hole in that is a loss. Behind a relay several
    threads of one signer are mixed, and nothing can be told any more: a count that goes back, but not to 1, shows it.
    """

    last: int = 0
    mixed: bool = False
    _hole: int = 0
    _steps: int = 0

    def follow(self, count: int) -> int:
        """Take the next count; return how many messages are now known to be missing."""
        if self.mixed or count <= 0:
            return 0
        last, self.last = self.last, count
        if last == 0 or count == last + 1:
            if not self._hole:
                return 0
            self._steps += 1
            if self._steps < _SURE:
                return 0
            hole, self._hole = self._hole, 0
            return hole
        if count > last + 1:
            self._hole += count - last - 1
            self._steps = 1
            return 0
        self._hole = 0
        if count != 1:
            self.mixed = True
        return 0


@dataclass(slots=True)
class Counters:
    """The counts of all signers at one endpoint."""

    by_signer: dict[str, Counter] = field(default_factory=dict)

    def follow(self, signer: str, count: int, *, again: bool = False) -> int:
        """Take one message's ``i``; return how many of the same signer are now known to be missing.

        *again* says that the message came before, from elsewhere: an old one that somebody replays tells nothing.
        """
        counter = self.by_signer.get(signer)
        if counter is None:
            if len(self.by_signer) >= _SIGNERS:
                return 0
            counter = self.by_signer[signer] = Counter()
        return 0 if again and count <= counter.last else counter.follow(count)
