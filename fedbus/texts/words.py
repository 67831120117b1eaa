"""Words of others made fit to be shown: one line, no more than so long, nothing that is not seen."""

from __future__ import annotations

import re

LINE = 400  # characters of one text at most
LINK = 1000  # of an URL

# Default-ignorable or blank, and yet printable to str.isprintable (Unicode 15, DerivedCoreProperties.txt): combining
# grapheme joiner, Hangul fillers, Khmer inherent vowels, Mongolian and other variation selectors, blank braille
INVISIBLE = (
    "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U0001d159\U000e0100-\U000e01ef"
)
_INVISIBLE = re.compile(f"[{INVISIBLE}]")
_SPACES = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029]+")
# a stack of combining marks that would cover the lines above and below
_STACK = re.compile(
    "([\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]{3})[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]+"
)
_URL = re.compile(r"https?://[A-Za-z0-9\[][!#-;=?-\[\]_a-z~]*", re.ASCII)


def line(text: str, room: int = LINE) -> str:
    """Return *text* on one line of at most *room* characters.

    White space and control characters become single spaces, what is not seen goes, and a cut shows as ``…``.
    """
    if len(text) <= room and text.isascii() and text.isprintable() and "  " not in text:
        return text.strip()
    if room < 1:
        return ""
    # what is not seen might be all of it: so four times the room is looked at, and no megabyte
    cut = text[: 4 * room]
    if not (cut.isprintable() and cut.isascii()):
        cut = _INVISIBLE.sub("", _SPACES.sub(" ", cut))
        if not cut.isprintable():
            cut = "".join(letter for letter in cut if letter.isprintable())
        cut = _STACK.sub(r"\1", cut)
    if "  " in cut:
        cut = _SPACES.sub(" ", cut)
    cut = cut.strip()
    if len(cut) > room or len(text) > 4 * room:
        cut = cut[: room - 1].rstrip() + "…"
    return cut


def first_line(text: str, room: int = LINE) -> str:
    """Return the first line of *text* that is not empty, as :func:`line` does."""
    return line(text[: 8 * room].strip().partition("\n")[0], room)


def url(text: object) -> str:
    """Return *text* where it is an http(s) URL that may be shown and followed, else the empty text."""
    if isinstance(text, str) and len(text) <= LINK and _URL.fullmatch(text):
        return text
    return ""
