"""Shows messages as notifications on a desktop, over D-Bus.

Format: Desktop Notifications Specification 1.2 (org.freedesktop.Notifications). Only text comes from messages: markup
is escaped where the server knows any, control characters are left out, icons are names from the settings, and a link
is opened only when somebody clicks on it, by a program that gets it as one argument.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import os
import shutil
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fedbus import ConfigError, Consumer, Message, Retry, Text, TopicFilter, parse_duration

try:
    from dbus_fast import Message as Call
    from dbus_fast import MessageType, Variant
    from dbus_fast.aio import MessageBus
except ImportError as _error:
    raise ConfigError(
        f"the desktop consumer needs dbus-fast ({_error}); install it with: pip install 'fedbus[desktop]'"
    ) from _error

log = logging.getLogger(__name__)

_NAME, _PATH = "org.freedesktop.Notifications", "/org/freedesktop/Notifications"
_BUS, _BUS_PATH = "org.freedesktop.DBus", "/org/freedesktop/DBus"
_URGENCIES = {"low": 0, "normal": 1, "critical": 2}  # the specification's "Urgency Levels"
_OPEN = "default"  # the action of a click on the notification itself
_PATIENCE = 5.0  # seconds for one call over D-Bus
_PAUSES = (1.0, 60.0)  # seconds, the first and the longest, while there is no desktop
_TITLE, _LINE = 100, 400  # characters that are shown of a title and of a summary
_LINK = 2000  # characters of the longest link that is offered
_LINKS = 200  # notifications whose link is remembered
_TITLES = 200  # that are counted each for itself while they are held back
_KINDS = 4  # that a summary notification names
_DURATION: dict[str, Any] = {"type": ["number", "string"]}
_ICON: dict[str, Any] = {"type": "string", "pattern": r"^([A-Za-z0-9_.-]*|/[^\x00]+)$", "maxLength": 1000}


@dataclass(frozen=True, slots=True)
class Rule:
    """How the messages of some topics are shown."""

    filters: tuple[TopicFilter, ...]
    show: bool
    urgency: int
    icon: str
    expire: int  # milliseconds; -1: as the server likes, 0: never


class Desktop(Consumer):
    """Show messages as notifications; when they come too fast, how many there were of each kind."""

    topics = ("#",)
    schema = {
        "type": "object",
        "properties": {
            "bus": {"type": "string", "pattern": "^unix:"},
            "icon": _ICON,
            "burst": {"type": "integer", "minimum": 1, "maximum": 1000},
            "every": _DURATION,
            "newest": _DURATION,
            "expire": _DURATION,
            "open": {"type": "array", "items": {"type": "string"}, "minItems": 1},
            "rules": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "topics": {"type": "array", "items": {"type": "string"}, "minItems": 1},
                        "show": {"type": "boolean"},
                        "urgency": {"enum": ["low", "normal", "critical"]},
                        "icon": _ICON,
                        "expire": _DURATION,
                    },
                    "required": ["topics"],
                    "additionalProperties": False,
                },
            },
        },
        "additionalProperties": False,
    }

    def __init__(
        self,
        bus: str = "",
        icon: str = "dialog-information",
        burst: int = 5,
        every: float | str = 10.0,
        newest: float | str = 3600.0,
        expire: float | str | None = None,
        open: list[str] | None = None,
        rules: list[Mapping[str, Any]] | None = None,
    ) -> None:
        self.address = bus
        self.icon = icon
        self.newest = _seconds("newest", newest)
        self._expire = _milliseconds("expire", expire)
        self._given = rules or []
        self._rules = self._read_rules()  # faults are told now; the bus's own root is known at the start
        self._open = open or ["xdg-open"]
        self._pace = Pace(burst, _seconds("every", every, least=0.01))
        self._lock = threading.Lock()
        self._held: collections.Counter[str] = collections.Counter()  # titles of what was not shown, and not told of
        self._told: collections.Counter[str] = collections.Counter()  # what the notification below tells of
        self._told_by = 0  # while it is there it is replaced by the next
        self._ending = False
        self._timer: asyncio.TimerHandle | None = None
        self._failures = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._server: _Server | None = None
        self._connecting = asyncio.Lock()
        self._telling = asyncio.Lock()

    def start(self) -> None:
        """Begin; whether there is a desktop is found out with the first message."""
        self._rules = self._read_rules()
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._connecting, self._telling = asyncio.Lock(), asyncio.Lock()
            self._thread = threading.Thread(target=self._loop.run_forever, name="desktop", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Tell of what was held back, and hang up."""
        loop = self._loop
        if loop is None or self._thread is None:
            return
        try:
            self._await(self._end())
        except Retry as retry:
            log.debug("%s", retry.reason)
        self._loop = None
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join(_PATIENCE)
        if not self._thread.is_alive():
            loop.close()

    def consume(self, message: Message) -> None:
        """Show *message*, or count it. May be called from several threads.

        Raises:
            Retry: There is no session bus, or no notification server on it; growing pauses.
        """
        rule = self._rule(message.topic)
        if not rule.show:
            return
        text = self.texts.of(message)
        try:
            self._await(self._show(text, rule, self._is_old(message)))
        except Retry as retry:
            with self._lock:
                pause = min(_PAUSES[1], _PAUSES[0] * 2.0 ** min(self._failures, 10))
                if not self._failures:
                    log.warning("%s; messages wait for a desktop", retry.reason)
                self._failures += 1
            raise Retry(pause, retry.reason) from retry
        self._failures = 0

    def _is_old(self, message: Message) -> bool:
        if not self.newest:
            return False
        try:
            return time.time() - datetime.fromisoformat(message.time).timestamp() > self.newest
        except ValueError:
            return False

    # --- rules ---------------------------------------------------------------------------------------------------

    def _read_rules(self) -> list[Rule]:
        return [
            Rule(
                tuple(_filter(text, self.texts.root) for text in given["topics"]),
                given.get("show", True),
                _URGENCIES[given.get("urgency", "normal")],
                given.get("icon", self.icon),
                _milliseconds("rules.expire", given["expire"]) if "expire" in given else self._expire,
            )
            for given in self._given
        ]

    def _rule(self, topic: str) -> Rule:
        """Return the first rule for *topic*."""
        for rule in self._rules:
            if any(one.matches(topic) for one in rule.filters):
                return rule
        return Rule((), True, _URGENCIES["normal"], self.icon, self._expire)

    # --- in the thread of the loop -------------------------------------------------------------------------------

    def _await(self, coroutine: Coroutine[Any, Any, None]) -> None:
        loop = self._loop
        if loop is None:
            coroutine.close()
            raise Retry(_PAUSES[0], "it is not running")
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
        try:
            future.result(4 * _PATIENCE)
        except TimeoutError as error:
            future.cancel()
            raise Retry(_PAUSES[0], "the desktop does not answer") from error

    async def _show(self, text: Text, rule: Rule, old: bool) -> None:
        """Show *text*, or count it; raises Retry where there is no desktop."""
        server = await self._connected()
        now = time.monotonic()
        if old or self._held or not self._pace.take(now):
            # what came first is told first: while any are held back, all are
            title = plain(text.title, _TITLE)
            self._held[title if title in self._held or len(self._held) < _TITLES else "others"] += 1
            if self._timer is None:
                assert self._loop is not None
                self._timer = self._loop.call_later(self._pace.wait(now), self._on_timer)
            return
        await self._call(server.notify(text, rule, replaces=0))

    def _on_timer(self) -> None:
        self._timer = None
        assert self._loop is not None
        self._summary = self._loop.create_task(self._tell_held())  # kept: a task that nobody holds may go away

    async def _tell_held(self) -> None:
        """Show how many were held back, together with those of the last such notification if it is still there."""
        async with self._telling:  # what is to be replaced is known when the last call was answered
            if not self._held:
                return
            held, self._held = self._held, collections.Counter()
            try:
                server = await self._connected()
                self._pace.take(time.monotonic())
                self._told += held
                rule = Rule((), True, _URGENCIES["low"], self.icon, self._expire)
                self._told_by = await self._call(server.notify(summary_of(self._told), rule, replaces=self._told_by))
            except Retry as retry:
                self._on_closed(self._told_by)
                self._held += held
                log.info("%d notifications wait: %s", self._held.total(), retry.reason)
                if self._timer is None and not self._ending:
                    assert self._loop is not None
                    self._timer = self._loop.call_later(_PAUSES[1], self._on_timer)

    def _on_closed(self, number: int) -> None:
        if number == self._told_by:
            self._told.clear()
            self._told_by = 0

    async def _end(self) -> None:
        self._ending = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self._tell_held()
        if self._server is not None:
            self._server.close()
            self._server = None
        self._ending = False

    async def _connected(self) -> _Server:
        async with self._connecting:  # several workers share one connection
            server = self._server
            if server is None or not server.bus.connected:
                self._on_closed(self._told_by)
                address = self.address or _session_bus()
                server = self._server = await self._call(_Server.connect(address, self._open, self._on_closed))
            return server

    async def _call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Await it within the deadline; whatever goes wrong, the next call begins with a new connection."""
        try:
            return await asyncio.wait_for(coroutine, _PATIENCE)
        except Exception as error:
            if self._server is not None:
                self._server.close()
                self._server = None
            if isinstance(error, Retry):
                raise
            raise Retry(_PAUSES[0], f"no notifications can be shown: {type(error).__name__}: {error}") from error


class _Server:
    """A connection to the notification server of a session bus."""

    def __init__(self, bus: MessageBus, opener: list[str], on_closed: Callable[[int], None]) -> None:
        self.bus = bus
        self._opener = opener
        self._on_closed = on_closed
        self._links: collections.OrderedDict[int, str] = collections.OrderedDict()

    @classmethod
    async def connect(cls, address: str, opener: list[str], on_closed: Callable[[int], None]) -> _Server:
        """Connect to the bus at *address*, and ask for the signals of its notification server."""
        bus: MessageBus | None = None
        try:
            bus = MessageBus(bus_address=address)
            await bus.connect()
            server = cls(bus, opener, on_closed)
            bus.add_message_handler(server._on_message)
            rule = f"type='signal',interface='{_NAME}',path='{_PATH}'"
            await server._ask(_BUS, _BUS_PATH, "AddMatch", "s", [rule])
        except BaseException as error:
            if bus is not None:
                bus.disconnect()
            if isinstance(error, OSError):
                raise Retry(_PAUSES[0], f"no session bus at {address}: {error.strerror or error}") from error
            raise
        return server

    def close(self) -> None:
        self.bus.disconnect()

    async def _ask(self, name: str, path: str, member: str, signature: str = "", body: list[Any] | None = None) -> Any:
        """Call a method and return the first value of its reply."""
        call = Call(
            destination=name, path=path, interface=name, member=member, signature=signature, body=body if body else []
        )
        reply = await self.bus.call(call)
        if reply is None or reply.message_type is MessageType.ERROR:
            said = "no reply" if reply is None else f"{reply.error_name}: {' '.join(map(str, reply.body))[:300]}"
            raise Retry(_PAUSES[0], f"{member} of {name} failed: {said}")
        return reply.body[0] if reply.body else None

    async def notify(self, text: Text, rule: Rule, *, replaces: int) -> int:
        """Show *text* and return the number of its notification."""
        # asked each time: it may be another server than before
        able = frozenset(await self._ask(_NAME, _PATH, "GetCapabilities"))
        title, body, link = compose(text, able)
        actions = [_OPEN, "Open"] if link and "actions" in able else []
        hints = {"urgency": Variant("y", rule.urgency)}
        values = ["fedbus", replaces, rule.icon, title, body, actions, hints, rule.expire]
        number: int = await self._ask(_NAME, _PATH, "Notify", "susssasa{sv}i", values)
        if actions:
            self._links[number] = link
            while len(self._links) > _LINKS:
                self._links.popitem(last=False)
        return number

    def _on_message(self, message: Call) -> None:
        if message.message_type is not MessageType.SIGNAL or message.interface != _NAME or not message.body:
            return
        if message.member == "ActionInvoked" and message.signature == "us" and message.body[1] == _OPEN:
            link = self._links.get(message.body[0])
            if link:
                threading.Thread(target=_open_link, args=[self._opener, link], daemon=True).start()
        elif message.member == "NotificationClosed" and message.signature == "uu":
            self._links.pop(message.body[0], None)
            self._on_closed(message.body[0])


def _open_link(opener: list[str], link: str) -> None:
    """Have a program open *link*, which begins with http:// or https:// and so is no option."""
    found = shutil.which(opener[0])
    if found is None:
        log.warning("cannot open %s: there is no program %s", link, opener[0])
        return
    try:
        with subprocess.Popen(
            [found, *opener[1:], link],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        ) as process:
            process.wait()
    except OSError as error:
        log.warning("cannot open %s with %s: %s", link, found, error.strerror)


