"""Whether what was published is what was expected, and a text that shows where it is not."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_MOST_LINES = 60  # of one difference


@dataclass(frozen=True, slots=True)
class Published:
    """A message that code under test has published.

    ``topic`` is the full topic, ``said`` what the code has called it. ``body`` is as readers would get it: decoded from
    JSON, so tuples are lists, and later changes of the object that was published are not in it.
    """

    topic: str
    body: dict[str, Any]
    endpoint: str
    said: str
    root: str  # PREFIX.ENVIRONMENT
    dataschema: str | None = None
    traceparent: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What the topic may be called: in full, without PREFIX.ENVIRONMENT, without the service, as it was said."""
        short = self.topic.removeprefix(self.root + ".")
        return (self.topic, short, short.partition(".")[2], self.said)


Expected = str | tuple[str, Any] | Mapping[str, Any] | Callable[[Published], object]
"""What a message is expected to be: its topic; its topic and body; a mapping with some of ``topic``, ``body``,
``endpoint``, ``dataschema`` and ``traceparent``; or something that is called with the :class:`Published` message, and
returns False, or raises AssertionError, where it is not what is wanted."""

_KEYS = ("topic", "body", "endpoint", "dataschema", "traceparent")


class _Containing:
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, members: Mapping[str, Any]) -> None:
        self.members = dict(members)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        return all(key in other and other[key] == value for key, value in self.members.items())

    def __repr__(self) -> str:
        return f"containing({self.members!r})"


def containing(members: Mapping[str, Any] | None = None, /, **more: Any) -> Any:
    """Return what equals every mapping that has these members, whatever else is in it; for bodies that are expected."""
    return _Containing({**(members or {}), **more})


def check_expected(items: Sequence[Expected]) -> None:
    """Find what is none of the forms of `Expected`, before any code under test runs.

    Raises:
        TypeError: It says which item, and why.
    """
    for number, item in enumerate(items, 1):
        if isinstance(item, str) or (not isinstance(item, (tuple, Mapping)) and callable(item)):
            continue
        if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str):
            continue
        if isinstance(item, Mapping) and item and all(key in _KEYS for key in item):
            continue
        raise TypeError(
            f"expected message {number} is {item!r}; write a topic, a pair (topic, body), a mapping with some of "
            f"{', '.join(_KEYS)}, or something that can be called with the published message"
        )


def fault(item: Expected, message: Published) -> str:
    """Return why *message* is not what *item* expects, over some lines perhaps; empty where it is."""
    if isinstance(item, str):
        return _of_topic(item, message)
    if isinstance(item, tuple):
        return _of_topic(item[0], message) or _of_body(item[1], message.body)
    if isinstance(item, Mapping):
        faults = []
        if "topic" in item:
            faults.append(_of_topic(item["topic"], message))
        if "body" in item:
            faults.append(_of_body(item["body"], message.body))
        for key in ("endpoint", "dataschema", "traceparent"):
            if key in item and item[key] != getattr(message, key):
                faults.append(f"{key}: expected {item[key]!r}, published {getattr(message, key)!r}")
        return "\n".join(filter(None, faults))
    try:
        verdict = item(message)
    except AssertionError as error:
        return f"{_name(item)}: {error}" if str(error) else f"{_name(item)} raised AssertionError"
    return f"{_name(item)} returned False" if verdict is False else ""


def _of_topic(wanted: Any, message: Published) -> str:
    if any(wanted == name for name in message.names):
        return ""
    return f"topic: expected {wanted!r}, published {message.topic!r}"


def _of_body(wanted: Any, body: dict[str, Any]) -> str:
    if wanted == body:
        return ""
    if isinstance(wanted, _Containing):
        missing = [key for key in wanted.members if key not in body]
        body = {key: value for key, value in body.items() if key in wanted.members}
        note = f" (it has no {', '.join(map(repr, missing))})" if missing else ""
        return f"body{note}:\n{_difference(wanted.members, body)}"
    return f"body:\n{_difference(wanted, body)}"


def _difference(wanted: Any, found: Any) -> str:
    lines = list(difflib.ndiff(_lines(wanted), _lines(found)))
    kept = [line.rstrip("\n") for line in lines]
    if len(kept) > _MOST_LINES:
        kept = [*[line for line in kept if not line.startswith("  ")][:_MOST_LINES], "  …"]
    return "\n".join(kept)


def _lines(value: Any) -> list[str]:
    return json.dumps(value, indent=2, sort_keys=True, default=repr, ensure_ascii=False).splitlines()


def _name(item: Any) -> str:
    return getattr(item, "__name__", None) or repr(item)


def _shown(item: Expected) -> str:
    if isinstance(item, str):
        return item
    if isinstance(item, (tuple, Mapping)):
        return repr(item if isinstance(item, tuple) else dict(item))
    return _name(item)


def difference(expected: Sequence[Expected], published: Sequence[Published], *, ordered: bool) -> str:
    """Return a text that says where *published* is not what is *expected*; empty where it is.

    Without *ordered*, each expected item needs a message of its own, wherever it stands.
    """
    pairs, extra = _paired(expected, published) if not ordered else _in_order(expected, published)
    faults = [(item, message, "" if message is None else fault(item, message)) for item, message in pairs]
    if not extra and all(message is not None and not why for _, message, why in faults):
        return ""
    lines = [f"{_counted(len(expected))} expected, {len(published)} published:"]
    for number, (item, message, why) in enumerate(faults, 1):
        if message is None:
            lines.append(f"  {number}. missing: {_shown(item)}")
        elif why:
            lines.append(f"  {number}. is not what was expected: {message.topic}")
            lines += [f"       {line}" for line in why.splitlines()]
        else:
            lines.append(f"  {number}. as expected: {message.topic}")
    for message in extra:
        body = json.dumps(message.body, ensure_ascii=False, sort_keys=True)
        lines.append(f"  not expected: {message.topic} {body if len(body) <= 500 else body[:500] + '…'}")
    return "\n".join(lines)


Pairs = list[tuple[Expected, Published | None]]


def _in_order(expected: Sequence[Expected], published: Sequence[Published]) -> tuple[Pairs, list[Published]]:
    pairs: Pairs = [(item, published[place] if place < len(published) else None) for place, item in enumerate(expected)]
    return pairs, list(published[len(expected) :])


def _paired(expected: Sequence[Expected], published: Sequence[Published]) -> tuple[Pairs, list[Published]]:
    """Give each item a message that it fits, by augmenting paths, so that a greedy choice takes none from another."""
    fits = [[not fault(item, message) for message in published] for item in expected]
    taken: dict[int, int] = {}  # place of a message -> place of its item

    def find(item: int, tried: set[int]) -> bool:
        for place, fine in enumerate(fits[item]):
            if fine and place not in tried:
                tried.add(place)
                if place not in taken or find(taken[place], tried):
                    taken[place] = item
                    return True
        return False

    for item in range(len(expected)):
        find(item, set())
    of_item = {item: place for place, item in taken.items()}
    pairs: Pairs = [
        (item, published[of_item[number]] if number in of_item else None) for number, item in enumerate(expected)
    ]
    return pairs, [message for place, message in enumerate(published) if place not in taken]


def _counted(number: int) -> str:
    return "1 message was" if number == 1 else f"{number} messages were"
