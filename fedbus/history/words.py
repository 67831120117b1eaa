"""The words under which a message is found, the same in every store.

A word is a run of letters and digits of any script, without its case and its accents. A message has the words of its
body (of names as of values), and one word more for each user and each package that it is about. Those begin with a
character that no text has, so they are found as names only, and exactly, whatever punctuation is in them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson

TEXT_CHARACTERS = 256 * 1024  # of one message; what is behind is not found by its words
WORD_CHARACTERS = 250  # of one word in an index; PostgreSQL takes at most 2046 bytes
NAMES = 100  # users, and packages, of one message
QUERY_WORDS = 64

USER, PACKAGE, CUT = "\ue000", "\ue001", "\ue002"  # of the private use area, which is neither letter nor digit
_PLAIN = str.maketrans({code: chr(0xE100 + code) for code in range(128) if not chr(code).isalnum()})

_NO_WORD = re.compile(r"[\W_]+")
_ASCII = bytes(range(128))
_FEW = 16
_PART = re.compile(r'"([^"]*)"|(\S+)')


def fold(text: str) -> str:
    """Return *text* without case and accents, with a blank for whatever is neither letter nor digit beyond ASCII.

    What is left between letters and digits of ASCII parts words just as blanks do.
    """
    if text.isascii():
        return text.lower()
    return _fold_beyond(text, text.encode("utf-8", "replace"))


def _fold_beyond(text: str, data: bytes) -> str:
    """Return *text*, which as *data* is not ASCII alone, as :func:`fold` does."""
    # most texts have one or two such characters, and replacing those is quicker than looking at every one
    beyond = set(data.translate(None, _ASCII).decode("utf-8"))
    if len(beyond) > _FEW:
        return "".join([_folded(letter) for letter in text])
    for letter in beyond:
        text = text.replace(letter, _folded(letter))
    # what came of those is folded already, and lower() leaves it as it is
    return text.lower()


@lru_cache(maxsize=65536)
def _folded(letter: str) -> str:
    if letter.isascii():
        return letter.lower()
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", letter).casefold())
    kept = "".join([one for one in plain if not unicodedata.combining(one)])
    return _NO_WORD.sub(" ", kept).lower()


def split(folded: str) -> list[str]:
    """Return the words of a folded text."""
    return [word for word in _NO_WORD.split(folded) if word]


def text_of(body: Any) -> str:
    """Return the folded text of a body: its names and values in their order."""
    return _text_of(body, _json(body))


def _json(body: Any) -> bytes:
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:  # nested deeper than orjson goes
        return b"\\"


def _text_of(body: Any, data: bytes) -> str:
    # escapes would become letters of words
    if b"\\" in data:
        return fold(" ".join(_pieces(body))[: TEXT_CHARACTERS + 1])
    text = data.decode()[: TEXT_CHARACTERS + 1]
    return text.lower() if data.isascii() else _fold_beyond(text, data)


def _pieces(body: Any) -> Iterable[str]:
    stack = [body]
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            for key, inner in reversed(value.items()):
                stack += (inner, key)
        elif isinstance(value, list):
            stack += reversed(value)
        else:
            yield orjson.dumps(value).decode()


def name_word(kind: str, name: str) -> str:
    """Return the one word for a user or package of that name."""
    plain = unicodedata.normalize("NFKC", name).casefold() if not name.isascii() else name.lower()
    return (kind + plain.translate(_PLAIN))[:WORD_CHARACTERS]


@lru_cache(maxsize=8192)
def _name_data(kind: str, name: str) -> bytes:
    return f" {name_word(kind, name)}".encode("utf-8", "replace") if name else b""


def document(body: Any, users: Sequence[str], packages: Sequence[str]) -> bytes:
    """Return all words of a message, parted by whatever is no letter or digit: what a store puts into its index.

    It is UTF-8: made of bytes, it costs least.
    """
    names = b""
    for name in users[:NAMES]:
        names += _name_data(USER, name)
    for name in packages[:NAMES]:
        names += _name_data(PACKAGE, name)
    data = _json(body)
    if data.isascii() and len(data) <= TEXT_CHARACTERS and b"\\" not in data:
        return data.lower() + names
    text = _text_of(body, data)
    if len(text) > TEXT_CHARACTERS:
        text = text[:TEXT_CHARACTERS]
        names += f" {CUT}".encode()
    return text.encode("utf-8", "replace") + names


def index_words(text: str) -> list[str]:
    """Return the distinct words of a :func:`document`, each cut to what an index takes."""
    return list({word[:WORD_CHARACTERS] for word in re.split(r"[\x00-\x2f\x3a-\x60\x7b-\x7f]+", text) if word})


@dataclass(frozen=True, slots=True)
class Wanted:
    """A word, the beginning of one, or several words in a row, that a message has to have."""

    words: tuple[str, ...]
    begins: bool = False  # the last word is only the beginning of one

    @property
    def exact(self) -> bool:
        """Whether an index of single words says all about it."""
        return len(self.words) == 1 and len(self.words[0]) <= WORD_CHARACTERS

    def within(self, words: list[str]) -> bool:
        """Say whether it is among the *words* of a text."""
        length = len(self.words)
        last = self.words[-1]
        for place in range(len(words) - length + 1):
            if tuple(words[place : place + length - 1]) != self.words[:-1]:
                continue
            found = words[place + length - 1]
            if found == last or (self.begins and found.startswith(last)):
                return True
        return False


def parse_text(text: str) -> tuple[Wanted, ...]:
    """Read what a person is looking for: words, ``"words in a row"`` and ``begin*``; all of it has to be there.

    A word with punctuation inside, such as ``python3-requests``, is its parts in a row.

    Raises:
        ValueError: There is no word in it, or more than 64.
    """
    found: list[Wanted] = []
    for quoted, bare in _PART.findall(text):
        piece = quoted or bare
        words = split(fold(piece))
        if words:
            found.append(Wanted(tuple(words), begins=piece.endswith("*")))
    if not found:
        raise ValueError(f"{text[:80]!r} has no word to look for; a word is made of letters and digits")
    if sum(len(one.words) for one in found) > QUERY_WORDS:
        raise ValueError(f"more than {QUERY_WORDS} words to look for")
    return tuple(found)
