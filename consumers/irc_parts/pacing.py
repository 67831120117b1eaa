"""How much is said and when: the rate, the queue of a channel, and the pauses between connections."""

from __future__ import annotations

import random
import re
from collections import Counter, deque
from collections.abc import Callable

from .settings import NetworkOptions
from .text import MORE, Entry, clean

_DEBT = 10.0  # lines that were sent without waiting, at most, and are waited for later
_SUMMARY_SECONDS = 10.0  # between two "… and 214 more" in a channel where messages are being left out
_QUIET_SECONDS = 2.0  # without one more left out, and the summary stands right where they are missing


class Bucket:
    """A token bucket: *burst* at once, then *rate* a second. Times are seconds of a monotonic clock."""

    def __init__(self, rate: float, burst: int) -> None:
        self.rate, self.burst = rate, burst
        self._level, self._at = float(burst), float("-inf")

    def wait(self, now: float) -> float:
        """Return the seconds until there is a token, 0.0 when there is one."""
        self._refill(now)
        return 0.0 if self._level >= 1.0 else (1.0 - self._level) / self.rate

    def spend(self, now: float) -> None:
        """Take a token, which may be one of those to come: some lines cannot wait."""
        self._refill(now)
        self._level = max(self._level - 1.0, -_DEBT)

    def take(self, now: float) -> bool:
        """Take a token if there is one, and say whether there was."""
        if self.wait(now):
            return False
        self.spend(now)
        return True

    def _refill(self, now: float) -> None:
        self._level = min(self.burst, self._level + max(0.0, now - self._at) * self.rate)
        self._at = now


class Backlog:
    """What one channel is still to be told; when it is full the oldest goes, and is counted."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: deque[Entry] = deque()
        self._missing: Counter[str] = Counter()
        self._told = self._left_out_at = float("-inf")
        self.left_out = 0
        self.muted_until = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, entry: Entry, now: float) -> None:
        """Add *entry*, or only count it while the channel is muted."""
        if now < self.muted_until:
            self._leave_out(entry, now)
            return
        if len(self._waiting) >= self._most:
            self._leave_out(self._waiting.popleft(), now)
        self._waiting.append(entry)

    def mute(self, now: float, until: float) -> None:
        """Say nothing until then; what waits is left out."""
        self.muted_until = until
        while self._waiting:
            self._leave_out(self._waiting.popleft(), now)

    def take(self, now: float) -> Entry | str | None:
        """Return what is to be said next: a message, a summary of those left out, or nothing."""
        if now < self.muted_until:
            return None
        if self._missing:
            quiet = now - self._left_out_at >= _QUIET_SECONDS
            if quiet or not self._waiting or now - self._told >= _SUMMARY_SECONDS:
                self._told = now
                return self._summary()
        return self._waiting.popleft() if self._waiting else None

    def give_back(self, entry: Entry) -> None:
        """Take *entry* back, which could not be said, unless there is newer in its place."""
        if len(self._waiting) >= self._most:
            self._leave_out(entry, self._left_out_at)
        else:
            self._waiting.appendleft(entry)

    def clear(self) -> int:
        """Forget what waits and return how many messages that were."""
        count = len(self._waiting)
        self._waiting.clear()
        return count

    def _leave_out(self, entry: Entry, now: float) -> None:
        self._left_out_at = now
        self.left_out += 1
        kind = entry.service if entry.service in self._missing or len(self._missing) < 20 else "others"
        self._missing[kind] += 1

    def _summary(self) -> str:
        kinds = [f"{clean(name, 40)} {count}" for name, count in self._missing.most_common(4)]
        if len(kinds) == 1:
            kinds = [clean(next(iter(self._missing)), 40)]
        if len(self._missing) > 4:
            kinds.append("others")
        text = f"{MORE}and {self._missing.total()} more ({', '.join(kinds)})"
        self._missing.clear()
        return text


_FACTORS = {"garbage": 2, "killed": 6, "nick": 6, "login": 6, "tls": 6, "fault": 6, "flood": 12}


class Pauses:
    """How long to stay away after a connection has ended: longer each time, longest where we are not wanted."""

    def __init__(self, options: NetworkOptions, chance: Callable[[], float] = random.random) -> None:
        self._options = options
        self._chance = chance
        self._last = 0.0

    def after(self, cause: str, lived: float) -> float:
        """Return the seconds until the next try. A connection that *lived* for long begins anew."""
        options = self._options
        if lived > max(60.0, 2 * self._last):
            self._last = 0.0
        if cause == "banned":
            first, most = options.ban_pause, 4 * options.ban_pause
        else:
            first, most = (
                options.retry_pause * _FACTORS.get(cause, 1),
                max(options.retry_most, options.retry_pause * _FACTORS.get(cause, 1)),
            )
        self._last = min(max(first, 2 * self._last), max(most, self._last))
        return self._last * (1.0 + 0.25 * self._chance())


_BANNED = re.compile(r"\b(?:auto)?(?:[kgz][-: ]?lined?|akill(?:ed)?|banned|blacklisted|dnsbl)\b", re.I)
_FLOOD = re.compile(r"flood|recvq|sendq|too fast|throttl|penalty", re.I)


def cause_of(text: str) -> str:
    """Return why a server ends a connection, from its words in ERROR: ``banned``, ``flood``, ``killed`` or ``lost``."""
    if _BANNED.search(text):
        return "banned"
    if _FLOOD.search(text):
        return "flood"
    return "killed" if re.search(r"\bkill", text, re.I) else "lost"
