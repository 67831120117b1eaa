"""Which messages a channel gets: topics, fields, regular expressions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import re2

from fedbus import ConfigError, FedbusError, Message, Text, TopicFilter, escape


class Regex:
    """A regular expression in RE2's syntax, searched for in time linear in the text: it needs no deadline."""

    def __init__(self, text: str, where: str) -> None:
        options = re2.Options()
        options.log_errors = False
        options.max_mem = 4 * 2**20
        try:
            self._compiled = re2.compile(text, options=options)
        except (re2.error, UnicodeEncodeError) as error:
            reason = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else str(error)
            raise ConfigError(
                f"{where}: '{escape(text[:80])}' is no regular expression: {reason}; the syntax is RE2's, without "
                "back-references and look-around"
            ) from None

    def found_in(self, text: str) -> bool:
        """Search the first 64 KiB of *text*."""
        return self._compiled.search(text[: 2**16].encode("utf-8", "replace").decode()) is not None


class Seen:
    """A message as rules look at it: what is shown of it, and its body as JSON when one asks."""

    def __init__(self, message: Message, text: Text) -> None:
        self.topic, self.body = message.topic, message.body
        self.text = text
        self._json: str | None = None

    @property
    def json(self) -> str:
        """The body, compact, with sorted keys."""
        if self._json is None:
            self._json = json.dumps(self.body, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str)
        return self._json

    def field(self, path: Sequence[str]) -> Any:
        """Return the field at *path*, of objects by name and of lists by number, or ``...`` where there is none."""
        value: Any = self.body
        for part in path:
            if isinstance(value, Mapping) and part in value:
                value = value[part]
            elif isinstance(value, list) and part.isdecimal() and len(part) < 6 and int(part) < len(value):
                value = value[int(part)]
            else:
                return ...
        return value


class Rule:
    """Conditions that must all hold: topics (any), fields (all), patterns in fields (all), in text and body (any)."""

    def __init__(self, wanted: Mapping[str, Any], root: str, where: str) -> None:
        self._topics = topic_filters(wanted.get("topics", ()), root, where)
        self._fields = [
            (path.split("."), value if isinstance(value, list) else [value])
            for path, value in wanted.get("fields", {}).items()
        ]
        self._patterns = [
            (path.split("."), Regex(text, f"{where}.patterns.{path}"))
            for path, text in wanted.get("patterns", {}).items()
        ]
        self._text = [Regex(text, f"{where}.text") for text in wanted.get("text", ())]
        self._body = [Regex(text, f"{where}.body") for text in wanted.get("body", ())]

    def holds(self, seen: Seen) -> bool:
        """Say whether *seen* is what the rule describes."""
        if self._topics and not any(one.matches(seen.topic) for one in self._topics):
            return False
        for path, values in self._fields:
            found = seen.field(path)
            # JSON's true is not 1
            if not any(found == one and isinstance(found, bool) == isinstance(one, bool) for one in values):
                return False
        for path, regex in self._patterns:
            found = seen.field(path)
            if found is ... or isinstance(found, (dict, list)) or not regex.found_in(str(found)):
                return False
        if self._text and not any(one.found_in(seen.text.summary) for one in self._text):
            return False
        return not self._body or any(one.found_in(seen.json) for one in self._body)


def topic_filters(texts: Iterable[str], root: str, where: str) -> list[TopicFilter]:
    """Read filters as people write them: full ones, and ones within *root*, the PREFIX.ENV of the bus."""
    found = []
    for text in texts:
        try:
            found.append(TopicFilter(text.removesuffix(".")))
            if root:
                found.append(TopicFilter(f"{root}.{text}".removesuffix(".")))
        except FedbusError as error:
            raise ConfigError(f"{where}.topics: {error}") from None
    return found
