"""One connection to an IRC server, from the handshake to its end.

Parsing, capabilities and what the server says of itself are pydle's; what an answer means for us is decided here.
A server is not trusted: its lines, their number and what is kept of them are bounded, and whatever is written passes
`Session._send`. Capabilities and accounts: ircv3.net; numerics: modern.ircdocs.horse.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections import Counter, deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pydle.features.ircv3.tags import TaggedMessage

from fedbus import ConfigError
from fedbus.failpoints import ARMED, hit

from .handshake import Handshake, words
from .pacing import cause_of
from .text import LINE_BYTES, clean
from .wire import READ_BYTES, Ended, Wire

if TYPE_CHECKING:
    from .network import Channel, Network

log = logging.getLogger(__name__)

_LONGEST_USER, _LONGEST_HOST = 21, 64  # assumed until the server tells ours
_READ_LINES, _READ_SECONDS = 100, 0.05  # a server that sends more lines than that has to wait
_REGISTER_SECONDS = 60.0  # from the first byte to the welcome
_IDLE_SECONDS = 90.0  # without a line before we ask whether the server is there, and once more before we give up
_SEND_SECONDS = 30.0  # for a server to take a line
_SETTLE_SECONDS = 5.0  # after the welcome until we join where a server does not end its message of the day
_USERS = 50_000  # known at once
_HANDSHAKES = 200  # lines of CAP and of ISUPPORT in one connection
_BAD_LINES = 1000  # in a minute
_NICK_SECONDS = 60.0  # between two tries to get our nick back
_JOIN_SECONDS = 3600.0  # the longest pause before a channel is tried again

_CANNOT_JOIN = ("403", "405", "407", "470", "471", "473", "474", "475", "476", "477", "480", "485", "489", "520")
_HANDLED = frozenset(
    [
        *("CAP", "AUTHENTICATE", "PING", "ERROR", "KILL", "JOIN", "PART", "KICK", "NICK", "QUIT", "ACCOUNT", "CHGHOST"),
        *("PRIVMSG", "001", "005", "353", "354", "376", "422", "396", "404", "408", "410"),
        *("432", "433", "436", "437", "464", "465", "900", "902", "903", "904", "905", "906", "907", "908"),
        *_CANNOT_JOIN,
    ]
)


class Session(Handshake):
    """One connection of *network*; `run` ends with `Ended`, whatever happens."""

    def __init__(self, network: Network) -> None:
        options = network.options
        super().__init__(options)
        self.home = network  # `network` is what pydle calls the name that the server gives to its own
        self.garbage = 0
        self.replies: deque[tuple[str, str]] = deque(maxlen=10)
        self.own_user, self.own_host = "", ""
        self._garbage_since = 0.0
        self._counts: Counter[str] = Counter()
        self._nick_at = 0.0

    # --- from the first byte to the last --------------------------------------------------------------------------

    async def run(self) -> None:
        """Connect, register, join, and say what there is to say.

        Raises:
            Ended: Always, in the end.
        """
        try:
            await self._run()
        except ssl.SSLError as error:
            reason = getattr(error, "verify_message", "") or error.reason or str(error)
            raise Ended("tls", f"TLS with {self.options.tls_name} failed: {reason}") from None
        except ConfigError as error:
            raise Ended("login", str(error)) from None
        except OSError as error:
            raise Ended("lost", error.strerror or str(error) or type(error).__name__) from None
        finally:
            self.close()

    async def _run(self) -> None:
        self.encoding = "utf-8"
        self.connection = Wire(self.options)
        if self.options.password is not None:
            self.password = self.options.password.read()
        try:
            async with asyncio.timeout(_REGISTER_SECONDS):
                await self.connection.connect()
                await self._register()
                while not self.registered:
                    await self._read_line()
        except TimeoutError:
            raise Ended("lost", f"no welcome within {_REGISTER_SECONDS:.0f} s") from None
        self.home.connected(self)
        parts = [asyncio.create_task(part) for part in (self._read(), self._write(), self._keep())]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            # what the server gave as its reason says more than that writing has failed
            for part in sorted(done, key=lambda one: not isinstance(one.exception(), Ended)):
                part.result()
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    def close(self) -> None:
        """Close the socket; what was written is sent as far as it can be at once."""
        writer = getattr(self.connection, "writer", None)
        if writer is not None:
            writer.close()

    async def quit(self) -> None:
        """Say goodbye; the server closes the connection then."""
        self._closing = True
        await self.rawmsg("QUIT", "the relay stops")

    # --- reading ----------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        asked = False
        began, lines = time.monotonic(), 0
        while True:
            try:
                async with asyncio.timeout(_IDLE_SECONDS):
                    await self._read_line()
                asked = False
            except TimeoutError:
                if asked:
                    raise Ended("lost", f"no answer to a PING within {_IDLE_SECONDS:.0f} s") from None
                asked = True
                await self.rawmsg("PING", "fedbus")
            lines += 1
            if lines >= _READ_LINES:
                # gives way to the other networks, and makes a server that floods us wait
                await asyncio.sleep(max(0.0, began + _READ_SECONDS - time.monotonic()))
                began, lines = time.monotonic(), 0

    async def _read_line(self) -> None:
        try:
            data = await self.connection.reader.readline()
        except ValueError:
            raise Ended("garbage", f"a line of more than {READ_BYTES} bytes") from None
        if not data.endswith(b"\n"):
            raise Ended("lost", "the server closed the connection")
        if not data.strip():
            return
        try:
            message = TaggedMessage.parse(data, encoding=self.encoding)
        except Exception as error:
            self._bad_line(error)
        else:
            await self.on_raw(message)

    async def on_raw(self, message: Any) -> None:
        """Handle one line; what cannot be understood is counted, and ignored."""
        name = f"{message.command:03}" if isinstance(message.command, int) else message.command
        if name not in _HANDLED:
            return
        if name in ("CAP", "005"):
            self._counts[name] += 1
            if self._counts[name] > _HANDSHAKES:
                return
        try:
            await getattr(self, f"on_raw_{name.lower()}")(message)
        except (Ended, ConfigError, OSError):
            raise
        except Exception as error:  # too few parameters, two @ in a name …
            self._bad_line(error)

    def _bad_line(self, error: Exception) -> None:
        now = time.monotonic()
        if now - self._garbage_since > 60.0:
            self._garbage_since, self.garbage = now, 0
        self.garbage += 1
        if self.garbage == 1:
            log.warning("irc %s: the server sends lines that are none (%s)", self.options.name, type(error).__name__)
        if self.garbage > _BAD_LINES:
            raise Ended("garbage", f"more than {_BAD_LINES} lines in a minute that are none")

    # --- writing ----------------------------------------------------------------------------------------------------

    async def rawmsg(self, command: str, *args: str, **kwargs: Any) -> None:
        """Write one line at once; `Network.slot` is what is waited for first, where there is no hurry."""
        if command != "MODE":  # which pydle asks for after each JOIN, and nobody needs
            await super().rawmsg(command, *args, **kwargs)

    async def _send(self, input: str | bytes) -> None:
        data = input.encode("utf-8", "replace") if isinstance(input, str) else input
        inner = data[:-2]
        if not data.endswith(b"\r\n") or len(data) > LINE_BYTES or any(one in inner for one in b"\r\n\0\x01"):
            raise ValueError("a line for an IRC server is at most 512 bytes long and holds no CR, LF, NUL or 0x01")
        writer = self.connection.writer
        if writer is None or writer.is_closing():
            raise ConnectionResetError("the connection is closed")
        writer.write(data)
        self.home.spend()
        if writer.is_closing():
            self._hear_out()
        try:
            async with asyncio.timeout(_SEND_SECONDS):
                await writer.drain()
        except TimeoutError:
            raise Ended("lost", f"the server took nothing for {_SEND_SECONDS:.0f} s") from None

    def _hear_out(self) -> None:
        """A write has failed: look whether the server has said why it hung up.

        Raises:
            Ended: It has.
        """
        for line in self.connection.unread().split(b"\n"):
            if line.startswith((b"ERROR ", b":")):
                try:
                    message = TaggedMessage.parse(line + b"\n", encoding=self.encoding)
                except Exception:
                    continue  # a piece of a line
                if message.command == "ERROR" and message.params:
                    raise Ended(cause_of(message.params[0]), words(message))

    def room(self, target: str, command: str) -> int:
        """Return how many bytes of text a line to *target* may have, so that others get it whole."""
        nick = max(len(self.nickname.encode()), len(self.options.nick))
        user = len(self.own_user.encode()) or _LONGEST_USER
        host = len(self.own_host.encode()) or max(_LONGEST_HOST, _number(self._isupport.get("HOSTLEN")))
        return LINE_BYTES - 2 - len(f":!@ {command}  :") - nick - user - host - len(target.encode())

    async def _write(self) -> None:
        while True:
            job = self.home.next_job(self)
            if job is None:
                await self.home.wait_for_work()
                continue
            channel, entry, lines = job
            command = channel.options.command
            said = False
            try:
                for line in lines:
                    await self.home.slot()
                    await asyncio.sleep(0)  # so that what the server says is heard between two lines of a burst
                    if ARMED:
                        hit("irc.send")
                    await self.rawmsg(command, channel.name, line)
                    said = True
            except BaseException:
                if entry is not None and not said:
                    self.home.give_back(channel, entry)
                raise
            if entry is not None:
                self.home.was_said(channel, entry)

    # --- channels and nick ------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Join what is to be joined, and get our nick back."""
        try:
            async with asyncio.timeout(_SETTLE_SECONDS):
                await self.settled.wait()
        except TimeoutError:
            pass
        self._nick_at = time.monotonic()
        while True:
            now = time.monotonic()
            for channel in self.home.channels:
                if not channel.joined and now >= channel.join_at and not self._closing:
                    await self.home.slot()
                    channel.join_at = now + self.options.retry_pause * 12  # if there is no answer
                    key = channel.options.key
                    await self.rawmsg("JOIN", channel.name, *([key.read()] if key is not None else []))
            if not self.is_same_nick(self.nickname, self.options.nick) and now >= self._nick_at:
                self._nick_at = now + max(_NICK_SECONDS, self.options.retry_pause)
                await self._recover()
            await self.home.wait_a_little()

    def _join_later(self, channel: Channel) -> None:
        """Try again after a pause that grows with each refusal."""
        first = self.options.retry_pause * 2
        channel.join_pause = min(max(first, 2 * channel.join_pause), max(_JOIN_SECONDS, first))
        channel.join_at = time.monotonic() + channel.join_pause * (1.0 + 0.25 * random.random())

    def _left(self, channel: Channel, text: str) -> None:
        if channel.joined and time.monotonic() - channel.joined_at > max(600.0, 2 * channel.join_pause):
            channel.join_pause = 0.0
        channel.joined = False
        self._join_later(channel)
        log.warning(
            "irc %s: %s in %s: %s; again in %.0f s",
            *(self.options.name, "no longer" if text.startswith("kicked") else "not", channel.name, text),
            channel.join_at - time.monotonic(),
        )

    async def _recover(self) -> None:
        """Ask for our nick; where services keep it for us, they are told first."""
        if self.options.recover != "nick" and self.logged_in:
            await self.home.slot()
            await self.rawmsg("PRIVMSG", "NickServ", f"{self.options.recover.upper()} {self.options.nick}")
        if self.options.recover != "regain" or not self.logged_in:
            await self.home.slot()
            await self.rawmsg("NICK", self.options.nick)

    # --- what the server says: channels and people ------------------------------------------------------------------

    async def _create_user(self, nickname: str) -> None:
        if len(self.users) >= _USERS:
            raise Ended("garbage", f"the server tells of more than {_USERS} people")
        super()._create_user(nickname)

    async def on_raw_join(self, message: Any) -> None:
        source, names = message.source, message.params[0]
        nick, told = self._parse_user(source)
        us = self.is_same_nick(nick, self.nickname)
        if us:
            self.own_user, self.own_host = told.get("username", ""), told.get("hostname", "")
            for name in names.split(","):
                channel = self._channel(name)
                if channel is None:
                    await self.rawmsg("PART", name)  # forwarded, or made to join
                    return
        await super().on_raw_join(self._create_message("JOIN", names, source=source))
        if self._capabilities.get("extended-join") and len(message.params) > 1:
            self.users[nick]["account"] = None if message.params[1] == "*" else message.params[1]
        for name in names.split(",") if us else ():
            channel = self._channel(name)
            if channel is not None:
                channel.joined, channel.joined_at = True, time.monotonic()
                log.info("irc %s: joined %s", self.options.name, name)
                self.home.wake()
                if self.options.accounts and "WHOX" in self._isupport:
                    await self.rawmsg("WHO", name, "%tna,370")

    async def on_raw_353(self, message: Any) -> None:
        """Note who is in a channel."""
        _, _, name, names = message.params
        if self.in_channel(name):
            for entry in names.split():
                nick = entry.lstrip("".join(self._nickname_prefixes)).partition("!")[0]
                await self._sync_user(nick, {})
                self.channels[name]["users"].add(nick)

    async def on_raw_354(self, message: Any) -> None:
        """Note accounts, as asked for with WHO %tna."""
        _, token, nick, account = message.params
        if token == "370" and nick in self.users:
            self.users[nick]["account"] = None if account == "0" else account

    async def on_raw_account(self, message: Any) -> None:
        nick, _ = self._parse_user(message.source)
        if nick in self.users:
            self.users[nick]["account"] = None if message.params[0] == "*" else message.params[0]

    async def on_raw_396(self, message: Any) -> None:
        """Our own host has changed; some servers say user@host."""
        user, _, self.own_host = message.params[1].rpartition("@")
        self.own_user = user or self.own_user

    async def on_raw_chghost(self, message: Any) -> None:
        nick, _ = self._parse_user(message.source)
        if self.is_same_nick(nick, self.nickname):
            self.own_user, self.own_host = message.params[:2]

    async def on_raw_nick(self, message: Any) -> None:
        nick, _ = self._parse_user(message.source)
        was_us = self.is_same_nick(nick, self.nickname)
        await super().on_raw_nick(message)
        if was_us and self.registered and not message.source.startswith("<"):
            log.info("irc %s: our nick is %s", self.options.name, clean(self.nickname, 60))
        self._nick_is_free(nick)

    async def on_raw_quit(self, message: Any) -> None:
        nick, _ = self._parse_user(message.source)
        if self.is_same_nick(nick, self.nickname):
            raise Ended("stopped" if self._closing else cause_of(words(message)), words(message))
        if nick in self.users:
            self._destroy_user(nick)
        self._nick_is_free(nick)

    def _nick_is_free(self, nick: str) -> None:
        if self.is_same_nick(nick, self.options.nick) and not self.is_same_nick(nick, self.nickname):
            self._nick_at = 0.0
            self.home.stir()

    async def on_raw_part(self, message: Any) -> None:
        nick, _ = self._parse_user(message.source)
        for name in message.params[0].split(","):
            self._gone(nick, name, "made to leave")

    async def on_raw_kick(self, message: Any) -> None:
        kicker, _ = self._parse_user(message.source)
        name, nick = message.params[:2]
        self._gone(nick, name, f"kicked by {clean(kicker, 60)}: {words(message)}")

    def _gone(self, nick: str, name: str, text: str) -> None:
        if not self.in_channel(name):
            return
        if self.is_same_nick(nick, self.nickname):
            self._destroy_channel(name)
            channel = self._channel(name)
            if channel is not None:
                self._left(channel, text)
        elif nick in self.users:
            self._destroy_user(nick, name)

    async def _cannot_join(self, message: Any) -> None:
        channel = self._channel(message.params[1])
        if channel is not None and not channel.joined:
            self._left(channel, words(message))

    async def on_raw_404(self, message: Any) -> None:
        """Our line was refused: for its colours, or because the channel is moderated or we are banned from it."""
        channel = self._channel(message.params[1])
        if channel is None:
            return
        text = words(message)
        if channel.coloured and "colo" in text.lower():
            channel.coloured = False
            log.info("irc %s: %s takes no colours: %s", self.options.name, channel.name, text)
            return
        if channel.hold():
            log.warning("irc %s: %s takes no messages: %s; again in 60 s", self.options.name, channel.name, text)

    on_raw_408 = on_raw_404

    def _channel(self, name: str) -> Channel | None:
        return next((one for one in self.home.channels if self.is_same_channel(one.name, name)), None)

    def people(self, name: str) -> Iterable[str]:
        """Return the nicks in a channel."""
        return self.channels[name]["users"] if self.in_channel(name) else ()

    # --- commands ---------------------------------------------------------------------------------------------------

    async def on_raw_privmsg(self, message: Any) -> None:
        target, text = message.params
        channel = self._channel(target)
        if channel is not None and text.startswith("!") and channel.joined:
            nick, _ = self._parse_user(message.source)
            for reply in self.home.command(channel, nick, message.source, self._account(message, nick), text):
                self.replies.append((channel.name, reply))
            self.home.wake()

    def _account(self, message: Any, nick: str) -> str:
        """Return the services account of who said *message*, only where the server keeps us informed of it."""
        if self._capabilities.get("account-tag"):
            tag = message.tags.get("account")
            return tag if isinstance(tag, str) else ""
        if self._capabilities.get("account-notify") and self._capabilities.get("extended-join"):
            return (self.users.get(nick) or {}).get("account") or ""
        return ""


for _numeric in _CANNOT_JOIN:
    setattr(Session, f"on_raw_{_numeric}", Session._cannot_join)


def _number(value: Any) -> int:
    """Return a small number from ISUPPORT, or 0."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 3 else 0
