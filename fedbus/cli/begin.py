"""Where `fedbus tail` begins: a time, a file with a cursor, the last messages that there are."""

from __future__ import annotations

import contextlib
import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from fedbus.cli.times import WHEN_FORM, parse_ago, parse_time

if TYPE_CHECKING:
    from fedbus.bus import SinceLike
    from fedbus.model.message import Message
    from fedbus.model.position import Cursor
    from fedbus.transport.reader import StreamReader
    from fedbus.transport.subscriber import Subscriber

_LOOK_SECONDS = 0.1
_FURTHER = 8  # times as far back, where too few messages were chosen
_MOST_KEPT = 1_000_000  # messages of --last
_MOST_TOPICS = 100_000  # of --last-per-topic
_CURSOR_BYTES = 16 * 2**20
_WRITE_SECONDS = 1.0  # between two writes of a cursor file


def parse_begin(text: str, *, now: datetime | None = None) -> str | timedelta | datetime:
    """Return *text* as `fedbus.Bus.subscribe` takes it: what it knows itself, or a time as people write it.

    ``now``, ``beginning`` and ENDPOINT/EPOCH/SEQUENCE stay as they are.

    Raises:
        ValueError: It is none of these.
    """
    parts = text.split("/")
    if text in ("now", "beginning") or (len(parts) == 3 and _position(text) is not None):
        return text
    try:
        return parse_ago(text)  # by the clock of each publisher
    except ValueError:
        pass
    try:
        return parse_time(text, now=now)
    except ValueError:
        shown = text if len(text) <= 64 else text[:64] + "…"
        raise ValueError(
            f"{shown!r} is not a place to begin: {WHEN_FORM}; or beginning, or a position ENDPOINT/EPOCH/SEQUENCE"
        ) from None


def _position(text: str) -> tuple[str, str, int] | None:
    endpoint, _, rest = text.partition("/")
    epoch, _, sequence = rest.partition("/")
    try:
        fine = str(UUID(epoch)) == epoch
    except ValueError:
        return None
    if not endpoint or not fine or not (sequence.isascii() and sequence.isdigit()) or len(sequence) > 19:
        return None
    return endpoint, epoch, int(sequence)


