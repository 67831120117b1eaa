"""Text of others made harmless for a terminal: whatever does not show as itself is written as an escape.

A small module that daemons load at their start: a message about a lack of descriptors must not need one.
"""

from __future__ import annotations

import re

# Default-ignorable or blank, and yet printable to str.isprintable (Unicode 15, DerivedCoreProperties.txt): combining
# grapheme joiner, Hangul fillers, Khmer inherent vowels, Mongolian and other variation selectors, blank braille
_INVISIBLE = (
    "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U0001d159\U000e0100-\U000e01ef"
)
_INVISIBLE_PATTERN = re.compile(f"[{_INVISIBLE}]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def shows(text: str) -> bool:
    """Return whether every character of *text* shows as itself."""
    return text.isprintable() and (text.isascii() or not _INVISIBLE_PATTERN.search(text))


def escape(text: str) -> str:
    """Return *text* with every character that does not show as itself written as an escape; never raises."""
    if shows(text):
        return text
    return "".join(map(_escaped, text))


def escape_lines(text: str) -> str:
    """Like `escape`, but newlines stay; for texts of our own that have several lines."""
    return "\n".join(escape(line) for line in text.split("\n"))


def _escaped(letter: str) -> str:
    if shows(letter):
        return letter
    short = _SHORT.get(letter)
    if short is not None:
        return short
    code = ord(letter)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
