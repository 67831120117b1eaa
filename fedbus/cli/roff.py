"""Manual pages from commands: the text of ``--help`` in the man macros of roff (man(7), groff_man(7)).

Every word of a page is that of a command, its options and its arguments, so the two cannot come apart.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click

from fedbus.cli.escaping import escape

# `-` would become a hyphen, which cannot be pasted into a shell; so would the quotes, `^` and `~` become others
_LETTERS = {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti", '"': r"\(dq"}


def plain(text: str) -> str:
    """Return *text* so that roff prints it as it is: nothing in it is a request, an escape, or obeyed by a terminal."""
    found = "".join(
        _LETTERS.get(letter) or (letter if letter.isascii() else f"\\[u{ord(letter):04X}]") for letter in escape(text)
    )
    return "\\&" + found if found.startswith((".", " ")) else found


def page(
    name: str, command: click.Command, summary: str, *, version: str, sections: dict[str, list[tuple[str, str]]]
) -> str:
    """Return the page of *command*, which people call *name* (``fedbus hub``).

    *summary* is the line of NAME; *sections* are further ones, of terms and what they mean.
    """
    title = name.replace(" ", "-")
    context = click.Context(command, info_name=name)
    lines = [
        f'.TH {plain(title.upper())} 1 "" "fedbus {version}" "fedbus"',
        ".nh",  # a path that is broken at a hyphen cannot be pasted
        ".ad l",
        ".SH NAME",
        f"{plain(title)} \\- {plain(_uncapital(summary))}",
        ".SH SYNOPSIS",
        *_synopsis(name, command, context),
        ".SH DESCRIPTION",
        *_paragraphs(command.help or ""),
        *_arguments_and_options(command, context, ".SH OPTIONS"),
    ]
    if isinstance(command, click.Group) and name != "fedbus":
        lines.append(".SH COMMANDS")
        for inner, below in sorted(command.commands.items()):
            called = f"{name} {inner}"
            inside = click.Context(below, info_name=called)
            lines += [f".SS {plain(inner)}", *_synopsis(called, below, inside), ".PP", *_paragraphs(below.help or "")]
            lines += _arguments_and_options(below, inside, "")
            lines += _examples(below, ".PP")
    for heading, terms in sections.items():
        lines.append(f".SH {plain(heading)}")
        for term, text in terms:
            lines += _term(f"\\fB{plain(term)}\\fR", text) if term else [plain(text)]
    lines += _examples(command, ".SH EXAMPLES")
    return "\n".join(lines) + "\n"


def _uncapital(text: str) -> str:
    text = text.strip().rstrip(".")
    return text[:1].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text


def _synopsis(name: str, command: click.Command, context: click.Context) -> list[str]:
    pieces = " ".join(command.collect_usage_pieces(context))
    return [f"\\fB{plain(name)}\\fR {_metavars(pieces)}".rstrip()]


def _metavars(text: str) -> str:
    """Return *text* with its words in capitals slanted, as they stand for something."""
    return re.sub(r"[A-Z][A-Z_:,\[\]]*[A-Z]|\b[A-Z]\b|[^A-Z]+|.", _slanted, text)


def _slanted(match: re.Match[str]) -> str:
    word = match[0]
    return f"\\fI{plain(word)}\\fR" if word[0].isupper() else plain(word).removeprefix("\\&")


def _paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs of a help text; one that begins with a backspace keeps its lines (click's own sign)."""
    for number, part in enumerate(re.split(r"\n\s*\n", inspect.cleandoc(text))):
        if number:
            yield ".PP"
        if part.startswith("\b"):
            yield from _kept(part.lstrip("\b\n"))
        else:
            yield plain(" ".join(part.split()))


def _kept(text: str) -> Iterator[str]:
    """Yield *text* as it stands, in a font of even width."""
    yield ".nf"
    for line in text.split("\n"):
        yield plain(line) if line.strip() else r"\&"
    yield ".fi"


def _term(term: str, text: str) -> list[str]:
    return [".TP", term, plain(" ".join(text.split()))]


def _arguments_and_options(command: click.Command, context: click.Context, heading: str) -> Iterator[str]:
    records = []
    for one in command.get_params(context):
        record = one.get_help_record(context)
        if record is not None:
            records.append(record)
    if records and heading:
        yield heading
    for names, text in records:
        shown = re.sub(
            r"--?[A-Za-z][A-Za-z0-9-]*|[^-]+|-",
            lambda match: f"\\fB{plain(match[0])}\\fR" if re.match("--?[A-Za-z]", match[0]) else _metavars(match[0]),
            names,
        )
        yield from _term(shown, text)


def _examples(command: click.Command, heading: str) -> Iterator[str]:
    text = inspect.cleandoc(command.epilog or "").lstrip("\b\n")
    if not text.startswith("Examples:"):
        return
    yield heading
    if heading == ".PP":
        yield "Examples:"
    yield ".RS 2"
    lines = text.split("\n")[1:]
    yield from _kept("\n".join(line.removeprefix("  ") for line in lines))
    yield ".RE"
