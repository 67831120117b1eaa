"""From a message to lines: clean, of the right number of bytes, and with nothing in them that means something."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

LINE_BYTES = 512  # with CR LF, and with the prefix that the server puts before it; RFC 2812 section 2.3
MORE = "… "  # before what continues a line, so that none begins with the words of a message
# marks that turn the direction of text or cannot be seen; joiners and selectors of emoji stay
_UNSEEN = dict.fromkeys([0x61C, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF])
_EVERYBODY = re.compile(r"@(?=(?:everyone|everybody|here|channel|all|room|team|online)\b)", re.I)
_NICK_LIKE = re.compile(r"[A-Za-z\[\]\\`_^{|}][A-Za-z0-9\[\]\\`_^{|}-]*")
_JOINER = "\u2060"  # cannot be seen, and makes a nick another word


def clean(text: str, most: int = 2000) -> str:
    """Return *text* as one line that means nothing to a server or a client: no control, colour or direction codes."""
    shown = []
    for one in text[:most].translate(_UNSEEN):
        kind = unicodedata.category(one)
        if kind in ("Cc", "Zl", "Zp"):
            shown.append(" ")
        else:
            shown.append("\ufffd" if kind == "Cs" else one)
    return _EVERYBODY.sub("@" + _JOINER, " ".join("".join(shown).split()))


def unmention(text: str, nicks: Iterable[str], most: int) -> str:
    """Break the nicks in *text* where it names more than *most* of those present: they would all be called."""
    present = {one.lower() for one in nicks}
    named = {one.lower() for one in _NICK_LIKE.findall(text)} & present
    if len(named) <= most:
        return text

    def broken(match: re.Match[str]) -> str:
        word = match[0]
        return f"{word[0]}{_JOINER}{word[1:]}" if word.lower() in named else word

    return _NICK_LIKE.sub(broken, text)


def cut(text: str, room: int) -> int:
    """Return how many characters of *text* fit into *room* bytes of UTF-8: whole words, or at least what looks whole.

    0 only where not even the first character fits.
    """
    data = text.encode("utf-8", "replace")
    if len(data) <= room:
        return len(text)
    most = len(data[: max(0, room)].decode("utf-8", "ignore"))
    place = most
    while place and not _whole(text, place):
        place -= 1
    place = place or most
    space = text.rfind(" ", 0, place + 1)
    return space if space > place * 2 // 3 else place


def _whole(text: str, place: int) -> bool:
    """Say whether no character that people see would be cut at *place*; the main cases of Unicode's annex 29."""
    before, after = text[place - 1], text[place]
    if unicodedata.combining(after) or unicodedata.category(after) in ("Mn", "Mc", "Me"):
        return False
    if "\u200d" in (before, after) or "\U0001f3fb" <= after <= "\U0001f3ff" or "\U000e0020" <= after <= "\U000e007f":
        return False
    if _is_flag(before) and _is_flag(after):
        run = len(text[:place]) - len(text[:place].rstrip("".join(map(chr, range(0x1F1E6, 0x1F200)))))
        return run % 2 == 0
    return True


def _is_flag(one: str) -> bool:
    return "\U0001f1e6" <= one <= "\U0001f1ff"


def split(text: str, room: int, first: int, lines: int) -> list[str]:
    """Return *text* in at most *lines* pieces, the first of at most *first* bytes and each other of *room*.

    Pieces that continue begin with an ellipsis, and the last ends with one where something is missing.
    """
    pieces: list[str] = []
    rest = text
    while rest or not pieces:
        lead, space = (MORE, room) if pieces else ("", first)
        space -= len(lead.encode())
        if len(rest.encode("utf-8", "replace")) <= space:
            pieces.append(lead + rest)
            break
        last = len(pieces) + 1 == lines
        place = cut(rest, space - (4 if last else 0))
        if not place:
            break  # no room for anything
        pieces.append(lead + rest[:place].rstrip() + (" …" if last else ""))
        if last:
            break
        rest = rest[place:].lstrip()
    return pieces


class Entry(NamedTuple):
    """What is to be said of one message."""

    topic: str
    service: str
    summary: str
    link: str
    colour: int

    def lines(
        self, room: int, *, lines: int, coloured: bool, nicks: Iterable[str] = (), mentions: int = 0
    ) -> list[str]:
        """Return it as lines of at most *room* bytes each; every line begins with characters of ours."""
        label = f"[{clean(self.service, 40)}] "
        head = f"\x03{self.colour:02}{label.rstrip()}\x0f " if coloured else label
        space = room - len(head.encode())
        summary = unmention(self.summary, nicks, mentions)
        pieces = split(summary, room, space, lines) or [""]
        link = self.link if len(self.link.encode()) <= min(space, room) - 40 else ""
        if link:
            last = len(pieces) - 1
            whole = summary if last == 0 else pieces[last]
            fits = (space if last == 0 else room) - len(link.encode()) - 1
            if len(pieces[last].encode()) <= fits:
                pieces[last] += " " + link
            elif len(pieces) < lines:
                pieces.append(MORE + link)
            else:
                pieces[last] = whole[: cut(whole, fits - 4)].rstrip() + " … " + link
        return [head + pieces[0], *pieces[1:]]
