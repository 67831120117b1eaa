"""The serving side of replay: reads the journal for those who missed something, a piece for each in turn."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import zmq

from fedbus.clock import Clock
from fedbus.errors import JournalError, WireError
from fedbus.failpoints import ARMED, hit
from fedbus.model.stream import StreamHome
from fedbus.model.topic import TopicFilter
from fedbus.wire import replay

log = logging.getLogger(__name__)

_REQUESTS_A_TURN = 64
_SUSPECT = 3  # requests for one and the same place, which were answered, make its bytes suspicious
_SUSPECT_SECONDS = 60.0
_RECHECK_SECONDS = 10.0  # between two new looks at checksums, at least
_PLACES = 1000  # remembered
_IDLE_SECONDS = 30.0  # a reader that takes nothing for so long has to ask again


@dataclass(slots=True)
class ReplayStats:
    """Counters of one replay server, and how many readers it serves now."""

    requests: int = 0
    refused: int = 0
    bytes: int = 0
    sessions: int = 0


@dataclass(slots=True, eq=False)
class _Session:
    identity: bytes
    request: int
    after: int
    budget: int
    wanted: Callable[[str], bool] | None
    moved_at: float
    waiting: list[list[bytes]] = field(default_factory=list)  # answers that the reader had no room for yet
    done: bool = False
    lost: list[tuple[int, int]] = field(default_factory=list)


class ReplayServer:
    """Answers the requests that come in on one ROUTER socket; lives in the publisher's thread."""

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        journal: StreamHome,
        *,
        frame_bytes: int,
        sessions: int,
        beat: Callable[[], bytes],
        clock: Clock,
        recheck: Callable[[], None] | None = None,
    ) -> None:
        """Serve *journal*; *recheck* has it look at checksums again that it has found right before."""
        self.stats = ReplayStats()
        self._socket = socket
        self._journal = journal
        self._frame_bytes = frame_bytes
        self._most = sessions
        self._beat = beat
        self._clock = clock
        self._sessions: deque[_Session] = deque()
        self._stuck = False
        self._recheck = recheck
        self._rechecked_at = float("-inf")
        self._asked: dict[int, tuple[int, float]] = {}  # place -> how often it was asked for, and since when

    @property
    def busy(self) -> bool:
        """Whether somebody still waits for records."""
        return bool(self._sessions)

    @property
    def pause_ms(self) -> int:
        """How long to wait before serving again: not at all, unless no reader has room."""
        return 2 if self._stuck else 0

    def read_requests(self) -> None:
        """Take in what has arrived, a bounded number."""
        for _ in range(_REQUESTS_A_TURN):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self.stats.requests += 1
            if len(frames) != 2:
                self.stats.refused += 1
                continue
            self._accept(frames[0], frames[1])

    def _accept(self, identity: bytes, frame: bytes) -> None:
        try:
            request, filters = replay.decode_fetch(frame)
        except WireError as error:
            self.stats.refused += 1
            self._send(identity, replay.Kind.ERROR, 0, replay.encode_fact(replay.Failure(error.reason, str(error))))
            return
        if len(self._sessions) >= self._most:
            self.stats.refused += 1
            failure = replay.Failure("busy", f"{self._most} readers are being served; ask again later")
            self._send(identity, replay.Kind.ERROR, request.id, replay.encode_fact(failure))
            return
        # a reader that asks anew has given up on its earlier request
        self._sessions = deque(one for one in self._sessions if one.identity != identity)
        journal = self._journal
        now_ms = int(self._clock.wall() * 1000)
        if request.time_ms is not None:
            after = journal.position_at(request.time_ms)
        elif request.age_ms is not None:
            after = journal.position_at(now_ms - request.age_ms)
        elif request.epoch is not None and request.epoch != journal.epoch:
            after = 0
        else:
            after = min(request.after or 0, journal.head)
        after = max(after, journal.start - 1)
        if request.epoch == journal.epoch and after < journal.head:
            self._suspect(after)
        start = replay.Start(journal.epoch, after)
        if ARMED:
            hit("replay.request")
        session = _Session(
            identity, request.id, after, request.budget, _chooser(filters), moved_at=self._clock.monotonic()
        )
        session.waiting = [
            [identity, replay.answer_header(replay.Kind.BEAT, request.id), self._beat()],
            [identity, replay.answer_header(replay.Kind.START, request.id), replay.encode_fact(start)],
        ]
        self._sessions.append(session)

    def _suspect(self, after: int) -> None:
        """Somebody asks for what comes after *after*, perhaps again: what was sent may have been damaged on our disk.

        What this process wrote itself is served unchecked, and a reader cannot say that its checksums do not agree; it
        can only ask again.
        """
        now = self._clock.monotonic()
        count, since = self._asked.get(after, (0, now))
        count, since = (1, now) if now - since > _SUSPECT_SECONDS else (count + 1, since)
        if count >= _SUSPECT and self._recheck is not None and now - self._rechecked_at >= _RECHECK_SECONDS:
            self._rechecked_at = now
            self._asked.clear()
            self._recheck()
            return
        if len(self._asked) >= _PLACES:
            self._asked.clear()
        self._asked[after] = (count, since)

    def serve(self) -> None:
        """Give every reader its next piece, as far as it has room."""
        moved = False
        for _ in range(len(self._sessions)):
            session = self._sessions.popleft()
            try:
                moved |= self._step(session)
            except zmq.ZMQError as error:
                if error.errno != zmq.Errno.EHOSTUNREACH:
                    raise
                continue  # the reader has gone
            if not session.done or session.waiting:
                self._sessions.append(session)
        self._stuck = not moved
        self.stats.sessions = len(self._sessions)

    def _step(self, session: _Session) -> bool:
        if not session.waiting and not session.done:
            self._read(session)
        moved = False
        while session.waiting:
            try:
                self._socket.send_multipart(session.waiting[0], zmq.NOBLOCK)
            except zmq.Again:
                return moved
            session.waiting.pop(0)
            session.moved_at = self._clock.monotonic()
            moved = True
        if ARMED and session.done:
            hit("replay.end")
        return moved

    def _read(self, session: _Session) -> None:
        identity, request = session.identity, session.request
        try:
            piece = self._journal.read(
                session.after, min(self._frame_bytes, max(1, session.budget)), wanted=session.wanted
            )
        except JournalError as error:
            log.error("replay for %s: %s", identity.hex(), error)
            failure = replay.Failure("journal", "the journal cannot be read; see the publisher's log")
            session.waiting.append(
                [identity, replay.answer_header(replay.Kind.ERROR, request), replay.encode_fact(failure)]
            )
            session.done = True
            return
        if ARMED:
            hit("replay.answer")
        session.after = piece.through
        session.budget -= max(len(piece.data), 1)
        session.lost.extend(piece.lost)
        if piece.data:
            self.stats.bytes += len(piece.data)
            session.waiting.append([identity, replay.answer_header(replay.Kind.RECORDS, request), piece.data])
        if piece.end or session.budget <= 0:
            end = replay.End(piece.through, piece.end, session.lost)
            session.waiting.append([identity, replay.answer_header(replay.Kind.END, request), replay.encode_fact(end)])
            session.done = True

    def tidy(self) -> None:
        """Forget readers that have taken nothing for a long time."""
        oldest = self._clock.monotonic() - _IDLE_SECONDS
        self._sessions = deque(one for one in self._sessions if one.moved_at >= oldest)
        self.stats.sessions = len(self._sessions)

    def _send(self, identity: bytes, kind: replay.Kind, request: int, payload: bytes) -> None:
        try:
            self._socket.send_multipart([identity, replay.answer_header(kind, request), payload], zmq.NOBLOCK)
        except zmq.ZMQError:
            pass  # whoever sent rubbish and does not read the answer needs none


def _chooser(filters: list[TopicFilter]) -> Callable[[str], bool] | None:
    """Return the predicate for a session, or None where every topic is wanted."""
    if not filters or any(not one.text or one.text == "#" for one in filters):
        return None
    known: dict[str, bool] = {}

    def wanted(topic: str) -> bool:
        choice = known.get(topic)
        if choice is None:
            choice = known[topic] = any(one.matches(topic) for one in filters)
        return choice

    return wanted
