"""What comes before the first word in a channel: capabilities, login, a nick. The part of a connection that is pydle's.

SASL PLAIN is RFC 4616, EXTERNAL RFC 4422 appendix A, both as ircv3.net says.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import random
from typing import Any

import pydle
from pydle.features.ircv3.cap import NEGOTIATING, CapabilityNegotiationSupport
from pydle.features.ircv3.tags import TaggedMessageSupport
from pydle.features.isupport import ISUPPORTSupport

from .pacing import cause_of
from .settings import NetworkOptions
from .text import clean
from .wire import READ_BYTES, Ended

_NICKS = 8  # tried while registering

_Base: Any = pydle.featurize(ISUPPORTSupport, TaggedMessageSupport, CapabilityNegotiationSupport)


class Handshake(_Base):  # type: ignore[misc]  # pydle has no types
    """Registers with the server; *settled* is set when it has said what it says to newcomers."""

    def __init__(self, options: NetworkOptions) -> None:
        super().__init__(options.nick, options.other_nicks, username=options.user, realname=options.realname)
        self.options = options
        self.logged_in = ""
        self.settled = asyncio.Event()
        self._closing = False
        self._caps = ""
        self._nicks_tried = 0

    def _reset_attributes(self) -> None:
        super()._reset_attributes()
        # pydle logs whole lines, passwords among them
        self.logger = logging.Logger("pydle", logging.CRITICAL + 1)

    def _next_nick(self) -> str:
        self._nicks_tried += 1
        if self._nicks_tried > _NICKS:
            raise Ended("nick", f"{self.options.nick} is taken or refused, and so is whatever else we tried")
        if self._attempt_nicknames:
            return str(self._attempt_nicknames.pop(0))
        # nine characters fit everywhere
        return (
            f"{self.options.nick[:6]}{random.randrange(1000):03}"
            if self._nicks_tried > 1
            else (f"{self.options.nick[:8]}_")
        )

    async def on_raw_001(self, message: Any) -> None:
        if self.options.sasl and not self.logged_in:
            raise Ended("login", "the server offers no SASL")
        await self._registration_completed(message)

    async def on_raw_376(self, message: Any) -> None:
        self.settled.set()

    on_raw_422 = on_raw_376

    async def on_raw_cap_ls(self, params: list[str]) -> None:
        more = len(params) > 1 and params[0] == "*"
        self._caps = f"{self._caps} {params[-1]}"[:READ_BYTES]
        if not more:
            caps, self._caps = self._caps, ""
            if self.options.sasl and not self.registered and "sasl" not in [one.split("=")[0] for one in caps.split()]:
                raise Ended("login", "the server offers no SASL; are its services up?")
            await super().on_raw_cap_ls([caps])

    async def on_capability_sasl_available(self, value: str | None) -> bool:
        wanted = self.options.sasl
        if wanted and value and wanted not in value.upper().split(","):
            raise Ended("login", f"the server offers SASL {clean(value, 100)}, not {wanted}")
        return bool(wanted) and not self.registered

    async def _wanted(self, value: str | None) -> bool:
        return bool(self.options.accounts) or bool(self.options.hostmasks)

    on_capability_account_tag_available = _wanted
    on_capability_account_notify_available = _wanted
    on_capability_extended_join_available = _wanted

    async def on_capability_chghost_available(self, value: str | None) -> bool:
        return True

    async def on_capability_sasl_enabled(self) -> Any:
        await self.rawmsg("AUTHENTICATE", self.options.sasl)
        return NEGOTIATING

    async def on_raw_authenticate(self, message: Any) -> None:
        """Answer the one question of PLAIN (RFC 4616) and EXTERNAL (RFC 4422, appendix A), in pieces of 400 bytes."""
        if message.params[0] != "+":
            raise Ended("login", "the server asks something that SASL PLAIN and EXTERNAL do not")
        answer = b""
        if self.options.sasl == "PLAIN" and self.options.sasl_password is not None:
            answer = f"\0{self.options.account}\0{self.options.sasl_password.read()}".encode()
        text = base64.b64encode(answer).decode()
        for start in range(0, len(text), 400):
            await self.rawmsg("AUTHENTICATE", text[start : start + 400])
        if len(text) % 400 == 0:
            await self.rawmsg("AUTHENTICATE", "+")

    async def on_raw_900(self, message: Any) -> None:
        self.logged_in = clean(message.params[2], 100)

    async def on_raw_903(self, message: Any) -> None:
        self.logged_in = self.logged_in or self.options.account
        await self._capability_negotiated("sasl")

    on_raw_907 = on_raw_903

    async def _login_refused(self, message: Any) -> None:
        raise Ended("login", f"SASL {self.options.sasl} was refused: {words(message)}")

    on_raw_902 = on_raw_904 = on_raw_905 = on_raw_906 = on_raw_908 = _login_refused

    async def on_raw_464(self, message: Any) -> None:
        raise Ended("login", f"the server refuses the password: {words(message)}")

    async def on_raw_465(self, message: Any) -> None:
        raise Ended("banned", words(message))

    async def on_raw_error(self, message: Any) -> None:
        raise Ended("stopped" if self._closing else cause_of(message.params[0]), words(message))

    async def on_raw_kill(self, message: Any) -> None:
        if self.is_same_nick(message.params[0], self.nickname):
            raise Ended("killed", words(message))

    async def on_raw_433(self, message: Any) -> None:
        if not self.registered:
            await self.set_nickname(self._next_nick())

    on_raw_432 = on_raw_436 = on_raw_433

    async def on_raw_437(self, message: Any) -> None:
        if self.is_channel(message.params[1]):
            await self._cannot_join(message)
        else:
            await self.on_raw_433(message)


def words(message: Any) -> str:
    """Return what a server says in the last parameter, fit for a log."""
    return clean(message.params[-1] if message.params else "", 200)
