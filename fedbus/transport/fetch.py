"""Asks journals for what is missing: over a connection to the replay side of each endpoint, or from files of this host.

Every request gets a connection of its own row: one that fails is closed, so whatever has happened to it (a half-open
link, another service on the port) is over with the next one.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import zmq

from fedbus.clock import Clock, both
from fedbus.errors import FedbusError, JournalError, Reason, Refused, WireError
from fedbus.model.stream import StreamHome
from fedbus.model.topic import TopicFilter
from fedbus.transport import sockets
from fedbus.transport.link import Link
from fedbus.transport.names import Names
from fedbus.transport.reader import Ready
from fedbus.trust.curve import CurvePair
from fedbus.wire import beat as beats
from fedbus.wire import replay

log = logging.getLogger(__name__)

_NOBLOCK = int(zmq.NOBLOCK)
_READY = 64  # entries waiting for the user, beyond which nothing more is taken in
_PARTS = 8  # of one answer, before another gets its turn
_LOCAL_SECONDS = 0.3  # after which a journal on this machine is read as a file
_LOOK_UP_SECONDS = 1.0  # for which a question about a host may go without an answer
_LOCAL_POLL_SECONDS = 0.4

RefusedFrom = Callable[[Refused, str, float], None]
"""Called with why something was refused, the endpoint that it came from, and the monotonic time."""


class Fetcher:
    """Drives the requests of one subscriber, in its thread; ``hungry`` are the links that miss something."""

    def __init__(
        self,
        *,
        context: zmq.Context[zmq.Socket[bytes]],
        poller: zmq.Poller,
        ready: deque[Ready],
        concurrent: int,
        frame_bytes: int,
        local: Callable[[str], StreamHome | None] | None,
        names: Names,
        pair: CurvePair | None,
        refused: RefusedFrom,
        clock: Clock,
    ) -> None:
        self.hungry: dict[str, Link] = {}
        self.sockets: dict[zmq.Socket[bytes], Link] = {}
        self._context = context
        self._poller = poller
        self._ready = ready
        self._concurrent = concurrent
        self._frame_bytes = frame_bytes
        self._local = local
        self._names = names
        self._pair = pair
        self._refused = refused
        self._clock = clock
        self._request = 0

    def on_timer(self, now: float) -> bool:
        """Start requests, give up those that are overdue; return whether there is more to do right away."""
        again = False
        for name, link in list(self.hungry.items()):
            if not link.reader.wants_fetch:
                del self.hungry[name]
                self.end(link)
            elif link.request:
                again |= self._watch(link, now)
            elif link.home is not None and link.failures == 0:
                if len(self._ready) < _READY:
                    again |= self._read_home(link, now) and link.reader.wants_fetch
            elif now >= link.next_try_at and self._has_room(now):
                self._start(link, now)
        return again

    def _has_room(self, now: float) -> bool:
        """Return whether another request may be made, if need be in place of one to an endpoint that is down."""
        if len(self.sockets) < self._concurrent:
            return True
        for link in self.sockets.values():
            if link.is_down(now):
                self._failed(link, now)
                return True
        return False

    def drop(self, link: Link) -> None:
        """Have nothing more to do with *link*."""
        self.end(link)
        self.close_home(link)
        self.hungry.pop(link.endpoint.name, None)

    def close(self) -> None:
        """Close all connections."""
        for link in self.sockets.values():
            self._close(link)
        self.sockets.clear()

    @staticmethod
    def _close(link: Link) -> None:
        assert link.socket is not None
        assert link.ended is not None
        sockets.close_monitored(link.socket, link.ended)
        link.socket = link.ended = None

    def end(self, link: Link) -> None:
        """End the request of *link*, if there is one, with its connection."""
        link.request = 0
        if link.socket is not None:
            self._poller.unregister(link.socket)
            del self.sockets[link.socket]
            self._close(link)

    def _start(self, link: Link, now: float) -> None:
        self._request = self._request % 0xFFFF_FFFF + 1
        socket = link.socket
        if socket is None:
            addresses = self._names.addresses(link.endpoint.replay)
            if not addresses:
                self._start_nowhere(link, now)
                return
            try:
                socket = self._open(link, addresses[link.failures % len(addresses)])
            except zmq.ZMQError as error:
                # no descriptor or no memory is left: there may be some later, and the live feed goes on meanwhile
                link.complained(
                    "local", f"no connection to it can be opened here: {error}; see the limit of open files"
                )
                if not self._read_home(link, now):
                    self._failed(link, now)
                return
        budget = link.asked(self._request, now)
        request = link.reader.fetch(self._request, budget, now)
        try:
            socket.send(replay.encode_fetch(request), _NOBLOCK)
        except zmq.Again:
            self._failed(link, now)

    def _open(self, link: Link, address: str) -> zmq.Socket[bytes]:
        socket = sockets.fetch_socket(
            self._context,
            address,
            frame_bytes=self._frame_bytes,
            server=link.endpoint.curve,
            pair=self._pair,
        )
        try:
            link.ended = sockets.monitor(self._context, socket, zmq.EVENT_DISCONNECTED)
        except zmq.ZMQError:
            socket.close(0)
            raise
        link.socket = socket
        link.connected = False
        link.reader.forget_clock()
        self._poller.register(socket, zmq.POLLIN)
        self.sockets[socket] = link
        return socket

    def _start_nowhere(self, link: Link, now: float) -> None:
        """The host of the journal is not known, or the answer is still to come."""
        if self._names.asking(link.endpoint.replay, since=now - _LOOK_UP_SECONDS):
            return
        if not self._read_home(link, now):
            self._failed(link, now)

    def _watch(self, link: Link, now: float) -> bool:
        """Give a request up that is overdue; return whether there is more to do right away."""
        if not link.answered and now - link.asked_at > _LOCAL_SECONDS and self._read_home(link, now):
            return link.reader.wants_fetch
        if link.connected and link.ended is not None and int(link.ended.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            # libzmq connects again by itself, but what was asked over the old connection is forgotten on the other side
            self._failed(link, now)
        elif link.overdue(now):
            self._failed(link, now, overdue=True)
        elif not link.failures and link.is_down(now):
            link.failures = 1  # nobody has to wait for it, but the request does no harm
        return False

    def _failed(self, link: Link, now: float, *, overdue: bool = False) -> None:
        link.failed(now, overdue=overdue)
        self.end(link)

    def drain(self, socket: zmq.Socket[bytes], link: Link, now: float) -> bool:
        """Take in some parts of an answer, as far as the user has room; return whether there may be more."""
        for _ in range(_PARTS):
            if len(self._ready) >= _READY:
                link.moved_at = now  # it is we who are slow
                return True
            try:
                frames = socket.recv_multipart(_NOBLOCK)
            except zmq.Again:
                return False
            try:
                if len(frames) != 2:
                    raise WireError(Reason.FRAMES, f"a replay answer of {len(frames)} frames")
                self._take(link, frames[0], frames[1], now)
            except Refused as error:
                self._refused(error, link.endpoint.name, now)
                self._failed(link, now)
            except JournalError as error:
                self._refused(WireError(Reason.MALFORMED, str(error)), link.endpoint.name, now)
                self._failed(link, now)
            if link.socket is not socket:
                return True
        return True

    def _take(self, link: Link, header: bytes, payload: bytes, now: float) -> None:
        kind, request = replay.decode_header(header)
        if request != link.request:
            return  # of a request that was given up
        link.moved(now)
        self.close_home(link)
        reader = link.reader
        first, link.connected = not link.connected, True
        if reader.joins_by_age and (first or kind is replay.Kind.BEAT):
            if not first:
                moment, wall = both(self._clock)
                reader.compare_clocks(beats.decode(payload), link.asked_at, moment, wall)
            # else: the request may have waited for the endpoint to come up, so it says nothing about its clock
            self._start(link, now)
            return
        if kind is replay.Kind.RECORDS:
            for error in reader.on_records(payload):
                self._refused(error, link.endpoint.name, now)
            return
        if kind is replay.Kind.BEAT:
            reader.on_fetched_beat(beats.decode(payload), now)
            return
        fact = replay.decode_fact(kind, payload)
        if isinstance(fact, replay.Start):
            reader.on_start(fact)
        elif isinstance(fact, replay.End):
            for error in reader.on_end(fact):
                self._refused(error, link.endpoint.name, now)
            link.succeeded(now)
            link.request = 0
            if reader.wants_fetch:
                link.next_try_at = now
                self._start(link, now)
            else:
                self.hungry.pop(link.endpoint.name, None)
                self.end(link)
        else:
            link.complained(fact.code, fact.text)
            self._failed(link, now)

    # --- a journal on this machine whose endpoint is down ------------------------------------------------------

    def _read_home(self, link: Link, now: float) -> bool:
        """Read the stream from the journal's files; return False where there are none here."""
        if self._local is None:
            return False
        try:
            if link.home is None:
                link.home = self._local(link.endpoint.name)
                if link.home is None:
                    return False
            home, reader = link.home, link.reader
            fetch = reader.fetch(0, link.fetch_bytes, now)
            if fetch.time_ms is not None:
                after = home.position_at(fetch.time_ms)
            elif fetch.age_ms is not None:
                after = home.position_at(int(self._clock.wall() * 1000) - fetch.age_ms)
            elif fetch.epoch is not None and fetch.epoch != home.epoch:
                after = 0
            else:
                after = min(fetch.after or 0, home.head)
            after = max(after, home.start - 1)
            reader.on_start(replay.Start(home.epoch, after), local=True)
            below = TopicFilter(fetch.filters[0]) if fetch.filters else None
            piece = home.read(after, link.fetch_bytes, wanted=below.matches if below else None)
            for error in reader.on_records(piece.data):
                self._refused(error, link.endpoint.name, now)
            for error in reader.on_end(replay.End(piece.through, piece.end, list(piece.lost))):
                self._refused(error, link.endpoint.name, now)
        except (JournalError, Refused, OSError) as error:
            self._home_failed(link, error)
            return False
        link.home_fault = ""
        self.end(link)
        link.home_checked_at = now
        if reader.wants_fetch:
            link.next_try_at = now
        else:
            self.hungry.pop(link.endpoint.name, None)
        return True

    def follow_home(self, link: Link, now: float) -> None:
        """See whether a short-lived publisher has added to a journal that we read as a file."""
        home = link.home
        if home is None or now - link.home_checked_at < _LOCAL_POLL_SECONDS:
            return
        link.home_checked_at = now
        refresh = getattr(home, "refresh", None)
        reader = link.reader
        try:
            if refresh is not None and refresh() and (home.epoch, home.head) != (reader.epoch, reader.accounted):
                reader.read_again()
                self.hungry[link.endpoint.name] = link
        except (FedbusError, OSError) as error:
            self._home_failed(link, error)

    def _home_failed(self, link: Link, error: Exception) -> None:
        # it is tried again many times a second, and told once
        if link.home_fault != str(error):
            link.home_fault = str(error)
            log.warning("endpoint %s: its journal here cannot be read: %s", link.endpoint.name, error)
        self.close_home(link)

    def close_home(self, link: Link) -> None:
        """Leave the files alone: the endpoint is alive, or nobody asks any more."""
        home: Any = link.home
        link.home = None
        if home is not None and hasattr(home, "close"):
            home.close()
