"""From the configuration of a site that runs fedmsg to ours, with a word about each key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from fedbus.errors import ConfigError, WireError
from fedbus.fedmsg.codec import check_topic
from fedbus.fedmsg.evaluate import Folder, Found, Unknown
from fedbus.fedmsg.keys import HAND, NONE, TRANSLATED, Status, find
from fedbus.fedmsg.options import ENVIRONMENTS
from fedbus.transport.endpoint import NAME_LIMIT, Address, check_name

_PREFIX = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)+")
_FEDMSG_PREFIX = re.compile(r"[a-zA-Z0-9_-]+(\.[a-zA-Z0-9_-]+)+")
_OURS = {theirs: ours for ours, theirs in ENVIRONMENTS.items()}


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one key, or of a part of it."""

    key: str
    status: Status
    text: str
    origin: str  # FILE:LINE, or empty


@dataclass(slots=True)
class Translation:
    """Our configuration, ready for YAML, and what has to be said of it."""

    values: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether nothing is left for people to do."""
        return all(row.status != HAND for row in self.rows)

    def yaml(self) -> str:
        """Return the text of a configuration file."""
        head = (
            "# Translated from a fedmsg.d folder by `fedbus config import-fedmsg`; read it before you use it.\n"
            "# Who goes on with fedmsg is read as he is. Move a service by taking `wire: fedmsg` away from its\n"
            "# endpoint, giving it a `replay` address, and a certificate: fedbus keys issue NAME\n"
        )
        if "endpoints" not in self.values:
            head += "# There are no endpoints in that folder: name them here, or in another file beside this one.\n"
        return head + yaml.dump(self.values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    """Writes no anchors: our own files may have none."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def translate(folder: Folder) -> Translation:
    """Translate what :func:`fedbus.fedmsg.evaluate.read_folder` has found."""
    return _Translator(folder).run()


