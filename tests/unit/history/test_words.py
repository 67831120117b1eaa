"""Words: what a text is found by."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbus.history.words import (
    CUT,
    PACKAGE,
    QUERY_WORDS,
    TEXT_CHARACTERS,
    USER,
    Wanted,
    document,
    fold,
    index_words,
    name_word,
    parse_text,
    split,
    text_of,
)

TEXT = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=60)


def test_case_and_accents_do_not_matter():
    assert split(fold("Zoë STRASSE Straße Ångström")) == ["zoe", "strasse", "strasse", "angstrom"]


@given(TEXT)
def test_folding_again_changes_nothing(text):
    assert fold(fold(text)) == fold(text)


@given(TEXT, TEXT)
def test_few_and_many_letters_beyond_ascii_are_folded_alike(text, other):
    many = "".join(chr(0x4E00 + number) for number in range(40))
    assert split(fold(f"{text} {other} {many}"))[:-1] == split(fold(f"{text} {other}"))


@given(st.lists(TEXT, max_size=4), st.lists(TEXT, max_size=2))
def test_sqlite_splits_a_document_as_we_do(texts, names):
    made = document({"texts": texts}, names, names)
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE VIRTUAL TABLE word USING fts5 (text, content='', detail=none, tokenize='ascii')")
    connection.execute("CREATE VIRTUAL TABLE term USING fts5vocab (word, 'row')")
    connection.execute("INSERT INTO word (rowid, text) VALUES (1, ?)", (made,))
    assert {row[0] for row in connection.execute("SELECT term FROM term")} == set(index_words(made.decode()))


def test_names_and_values_at_any_depth_are_words_and_escapes_are_not_part_of_them():
    body = {"outer": [{"inner key": "line\none\ttwo", "n": 12.5}], "quote": 'say "hi"', "none": None}
    words = set(split(text_of(body)))
    assert {"outer", "inner", "key", "line", "one", "two", "12", "5", "say", "hi"} <= words
    assert "none" in words and "none" != "null"


def test_a_text_is_read_as_words_phrases_and_beginnings():
    assert parse_text('Bash "is built" python3-requests dnf*') == (
        Wanted(("bash",)),
        Wanted(("is", "built")),
        Wanted(("python3", "requests")),
        Wanted(("dnf",), begins=True),
    )


@pytest.mark.parametrize("text", ["", "  ", "-- !!", '""', "word " * (QUERY_WORDS + 1)])
def test_a_text_without_words_or_with_too_many_is_refused(text):
    with pytest.raises(ValueError):
        parse_text(text)


@pytest.mark.badinput("B43")
@given(st.text(max_size=100))
def test_whatever_is_looked_for_is_words_or_refused(text):
    try:
        found = parse_text(text)
    except ValueError:
        return
    assert all(word.isalnum() for one in found for word in one.words)


def test_several_words_have_to_stand_in_a_row():
    words = split("the build of bash is complete")
    assert Wanted(("is", "comp"), begins=True).within(words)
    assert not Wanted(("is", "comp")).within(words)
    assert not Wanted(("bash", "complete")).within(words)


@given(TEXT, TEXT)
def test_different_names_have_different_words_and_no_text_has_them(one, other):
    if one.casefold() != other.casefold() and one and other:
        same = name_word(USER, one) == name_word(USER, other)
        # NFKC may make one of two that look alike
        assert not same or not (one.isascii() and other.isascii())
    assert name_word(USER, one) != name_word(PACKAGE, one)
    assert name_word(USER, one) not in split(fold(one))


def test_a_text_that_is_too_long_is_cut_and_says_so():
    made = document({"text": "word " * TEXT_CHARACTERS + "last"}, ["ralph"], []).decode()
    words = index_words(made)
    assert CUT in words and name_word(USER, "ralph") in words and "last" not in words
    assert len(made) < TEXT_CHARACTERS + 100
