"""One endpoint as a subscriber is connected to it: whether it is heard, and when to connect it anew. No socket is used.

A connection may end without a word: a cable is pulled, a peer freezes, another service answers on the port for a while
and libzmq gives the connection up for ever after such a protocol error. Only beats that stay away tell.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import zmq

from fedbus.model.stream import StreamHome
from fedbus.transport.endpoint import Endpoint
from fedbus.transport.reader import StreamReader

log = logging.getLogger(__name__)

_BEATS = 3  # that may stay away before an endpoint counts as silent
_LONGEST_BEAT = 60.0  # seconds; one that beats more rarely is connected anew between its beats
_REOPEN_SECONDS = 60.0  # the longest pause between two new connections to an endpoint that is silent
_FIRST_REOPEN = 4.0  # a new connection gets so many times the patience: over a link of 2 s delay it takes 16 s
_DOWN_SECONDS = 1.0  # a first answer that has not come by then, of an endpoint that is not heard: it is down
_WAIT_SECONDS = 20.0  # but the request stays, for when it comes up
_PATIENCE_SECONDS = 2.0  # the same of one that is heard, and so is up; it grows: a link of 2 s delay takes 16 to open
_MOST_PATIENCE = 30.0
_LONGEST_STALL = 60.0  # a batch of 1 MiB over a link of 17 KiB a second
_RETRY_SECONDS = (1.0, 30.0)
_LEAST_BUDGET = 16 * 2**10
_ALARM_AFTER = 3  # requests in a row that an endpoint, which is heard, has left unanswered


@dataclass(slots=True, eq=False)
class Link:
    """One endpoint, as seen from here. All times are read off the monotonic clock."""

    endpoint: Endpoint
    reader: StreamReader
    silence: float  # seconds without a sign of life after which a connection is given up, at the earliest
    fetch_bytes: int  # what one request asks for, at most
    since: float  # when it was connected for the first time

    # the live feed
    address: str = ""  # what the SUB socket is connected to; empty while nobody knows its host
    attempt: int = 0  # which of the addresses of its host is tried next
    heard_at: float | None = None  # as of the last look
    came_at: float = 0.0  # when it was first heard after a silence
    connected_at: float = 0.0  # when the connection was made that is there now
    choices: int = 1  # addresses of its host, of which one may be dead
    quiet: float = 0.0  # seconds that somebody listened without hearing it
    reopen_at: float = 0.0  # in seconds of `quiet`
    reopened: int = 0  # since it was last heard
    alarm: int = logging.DEBUG  # the level at which its silence was told

    # the current request
    socket: zmq.Socket[bytes] | None = None
    ended: zmq.Socket[bytes] | None = None  # readable once the connection of `socket` has ended
    request: int = 0
    answered: bool = False
    connected: bool = False  # the socket has had an answer, so what is sent now does not wait for a connection
    asked_at: float = 0.0
    moved_at: float = 0.0  # when it last got something

    # requests to come
    budget: int = 0  # 0: not known yet, so `fetch_bytes`
    stall: float = 0.0  # how long an answer that has begun may pause, if more than `silence`
    patience: float = 0.0  # how long a first answer may take while the endpoint is heard
    next_try_at: float = 0.0
    failures: int = 0
    unanswered: int = 0  # in a row, while the endpoint was heard
    complaint: str = ""  # what it last said it cannot do, which was logged
    heard_at_failure: float | None = None

    # its journal on this machine, while the endpoint itself is down
    home_fault: str = ""  # why it could not be read when it was last tried, which was logged
    home: StreamHome | None = None
    home_checked_at: float = float("-inf")

    # --- the live feed -----------------------------------------------------------------------------------------

    def look(self, listened: float, now: float) -> bool:
        """Take notice of whether the endpoint was heard; return True when it should be connected anew now.

        *listened* are the seconds since the last look in which frames were taken in, so that the pauses of a busy user
        do not count as silence of all endpoints. Keeps ``reader.silent_since`` and ``reader.stats.reconnects``, and
        logs once for each silence.
        """
        reader = self.reader
        if reader.heard_at != self.heard_at:
            if self.heard_at is None or reader.silent_since is not None:
                self._came(reader.heard_at or now)
            self.heard_at = reader.heard_at
            if reader.silent_since is not None:
                level = min(self.alarm, logging.INFO)
                log.log(level, "endpoint %s is heard again, after %.0f s", self.endpoint.name, self.quiet)
                reader.silent_since = None
            self.quiet, self.reopened = 0.0, 0
            return False
        self.quiet += listened
        beat = reader.beat
        interval = 0.0 if beat is None else min(_LONGEST_BEAT, beat.facts.interval_ms / 1000)
        patience = max(self.silence, _BEATS * interval)
        if self.quiet < patience:
            return False
        if reader.silent_since is None:
            self._fell_silent(patience)
            # one that was never heard may still be connecting, or be down, of which libzmq takes care
            known = self.heard_at is not None or self.choices > 1
            self.reopen_at = self.quiet if known else patience * _FIRST_REOPEN
        if self.quiet < self.reopen_at:
            return False
        self.reopen_at = self.quiet + min(_REOPEN_SECONDS, patience * _FIRST_REOPEN * 2.0 ** min(self.reopened, 10))
        self.reopened += 1
        self.connected_at = now
        reader.stats.reconnects += 1
        return True

    def _came(self, heard_at: float) -> None:
        """It is heard for the first time, or again."""
        self.came_at = heard_at
        # what it took to hear it is what an answer from its journal takes over a new connection, at most
        self.patience = min(_MOST_PATIENCE, 1.5 * (heard_at - (self.connected_at or self.since)))

    def _fell_silent(self, patience: float) -> None:
        heard_at = self.heard_at
        self.reader.silent_since = self.since if heard_at is None else heard_at
        # one that was there for a moment only is a command that has ended, and one that never was may come any time
        lasted = heard_at is not None and heard_at - self.came_at > patience
        self.alarm = logging.WARNING if lasted else logging.DEBUG
        log.log(
            self.alarm,
            "nothing that verifies %s endpoint %s at %s for %.1f s; it is connected anew, again and again until it is "
            "heard; see whether it runs, and what is between here and there",
            "was heard of" if heard_at is None else "has come from",
            self.endpoint.name,
            self.endpoint.publish,
            self.quiet,
        )

    @property
    def may_have_moved(self) -> bool:
        """Whether it is silent, and its address was looked up by a name, which may stand for another one by now."""
        return self.reader.silent_since is not None and self.address != self.endpoint.publish

    # --- requests to its journal -------------------------------------------------------------------------------

    @property
    def is_heard(self) -> bool:
        """Whether the endpoint runs, by what came from it lately."""
        return self.heard_at is not None and self.reader.silent_since is None

    def asked(self, request: int, now: float) -> int:
        """A request goes out; return how many bytes to ask for."""
        self.request = request
        self.answered = False
        self.asked_at = self.moved_at = now
        return self.budget or self.fetch_bytes

    def overdue(self, now: float) -> bool:
        """Whether the request has been left without an answer, or in the middle of one, for too long."""
        pause = now - self.moved_at
        if self.answered:
            # over a long way even a quick answer pauses, until TCP has felt its way
            return pause > max(self.silence, self.stall, self.patience / 2)
        return pause > (max(self.patience, self._least_patience) if self.is_heard else _WAIT_SECONDS)

    def is_down(self, now: float) -> bool:
        """Whether its journal does not answer, as that of an endpoint does not that is down."""
        return not self.answered and now - self.asked_at > _DOWN_SECONDS and not self.is_heard

    @property
    def _least_patience(self) -> float:
        return min(_PATIENCE_SECONDS, self.silence)

    def moved(self, now: float) -> None:
        """A part of an answer has come."""
        if not self.answered:
            self.patience = min(_MOST_PATIENCE, 4.0 * (now - self.asked_at))
        self.answered = True
        self.moved_at = now
        self.failures = 0

    def succeeded(self, now: float) -> None:
        """An answer has come to its end."""
        if self.budget and now - self.asked_at < self.silence / 2:
            self.budget = min(self.fetch_bytes, self.budget * 2)
            self.stall /= 2
        if self.unanswered >= _ALARM_AFTER:
            log.info("the journal of endpoint %s answers again", self.endpoint.name)
        self.unanswered = 0
        self.complaint = ""

    def failed(self, now: float, *, overdue: bool) -> None:
        """A request was given up; set when to try again, which is earlier when the endpoint is heard."""
        least, most = _RETRY_SECONDS
        self.next_try_at = now + min(most, least * 2.0 ** min(self.failures, 10))
        self.failures += 1
        self.heard_at_failure = self.reader.heard_at
        if overdue and self.answered:
            # a link so slow that no frame gets through it in time gets smaller ones
            self.budget = max(_LEAST_BUDGET, (self.budget or self.fetch_bytes) // 8)
            # and the least that a journal sends is a batch, which may be larger than what was asked for
            self.stall = min(_LONGEST_STALL, 2.0 * max(self.stall, self.silence))
        if self.is_heard:
            if overdue and not self.answered:
                self.patience = min(_MOST_PATIENCE, 3.0 * max(self.patience, self._least_patience))
            self.unanswered += 1
            if self.unanswered == _ALARM_AFTER:
                log.warning(
                    "endpoint %s is heard, but its journal at %s does not answer; what was missed waits until it does; "
                    "see whether that port is open from here, and whose it is",
                    self.endpoint.name,
                    self.endpoint.replay,
                )
        self.reader.stats.unanswered += 1

    def complained(self, code: str, text: str) -> None:
        """The endpoint has said that it cannot answer; log it, once for each code."""
        if code != self.complaint:
            self.complaint = code
            log.warning("endpoint %s cannot replay: %s (%s)", self.endpoint.name, text, code)
