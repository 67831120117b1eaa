"""From messages to lines: of the right number of bytes, and with nothing in them that means something."""

from __future__ import annotations

import re
import unicodedata

import pytest
from fedbus_consumers.irc_parts.text import Entry, clean, cut, split, unmention
from hypothesis import given
from hypothesis import strategies as st

ANYTHING = st.text(st.characters(exclude_categories=()), max_size=400)  # surrogates, controls and all
HOSTILE = st.one_of(
    ANYTHING,
    st.lists(
        st.sampled_from(
            [
                *("\r\n", "\nQUIT :x", "\x00", "\x01ACTION x\x01", "\x03", "\x0304,05", "\x02", "\x1f", "/quit"),
                *(
                    "!op x",
                    "ä",
                    "@everyone",
                    "@here ",
                    "👩\u200d👩\u200d👧",
                    "🇩🇪🇫🇷",
                    "é",
                    "\u202e",
                    "\u2028",
                    chr(0xD800),
                ),
                *("語" * 20, "word " * 9, "x" * 99),
            ]
        ),
        max_size=30,
    ).map("".join),
)
COLOURED = re.compile(r"\x03\d\d\[[^\[\]]*\]\x0f ")


def forbidden(text: str) -> list[str]:
    return [one for one in text if unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp")]


def lines_of(summary: str, link: str = "", room: int = 400, lines: int = 2, coloured: bool = True) -> list[str]:
    entry = Entry("org.x.dev.koji.build", "koji", clean(summary), clean(link), 4)
    return entry.lines(room, lines=lines, coloured=coloured)


@pytest.mark.badinput("B38")
@given(HOSTILE)
def test_clean_text_is_one_line_without_any_code(text: str) -> None:
    found = clean(text)
    assert not forbidden(found)
    assert not re.search(r"@(everyone|here)\b", found)
    assert not set(found) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\ufeff")
    assert found == found.strip()


@pytest.mark.badinput("B38")
@given(HOSTILE, HOSTILE, st.integers(60, 480), st.integers(1, 5), st.booleans())
def test_every_line_fits_is_utf_8_and_begins_with_characters_of_ours(
    summary: str, link: str, room: int, lines: int, coloured: bool
) -> None:
    found = lines_of(summary, link, room, lines, coloured)
    assert 1 <= len(found) <= lines
    for place, line in enumerate(found):
        data = line.encode("utf-8")  # strict
        assert len(data) <= room
        head = COLOURED.match(line) if coloured else re.match(r"\[koji\] ", line)
        assert line.startswith("… ") if place else head
        assert not forbidden(line[head.end() :] if head and not place else line)


@given(ANYTHING.map(clean), st.integers(1, 200))
def test_what_is_cut_fits_and_as_much_as_fits_is_taken(text: str, room: int) -> None:
    place = cut(text, room)
    assert len(text[:place].encode()) <= room
    if text and not place:
        assert len(text[0].encode()) > room


@given(st.text(st.characters(categories=("L", "N", "M", "So")), max_size=300), st.integers(20, 100))
def test_pieces_are_the_whole_text_when_there_are_enough_of_them(text: str, room: int) -> None:
    pieces = split(text, room, room, 1000)
    assert "".join(piece.removeprefix("… ") if place else piece for place, piece in enumerate(pieces)) == text


@pytest.mark.parametrize(
    "together", ["e\u0301", "👩\u200d👩\u200d👧", "👍🏽", "🇩🇪", "❤\ufe0f", "\u0928\u093f", "1\ufe0f\u20e3"]
)
def test_what_people_see_as_one_character_is_not_cut(together: str) -> None:
    size = len(together.encode())
    text = together * 8
    for room in range(size, size * 8):
        assert cut(text, room) % len(together) == 0, room


def test_a_flag_is_not_made_of_the_halves_of_two_others() -> None:
    assert cut("🇩🇪🇫🇷🇮🇹", 12) == 2


def test_words_stay_whole_where_that_costs_little() -> None:
    assert cut("one two three four", 16) == len("one two three")
    assert cut("a " + "b" * 50, 40) == 40


def test_a_word_of_nothing_but_marks_is_cut_all_the_same() -> None:
    zalgo = "a" + "\u0301" * 500
    assert len(zalgo[: cut(zalgo, 100)].encode()) in (99, 100)


def test_what_does_not_fit_into_the_lines_ends_with_an_ellipsis() -> None:
    found = lines_of("word " * 500, room=200, lines=3)
    assert len(found) == 3
    assert found[-1].endswith(" …")
    assert not found[0].endswith("…")


def test_a_link_is_whole_or_not_there() -> None:
    link = "https://example.org/" + "x" * 80
    for size in range(0, 420, 7):
        for lines in (1, 2, 3):
            found = lines_of("w" * size, link, room=240, lines=lines)
            assert sum(link in line for line in found) == 1, (size, lines)
    assert not any("https" in line for line in lines_of("x", "https://example.org/" + "y" * 1000))


@pytest.mark.badinput("B38")
def test_ctcp_commands_and_colours_are_words_like_others() -> None:
    assert clean("\x01VERSION\x01") == "VERSION"
    assert clean("a\r\nQUIT :bye\0\x0304red\x03\x02b\x1f\x16\x0f") == "a QUIT :bye 04red b"
    assert lines_of("/quit")[0].endswith("] \x0f/quit".replace("] \x0f", "]\x0f "))
    assert lines_of("!op mallory", coloured=False) == ["[koji] !op mallory"]


@pytest.mark.badinput("B38")
def test_nobody_is_called_by_a_line_that_names_many() -> None:
    present = ["anna", "ben", "carl", "Dora"]
    assert unmention("anna and ben build", present, 2) == "anna and ben build"
    broken = unmention("anna ben DORA, carl: xbenx", present, 2)
    assert not re.search(r"\b(anna|ben|carl|DORA)\b", broken.replace("xbenx", ""))
    assert broken.replace("\u2060", "") == "anna ben DORA, carl: xbenx"
    assert unmention("anna", present, 0) == "a\u2060nna"


@given(ANYTHING.map(clean), st.lists(st.from_regex(r"[a-z]{1,5}", fullmatch=True), max_size=5), st.integers(0, 3))
def test_breaking_mentions_changes_nothing_that_is_seen(text: str, nicks: list[str], most: int) -> None:
    assert unmention(text, nicks, most).replace("\u2060", "") == text.replace("\u2060", "")
