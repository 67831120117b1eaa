"""Regular expressions of users, on text of any length: RE2, whose time grows with the text and with nothing else.

Python's own ``re`` may need longer than a lifetime for an expression such as ``(a+)+$`` on forty letters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fedbus.cli.escaping import escape

_MOST_LETTERS = 1000  # of one expression
_MOST = 100
_MEMORY_BYTES = 16 * 2**20


class PatternError(ValueError):
    """The expression is none, or one that RE2 does not do."""


class Patterns:
    """Some expressions, looked for together in one pass over the text."""

    def __init__(self, texts: Iterable[str]) -> None:
        """Raises PatternError, which names the expression and what is wrong with it."""
        self.texts = tuple(texts)
        import re2  # 30 ms, and most calls of a command have no expression

        options = _options(re2)
        for text in self.texts:
            _check(re2, text, options)
        if len(self.texts) > _MOST:
            raise PatternError(f"{len(self.texts)} expressions are more than {_MOST}; join some with |")
        self._set: Any = re2.Set.SearchSet(options)
        for text in (*self.texts, ""):
            self._set.Add(text)
        self._set.Compile()
        # a set that is too large finds nothing and does not say so; the empty expression is always found
        if self._set.Match("") is None:
            raise PatternError("the expressions are too large together; write simpler ones")
        self._spans: Any = None
        self._options = options

    def found(self, text: str) -> bool:
        """Whether one of them fits anywhere in *text*."""
        found = self._set.Match(_clean(text))
        if found is None:
            raise PatternError("the expressions need more memory than they may have; write simpler ones")
        return len(found) > 1

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield (begin, end) of what they fit in *text*, from left to right; no two overlap and none is empty."""
        if self._spans is None:
            import re2

            self._spans = re2.compile("|".join(f"(?:{one})" for one in self.texts), self._options)
        for match in self._spans.finditer(_clean(text)):
            begin, end = match.span()
            if end > begin:
                yield begin, end

    def __bool__(self) -> bool:
        return bool(self.texts)


def _clean(text: str) -> str:
    # half a surrogate pair is no UTF-8; one letter for another keeps the places
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _options(re2: Any) -> Any:
    options = re2.Options()
    options.log_errors = False  # it would write to stderr by itself
    options.max_mem = _MEMORY_BYTES
    return options


def _check(re2: Any, text: str, options: Any) -> None:
    # as it was written: with repr() each backslash would be two
    shown = escape(text if len(text) <= 60 else text[:60] + "…")
    if len(text) > _MOST_LETTERS:
        raise PatternError(f"'{shown}': {len(text)} letters are more than {_MOST_LETTERS}; write a shorter expression")
    try:
        re2.compile(text, options)
    except (re2.error, UnicodeError) as error:
        reason = error.args[0].decode("utf-8", "replace") if isinstance(error.args[0], bytes) else str(error)
        hint = ""
        if any(part in text for part in ("(?=", "(?!", "(?<=", "(?<!", "\\1", "(?P=")):
            hint = "; look-around and references back are not available, as their time has no bound"
        raise PatternError(f"'{shown}' is not a regular expression of RE2: {reason}{hint}") from error