class _Translator:
    def __init__(self, folder: Folder) -> None:
        self._keys = folder.keys
        self._problems = folder.problems
        self._result = Translation()
        self._fedmsg: dict[str, Any] = {}
        self._addresses: dict[str, str] = {}
        self._names: dict[str, str] = {}  # theirs -> the first of ours
        self._taken: set[str] = set()  # addresses that an endpoint of ours has

    def run(self) -> Translation:
        values = self._result.values
        for problem in self._problems:
            self._row("", HAND, problem, "")
        prefix = self._topic_prefix()
        environment = self._environment()
        values["topic_prefix"], values["environment"] = prefix, environment
        endpoints = self._endpoints()
        self._certificates(endpoints)
        self._trust(environment)
        self._policy()
        self._marks()
        values["fedmsg"] = self._fedmsg
        if endpoints:
            values["endpoints"] = endpoints  # an empty section would be refused, even beside a file that has some
        for key, found in self._keys.items():
            if key not in _HANDLED:
                self._other(key, found)
        return self._result

    def _row(self, key: str, status: Status, text: str, origin: str) -> None:
        self._result.rows.append(Row(key, status, text, origin))

    def _take(self, key: str, kind: type | tuple[type, ...]) -> Any:
        """Return the value of *key*; None where it is absent, or is not what it should be, which is told."""
        found = self._keys.get(key)
        if found is None:
            return None
        if isinstance(found.value, Unknown):
            self._row(key, HAND, f"cannot be translated: {found.value}", found.origin)
            return None
        if not isinstance(found.value, kind) or (isinstance(found.value, bool) and kind is not bool):
            self._row(key, HAND, f"cannot be translated: {_shown(found.value)} is not what fedmsg takes", found.origin)
            return None
        return found.value

    def _origin(self, key: str) -> str:
        found = self._keys.get(key)
        return "" if found is None else found.origin

    # --- names -------------------------------------------------------------------------------------------------

    def _topic_prefix(self) -> str:
        text = self._take("topic_prefix", str)
        if text is None:
            if "topic_prefix" not in self._keys:
                self._row("topic_prefix", HAND, "not set; com.example is what fedmsg takes then", "")
            return "com.example"
        if not _FEDMSG_PREFIX.fullmatch(text):
            self._row("topic_prefix", HAND, f"{text[:80]!a} is not two or more labels", self._origin("topic_prefix"))
            return "com.example"
        self._fedmsg["topic_prefix"] = text
        if _PREFIX.fullmatch(text):
            self._row("topic_prefix", TRANSLATED, "topic_prefix, and fedmsg.topic_prefix", self._origin("topic_prefix"))
        else:
            self._row("topic_prefix", HAND, "ours are lower case; that of fedmsg stays", self._origin("topic_prefix"))
        return str(text).lower()

    def _environment(self) -> str:
        text = self._take("environment", str)
        if text is None:
            return "dev"
        origin = self._origin("environment")
        if re.fullmatch(r"[a-zA-Z]{1,32}", text):
            self._fedmsg["environment"] = text
        if text in _OURS:
            self._row("environment", TRANSLATED, f"environment: {_OURS[text]}", origin)
            return _OURS[text]
        self._row("environment", HAND, f"{text[:40]!a} is none of dev, stg and prod; taken for stg", origin)
        return "stg"

    # --- endpoints ---------------------------------------------------------------------------------------------

    def _endpoints(self) -> dict[str, Any]:
        result: dict[str, Any] = {}
        found = self._take("endpoints", dict)
        origin = self._origin("endpoints")
        if found is None:
            if "endpoints" not in self._keys:
                self._row("endpoints", HAND, "there are none, so nobody is read; name them", "")
            return result
        before = len(self._result.rows)
        for name, urls in found.items():
            for number, address in enumerate(self._urls(str(name), urls, origin), 1):
                ours = self._name(str(name), number, address, result)
                if ours is None:
                    self._row(f"endpoints.{name}", HAND, "cannot be made an endpoint's name; choose one", origin)
                    break
                self._names.setdefault(str(name), ours)
                if ours != str(name) and number == 1:
                    self._row(f"endpoints.{name}", TRANSLATED, f"called {ours} here", origin)
                result[ours] = {"publish": str(address), "wire": "fedmsg"}
        if len(self._result.rows) == before or result:
            self._row("endpoints", TRANSLATED, f"{_counted(len(result), 'endpoint')}, marked `wire: fedmsg`", origin)
        return result

    def _urls(self, name: str, urls: Any, origin: str) -> Iterator[Address]:
        for url in urls if isinstance(urls, list) else [urls]:
            if isinstance(url, Unknown):
                self._row(f"endpoints.{name}", HAND, f"cannot be translated: {url}", origin)
                continue
            try:
                address = Address.parse(url if isinstance(url, str) else _shown(url))
            except ConfigError as error:
                self._row(f"endpoints.{name}", HAND, str(error), origin)
                continue
            other = self._addresses.setdefault(str(address), name)
            if str(address) in self._taken:
                self._row(f"endpoints.{name}", NONE, f"{address} is in the list already, of {other}", origin)
                continue
            self._taken.add(str(address))
            yield address

    def _name(self, name: str, number: int, address: Address, taken: dict[str, Any]) -> str | None:
        """Return a name of ours: SERVICE.HOST in small letters."""
        text = re.sub(r"[^a-z0-9_.-]", "-", name.lower()).strip(".-_")
        if "." not in text:
            host = re.sub(r"[^a-z0-9-]", "-", address.host.lower().split(".")[0]).strip("-") or "host"
            host = "host" if address.host.replace(".", "").isdigit() or ":" in address.host else host
            text = f"{text}.{host}"
        base = text[: NAME_LIMIT - 6]
        for count in (number, *range(2, 1000)):
            candidate = base if count == 1 else f"{base}-{count}"
            if candidate in taken:
                continue
            try:
                check_name(candidate)
            except ConfigError:
                return None
            return candidate
        return None

    def _certificates(self, endpoints: dict[str, Any]) -> None:
        names = self._take("certnames", dict)
        folder = self._take("ssldir", str)
        origin = self._origin("certnames")
        if folder is not None:
            self._row(
                "ssldir", TRANSLATED, "certificate and key of endpoints that certnames lists", self._origin("ssldir")
            )
        if names is None:
            return
        folder = folder or "/etc/pki/fedmsg"
        used = 0
        for name, stem in names.items():
            key = f"certnames.{name}"
            if isinstance(stem, Unknown):
                self._row(key, HAND, f"cannot be translated: {stem}", origin)
            elif not isinstance(stem, str) or not stem.isprintable() or "/" in stem:
                self._row(key, HAND, f"{_shown(stem)} names no certificate", origin)
            elif (ours := self._names.get(str(name))) is None:
                text = f"no endpoint has that name; publish as one with certificate {folder}/{stem}.crt"
                self._row(key, NONE, text, origin)
            else:
                base = re.sub(r"-\d+\Z", "", ours)
                for one in endpoints:
                    if one == ours or re.fullmatch(re.escape(base) + r"-\d+", one):
                        endpoints[one] |= {"certificate": f"{folder}/{stem}.crt", "key": f"{folder}/{stem}.key"}
                used += 1
        text = f"certificate and key of {_counted(used, 'endpoint')}; the keys need mode 0600"
        self._row("certnames", TRANSLATED, text, origin)

    # --- trust -------------------------------------------------------------------------------------------------

    def _trust(self, environment: str) -> None:
        for key, ours in (("ca_cert_location", "ca"), ("crl_location", "crl")):
            place = self._take(key, str)
            origin = self._origin(key)
            if place is None:
                if key not in self._keys:
                    text = "not set, and fedmsg then takes Fedora's over the network; name a file"
                    self._row(key, HAND, f"{text}: fedmsg.{ours}", "")
            elif "://" in place:
                self._row(key, HAND, f"download it, and name the file: fedmsg.{ours}", origin)
            elif not place.isprintable() or not place:
                self._row(key, HAND, "is no path", origin)
            else:
                self._fedmsg[ours] = place
                self._row(key, TRANSLATED, f"fedmsg.{ours}", origin)

    def _policy(self) -> None:
        nitpicky = self._take("routing_nitpicky", bool)
        # what fedmsg takes where nothing is said; ours would be true
        self._fedmsg["routing_nitpicky"] = bool(nitpicky)
        text = "fedmsg.routing_nitpicky" if nitpicky else "fedmsg.routing_nitpicky: false; set it to true when you can"
        self._row("routing_nitpicky", TRANSLATED, text, self._origin("routing_nitpicky"))
        policy = self._take("routing_policy", dict)
        if policy is None:
            return
        origin = self._origin("routing_policy")
        rules: dict[str, list[str]] = {}
        for topic, signers in policy.items():
            key = f"routing_policy.{topic}"
            if isinstance(signers, Unknown):
                self._row(key, HAND, f"cannot be translated: {signers}", origin)
                continue
            names = signers if isinstance(signers, list) else [signers]
            bad = [one for one in names if not isinstance(one, str) or not 0 < len(one) <= 255 or not one.isprintable()]
            try:
                check_topic(str(topic))
            except WireError as error:
                self._row(key, HAND, str(error), origin)
                continue
            for one in bad:
                text = f"cannot be translated: {one}" if isinstance(one, Unknown) else f"{_shown(one)} is no name"
                self._row(key, HAND, text, origin)
            rules[str(topic)] = [one for one in names if one not in bad]
        self._fedmsg["routing_policy"] = rules
        self._row("routing_policy", TRANSLATED, f"fedmsg.routing_policy: {_counted(len(rules), 'topic')}", origin)

    def _marks(self) -> None:
        mark = self._take("high_water_mark", int)
        origin = self._origin("high_water_mark")
        if mark is None:
            return
        if 0 < mark <= 1_000_000_000:
            self._fedmsg["receive_hwm"] = self._fedmsg["send_hwm"] = mark
            self._row("high_water_mark", TRANSLATED, "fedmsg.receive_hwm and fedmsg.send_hwm", origin)
        else:
            text = "0 means 1000 in fedmsg, whatever its documentation says; ours are 10,000"
            self._row("high_water_mark", NONE if mark == 0 else HAND, text, origin)

    def _other(self, key: str, found: Found) -> None:
        known = find(key)
        if known is None:
            text = "neither fedmsg nor moksha knows it; a consumer of yours does: consumers.NAME.settings"
            self._row(key, HAND, text, found.origin)
            return
        status, text = known
        if isinstance(found.value, Unknown) and status != NONE:
            text = f"{text}; its value cannot be translated: {found.value}"
        if not found.value and status == HAND and not isinstance(found.value, Unknown):
            status = NONE  # it was switched off
        self._row(key, status, text, found.origin)


_HANDLED = frozenset(
    {
        "topic_prefix",
        "environment",
        "endpoints",
        "certnames",
        "ssldir",
        "ca_cert_location",
        "crl_location",
        "routing_nitpicky",
        "routing_policy",
        "high_water_mark",
    }
)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "a dict" if isinstance(value, dict) else "a list"
    text = ascii(value)
    return text if len(text) <= 80 else text[:80] + "…"