# --- texts -----------------------------------------------------------------------------------------------------------


def compose(text: Text, able: frozenset[str]) -> tuple[str, str, str]:
    """Return title, body and link of a notification for a server that is *able* to show these capabilities.

    The title is plain text always; the body is markup where the server knows any, so what means something there is
    escaped. Where there are no actions the link stands in the body. The link is empty where it is none.
    """
    title = plain(text.title, _TITLE) or "fedbus"
    body = plain(text.summary, _LINE)
    link = text.link if _is_link(text.link) else ""
    if "body" not in able:
        return (plain(f"{title}: {body}", _TITLE + _LINE) if body else title), "", link
    if link and "actions" not in able:
        body = f"{body}\n{link}" if body else link
    return title, markup(body) if "body-markup" in able else body, link


def markup(text: str) -> str:
    """Return *text* with all that means something in markup escaped."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def plain(text: str, most: int) -> str:
    """Return at most *most* characters of *text* on one line, without any that do not show as themselves."""
    kept = "".join(letter if letter.isprintable() else " " for letter in text[: 4 * most])
    kept = " ".join(kept.split())
    return kept if len(kept) <= most else kept[: most - 1] + "…"


def summary_of(held: Mapping[str, int]) -> Text:
    """Return the text that stands for those that were held back: how many there were of each title."""
    total = sum(held.values())
    kinds = sorted(held.items(), key=lambda one: (-one[1], one[0]))
    named = ", ".join(f"{count} {title}" for title, count in kinds[:_KINDS])
    rest = sum(count for _, count in kinds[_KINDS:])
    return Text(title=f"… and {total} more", summary=f"{named}, {rest} others" if rest else named)


def _is_link(link: str) -> bool:
    if not link.startswith(("http://", "https://")) or len(link) > _LINK:
        return False
    try:
        parts = urllib.parse.urlsplit(link)
    except ValueError:
        return False
    return bool(parts.hostname) and all("!" <= letter <= "~" for letter in link)


# --- pace and settings -----------------------------------------------------------------------------------------------


class Pace:
    """A bucket of *burst* tokens, of which one comes back *every* so many seconds. Times are monotonic seconds."""

    def __init__(self, burst: int, every: float) -> None:
        self._burst, self._every = burst, every
        self._tokens = float(burst)
        self._at: float | None = None

    def _fill(self, now: float) -> None:
        if self._at is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._at) / self._every)
        self._at = now

    def take(self, now: float) -> bool:
        """Take a token if there is one."""
        self._fill(now)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def wait(self, now: float) -> float:
        """Return the seconds until there is a token."""
        self._fill(now)
        return max(0.0, (1.0 - self._tokens) * self._every)


def _session_bus() -> str:
    """Return the address of this user's session bus, as sd-bus finds it.

    Raises:
        Retry: None is known.
    """
    address = os.environ.get("DBUS_SESSION_BUS_ADDRESS", "")
    folder = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    if not address and Path(folder, "bus").exists():
        address = f"unix:path={urllib.parse.quote(folder)}/bus"
    if not address:
        raise Retry(_PAUSES[0], f"no session bus: DBUS_SESSION_BUS_ADDRESS is not set and there is no {folder}/bus")
    return address


def _filter(text: str, root: str) -> TopicFilter:
    """Return the filter that a person wrote; what does not begin with the prefix is taken within *root*."""
    prefix = root.rpartition(".")[0]
    if not root or text == prefix or text.startswith(prefix + "."):
        return TopicFilter(text)
    return TopicFilter(f"{root}.{text}" if text else root)


def _seconds(name: str, value: object, least: float = 0.0) -> float:
    try:
        seconds = parse_duration(value)
    except ValueError as error:
        raise ValueError(f"settings.{name}: {error}") from error
    if seconds < least:
        raise ValueError(f"settings.{name}: {value!r} is less than {least:g} s")
    return seconds


def _milliseconds(name: str, value: object) -> int:
    return -1 if value is None else min(round(1000 * _seconds(name, value)), 2**31 - 1)
