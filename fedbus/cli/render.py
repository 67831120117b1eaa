"""How messages, and anything else from the network, are shown to people: escaped, on one line, in colour if wanted.

What a terminal could obey, hide or reorder (ESC, CSI, OSC, C1, bidi controls, zero-width and other invisible
characters) comes out as a visible escape such as ``\\x1b`` or ``\\u202e``. JSON output is escaped the same way, inside
its strings, so that it means the same and may still be looked at.
"""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson

from fedbus.cli.escaping import escape, shows
from fedbus.cli.paths import look_up, value_at
from fedbus.model.message import Message

if TYPE_CHECKING:
    from fedbus.cli.patterns import Patterns
    from fedbus.texts.texts import Texts

__all__ = ["FORMATS", "Look", "Renderer", "look_up", "parse_template", "record", "summary", "to_json"]

RESET = "\x1b[0m"
DIM = "\x1b[2m"
BOLD = "\x1b[1m"
RED = "\x1b[31m"
YELLOW = "\x1b[33m"
_MARKED = "\x1b[1;7m"  # bold and reversed: readable on any ground and in any colour
_CODE = re.compile(r"(\x1b\[[0-9;]*m)")
# readable on dark and on light ground; black, white and grey are left out, red is for trouble
_PALETTE = ("32", "33", "34", "35", "36", "92", "94", "95", "96", "38;5;208", "38;5;141", "38;5;37")

RECORD_KEYS = ("topic", "endpoint", "epoch", "sequence", "id", "time", "signer", "wire", "body")
FORMATS = ("short", "wide", "pretty", "json")


def to_json(value: object) -> str:
    """Return *value* as JSON on one line, in which every character shows as itself or as a JSON escape."""
    text = compact(value)
    if shows(text):
        return text
    return "".join(map(_json_escaped, text))


def compact(value: object) -> str:
    try:
        return orjson.dumps(value, default=str).decode()
    except orjson.JSONEncodeError:
        # nested deeper than orjson goes, where the limits were set so high
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)


def _json_escaped(letter: str) -> str:
    if shows(letter):
        return letter
    code = ord(letter)
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def record(message: Message) -> dict[str, Any]:
    """Return what scripts get of *message*: the keys `RECORD_KEYS`, and those optional attributes that it has."""
    return message.record()


def plain(value: Any) -> str:
    """Return a value of a body for people: text escaped and without quotes where none are needed, else JSON."""
    if isinstance(value, str):
        return escape(value)
    return to_json(value)


def summary(body: dict[str, Any], room: int) -> str:
    """Return *body* in about *room* characters: its plain members first, those with members of their own after."""
    simple = ((key, value) for key, value in body.items() if not isinstance(value, (dict, list)))
    nested = ((key, value) for key, value in body.items() if isinstance(value, (dict, list)))
    parts: list[str] = []
    used = 0
    for key, value in itertools.chain(simple, nested):
        left = room - used
        if left <= 0:
            parts.append("…")
            break
        part = f"{escape(key[:left])}={_value(value, left)}"
        parts.append(part)
        used += len(part) + 1
    return " ".join(parts)


def _value(value: Any, room: int) -> str:
    if isinstance(value, str):
        # cut before it is escaped: a megabyte is not worked on for one line
        cut = value if len(value) <= room else value[: max(0, room - 1)] + "…"
        text = escape(cut)
        return text if text and not re.search(r'[\s="]', text) else f'"{text}"'
    if isinstance(value, (dict, list)):
        small = _shallow(value, room)
        text = to_json(small)
    else:
        text = to_json(value)
    return text if len(text) <= room else text[: max(0, room - 1)] + "…"


