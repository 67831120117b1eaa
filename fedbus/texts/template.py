"""The small language of texts: ``{owner}'s build of {nvr|package} is {status: 0=broken, 1=complete}[, see {url}]``.

It has what a line of text needs and nothing that could run away: no loops, no calls, no attributes. A template has at
most so many characters and so many fields, a field looks at most at so many items and characters of a message, and what
comes out is cut: so the time and the room that rendering takes are bounded whatever a message holds.

    {path}                  a value: body.owner, or owner; topic, endpoint, … (see `OUTER`) are those of the message
    {builds.nvr}            of each item of a list; {builds.0.nvr} of the first
    {nvr|package|"a word"}  the first that is not empty
    {message:first}         changed by one of `FILTERS`
    {status: 0=no, *=yes}   words in place of values; `*` stands for any other
    [ in {place}]           left out where one of its fields is empty
    {{ }} [[ ]]             the characters themselves
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fedbus.texts import words
from fedbus.texts.guess import name_of, package_of, person_of

TEMPLATE = 2000  # characters of a template at most
FIELDS = 64  # in one template
VALUE = 300  # characters of one value
ITEMS = 50  # of a list that are looked at
DEPTH = 16  # fields of a path
OUTER = ("topic", "endpoint", "epoch", "sequence", "id", "time", "signer", "wire", "dataschema", "body")

_TOKEN = re.compile(r"\{\{|\}\}|\[\[|\]\]|\{([^{}]*)\}|[{}\[\]]|[^{}\[\]]+")
_PATH = re.compile(r"[^\s|:\"{}\[\]]+")
_PAIR = re.compile(r"([^=,]+)=([^,]*)")


class TemplateError(ValueError):
    """The template is none; the text says where and why."""


def _first(value: Any) -> Any:
    return words.first_line(value, VALUE) if isinstance(value, str) else value


def _base(value: Any) -> Any:
    return value.rstrip("/").rpartition("/")[2] if isinstance(value, str) and len(value) < 4096 else value


def _count(value: Any) -> Any:
    return len(value) if isinstance(value, (list, Mapping)) else value


FILTERS: Mapping[str, Callable[[Any], Any]] = {
    "first": _first,  # the first line
    "base": _base,  # what stands behind the last slash
    "short": lambda value: value[:8] if isinstance(value, str) else value,  # of the digest of a commit
    "person": lambda value: person_of(name_of(value)),  # a name, without address or host
    "package": lambda value: package_of(name_of(value)),  # of NAME-VERSION-RELEASE the name
    "count": _count,  # how many items
    "lower": lambda value: name_of(value).lower(),
}


@dataclass(frozen=True, slots=True)
class _Source:
    """One place to look at, and what is made of what is there."""

    path: tuple[str, ...]
    literal: str | None = None
    filters: tuple[Callable[[Any], Any], ...] = ()
    table: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class _Field:
    sources: tuple[_Source, ...]


@dataclass(frozen=True, slots=True)
class _Optional:
    parts: tuple[str | _Field, ...]


class Template:
    """A template that was read; it may be used by any number of threads."""

    __slots__ = ("_parts", "text")

    def __init__(self, text: str) -> None:
        """Raises TemplateError where *text* is none."""
        self.text = text
        self._parts = tuple(_parse(text))

    def render(self, message: Any, room: int = words.LINE) -> str:
        """Return the text for *message*, on one line of at most *room* characters."""
        pieces: list[str] = []
        for part in self._parts:
            if isinstance(part, str):
                pieces.append(part)
            elif isinstance(part, _Field):
                pieces.append(_shown(part, message))
            else:
                found = [one if isinstance(one, str) else _shown(one, message) for one in part.parts]
                if all(piece for one, piece in zip(part.parts, found, strict=True) if isinstance(one, _Field)):
                    pieces += found
        return words.line("".join(pieces), room)

    def values(self, message: Any, most: int = 8) -> tuple[str, ...]:
        """Return each value of a template that is one field, such as ``{builds.nvr:package}``; else the text alone."""
        if len(self._parts) == 1 and isinstance(self._parts[0], _Field):
            found = _found(self._parts[0], message)
            items = found[:ITEMS] if isinstance(found, list) else [found]
            names = [name_of(one, VALUE) for one in items]
        else:
            names = [self.render(message)]
        return tuple(dict.fromkeys(name for name in names if name))[:most]


def _parse(text: str) -> Iterator[str | _Field | _Optional]:
    if len(text) > TEMPLATE:
        raise TemplateError(f"a template has at most {TEMPLATE} characters, this one has {len(text)}")
    inner: list[str | _Field] | None = None
    began = fields = 0
    for match in _TOKEN.finditer(text):
        piece, at = match[0], match.start()
        part: str | _Field
        if piece in ("{{", "}}", "[[", "]]"):
            part = piece[0]
        elif match[1] is not None:
            fields += 1
            if fields > FIELDS:
                raise TemplateError(f"a template has at most {FIELDS} fields")
            part = _field(match[1], at)
        elif piece == "[":
            if inner is not None:
                raise TemplateError(f"character {at}: [ within [; optional parts do not nest, write [[ for a bracket")
            inner, began = [], at
            continue
        elif piece == "]":
            if inner is None:
                raise TemplateError(f"character {at}: ] without [; write ]] for a bracket")
            if not any(isinstance(one, _Field) for one in inner):
                raise TemplateError(f"character {began}: no field between [ and ], so it is never left out; use [[ ]]")
            yield _Optional(tuple(inner))
            inner = None
            continue
        elif piece in "{}":
            raise TemplateError(f"character {at}: a single {piece}; write {piece * 2} for a brace")
        else:
            part = piece
        if inner is None:
            yield part
        else:
            inner.append(part)
    if inner is not None:
        raise TemplateError(f"character {began}: [ without ]; write [[ for a bracket")


def _field(text: str, at: int) -> _Field:
    sources = tuple(_source(one.strip(), at) for one in _split(text))
    return _Field(sources)


def _split(text: str) -> Iterator[str]:
    """Split at ``|``, which within quotes is a character as others."""
    start, quoted = 0, False
    for place, letter in enumerate(text):
        if letter == '"':
            quoted = not quoted
        elif letter == "|" and not quoted:
            yield text[start:place]
            start = place + 1
    yield text[start:]


def _source(text: str, at: int) -> _Source:
    if len(text) >= 2 and text[0] == text[-1] == '"' and '"' not in text[1:-1]:
        return _Source((), literal=text[1:-1])
    head, *rest = text.split(":")
    head = head.strip()
    if not _PATH.fullmatch(head):
        raise TemplateError(f"character {at}: {head or text!r} is no path; write a field such as {{body.owner}}")
    path = tuple(head.split("."))
    if len(path) > DEPTH or not all(path):
        raise TemplateError(f"character {at}: {head!r} is no path: {DEPTH} names at most, joined by single dots")
    filters: list[Callable[[Any], Any]] = []
    table: list[tuple[str, str]] = []
    for one in rest:
        word = one.strip()
        if "=" in word:
            pairs = [_PAIR.fullmatch(pair) for pair in word.split(",")]
            if table or not all(pairs):
                raise TemplateError(f"character {at}: {word!r} is no table; write {{status: 0=failed, 1=complete}}")
            table = [(pair[1].strip(), pair[2].strip()) for pair in pairs if pair]
        elif word in FILTERS and not table:
            filters.append(FILTERS[word])
        else:
            raise TemplateError(f"character {at}: {word!r} is none of {', '.join(FILTERS)} and no table VALUE=WORDS")
    return _Source(path, None, tuple(filters), tuple(table))


# --- values ----------------------------------------------------------------------------------------------------


def _shown(field: _Field, message: Any) -> str:
    return name_of(_found(field, message), VALUE)


def _found(field: _Field, message: Any) -> Any:
    """Return the first value that is there, or nothing."""
    for source in field.sources:
        if source.literal is not None:
            return source.literal
        value = _walk(message, source.path)
        for change in source.filters:
            value = (
                [change(one) for one in value[:ITEMS]]
                if isinstance(value, list) and change is not _count
                else (change(value))
            )
        if source.table:
            value = _looked_up(source.table, value)
        if value is True or value is False:
            value = "yes" if value else "no"
        if value is not None and value != "" and name_of(value, VALUE):
            return value
    return ""


def _looked_up(table: tuple[tuple[str, str], ...], value: Any) -> str:
    if value is True or value is False:
        text = "true" if value else "false"
    else:
        text = "" if value is None else name_of(value, VALUE)
    for key, word in table:
        if key == text or (key == "*" and text):
            return word
    return ""


def _walk(message: Any, path: tuple[str, ...]) -> Any:
    """Return what is at *path*: of the message, where it begins with a name of `OUTER`, else of its body."""
    first = path[0]
    if first in OUTER:
        if first == "body":
            return _within(message.body, path[1:], 0) if len(path) > 1 else None
        if len(path) > 1:
            return None
        return message.attributes.get(first) if first == "dataschema" else getattr(message, first, None)
    return _within(message.body, path, 0)


def _within(value: Any, path: tuple[str, ...], lists: int) -> Any:
    for place, name in enumerate(path):
        if isinstance(value, Mapping):
            if (rest := ".".join(path[place:])) in value:  # a key that has dots itself
                return value[rest]
            value = value.get(name)
        elif isinstance(value, list):
            if name.isdecimal() and len(name) < 7:
                value = value[int(name)] if int(name) < len(value) else None
            elif lists:
                return None  # lists within lists would be looked at as often as they have items
            else:
                found = [_within(one, path[place:], 1) for one in value[:ITEMS]]
                return [one for one in found if one is not None and not isinstance(one, list)]
        else:
            return None
    return value
