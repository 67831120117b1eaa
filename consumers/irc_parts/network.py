"""One network over time: its queues, its connections one after the other, and what it is asked in a channel."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator

from fedbus import FedbusError, parse_duration

from .pacing import Backlog, Bucket, Pauses
from .rules import Seen, topic_filters
from .session import Session
from .settings import ChannelOptions, NetworkOptions
from .text import Entry, clean
from .wire import Ended

log = logging.getLogger(__name__)

_RECENT = 200  # messages of a channel that !last finds
_MUTE_SECONDS = 86400.0  # at most
_HOLD_SECONDS = 60.0  # before a channel that takes no messages is tried again
_SLOW_SECONDS = 3600.0  # at half the rate after a server complained of a flood
_COMMANDS_PER_SECOND, _COMMANDS_BURST = 0.2, 3
_HELP = "commands: !status, !last TOPIC, !mute 10m, !unmute"


class Channel:
    """A channel: what is to be said there, and whether we are in it."""

    def __init__(self, options: ChannelOptions) -> None:
        self.options = options
        self.name = options.name
        self.backlog = Backlog(options.queue)
        self.recent: deque[Entry] = deque(maxlen=_RECENT)
        self.coloured = options.colours
        self.joined = False
        self.joined_at = 0.0
        self.join_at = 0.0
        self.join_pause = 0.0
        self.held_until = 0.0

    def hold(self) -> bool:
        """Say nothing for a while; returns whether that is news."""
        now = time.monotonic()
        news = now >= self.held_until
        self.held_until = now + _HOLD_SECONDS
        return news


class Network:
    """Takes messages from the hub's thread, and says them in its own; `run` keeps one connection after the other."""

    def __init__(self, options: NetworkOptions) -> None:
        self.options = options
        self.channels = [Channel(one) for one in options.channels]
        self.session: Session | None = None
        self.said = 0
        self.connections = 0
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._work = asyncio.Event()
        self._stirred = asyncio.Event()
        self._bucket = Bucket(options.lines_per_second, options.burst)
        self._commands = Bucket(_COMMANDS_PER_SECOND, _COMMANDS_BURST)
        self._pauses = Pauses(options)
        self._slow_until = 0.0
        self._turn = 0
        self._since = time.monotonic()
        self._busy = False
        self._last: tuple[str, float] | None = None

    # --- in the hub's thread ----------------------------------------------------------------------------------------

    def offer(self, seen: Seen, service: str) -> None:
        """Put *seen* into the queue of each channel that wants it; never waits."""
        wanting = [one for one in self.channels if one.options.wants(seen)]
        if not wanting:
            return
        now = time.monotonic()
        summary = clean(seen.text.summary or seen.text.title or seen.topic)
        link = clean(seen.text.link)
        with self._lock:
            for channel in wanting:
                options = channel.options
                entry = Entry(
                    seen.topic, service, summary, link if options.link else "", options.colour(seen.topic, service)
                )
                channel.recent.append(entry)
                channel.backlog.put(entry, now)
        loop = self._loop
        if loop is not None:
            try:
                loop.call_soon_threadsafe(self._work.set)
            except RuntimeError:
                pass  # it has just ended

    # --- the life of a network --------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep connected until cancelled."""
        self._loop = asyncio.get_running_loop()
        while True:
            began = time.monotonic()
            cause, text = "fault", ""
            self.session = session = Session(self)
            try:
                await session.run()
            except Ended as ended:
                cause, text = ended.cause, str(ended)
            except Exception as error:
                log.exception("irc %s: a fault of the relay", self.options.name)
                text = type(error).__name__
            finally:
                self.session = None
                for channel in self.channels:
                    channel.joined, channel.join_at, channel.coloured = False, 0.0, channel.options.colours
            if cause == "stopped":
                return
            if cause == "flood":
                self._slow_until = time.monotonic() + _SLOW_SECONDS
                self._bucket.rate = max(self._bucket.rate / 2, self.options.lines_per_second / 16)
            pause = self._pauses.after(cause, time.monotonic() - began)
            log.warning(
                "irc %s: no connection to %s:%d (%s): %s; again in %.0f s",
                *(self.options.name, self.options.server, self.options.port, cause, clean(text, 300), pause),
            )
            await asyncio.sleep(pause)

    def connected(self, session: Session) -> None:
        """Told by *session* that the server has welcomed us."""
        self.connections += 1
        log.info(
            "irc %s: connected to %s:%d as %s%s%s",
            *(self.options.name, self.options.server, self.options.port, clean(session.nickname, 60)),
            ", with TLS" if self.options.tls else ", without TLS",
            f", account {session.logged_in}" if session.logged_in else "",
        )

    @property
    def idle(self) -> bool:
        """Whether nothing is left that could be said now."""
        if self.session is None or not any(one.joined for one in self.channels):
            return True
        with self._lock:
            return not self._busy and not any(len(one.backlog) for one in self.channels if one.joined)

    def forget(self) -> int:
        """Give up what waits, at the end, and return how many messages that were."""
        with self._lock:
            return sum(one.backlog.clear() for one in self.channels)

    # --- for the connection -----------------------------------------------------------------------------------------

    def wake(self) -> None:
        """There may be something to say."""
        self._work.set()

    def stir(self) -> None:
        """There may be something to join, or a nick to take."""
        self._stirred.set()

    async def wait_for_work(self) -> None:
        """Wait until there may be something to say; a second at most, since mutes end by themselves."""
        await _wait(self._work)

    async def wait_a_little(self) -> None:
        """Wait for a second, or until stirred."""
        await _wait(self._stirred)

    async def slot(self) -> None:
        """Wait until one more line may be written."""
        now = time.monotonic()
        if now > self._slow_until:
            self._bucket.rate = self.options.lines_per_second
        while (pause := self._bucket.wait(time.monotonic())) > 0.0:
            await asyncio.sleep(pause)

    def spend(self) -> None:
        """A line is written; what a handshake takes, and answers to PING, count as well."""
        self._bucket.spend(time.monotonic())

    def next_job(self, session: Session) -> tuple[Channel, Entry | None, list[str]] | None:
        """Return what is to be said next, as lines: an answer, or something of each channel in turn."""
        self._busy = False
        if session.replies:
            name, reply = session.replies.popleft()
            channel = next(one for one in self.channels if one.name == name)
            if channel.joined:
                return channel, None, [self._fit(session, channel, reply)]
        now = time.monotonic()
        with self._lock:
            for step in range(len(self.channels)):
                channel = self.channels[(self._turn + step) % len(self.channels)]
                if not channel.joined or now < channel.held_until:
                    continue
                taken = channel.backlog.take(now)
                if taken is None:
                    continue
                self._turn = (self._turn + step + 1) % len(self.channels)
                self._busy = True
                if isinstance(taken, str):
                    log.info("irc %s: %s: %s", self.options.name, channel.name, taken)
                    return channel, None, [self._fit(session, channel, taken)]
                lines = taken.lines(
                    session.room(channel.name, channel.options.command),
                    lines=channel.options.lines,
                    coloured=channel.coloured,
                    nicks=session.people(channel.name),
                    mentions=channel.options.mentions,
                )
                return channel, taken, lines
        return None

    def _fit(self, session: Session, channel: Channel, text: str) -> str:
        room = session.room(channel.name, channel.options.command)
        return text.encode()[:room].decode("utf-8", "ignore")

    def give_back(self, channel: Channel, entry: Entry) -> None:
        """*entry* could not be said."""
        with self._lock:
            channel.backlog.give_back(entry)

    def was_said(self, channel: Channel, entry: Entry) -> None:
        """*entry* has been written."""
        self.said += 1
        self._last = (entry.topic, time.monotonic())

    # --- commands ---------------------------------------------------------------------------------------------------

    def command(self, channel: Channel, nick: str, source: str, account: str, text: str) -> Iterator[str]:
        """Yield the answer to *text*, said in *channel*: nothing to those who are not allowed, or who ask too often."""
        word, _, argument = clean(text, 300).partition(" ")
        if word not in ("!status", "!last", "!mute", "!unmute", "!help"):
            return
        options = self.options
        allowed = account.lower() in options.accounts or any(one.fullmatch(source.lower()) for one in options.hostmasks)
        if not allowed or not self._commands.take(time.monotonic()):
            return
        log.info("irc %s: %s asks %s in %s", options.name, clean(source, 100), clean(text, 100), channel.name)
        if word == "!status":
            yield self._status(channel)
        elif word == "!last":
            yield self._recent(channel, argument)
        elif word == "!help":
            yield _HELP
        else:
            yield self._mute(channel, "0" if word == "!unmute" else argument or "10m")

    def _status(self, channel: Channel) -> str:
        now = time.monotonic()
        with self._lock:
            waiting, left_out = len(channel.backlog), channel.backlog.left_out
        last = f"; last {self._last[0]} {_ago(now - self._last[1])} ago" if self._last else ""
        muted = channel.backlog.muted_until - now
        return (
            f"status: up {_ago(now - self._since)}, {self.said} said, "
            f"{waiting} waiting here, {left_out} left out here, "
            f"{self.connections} connections{f', muted for {_ago(muted)}' if muted > 0 else ''}{last}"
        )

    def _recent(self, channel: Channel, argument: str) -> str:
        try:
            filters = topic_filters([argument] if argument else ["#"], self.root, "last")
        except FedbusError:
            return f"last: {argument[:60]} is no topic filter"
        with self._lock:
            entries = list(channel.recent)
        for entry in reversed(entries):
            if any(one.matches(entry.topic) for one in filters):
                return f"last: [{entry.topic}] {entry.summary} {entry.link}".rstrip()
        return f"last: nothing on {argument[:60] or 'any topic'} since the relay started"

    def _mute(self, channel: Channel, argument: str) -> str:
        try:
            seconds = min(parse_duration(argument), _MUTE_SECONDS)
        except ValueError:
            return "mute: say for how long, such as !mute 10m"
        with self._lock:
            if seconds:
                channel.backlog.mute(time.monotonic(), time.monotonic() + seconds)
            else:
                channel.backlog.muted_until = 0.0
        return f"muted for {_ago(seconds)}; !unmute ends it" if seconds else "no longer muted"

    root = ""
    """The PREFIX.ENV that topics in `!last` may leave out."""


async def _wait(event: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(1.0):
            await event.wait()
    except TimeoutError:
        pass
    event.clear()


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size or (seconds >= size and seconds % size == 0):
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"