def _shallow(value: Any, room: int, depth: int = 3) -> Any:
    """Return no more of *value* than fits into *room* characters anyhow."""
    if isinstance(value, str):
        return value[:room]
    if isinstance(value, dict):
        if value and not depth:
            return "…"
        items = itertools.islice(value.items(), room // 4 + 1)
        return {key[:room]: _shallow(inner, room, depth - 1) for key, inner in items}
    if isinstance(value, list):
        return [_shallow(inner, room, depth - 1) for inner in value[: room // 2 + 1]] if depth or not value else "…"
    return value


def cut(text: str, columns: int) -> str:
    """Return as much of the escaped *text* as fits into *columns* of a terminal, wide characters counting two."""
    if len(text) * 2 <= columns or (text.isascii() and len(text) <= columns):
        return text
    used = 0
    for place, letter in enumerate(text):
        wide = 1 if letter.isascii() else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if used + wide > columns - 1:
            return text[:place] + "…" if place < len(text) - 1 or used + wide > columns else text
        used += wide
    return text


def colour_of(service: str) -> str:
    """Return the terminal code of a service's colour: the same in every run and on every host."""
    return f"\x1b[{_PALETTE[zlib.crc32(service.encode('utf-8', 'replace')) % len(_PALETTE)]}m"


def marked(line: str, patterns: Patterns) -> str:
    """Return *line*, which may be coloured, with all that *patterns* fit in its text standing out."""
    pieces = []
    colour = ""
    for piece in _CODE.split(line):
        if _CODE.fullmatch(piece):
            colour = "" if piece == RESET else colour + piece
            pieces.append(piece)
            continue
        place = 0
        for begin, end in patterns.spans(piece):
            pieces += (piece[place:begin], _MARKED, piece[begin:end], RESET, colour)
            place = end
        pieces.append(piece[place:])
    return "".join(pieces)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How messages are to be shown. ``columns`` 0: lines are as long as they are."""

    form: str = "short"  # one of FORMATS, or a template with {fields}
    fields: tuple[str, ...] = ()
    colour: bool = False
    utc: bool = False
    columns: int = 0
    root: str = ""  # PREFIX.ENV; what is within it is shown without it
    delta: bool = False  # show how long after the message before each was published
    marked: Patterns | None = None  # what is to stand out; only with colour, and not in JSON


class Renderer:
    """Turns messages into lines."""

    def __init__(self, look: Look, texts: Texts | None = None) -> None:
        """*texts*: what messages say to people, for ``text.summary`` and the like; else these are members of the body.

        Raises:
            ValueError: The template is none.
        """
        self._look = look
        self._texts = texts
        self._shown_second = ("", "", "")  # a time up to its second, a form, and how it was shown
        self._before: datetime | None = None  # when the last message shown was published
        self._delta: float | None = None
        self._root = look.root + "." if look.root else ""
        self._parts: list[str | Field] = []
        forms: dict[str, Callable[[Message], str]] = {
            "short": self._short,
            "wide": self._wide,
            "pretty": self._pretty,
            "json": self._json,
        }
        if look.form in forms:
            self.render = forms[look.form]
        else:
            self._parts = parse_template(look.form)
            self.render = self._template
        if look.delta:
            self.render = self._with_delta(self.render)
        if look.marked and look.colour and look.form != "json":
            self.render = self._with_marks(self.render, look.marked)

    render: Callable[[Message], str]
    """Returns the text for a message, without a newline at its end."""

    def _with_delta(self, render: Callable[[Message], str]) -> Callable[[Message], str]:
        def timed(message: Message) -> str:
            try:
                moment = datetime.fromisoformat(message.time)
            except ValueError:
                self._delta = None
            else:
                before, self._before = self._before, moment
                # by the publishers' clocks; behind a message of another endpoint it may be negative
                self._delta = None if before is None else (moment - before).total_seconds()
            return render(message)

        return timed

    def _with_marks(self, render: Callable[[Message], str], patterns: Patterns) -> Callable[[Message], str]:
        return lambda message: marked(render(message), patterns)

    def _record(self, message: Message) -> dict[str, Any]:
        shown = message.record()
        if self._look.delta:
            shown["delta"] = self._delta
        return shown

    def _when(self, message: Message, form: str) -> str:
        stamp = message.time
        second = stamp[:19]
        # thousands of messages are of one second, and what a zone makes of it is the dearest part of a line
        exact = "%f" in form
        if not exact and self._shown_second[:2] == (second, form) and stamp[-1:] == "Z":
            return self._shown_second[2]
        try:
            moment = datetime.fromisoformat(stamp)
        except ValueError:
            return escape(stamp)
        if not self._look.utc:
            moment = moment.astimezone()
        shown = moment.strftime(form)
        if not exact and stamp[-1:] == "Z":
            self._shown_second = (second, form, shown)
        return shown

    def _since_before(self) -> str:
        """Return the column of --delta, with a blank behind it."""
        if not self._look.delta:
            return ""
        return "          " if self._delta is None else f"{self._delta:+9.3f} "

    def _service(self, topic: str) -> tuple[str, str]:
        """Split a topic into what is coloured, its service, and the rest; a foreign one is shown whole."""
        if self._root and topic.startswith(self._root):
            service, _, rest = topic[len(self._root) :].partition(".")
            return escape(service), escape(rest)
        head, _, rest = topic.rpartition(".")
        return escape(head or rest), escape(rest if head else "")

    def _detail(self, message: Message, room: int) -> str:
        if not self._look.fields:
            # what somebody has written for people to read comes first; no guess says as much as the fields themselves
            said = self._texts.declared(message) if self._texts is not None else ""
            return escape(said) if said else summary(message.body, room)
        shown = self._record(message)
        pairs = ((path, value_at(message, shown, path, self._texts)) for path in self._look.fields)
        return " ".join(f"{escape(path)}={_value(value, room)}" for path, value in pairs if value is not None)

    def _short(self, message: Message) -> str:
        when = self._when(message, "%H:%M:%S")
        delta = self._since_before()
        service, rest = self._service(message.topic)
        left = self._look.columns - len(when) - len(delta) - len(service) - len(rest) - 4 if self._look.columns else 300
        detail = self._detail(message, max(left, 10))
        if self._look.columns:
            detail = cut(detail, max(left, 10))
        flag = "" if message.wire == "native" else f"[{escape(message.wire)}] "
        if not self._look.colour:
            return f"{when} {delta}{service} {rest}  {flag}{detail}"
        return f"{DIM}{when} {delta}{RESET}{colour_of(service)}{service}{RESET} {BOLD}{rest}{RESET}  {flag}{detail}"

    def _wide(self, message: Message) -> str:
        when = self._when(message, "%Y-%m-%dT%H:%M:%S.%f%z")
        endpoint, topic = escape(message.endpoint), escape(message.topic)
        signer, identifier = escape(message.signer), escape(message.id)
        if self._look.colour:
            service, _ = self._service(message.topic)
            endpoint, topic = f"{colour_of(service)}{endpoint}{RESET}", f"{BOLD}{topic}{RESET}"
        detail = self._detail(message, 10_000) if self._look.fields else to_json(message.body)
        return (
            f"{when} {self._since_before()}{endpoint}#{message.sequence} {topic} id={identifier} signer={signer} "
            f"wire={escape(message.wire)} {detail}"
        )

    def _pretty(self, message: Message) -> str:
        head = self._wide_head(message)
        shown: Any = message.body
        if self._look.fields:
            shown = self._chosen(message)
        body = json.dumps(shown, ensure_ascii=False, indent=2, default=str)
        # newlines here are those of the layout: JSON has none inside its strings
        lines = ("".join(map(_json_escaped, line)) for line in body.split("\n"))
        return head + "\n" + "\n".join(f"  {line}" for line in lines)

    def _wide_head(self, message: Message) -> str:
        when = self._when(message, "%Y-%m-%d %H:%M:%S.%f")
        service, rest = self._service(message.topic)
        place = f"{escape(message.endpoint)}#{message.sequence}, signed by {escape(message.signer)}"
        delta = self._since_before()
        if not self._look.colour:
            return f"{when} {delta}{service} {rest} ({place})"
        return (
            f"{DIM}{when} {delta}{RESET}{colour_of(service)}{service}{RESET} {BOLD}{rest}{RESET} {DIM}({place}){RESET}"
        )

    def _json(self, message: Message) -> str:
        return to_json(self._chosen(message) if self._look.fields else self._record(message))

    def _chosen(self, message: Message) -> dict[str, Any]:
        shown = self._record(message)
        return {path: value_at(message, shown, path, self._texts) for path in self._look.fields}

    def _template(self, message: Message) -> str:
        shown = self._record(message)
        pieces = []
        for part in self._parts:
            if isinstance(part, str):
                pieces.append(part)
                continue
            value = value_at(message, shown, part.path, self._texts)
            pieces.append("" if value is None else plain(value))
        return "".join(pieces)


@dataclass(frozen=True, slots=True)
class Field:
    """A place in a template that a value fills."""

    path: str


_TEMPLATE = re.compile(r"\{\{|\}\}|\{([^{}\s]+)\}|[{}]|\\[nt\\]|[^{}\\]+|\\")
_ESCAPES = {"{{": "{", "}}": "}", "\\n": "\n", "\\t": "\t", "\\\\": "\\"}


def parse_template(text: str) -> list[str | Field]:
    """Split a template: ``{path}`` is a field, ``{{`` and ``}}`` are braces, ``\\n`` and ``\\t`` what they are in C.

    Raises:
        ValueError: A brace stands alone, or there is no field at all.
    """
    parts: list[str | Field] = []
    for match in _TEMPLATE.finditer(text):
        piece = match[0]
        if match[1]:
            parts.append(Field(match[1]))
        elif piece in "{}":
            raise ValueError(f"{text!r}: a single {piece} at character {match.start()}; write {piece * 2} for a brace")
        else:
            parts.append(_ESCAPES.get(piece, piece))
    if not any(isinstance(part, Field) for part in parts):
        raise ValueError(f"{text!r} is neither {', '.join(FORMATS)} nor a template such as '{{time}} {{topic}}'")
    return parts
