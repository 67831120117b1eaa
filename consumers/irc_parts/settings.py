"""The settings of the relay: their JSON Schema, and what becomes of them."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import re2

from fedbus import ConfigError, TopicFilter, parse_duration

from .rules import Rule, Seen, topic_filters


def _object(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False, **more}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "maxItems": 100}


_WORD = {"type": "string", "pattern": r"^[^\s\x00-\x1f\x7f,:][^\s\x00-\x1f\x7f,]*$", "maxLength": 200}
# a name or an address; "::1" begins with what no word of a command may
_HOST = {"type": "string", "pattern": r"^[^\s\x00-\x1f\x7f,]+$", "maxLength": 200}
_PATH = {"type": "string", "minLength": 1}
_TIME = {"type": ["number", "string"]}  # read by parse_duration
_NICK = {"type": "string", "pattern": r"^[A-Za-z\[\]\\`_^{|}][A-Za-z0-9\[\]\\`_^{|}-]*$", "maxLength": 30}
_SECRET = _object({"file": _PATH, "env": _WORD}, minProperties=1, maxProperties=1)
_REGEX = {"type": "string", "minLength": 1, "maxLength": 500}
_SCALAR = {"type": ["string", "number", "boolean", "null"]}
_RULE = _object(
    {
        "topics": _list({"type": "string"}),
        "fields": {
            "type": "object",
            "maxProperties": 20,
            "additionalProperties": {"type": [*_SCALAR["type"], "array"], "items": _SCALAR, "maxItems": 100},
        },
        "patterns": {"type": "object", "maxProperties": 20, "additionalProperties": _REGEX},
        "text": _list(_REGEX),
        "body": _list(_REGEX),
    },
    minProperties=1,
)
_CHANNEL = _object(
    {
        "key": _SECRET,
        "topics": _list({"type": "string"}),
        "allow": _list(_RULE),
        "deny": _list(_RULE),
        "colours": {"type": ["boolean", "object"], "additionalProperties": {"type": "string"}},
        "link": {"type": "boolean"},
        "lines": {"type": "integer", "minimum": 1, "maximum": 5},
        "notice": {"type": "boolean"},
        "mentions": {"type": "integer", "minimum": 0, "maximum": 100},
        "queue": {"type": "integer", "minimum": 1, "maximum": 10_000},
    }
)
_NETWORK = _object(
    {
        "server": _HOST,
        "port": {"type": "integer", "minimum": 1, "maximum": 65535},
        "tls": {"type": "boolean"},
        "tls_ca": _PATH,
        "tls_certificate": _PATH,
        "tls_key": _PATH,
        "tls_name": _HOST,
        "nick": _NICK,
        "other_nicks": _list(_NICK),
        "recover": {"enum": ["nick", "regain", "ghost"]},
        "user": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,20}$"},
        "realname": {"type": "string", "pattern": r"^[^\x00-\x1f\x7f]{1,100}$"},
        "password": _SECRET,
        "sasl": _object(
            {"mechanism": {"enum": ["PLAIN", "EXTERNAL"]}, "account": _WORD, "password": _SECRET},
            required=["mechanism"],
        ),
        "channels": {"type": "object", "propertyNames": {"pattern": r"^[#&+!][^\s\x00-\x1f\x7f,:]{1,199}$"}},
        "commands": _object(
            {"accounts": _list(_WORD), "hostmasks": _list({"type": "string", "pattern": "^.+!.+@.+$"})}
        ),
        "lines_per_second": {"type": "number", "exclusiveMinimum": 0, "maximum": 1000},
        "burst": {"type": "integer", "minimum": 1, "maximum": 1000},
        "retry_pause": _TIME,
        "retry_most": _TIME,
        "ban_pause": _TIME,
    },
    required=["server", "nick", "channels"],
)
_NETWORK["properties"]["channels"]["additionalProperties"] = _CHANNEL

SCHEMA = _object(
    {"networks": {"type": "object", "additionalProperties": _NETWORK}, "linger": _TIME}, required=["networks"]
)

_COLOURS = {
    **{"white": 0, "black": 1, "navy": 2, "green": 3, "red": 4, "brown": 5, "purple": 6, "orange": 7, "yellow": 8},
    **{"lime": 9, "teal": 10, "cyan": 11, "blue": 12, "pink": 13, "grey": 14, "silver": 15},
}
_SERVICE_COLOURS = (3, 4, 6, 7, 10, 12, 13, 2, 5)  # readable on light and on dark


@dataclass(frozen=True, slots=True)
class Secret:
    """Where a password is; it is read when it is needed, so that it can be changed, and never logged."""

    file: str = ""
    env: str = ""

    def read(self) -> str:
        """Return the password.

        Raises:
            ConfigError: It is not there, or others may read it, or it is not one line.
        """
        where = f"the file {self.file}" if self.file else f"the environment variable {self.env}"
        try:
            text = self._from_file() if self.file else os.environ[self.env]
        except KeyError:
            raise ConfigError(f"{where} is not set; set it where the hub is started") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where} cannot be read: {error}; put the password there") from None
        text = text.removesuffix("\n").removesuffix("\r")
        if not text or len(text) > 400 or any(unicodedata.category(one) == "Cc" for one in text):
            raise ConfigError(f"{where} must hold one line of 1 to 400 characters: the password")
        return text

    def _from_file(self) -> str:
        # O_NONBLOCK: a FIFO must not hold us up
        with os.fdopen(os.open(self.file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), encoding="utf-8") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ConfigError(f"{self.file} is not a regular file; put the password into one")
            if found.st_mode & 0o007:
                raise ConfigError(f"{self.file} can be read by everybody; use chmod 600")
            return file.read(1000)


class ChannelOptions:
    """What one channel gets, and how it looks."""

    def __init__(self, name: str, wanted: Mapping[str, Any], root: str, where: str) -> None:
        self.name = name
        self.key = Secret(**wanted["key"]) if "key" in wanted else None
        self._topics = topic_filters(wanted.get("topics", ()), root, where)
        self._allow = [Rule(one, root, f"{where}.allow[{place}]") for place, one in enumerate(wanted.get("allow", ()))]
        self._deny = [Rule(one, root, f"{where}.deny[{place}]") for place, one in enumerate(wanted.get("deny", ()))]
        colours = wanted.get("colours", True)
        self.colours = bool(colours) or colours == {}
        self._colours: list[tuple[list[TopicFilter], int]] = []
        for text, colour in colours.items() if isinstance(colours, dict) else ():
            if colour not in _COLOURS:
                raise ConfigError(f"{where}.colours.{text}: {colour!r} is none of {', '.join(_COLOURS)}")
            self._colours.append((topic_filters([text], root, f"{where}.colours"), _COLOURS[colour]))
        self.link: bool = wanted.get("link", True)
        self.lines: int = wanted.get("lines", 2)
        self.command = "NOTICE" if wanted.get("notice", False) else "PRIVMSG"
        self.mentions: int = wanted.get("mentions", 2)
        self.queue: int = wanted.get("queue", 30)

    def wants(self, seen: Seen) -> bool:
        """Say whether *seen* belongs here: among the topics, allowed by a rule if there are any, denied by none."""
        if self._topics and not any(one.matches(seen.topic) for one in self._topics):
            return False
        if self._allow and not any(one.holds(seen) for one in self._allow):
            return False
        return not any(one.holds(seen) for one in self._deny)

    def colour(self, topic: str, service: str) -> int:
        """Return the colour of a message, of 16: as configured for the topic, else always the same for a service."""
        for filters, colour in self._colours:
            if any(one.matches(topic) for one in filters):
                return colour
        return _SERVICE_COLOURS[zlib.crc32(service.encode()) % len(_SERVICE_COLOURS)]


def _host(text: str) -> str:
    """Return a name or an address, without the brackets that IPv6 has before a port."""
    return text[1:-1] if text.startswith("[") and text.endswith("]") else text


class NetworkOptions:
    """One server, who we are there, and the channels."""

    def __init__(self, name: str, wanted: Mapping[str, Any], root: str) -> None:
        where = f"networks.{name}"
        self.name = name
        self.server: str = _host(wanted["server"])
        self.tls: bool = wanted.get("tls", True)
        self.port: int = wanted.get("port", 6697 if self.tls else 6667)
        self.tls_ca: str | None = wanted.get("tls_ca")
        self.tls_certificate: str | None = wanted.get("tls_certificate")
        self.tls_key: str | None = wanted.get("tls_key")
        self.tls_name: str = _host(wanted.get("tls_name", self.server))
        self.nick: str = wanted["nick"]
        self.other_nicks: list[str] = wanted.get("other_nicks", [])
        self.recover: str = wanted.get("recover", "nick")
        self.user: str = wanted.get("user", "fedbus")
        self.realname: str = wanted.get("realname", "fedbus relay")
        self.password = Secret(**wanted["password"]) if "password" in wanted else None
        sasl = wanted.get("sasl", {})
        self.sasl: str = sasl.get("mechanism", "")
        self.account: str = sasl.get("account", self.nick)
        self.sasl_password = Secret(**sasl["password"]) if "password" in sasl else None
        if self.sasl == "PLAIN" and self.sasl_password is None:
            raise ConfigError(f"{where}.sasl: PLAIN needs a password; add password: {{file: PATH}} or {{env: NAME}}")
        if self.sasl == "PLAIN" and not self.tls and self.server not in ("localhost", "127.0.0.1", "::1"):
            raise ConfigError(f"{where}.sasl: PLAIN sends the password as it is; use tls: true")
        if self.sasl == "EXTERNAL" and not (self.tls and self.tls_certificate):
            raise ConfigError(f"{where}.sasl: EXTERNAL shows a certificate; add tls_certificate (and tls_key)")
        commands = wanted.get("commands", {})
        self.accounts = {one.lower() for one in commands.get("accounts", ())}
        self.hostmasks = [_mask(one) for one in commands.get("hostmasks", ())]
        self.lines_per_second: float = wanted.get("lines_per_second", 0.5)
        self.burst: int = wanted.get("burst", 4)
        try:
            self.retry_pause = max(0.05, parse_duration(wanted.get("retry_pause", 5.0)))
            self.retry_most = max(self.retry_pause, parse_duration(wanted.get("retry_most", 300.0)))
            self.ban_pause = max(self.retry_pause, parse_duration(wanted.get("ban_pause", 900.0)))
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from None
        self.channels = [
            ChannelOptions(one, value, root, f"{where}.channels.{one}") for one, value in wanted["channels"].items()
        ]


def _mask(text: str) -> Any:
    """Return a matcher for ``nick!user@host`` with ``*`` and ``?``, linear in time as regular expressions are here."""
    parts = [{"*": ".*", "?": "."}.get(one) or re.escape(one) for one in text.lower()]
    return re2.compile("".join(parts))
