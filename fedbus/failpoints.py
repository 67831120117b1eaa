"""Places where fedbus can be made to die, fail or wait on purpose, so that tests can prove what it promises.

``FEDBUS_FAILPOINTS`` arms them, for one process and for its whole life: it is read once, when this module is imported.
Where it is empty, ``ARMED`` is False, and all that is left of a failpoint is one test of a constant, once a batch::

    if ARMED:
        hit("journal.sync.before")

The variable holds entries apart by ``;``, each ``NAME=ACTION[:ARGUMENT][@FIRST[-[LAST]]][%PROBABILITY][?FILE]``, and
perhaps one ``seed=NUMBER``. doc/testing.rst has examples.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import re
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from fedbus.errors import ConfigError

log = logging.getLogger(__name__)

POINTS: Final[Mapping[str, str]] = {
    "journal.create": "a new journal has its first segment, and no identity yet",
    "journal.write.before": "nothing of a batch is written yet",
    "journal.write.torn": "a part of a batch is written, half of it unless `short` says how many bytes",
    "journal.write.after": "a batch is written and not synced",
    "journal.sync.before": "the active segment is about to be synced",
    "journal.sync.after": "the active segment is synced, and nobody knows yet",
    "journal.replace.before": "a small file (segment header, index, identity, token) is written beside its old one",
    "journal.replace.after": "a small file has its name, and the folder is not synced",
    "journal.roll.before": "the active segment is full and synced, the next one does not exist",
    "journal.roll.after": "the next segment exists, the index of the one before does not",
    "journal.index": "the index of a closed segment is about to be written",
    "journal.rewrite": "what a failed sync left in doubt is about to be written to a new segment",
    "journal.retain.before": "the oldest segment is about to be removed",
    "journal.retain.after": "the oldest segment is removed, its index is not",
    "journal.recover": "opening has found a torn batch and is about to cut it off",
    "publisher.journaled": "a batch is in the journal, and not sent",
    "publisher.sent": "a batch is sent, and nobody has a receipt",
    "publisher.receipt": "the receipts of a batch were given",
    "replay.request": "a reader has asked for what it missed",
    "replay.answer": "a piece of the journal was read for a reader, and not sent",
    "replay.end": "a reader has got all it asked for",
    "cursor.commit.before": "a cursor is about to be saved",
    "cursor.commit.inside": "a cursor's new places are in the transaction, which is not committed",
    "cursor.commit.after": "a cursor is saved, and its reader does not know yet",
    "dead.tried": "it is written how often a message was tried in vain, and the pause has not begun",
    "dead.buried.inside": "a dead letter is in the transaction, which is not committed",
    "dead.buried.after": "a dead letter is kept, and the cursor has not passed it",
    "history.commit.before": "a batch of messages is in the history's transaction, which is not committed",
    "history.commit.after": "a batch of messages is in the history, and its consumer does not know yet",
    "history.aside": "a damaged file of the history is moved aside, and nothing of it is saved yet",
    "spool.write": "nothing of a message is in the spool yet",
    "spool.sync": "a message is written to the spool and not synced",
    "spool.taken": "the spool has got the name under which it is sent, and nothing of it is sent",
    "spool.remove": "all of the spool is in the journal, and it is still there",
    "relay.journaled": "a message is in the journal, and who handed it in does not know",
    "hub.intake": "a hub has taken messages in, and no consumer has them yet",
    "hub.consumed": "a consumer has worked on messages, and its cursor does not say so",
    "irc.send": "a line of a message is about to be sent to a channel",
}
"""Every failpoint, and what is so when it is reached."""

_ENTRY = re.compile(
    r"(?P<action>[a-z]+)(?::(?P<argument>[^@%?]*))?(?:@(?P<first>\d+)(?P<range>-(?P<last>\d*))?)?"
    r"(?:%(?P<probability>[0-9.]+))?(?:\?(?P<file>.+))?"
)
_LOOK_SECONDS = 0.01  # how often a stalled thread looks for its file


class Failpoint:
    """What is to happen at one point, and when; ``reached`` counts how often it was come by."""

    def __init__(self, name: str, text: str, seed: int) -> None:
        """Parse what follows ``NAME=``.

        Raises:
            ValueError: It is not of the form above.
        """
        match = _ENTRY.fullmatch(text)
        if match is None:
            raise ValueError("write ACTION[:ARGUMENT][@FIRST[-[LAST]]][%PROBABILITY][?FILE]")
        self.name = name
        self.action = match["action"]
        self.argument = match["argument"] or ""
        self.first = int(match["first"] or 1)
        self.last: float = float("inf")
        if match["first"] and not match["range"]:
            self.last = self.first
        elif match["last"]:
            self.last = int(match["last"])
        if not 1 <= self.first <= self.last:
            raise ValueError("the times are counted from 1, and the last is not before the first")
        self.probability = float(match["probability"] or 1.0)
        if not 0.0 < self.probability <= 1.0:
            raise ValueError("a probability is above 0 and at most 1")
        self.file = Path(match["file"]) if match["file"] else None
        self.reached = 0
        self.number = 0
        self.seconds = 0.0
        self._check_action()
        self._chance = random.Random(f"{seed} {name}")
        self._turn = threading.Lock()

    def _check_action(self) -> None:
        action, argument = self.action, self.argument
        if action == "error":
            self.number = getattr(errno, argument, 0)
            if not self.number:
                raise ValueError("error needs the name of an errno, such as error:ENOSPC")
        elif action in ("exit", "short"):
            self.number = int(argument or 1)
            if action == "short" and not self.name.endswith(".torn"):
                raise ValueError("short is for points that stand in the middle of a write")
        elif action == "sleep":
            self.seconds = float(argument)
        elif action == "stall":
            if not argument:
                raise ValueError("stall needs the path of the file that ends it")
        elif action != "kill" or argument:
            raise ValueError("the actions are kill, exit, error:ERRNO, sleep:SECONDS, stall:FILE and short:BYTES")

    def due(self) -> bool:
        """Count one passage; return whether something is to happen at it."""
        with self._turn:
            self.reached += 1
            if not self.first <= self.reached <= self.last:
                return False
            if self.probability < 1.0 and self._chance.random() >= self.probability:
                return False
            return self.file is None or self.file.exists()

    def act(self) -> None:
        """Do it.

        Raises:
            OSError: That is what was asked for.
        """
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()  # another thread may get the signal's turn first; nothing may happen meanwhile
        elif self.action == "exit":
            os._exit(self.number)
        elif self.action == "error":
            raise OSError(self.number, os.strerror(self.number), f"failpoint {self.name}")
        elif self.action == "sleep":
            time.sleep(self.seconds)
        elif self.action == "stall":
            until = Path(self.argument)
            until.with_name(until.name + ".reached").touch()
            while not until.exists():
                time.sleep(_LOOK_SECONDS)


def parse(text: str) -> dict[str, Failpoint]:
    """Return the failpoints that *text* arms, by name.

    Raises:
        ConfigError: Entries are malformed or name points that do not exist; all of them are listed.
    """
    entries: list[tuple[str, str]] = []
    seed = 0
    problems: list[str] = []
    for entry in filter(None, (part.strip() for part in text.split(";"))):
        name, _, rest = entry.partition("=")
        if name == "seed" and rest.isascii() and rest.isdigit():
            seed = int(rest)
        elif name not in POINTS:
            problems.append(f"FEDBUS_FAILPOINTS: there is no failpoint {name!r}; there are: {', '.join(POINTS)}")
        else:
            entries.append((name, rest))
    armed: dict[str, Failpoint] = {}
    for name, rest in entries:
        try:
            if name in armed:
                raise ValueError("it is armed twice; a point does one thing")
            armed[name] = Failpoint(name, rest, seed)
        except ValueError as error:
            problems.append(f"FEDBUS_FAILPOINTS: {name}={rest}: {error}")
    if problems:
        raise ConfigError(problems)
    return armed


_armed: Final = parse(os.environ.get("FEDBUS_FAILPOINTS", ""))
ARMED: Final[bool] = bool(_armed)
"""Whether this process has any failpoints at all."""

if ARMED:
    log.warning("failpoints are armed, this process fails on purpose: %s", os.environ["FEDBUS_FAILPOINTS"])


def hit(name: str) -> None:
    """Come by the failpoint *name*: most often nothing happens.

    Raises:
        OSError: That is what was asked for.
    """
    point = _armed.get(name)
    if point is not None and point.due():
        point.act()


def torn_writev(name: str, fd: int, buffers: Sequence[bytes]) -> int:
    """Stand in for ``os.writev`` in a process with failpoints: perhaps write a part only, then act.

    Raises:
        OSError: From the write, or because it was asked for.
    """
    point = _armed.get(name)
    if point is None or not point.due():
        return os.writev(fd, buffers)
    data = b"".join(buffers)
    size = min(point.number, len(data)) if point.action == "short" else len(data) // 2
    done = os.write(fd, data[:size])
    point.act()
    return done
