"""What is looked for in a history, and how much of that an index can answer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedbus.history.places import first_place
from fedbus.history.words import CUT, PACKAGE, USER, WORD_CHARACTERS, Wanted, name_word, parse_text, split, text_of
from fedbus.history.words import fold as fold_text
from fedbus.model.message import Message
from fedbus.model.paths import look_up
from fedbus.model.topic import TopicFilter

_LOWEST, _HIGHEST = -(2**63), 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryQuery:
    """Which messages are wanted: of those, all that is said has to hold.

    *filters*: one of these topics. *endpoints*, *services*: of one of these (a service is what stands before the first
    dot of an endpoint's name). *since_ms* and *until_ms*: from then on, and before then, in milliseconds since 1970.
    *text*: see :func:`~fedbus.history.words.parse_text`. *fields*: (path, value), where the value is compared as text
    or as JSON, and with each item where a list stands there. *users* and *packages*: about one of these; names as they
    are, case aside.

    *after* and *through* are places (see :meth:`HistoryStore.place_of`): behind the one, and up to and with the other.

    *limit* 0 is no limit; *newest* says that the newest come first. *seconds* is how long it may take, 0.0: for ever.

    Raises:
        ValueError: The text has no words, a path is empty, or one of the lists has more than a thousand items.
    """

    filters: tuple[TopicFilter, ...] = ()
    endpoints: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    since_ms: int | None = None
    until_ms: int | None = None
    after: int | None = None
    through: int | None = None
    text: str = ""
    fields: tuple[tuple[str, str], ...] = ()
    users: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    limit: int = 0
    newest: bool = False
    seconds: float = 0.0
    wanted: tuple[Wanted, ...] = field(init=False)

    def __post_init__(self) -> None:
        given = (self.text, *self.endpoints, *self.services, *self.users, *self.packages, *sum(self.fields, ()))
        for text in given:
            if not _is_text(text):
                raise ValueError(f"{text[:80]!r} is no text that a message could have")
        object.__setattr__(self, "wanted", parse_text(self.text) if self.text else ())
        for path, _ in self.fields:
            if not path or len(path) > 1000:
                raise ValueError(f"{path[:80]!r} is no path of a field")
        lists: Iterable[Sequence[object]] = (
            self.filters,
            self.endpoints,
            self.services,
            self.fields,
            self.users,
            self.packages,
        )
        if any(len(one) > 1000 for one in lists):
            raise ValueError("more than a thousand of one kind are looked for")
        if self.limit < 0 or self.seconds < 0.0:
            raise ValueError("a limit is 0 or more")

    @property
    def places(self) -> tuple[int, int]:
        """The places from the first up to and with the second among which all that is wanted stands.

        With a time given, what has no credible time is left out.
        """
        low, high = _LOWEST, _HIGHEST
        if self.since_ms is not None:
            low = min(_HIGHEST, first_place(max(self.since_ms, 0)))
        if self.until_ms is not None:
            high = max(-1, min(_HIGHEST, first_place(max(self.until_ms, 0)) - 1))
            low = max(low, 0)
        if self.after is not None:
            low = max(low, self.after + 1)
        if self.through is not None:
            high = min(high, self.through)
        return low, high

    def of_topic(self, topic: str) -> bool:
        """Say whether the topic is a wanted one."""
        return not self.filters or any(one.matches(topic) for one in self.filters)

    def of_endpoint(self, endpoint: str) -> bool:
        """Say whether the endpoint is a wanted one."""
        if self.endpoints and endpoint not in self.endpoints:
            return False
        return not self.services or endpoint.partition(".")[0] in self.services

    @property
    def any_endpoint(self) -> bool:
        """Whether all endpoints are wanted."""
        return not self.endpoints and not self.services

    @property
    def terms(self) -> Terms:
        """What an index of words has to be asked; it finds all that is wanted, and more where :attr:`inexact`."""
        groups: list[tuple[Term, ...]] = []
        for one in self.wanted:
            for word in one.words[:-1]:
                groups.append((Term(word[:WORD_CHARACTERS]),))
            last = one.words[-1]
            groups.append((Term(last[:WORD_CHARACTERS], one.begins or len(last) > WORD_CHARACTERS),))
        for kind, names in ((USER, self.users), (PACKAGE, self.packages)):
            if names:
                groups.append(tuple(Term(name_word(kind, name)) for name in dict.fromkeys(names)))
        for path, value in self.fields:
            # what a field holds is among the words of its message, unless that was longer than an index takes
            if path.partition(".")[0] in _OUTSIDE:
                continue
            words = split(fold_text(value)) if not _is_number(value) else []
            groups += [(Term(word[:WORD_CHARACTERS], len(word) > WORD_CHARACTERS), Term(CUT)) for word in words[:8]]
        return tuple(dict.fromkeys(groups))

    @property
    def inexact(self) -> bool:
        """Whether what the index finds has to be looked at itself."""
        return bool(self.fields) or not all(one.exact for one in self.wanted)

    def confirms(self, message: Message) -> bool:
        """Say whether a message that the index has found is wanted, by its text and fields."""
        if not all(one.exact for one in self.wanted):
            words = split(text_of(message.body))
            if not all(one.within(words) for one in self.wanted):
                return False
        if self.fields:
            record = message.record()
            return all(holds(look_up(record, path), value) for path, value in self.fields)
        return True


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Term:
    """A word, or with *begins* the beginning of one, in an index."""

    word: str
    begins: bool = False


Terms = tuple[tuple[Term, ...], ...]
"""Of each inner tuple one word has to be there."""

_OUTSIDE = frozenset(
    ("topic", "endpoint", "epoch", "sequence", "id", "time", "signer", "wire", "dataschema", "traceparent")
)


def _is_number(text: str) -> bool:
    """Say whether it may be written in other ways and mean the same, so that its words say nothing."""
    if text.isascii() and text.isdigit() and len(text) < 16:
        return False  # 12345.0 has the word 12345 too
    try:
        float(text)
    except ValueError:
        return text in ("true", "false", "null")
    return True


def holds(found: Any, value: str) -> bool:
    """Say whether what was *found* at a path is the *value* that was written: as text, as JSON, or in a list."""
    if isinstance(found, str):
        return found == value
    if isinstance(found, list):
        return any(holds(one, value) for one in found if not isinstance(one, list))
    if isinstance(found, dict):
        return False
    try:
        meant = json.loads(value)
    except (ValueError, RecursionError):
        return False
    return type(meant) in _SAME.get(type(found), ()) and bool(meant == found)


_SAME: dict[type, tuple[type, ...]] = {
    int: (int, float),
    float: (int, float),
    bool: (bool,),
    type(None): (type(None),),
}
