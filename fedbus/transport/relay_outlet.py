"""One endpoint of the relay: its publisher, the submissions that its journal holds, and what waits in its spool."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from fedbus.bell import Bell
from fedbus.errors import (
    DeadlineExceeded,
    FedbusError,
    JournalError,
    MessageError,
    PublisherClosed,
    QueueFull,
    Reason,
    Refused,
    TrustError,
    WireError,
)
from fedbus.failpoints import ARMED, hit
from fedbus.journal import spool
from fedbus.journal.journal import split_records
from fedbus.model.limits import Limits
from fedbus.model.receipt import RelayReceipt
from fedbus.model.stream import StreamHome
from fedbus.transport.batch import Pending
from fedbus.transport.publisher import Publisher
from fedbus.transport.refusals import RefusalLog
from fedbus.transport.relay_protocol import (
    Request,
    Unavailable,
    decode_request,
    submission_key,
    submitted_ms,
)
from fedbus.wire import envelope, parcel, strict

log = logging.getLogger(__name__)

_READ_BYTES = 4 * 2**20
_ANY_PARCEL = 2**31  # the journal is ours, so a parcel in it is as large as it is
_SKEW_MS = 60_000  # how far the wall clock may have been set back since a submission was made
_STEP_MESSAGES = 500  # of a spool, between two looks at the connections
_REFUSED_BYTES = 16 * 2**20  # of the file that keeps spooled messages that can never be published

Waiter = Callable[[RelayReceipt | FedbusError], None]


class Submissions:
    """Which submissions the latest messages of a journal carry, the newest *most* of them.

    All of the messages after the sequence ``after`` are known, up to the head.
    """

    def __init__(self, most: int, after: int) -> None:
        self.after = after
        self._most = most
        self._known: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._known)

    @classmethod
    def load(cls, home: StreamHome, most: int) -> Submissions:
        """Read them from the end of a journal.

        Raises:
            JournalError: It cannot be read.
        """
        loaded = cls(most, max(home.head - most, home.start - 1, 0))
        for key, sequence in read_submissions(home, loaded.after):
            loaded.add(key, sequence)
        return loaded

    def add(self, key: bytes, sequence: int) -> None:
        """Remember that the message *sequence*, later than all before, was handed in as *key*."""
        known = self._known
        known[key] = sequence
        if len(known) > self._most:
            self.after = max(self.after, known.pop(next(iter(known))))

    def find(self, key: bytes) -> int | None:
        """Return the sequence of the message that was handed in as *key*, if it is known."""
        return self._known.get(key)


def read_submissions(home: StreamHome, after: int) -> Iterator[tuple[bytes, int]]:
    """Yield submission and sequence of those messages after the sequence *after* that were handed in to a relay.

    Raises:
        JournalError: The journal cannot be read. Damage in it is passed over.
    """
    while True:
        found = home.read(after, _READ_BYTES)
        for one in _envelopes(found.data):
            submission = envelope.submission_of(one)
            if submission:
                sequence = envelope.sequence_of(one)
                if sequence > after:
                    yield submission_key(submission), sequence
        if found.end or found.through <= after:
            return
        after = found.through


def _plain(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def _envelopes(data: bytes) -> Iterator[bytes]:
    for record in split_records(data, verify=False):
        try:
            yield from parcel.decode(record.payload, parcel_bytes=_ANY_PARCEL).envelopes
        except WireError as error:
            log.error("batch %d of the journal is no parcel: %s", record.first, error)


@dataclass(slots=True)
class OutletStats:
    """Counters since the relay was started."""

    accepted: int = 0  # messages that are in the journal
    repeated: int = 0  # submissions that came again, and got the receipt of the first time
    refused: int = 0  # messages that the journal or the checks turned down
    spooled: int = 0  # messages that came by way of the spool
    spool_refused: int = 0  # spooled messages that can never be published


@dataclass(slots=True, eq=False)
class _Entry:
    """A message that is on its way into the journal, and who waits for it."""

    key: bytes
    submission: str
    said: int  # the hash of its topic and body
    pending: Pending
    waiters: list[Waiter]


class Outlet:
    """What the relay does for one endpoint.

    All in the relay's own thread, but for :meth:`open` and :meth:`Drain.prepare`.
    """

    def __init__(
        self,
        name: str,
        *,
        open_publisher: Callable[[str], Publisher],
        folder: Path,
        remember: int,
        limits: Limits,
        bell: Bell,
        allows: Callable[[int], bool],
    ) -> None:
        """*folder* is that of its spool; *allows* says whether a user may hand in messages for it."""
        self.name = name
        self.folder = folder
        self.allows = allows
        self.stats = OutletStats()
        self.publisher: Publisher | None = None
        self.problem = "it is not open yet"  # why it takes no messages
        self.spool_problem = ""
        self.retry_at = 0.0  # when to try again to open it
        self.drain: Drain | None = None
        self.look_at = 0.0  # when to look into the spool again
        self.not_before = 0.0  # until then not, even where somebody waits for it
        self.delayed: set[int] = set()  # users whose spool is partly sent, and is tried again
        self.stuck: set[int] = set()  # users whose spool nobody can send before a human has mended something
        self.stuck_until = 0.0  # when to try these again
        self.locked: set[int] = set()  # users whose spool was locked when it was to be sent
        self.submissions = Submissions(remember, 0)
        self._closed = False
        self._open_publisher = open_publisher
        self._remember = remember
        self._limits = limits
        self._bell = bell
        self._refusals = RefusalLog(log)
        self._on_way: dict[bytes, _Entry] = {}
        self._queue: deque[_Entry] = deque()

    # --- its life ----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the publisher and learn what its journal holds; to be called in another thread, once at a time.

        Raises:
            FedbusError: It cannot be opened; ``problem`` says why too.
        """
        publisher = None
        try:
            publisher = self._open_publisher(self.name)
            submissions = Submissions.load(publisher.stored, self._remember)
        except FedbusError as error:
            self.problem = str(error)
            if publisher is not None:
                publisher.close()
            raise
        self.submissions = submissions
        # what was partly sent comes before anything else of these users
        with contextlib.suppress(JournalError):  # met again as soon as the spool is looked at
            self.delayed = {waiting.uid for waiting in spool.list_waiting(self.folder) if waiting.epoch}
        self.problem = ""
        self.publisher = publisher
        if self._closed:  # meanwhile
            self._release(0.5)

    def close(self, timeout: float) -> None:
        """Have all that was taken journaled and sent, and release the endpoint for good.

        Raises:
            FedbusError: That did not work, or not within *timeout* seconds.
        """
        self._closed = True
        self._release(timeout)

    def _release(self, timeout: float) -> None:
        publisher, self.publisher = self.publisher, None
        self.problem = self.problem or "it is closed"
        if self.drain is not None:
            self.drain.close()
            self.drain = None
        if publisher is not None:
            try:
                publisher.close(timeout)
            finally:
                self.settle()

    def fail(self, why: str) -> None:
        """Give the publisher up, as it has failed; it is to be opened anew."""
        log.error("endpoint %s: %s", self.name, why)
        try:
            self._release(0.5)
        except FedbusError as error:
            log.error("endpoint %s: %s", self.name, error)
        self.problem = why

    # --- messages ----------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Messages on their way into the journal."""
        return len(self._queue)

    def submit(self, request: Request, waiter: Waiter) -> None:
        """Take a message, and call *waiter* with its receipt or what went wrong, perhaps at once.

        Raises:
            QueueFull: There is no room now; nothing was taken.
        """
        key = submission_key(request.submission)
        entry = self._on_way.get(key)
        if entry is not None:
            if entry.said != hash((request.topic, request.body)):
                waiter(self._conflict(request.submission))
                return
            self.stats.repeated += 1
            entry.waiters.append(waiter)
            return
        publisher = self.publisher
        if publisher is None:
            waiter(Unavailable(f"the relay cannot publish as {self.name}: {self.problem}"))
            return
        sequence = self.submissions.find(key)
        if sequence is not None:
            waiter(self._receipt_again(publisher, request, sequence))
            return
        try:
            if request.again:
                self._check_recent(publisher, key)
            pending = self._enqueue(publisher, request)
        except QueueFull:
            raise
        except PublisherClosed as error:
            self.fail(str(error))
            waiter(Unavailable(str(error)))
        except FedbusError as error:
            self.stats.refused += 1
            waiter(error)
        else:
            entry = _Entry(key, request.submission, hash((request.topic, request.body)), pending, [waiter])
            self._on_way[key] = entry
            self._queue.append(entry)

    def _enqueue(self, publisher: Publisher, request: Request) -> Pending:
        try:
            body = strict.decode(request.body, self._limits)
        except WireError as error:
            raise MessageError(error.reason, str(error)) from error
        extra = envelope.submission_attribute(request.submission)
        if request.dataschema is not None or request.traceparent is not None:
            extra += envelope.optional_attributes(dataschema=request.dataschema, traceparent=request.traceparent)
        return publisher.submit(request.topic, body, extra, self._bell)

    def settle(self) -> None:
        """Give their receipts to those whose messages are in the journal by now."""
        queue = self._queue
        while queue and queue[0].pending.done:
            entry = queue.popleft()
            del self._on_way[entry.key]
            outcome: RelayReceipt | FedbusError
            try:
                receipt = entry.pending.result()
            except PublisherClosed as error:
                # it may be in the journal all the same; the client spools it, and is found out then
                outcome = Unavailable(str(error))
                self.stats.refused += 1
            except FedbusError as error:
                outcome = error
                self.stats.refused += 1
            else:
                self.submissions.add(entry.key, receipt.sequence)
                self.stats.accepted += 1
                outcome = RelayReceipt(
                    topic=receipt.topic,
                    endpoint=receipt.endpoint,
                    epoch=receipt.epoch,
                    sequence=receipt.sequence,
                    id=receipt.id,
                    time=receipt.time,
                    submission=entry.submission,
                )
                if ARMED:
                    hit("relay.journaled")
            for waiter in entry.waiters:
                waiter(outcome)

    def _receipt_again(self, publisher: Publisher, request: Request, sequence: int) -> RelayReceipt | FedbusError:
        """Make the receipt of a message that is in the journal, from its envelope there."""
        submission = request.submission
        try:
            found = publisher.stored.read(sequence - 1, 1)
            for one in _envelopes(found.data):
                if envelope.submission_of(one) == submission:
                    attributes = orjson.loads(one)
                    if not self._is_same(request, attributes):
                        return self._conflict(submission)
                    self.stats.repeated += 1
                    return RelayReceipt(
                        topic=attributes["type"],
                        endpoint=self.name,
                        epoch=attributes["epoch"],
                        sequence=int(attributes["sequence"]),
                        id=attributes["id"],
                        time=attributes["time"],
                        submission=submission,
                    )
        except (JournalError, WireError) as error:
            log.error("endpoint %s: message %d cannot be read again: %s", self.name, sequence, error)
        # retention or damage took it; that it was published is certain all the same
        self.stats.repeated += 1
        return RelayReceipt("", self.name, publisher.epoch, sequence, "", "", submission)

    def _is_same(self, request: Request, attributes: dict[str, Any]) -> bool:
        """Say whether *request* is the message in the journal with these *attributes*, which was written anew there."""
        if not f".{attributes['type']}".endswith(f".{request.topic}"):
            return False
        try:
            body = strict.encode(strict.decode(request.body, self._limits), self._limits)
        except (WireError, MessageError):
            return False
        # as text, since 1, 1.0 and True are equal as values
        return _plain(orjson.loads(body)) == _plain(attributes["data"])

    def _conflict(self, submission: str) -> FedbusError:
        """Tell that another message was handed in under *submission*: a faulty client, or one that forges."""
        self.stats.refused += 1
        text = f"another message was handed in as {submission} before; make a new submission for each message"
        self._refusals.refused(f"a client of {self.name}", Reason.CONFLICT, text, time.monotonic())
        return MessageError(Reason.CONFLICT, text)

    def _check_recent(self, publisher: Publisher, key: bytes) -> None:
        """Raise where *key*, which is not known, may be older than what is remembered."""
        after = self.submissions.after
        if publisher.stored.position_at(max(0, submitted_ms(key) - _SKEW_MS)) < after:
            raise DeadlineExceeded(
                "it cannot be told any more whether the message was published: more than "
                f"{len(self.submissions)} others were since it was first handed in"
            )

    # --- the spool ---------------------------------------------------------------------------------------------

    def has_spooled(self, uid: int) -> bool:
        """Say whether messages of the user *uid* wait in the spool: then later ones of his have to wait, too."""
        if uid in self.stuck:
            return False
        if uid in self.delayed or (self.drain is not None and self.drain.owner == uid):
            return True
        try:
            return (self.folder / f"{uid}.messages").stat().st_size > 0
        except OSError:
            return False

    def spool_bytes(self) -> int:
        """Return how much waits in the spool."""
        total = 0
        for waiting in spool.list_waiting(self.folder):
            try:
                total += waiting.path.stat().st_size
            except FileNotFoundError:
                continue
        return total

    def refuse_spooled(self, uid: int, request: Request | None, payload: bytes, error: FedbusError) -> None:
        """Keep a spooled message that can never be published where a human finds it."""
        self.stats.spool_refused += 1
        path = self.folder / f"{uid}.refused"
        self._refusals.refused(
            f"the spool of user {uid} for {self.name}",
            getattr(error, "reason", Reason.MALFORMED),
            f"{request.topic if request is not None else f'{len(payload)} bytes'}, kept in {path}: {error}",
            time.monotonic(),
            level=logging.ERROR,
        )
        facts = {"error": str(error), "uid": uid, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        if request is not None:
            body = request.body.decode("utf-8", "backslashreplace")
            facts |= {"topic": request.topic, "submission": request.submission, "body": body}
        else:
            facts["bytes"] = payload.hex()
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(path, flags, 0o600)
            try:
                if os.fstat(fd).st_size < _REFUSED_BYTES:
                    os.write(fd, json.dumps(facts).encode() + b"\n")
                    os.fdatasync(fd)
            finally:
                os.close(fd)
        except OSError as failure:
            log.error("endpoint %s: cannot write %s: %s", self.name, path, failure.strerror)


def send_spooled(publisher: Publisher, folder: Path, *, limits: Limits, timeout: float) -> None:
    """Publish what the user of this process has spooled in *folder*; for a publisher that is no part of a relay.

    Raises:
        FedbusError: Not all was published within *timeout* seconds; what was not stays in the spool.
    """
    deadline = time.monotonic() + timeout
    own = os.geteuid()
    files = [waiting for waiting in spool.list_waiting(folder) if waiting.uid == own]
    if not files:
        return
    bell = Bell()
    outlet = Outlet(
        publisher.endpoint.name,
        open_publisher=lambda name: publisher,
        folder=folder,
        remember=len(files),
        limits=limits,
        bell=bell,
        allows=lambda uid: uid == own,
    )
    outlet.publisher = publisher
    try:
        for waiting in files:
            drain = Drain(outlet, waiting)
            drain.prepare()
            while drain.claimed and not drain.step():
                if time.monotonic() > deadline:
                    drain.close()
                    raise DeadlineExceeded(f"{drain.waiting.path} was not sent within {timeout:g} s")
                if drain.eager:
                    bell.hush()
                else:
                    bell.wait(0.1)
                outlet.settle()
            if drain.failure is not None:
                raise drain.failure
    finally:
        bell.close()


class Drain:
    """Sends one file of the spool: claims it, publishes each message once and in order, removes the file."""

    def __init__(self, outlet: Outlet, waiting: spool.Waiting, *, singly: bool = False) -> None:
        """*singly*: have one message in the journal before the next, so that a bad one spoils no batch."""
        self.waiting = waiting
        self.owner = waiting.uid
        self.failure: FedbusError | None = None  # why it has to be tried again later
        self.ready = threading.Event()  # `prepare` has ended
        self.claimed = False
        self._outlet = outlet
        self._singly = singly
        self._fd = -1
        self._records: Iterator[spool.Found] = iter(())
        self._already: set[bytes] = set()
        self._held: Request | None = None
        self._outstanding = 0
        self._read_all = False
        self._closed = False

    def prepare(self) -> bool:
        """Claim the file and find out which of its messages are in the journal; return False where nothing is to do.

        May take as long as reading the journal through does, so the relay calls it in another thread.
        """
        try:
            self._prepare()
        except FedbusError as error:
            self.failure = error
        except Exception as error:  # the thread that prepares others, too, has to go on
            log.exception("%s", self.waiting.path)
            self.failure = FedbusError(f"{type(error).__name__}: {error}")
        finally:
            self.ready.set()
        if self._closed:  # meanwhile
            self.close()
        return self.claimed

    def _prepare(self) -> None:
        outlet, publisher = self._outlet, self._outlet.publisher
        if publisher is None:
            return
        begun_before = bool(self.waiting.epoch)
        claimed = spool.take(self.waiting, epoch=publisher.epoch, head=publisher.head)
        if claimed is None:
            return
        self.waiting = claimed
        try:
            self._fd, size, owner = spool.open_file(claimed)
            if owner != claimed.uid:
                raise TrustError(
                    Reason.POLICY, f"{claimed.path} belongs to user {owner}, and its name to another; remove it"
                )
            if not outlet.allows(owner):
                raise TrustError(
                    Reason.POLICY,
                    f"{claimed.path}: user {owner} may not hand in messages for {outlet.name}; add a rule to "
                    "relay.allow, or remove the file",
                )
            tried = self._look_through(size)
            after = publisher.head
            if begun_before and claimed.epoch == publisher.epoch:
                after = claimed.head
            if tried:
                after = min(after, publisher.stored.position_at(max(0, tried - _SKEW_MS)))
            if after < publisher.head:
                self._already = {key for key, _ in read_submissions(publisher.stored, after)}
        except OSError as error:
            raise JournalError(f"cannot read {claimed.path}: {error.strerror}; check the disk") from error
        self._records = spool.records(self._fd, size)
        self.claimed = True

    def _look_through(self, size: int) -> int:
        """Say how whole the file is; return when the oldest message was submitted that may have been published (ms)."""
        oldest, end, lost = 0, 0, 0
        for found in spool.records(self._fd, size):
            lost += found.start - end
            end = found.end
            try:
                request = decode_request(found.payload)
            except WireError:
                continue
            if request.again and request.submission:
                made = submitted_ms(submission_key(request.submission))
                oldest = min(oldest, made) if oldest else made
        if lost:
            log.error("%s is damaged: %d bytes between its messages cannot be read", self.waiting.path, lost)
        elif size > end:
            log.warning("%s: %d bytes of a torn message left out", self.waiting.path, size - end)
        return oldest

    @property
    def eager(self) -> bool:
        """Whether there is something to submit right now."""
        waits = self._held is not None or (self._singly and self._outstanding)
        return not (self._read_all or waits or self.failure is not None)

    def step(self) -> bool:
        """Submit some more; return True when the file is done with, or has to be tried again (``failure``)."""
        outlet = self._outlet
        for _ in range(_STEP_MESSAGES):
            if self.failure is not None or self._read_all or (self._singly and self._outstanding):
                break
            request = self._held or self._next()
            if request is None:
                continue
            self._held = None
            try:
                self._outstanding += 1
                outlet.submit(request, lambda outcome, one=request: self._settled(one, outcome))  # type: ignore[misc]
            except QueueFull:
                self._outstanding -= 1
                self._held = request
                break
        if self._outstanding or not (self._read_all or self.failure is not None):
            return False
        if self.failure is None:
            try:
                spool.remove(self.waiting)
            except JournalError as error:
                self.failure = error
        self.close()
        return True

    def _next(self) -> Request | None:
        """Return the next message; None where it is not to be published, or there is none."""
        outlet = self._outlet
        try:
            found = next(self._records)
        except StopIteration:
            self._read_all = True
            return None
        except OSError as error:
            self.failure = JournalError(f"cannot read {self.waiting.path}: {error.strerror}")
            return None
        try:
            request = decode_request(found.payload)
            if request.do != "publish" or request.endpoint != outlet.name:
                raise WireError(Reason.MALFORMED, f"it is not a message of {outlet.name}")
        except WireError as error:
            outlet.refuse_spooled(self.owner, None, found.payload, error)
            return None
        if submission_key(request.submission) in self._already:
            outlet.stats.repeated += 1
            return None
        # what was published before was looked for above, however long ago that is
        return request._replace(again=False)

    def _settled(self, request: Request, outcome: RelayReceipt | FedbusError) -> None:
        self._outstanding -= 1
        outlet = self._outlet
        if isinstance(outcome, RelayReceipt):
            outlet.stats.spooled += 1
        elif isinstance(outcome, (MessageError, Refused)):
            outlet.refuse_spooled(self.owner, request, b"", outcome)
        elif self.failure is None:
            self.failure = outcome

    def close(self) -> None:
        """Let go of the file."""
        self._closed = True
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._records = iter(())
            os.close(fd)
