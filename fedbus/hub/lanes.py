"""Which message a worker takes next, where several work: equal keys in order, different ones at the same time.

Messages of one key wait in a *lane*. A lane is in the hands of one worker at most, so its order holds; one whose first
message is to be tried again later steps aside until then, and the others go on. What is done is noted for each stream,
since a cursor can only say up to where *all* is done.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import orjson

from fedbus.clock import Clock
from fedbus.hub.dead import Letter
from fedbus.hub.options import Batch
from fedbus.model.message import Message, MessageKey
from fedbus.model.position import Cursor, Position
from fedbus.transport.state import Loss

_FOREVER = 365 * 86400.0  # what a condition can wait is bounded, and Retry takes any number of seconds
_SHARE = 16  # messages of one lane that a worker takes at once, to work on them one by one

Key = Callable[[Message], Hashable]


def key_of(ordered_by: str) -> Key:
    """Return what tells the lane of a message: ``stream`` (or ``endpoint``), ``topic``, ``none``, ``body.KEY[.KEY]…``.

    Messages that do not have the key in their body are in the order of their stream.

    Raises:
        ValueError: It is none of these.
    """
    if ordered_by in ("stream", "endpoint"):
        return lambda message: message.parcel.endpoint
    if ordered_by == "topic":
        return lambda message: message.parcel.topic
    if ordered_by == "none":
        return lambda message: (message.parcel.endpoint, message.sequence)
    first, *path = ordered_by.split(".")
    if first != "body" or not path or not all(path):
        raise ValueError(f"ordered_by {ordered_by!r} is none of stream, topic, none and body.KEY")

    def of_body(message: Message) -> Hashable:
        found: Any = message.body
        for name in path:
            if not isinstance(found, dict) or name not in found:
                return ("", message.parcel.endpoint)
            found = found[name]
        # one kind for all, or 1 and True, which are different values, would be one lane; and lists have no hash
        return orjson.dumps(found, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)

    return of_body


class Job:
    """A message in the hands of a crew; or one of a requeued dead letter, or a loss to be told of."""

    __slots__ = ("alone", "done", "key", "letter", "loss", "message", "noted", "put_at", "size")

    def __init__(self, key: Hashable, message: Message | None, *, alone: bool = False) -> None:
        self.key = key
        self.message = message
        self.alone = alone  # never in a batch with others
        self.letter: Letter | None = None
        self.loss: Loss | None = None
        self.done = False
        self.noted = False  # it is written down that this is done, though one before it is not
        self.put_at = 0.0
        self.size = 0


class Lane:
    """Jobs of one key, the oldest first."""

    __slots__ = ("jobs", "key", "state")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.jobs: deque[Job] = deque()
        self.state = "idle"  # then "ready", "taken" by a worker, or "later"


Taken = list[tuple[Lane, list[Job]]]


class Lanes:
    """What the workers of one consumer have before them. Any thread may use it.

    At most *messages* of *size* bytes are between the oldest message of a stream that is not done and the newest: so
    far others get ahead of one that is being tried again.
    """

    def __init__(self, *, clock: Clock, messages: int, size: int, batch: Batch | None) -> None:
        self.stopping = False
        self._clock = clock
        self._most = max(messages, 2 * batch.messages if batch is not None else 1)
        self._most_size = size
        self._batch = batch
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._progress = threading.Condition(self._lock)
        self._lanes: dict[Hashable, Lane] = {}
        self._ready: deque[Lane] = deque()
        self._ready_jobs = 0
        self._later: list[tuple[float, int, Lane]] = []
        self._turns = itertools.count()
        self._streams: dict[str, deque[Job]] = {}  # from the oldest that is not done on
        self._count = 0
        self._size = 0
        self._waiting_for_room = False

    # --- for the reader ----------------------------------------------------------------------------------------

    def put(self, jobs: Sequence[Job]) -> None:
        """Add *jobs*, in order; those with a message of a stream count for its place."""
        now = self._clock.monotonic()
        with self._lock:
            before = len(self._ready)
            for job in jobs:
                job.put_at = now
                message = job.message
                if message is not None and job.letter is None:
                    stream = self._streams.get(message.parcel.endpoint)
                    if stream is None:
                        stream = self._streams[message.parcel.endpoint] = deque()
                    if job.done and not stream:
                        continue
                    job.size = len(message.envelope)
                    stream.append(job)
                    self._count += 1
                    self._size += job.size
                    if job.done:
                        continue
                lane = self._lanes.get(job.key)
                if lane is None:
                    lane = self._lanes[job.key] = Lane(job.key)
                lane.jobs.append(job)
                if lane.state == "idle":
                    self._make_ready(lane)
                elif lane.state == "ready":
                    self._ready_jobs += 1
            added = len(self._ready) - before
            if self._batch is None:
                self._work.notify(added)
            elif before == 0 or self._enough():
                self._work.notify_all()

    def room(self, seconds: float) -> int:
        """Return how many messages may be put; wait for at most so many *seconds* where there are none."""
        with self._lock:
            if self._full() and not self.stopping:
                self._waiting_for_room = True
                self._work.notify_all()  # a batch does not wait for what cannot come
                self._progress.wait(seconds)
                self._waiting_for_room = False
            return 0 if self._full() else self._most - self._count

    def wait_for(self, done: Callable[[], bool], seconds: float) -> bool:
        """Wait until *done* says so, which is asked whenever something is done; False after so many *seconds*."""
        with self._lock:
            return self._progress.wait_for(lambda: self.stopping or done(), seconds) and not self.stopping

    def is_idle(self, endpoint: str) -> bool:
        """Return whether all of a stream is done; for :meth:`wait_for`."""
        stream = self._streams.get(endpoint)
        return not stream

    # --- for workers -------------------------------------------------------------------------------------------

    def take(self) -> Taken | None:
        """Wait for work and return it, nobody else's until it is handed back; None when there is to be no more.

        Without batches these are jobs of one lane, to be done one by one.
        """
        with self._lock:
            while True:
                if self.stopping:
                    return None
                now = self._clock.monotonic()
                while self._later and self._later[0][0] <= now:
                    self._make_ready(heapq.heappop(self._later)[2])
                wait: float | None = None
                if self._ready:
                    wait = self._patience(now)
                    if wait <= 0.0:
                        return self._gather()
                if self._later:
                    until = min(self._later[0][0] - now, _FOREVER)
                    wait = until if wait is None else min(wait, until)
                self._work.wait(wait)

    def finished(self, taken: Taken) -> None:
        """All jobs are done."""
        with self._lock:
            for lane, jobs in taken:
                for job in jobs:
                    job.done = True
                    self._tidy(job)
                self._release(lane)
            self._progress.notify_all()

    def again(self, taken: Taken, after: float) -> None:
        """Jobs that are not done are to be worked on *after* so many seconds, before all behind them in their lanes."""
        with self._lock:
            due = self._clock.monotonic() + after
            for lane, jobs in taken:
                left = [job for job in jobs if not job.done]
                for job in jobs:
                    if job.done:
                        self._tidy(job)
                lane.jobs.extendleft(reversed(left))
                if not left or after <= 0.0:
                    self._release(lane)
                else:
                    lane.state = "later"
                    heapq.heappush(self._later, (due, next(self._turns), lane))
            self._progress.notify_all()
            self._work.notify()

    def pass_on(self) -> None:
        """A worker will not take anything for a while: let the others look at what it has handed back."""
        with self._lock:
            if self._ready:
                self._work.notify_all()

    # --- for any thread ----------------------------------------------------------------------------------------

    def resize(self, *, messages: int, size: int) -> None:
        """Let other numbers of messages and bytes in from now on."""
        with self._lock:
            self._most = max(messages, 2 * self._batch.messages if self._batch is not None else 1)
            self._most_size = size
            self._progress.notify_all()

    def stop(self) -> None:
        """There is to be no more work."""
        with self._lock:
            self.stopping = True
            self._work.notify_all()
            self._progress.notify_all()

    @property
    def count(self) -> int:
        """Messages from the oldest of each stream that is not done on."""
        return self._count

    def places(self, read: Cursor) -> Cursor:
        """Return *read* with the place up to which all is done, in streams where that is another."""
        with self._lock:
            for endpoint, stream in self._streams.items():
                self._tidy_stream(stream)
                if stream and (first := stream[0].message) is not None:
                    read[endpoint] = Position(first.epoch, first.sequence - 1)
        return read

    def ahead(self) -> list[MessageKey]:
        """Return the messages that are done while one before them is not."""
        with self._lock:
            return [
                job.message.key
                for stream in self._streams.values()
                for job in stream
                if job.done and job.message is not None
            ]

    # --- with the lock held ------------------------------------------------------------------------------------

    def _full(self) -> bool:
        # a single message is let in whatever its size, or it would never get through
        return self._count >= self._most or (self._count > 0 and self._size >= self._most_size)

    def _enough(self) -> bool:
        batch = self._batch
        return batch is None or self._ready_jobs >= batch.messages or self._waiting_for_room

    def _patience(self, now: float) -> float:
        """Return for how long the jobs that are ready may wait for others; only batches do."""
        first = self._ready[0].jobs[0]
        if self._batch is None or first.alone or self._enough():
            return 0.0
        return first.put_at + self._batch.seconds - now

    def _gather(self) -> Taken:
        most = _SHARE if self._batch is None else self._batch.messages
        taken: Taken = []
        count = 0
        while self._ready and count < most:
            lane = self._ready[0]
            if taken and lane.jobs[0].alone:
                break
            self._ready.popleft()
            self._ready_jobs -= len(lane.jobs)
            lane.state = "taken"
            jobs = [lane.jobs.popleft()]
            while lane.jobs and count + len(jobs) < most and not (jobs[0].alone or lane.jobs[0].alone):
                jobs.append(lane.jobs.popleft())
            taken.append((lane, jobs))
            count += len(jobs)
            if self._batch is None or jobs[0].alone:
                break
        if self._ready:
            self._work.notify()
        return taken

    def _make_ready(self, lane: Lane) -> None:
        lane.state = "ready"
        self._ready.append(lane)
        self._ready_jobs += len(lane.jobs)

    def _release(self, lane: Lane) -> None:
        if lane.jobs:
            self._make_ready(lane)
        else:
            del self._lanes[lane.key]

    def _tidy(self, job: Job) -> None:
        if job.message is not None and job.letter is None:
            self._tidy_stream(self._streams[job.message.parcel.endpoint])

    def _tidy_stream(self, stream: deque[Job]) -> None:
        while stream and stream[0].done:
            self._count -= 1
            self._size -= stream.popleft().size