class CursorFile:
    """A reader's place in each stream, as lines ENDPOINT/EPOCH/SEQUENCE, in the form of `fedbus cursor show`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written: Cursor = {}
        self._write_at = 0.0

    def load(self) -> Cursor:
        """Return the places in the file, none where there is no file or it is empty.

        Raises:
            ValueError: A line is no place; nothing is read or written then.
            OSError: It cannot be read.
        """
        from fedbus.model.position import Position

        try:
            with self.path.open("rb") as file:
                data = file.read(_CURSOR_BYTES + 1)
        except FileNotFoundError:
            return {}
        if len(data) > _CURSOR_BYTES:
            raise ValueError(f"{self.path}: is longer than {_CURSOR_BYTES} bytes, and no cursor")
        found: Cursor = {}
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            place = _position(line.strip())
            if place is None:
                raise ValueError(
                    f"{self.path}:{number}: is not ENDPOINT/EPOCH/SEQUENCE; name another file, or delete this one"
                )
            found[place[0]] = Position(place[1], place[2])
        self._written = dict(found)
        return found

    def save(self, positions: Cursor, now: float, *, at_once: bool = False) -> None:
        """Write where the streams have been read to, at most once a second by *now*, monotonic; *at_once* in any case.

        Places of streams that are not read now are kept.

        Raises:
            OSError: It cannot be written; the old file is there still.
        """
        if now < self._write_at and not at_once:
            return
        self._write_at = now + _WRITE_SECONDS
        merged = {**self._written, **positions}
        if merged == self._written:
            return
        lines = [f"{name}/{place.epoch}/{place.sequence}\n" for name, place in sorted(merged.items())]
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            # whoever reads it knows nothing of the temporary file
            raise OSError(
                error.errno, f"the cursor file cannot be written: {error.strerror}", str(self.path)
            ) from error
        self._written = merged


Open = Callable[["SinceLike", "Cursor | None"], "Subscriber"]


class Last:
    """Finds the last messages that are chosen, and the subscriber that goes on behind them.

    Nobody keeps an index of what a filter chooses, so it is read backwards in growing pieces: from a bit more than
    what is wanted before the head of each stream, and eight times as far back while that was not enough.
    """

    def __init__(
        self,
        subscribe: Open,
        choose: Callable[[Message], bool],
        *,
        stopped: Callable[[], bool],
        until: float | None = None,
    ) -> None:
        """*subscribe* opens a subscriber at a place; *stopped* says that a signal has come. *until*: the monotonic time
        at which to be content with what there is.
        """
        self._subscribe = subscribe
        self._choose = choose
        self._stopped = stopped
        self._until = until
        self.collecting = False  # meanwhile, what retention has removed is no loss

    def of_all(self, count: int, since: SinceLike = "beginning") -> tuple[Subscriber, list[Message]]:
        """Return the last *count* messages by the time they were published, and the subscriber that goes on.

        Where *since* names another place than the beginning, all messages since then are read.
        """
        count = min(count, _MOST_KEPT)
        self.collecting = True
        if since != "beginning":
            subscriber, kept = self._read_from(since, None, count)
            self.collecting = False
            return subscriber, sorted(kept, key=_when)[-count:]
        from fedbus.model.position import Position

        heads = self._subscribe("now", None)
        try:
            self._drain(heads, None)
            readers = [reader for reader in heads.readers() if reader.epoch]
            at = {reader.endpoint: (reader.epoch, reader.accounted, _start(reader)) for reader in readers}
        finally:
            heads.close()
        back = count
        while True:
            places = {name: (epoch, max(first - 1, head - back, 0)) for name, (epoch, head, first) in at.items()}
            positions = {name: Position(*place) for name, place in places.items()}
            subscriber, kept = self._read_from("now", positions, count)
            whole = all(places[name][1] <= max(first - 1, 0) for name, (_, _, first) in at.items())
            if len(kept) >= count or whole or self._over():
                self.collecting = False
                return subscriber, sorted(kept, key=_when)[-count:]
            subscriber.close()
            back *= _FURTHER

    def _read_from(self, since: SinceLike, positions: Cursor | None, count: int) -> tuple[Subscriber, deque[Message]]:
        """Return a subscriber that has read from there to the heads, and the last *count* of what it got."""
        kept: deque[Message] = deque(maxlen=count) if positions is not None and len(positions) <= 1 else deque()
        subscriber = self._subscribe(since, positions)
        try:
            self._drain(subscriber, lambda message: _keep(kept, message, count))
        except BaseException:
            subscriber.close()
            raise
        return subscriber, kept

    def of_each_topic(self, count: int, since: SinceLike) -> tuple[Subscriber, list[Message]]:
        """Return the last *count* messages of each topic since *since*, by time, and the subscriber that goes on.

        All messages since then are read. Of topics beyond the first 100,000 those are left out that were quiet longest.
        """
        self.collecting = True
        subscriber = self._subscribe(since, None)
        topics: OrderedDict[str, deque[Message]] = OrderedDict()

        def keep(message: Message) -> None:
            kept = topics.get(message.topic)
            if kept is None:
                kept = topics[message.topic] = deque(maxlen=count)
                if len(topics) > _MOST_TOPICS:
                    topics.popitem(last=False)
            else:
                topics.move_to_end(message.topic)
            kept.append(message)

        try:
            self._drain(subscriber, keep)
        except BaseException:
            subscriber.close()
            raise
        self.collecting = False
        return subscriber, sorted((message for kept in topics.values() for message in kept), key=_when)

    def _drain(self, subscriber: Subscriber, keep: Callable[[Message], object] | None) -> None:
        """Give all that there is to *keep*, if it is chosen, until every endpoint that answers was read to its head."""
        while not self._over():
            messages = subscriber.receive(_LOOK_SECONDS)
            if keep is not None:
                for message in messages:
                    if self._choose(message):
                        keep(message)
            if not messages and subscriber.caught_up:
                return

    def _over(self) -> bool:
        return self._stopped() or (self._until is not None and time.monotonic() >= self._until)


def _start(reader: StreamReader) -> int:
    return reader.beat.facts.start if reader.beat is not None else 1


def _keep(kept: deque[Message], message: Message, count: int) -> None:
    kept.append(message)
    if kept.maxlen is None and len(kept) > 4 * count + 1000:
        # of several streams the last by time, not by arrival
        last = sorted(kept, key=_when)[-count:]
        kept.clear()
        kept.extend(last)


def _when(message: Message) -> str:
    return message.time
