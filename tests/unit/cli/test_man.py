"""The manual pages: made of the commands, and sound roff whatever stands in them."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedbus.cli.main import COMMANDS, load
from fedbus.cli.man import man, pages
from fedbus.cli.roff import page, plain
from tests.support import need_program

ROOT = Path(__file__).resolve().parents[3]


def test_there_is_a_page_for_each_command_and_it_has_each_option() -> None:
    found = pages()
    assert set(found) == {"fedbus.1", *(f"fedbus-{name}.1" for name in COMMANDS)}
    for name in COMMANDS:
        text = found[f"fedbus-{name}.1"].replace(r"\-", "-")

        def look(command: click.Command, text: str = text, name: str = name) -> None:
            for option in command.params:
                for spelling in option.opts if isinstance(option, click.Option) else ():
                    assert f"\\fB{spelling}\\fR" in text, f"{name}: {spelling}"
            for inner, below in getattr(command, "commands", {}).items():
                assert f".SS {inner}\n" in text
                look(below)

        look(load(name))
        assert "EXAMPLES" in text


def test_the_pages_that_are_shipped_are_those_of_the_commands() -> None:
    shipped = {path.name: path.read_text("utf-8") for path in (ROOT / "doc" / "man").glob("*.1")}
    assert shipped == pages(), "`make man` writes them anew"


def test_groff_mandoc_and_man_find_nothing_wrong_with_any_page(tmp_path: Path) -> None:
    done = CliRunner().invoke(man, ["--write", str(tmp_path)])
    assert done.exit_code == 0 and f"{len(COMMANDS) + 1} pages" in done.output
    files = sorted((tmp_path / "man1").glob("*.1"))
    assert len(files) == len(COMMANDS) + 1
    checked = subprocess.run(
        [need_program("groff"), "-man", "-ww", "-z", "-Tutf8", *files], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    checked = subprocess.run(
        [need_program("mandoc"), "-T", "lint", "-W", "warning", *files], capture_output=True, text=True, check=False
    )
    # a date would make the pages differ from build to build
    assert [line for line in checked.stdout.splitlines() if "missing date" not in line] == []
    checked = subprocess.run(
        [need_program("man"), "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", *files],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "80"},
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def shown(text: str) -> str:
    """What a terminal gets of a page whose description is *text*; groff itself adds neither colours nor overstrikes."""
    command = click.Command("x", help=text)
    source = page("fedbus x", command, "X.", version="1", sections={})
    done = subprocess.run(
        [need_program("groff"), "-man", "-Tutf8", "-P-c", "-P-b", "-P-u", "-rLL=2000n"],
        input=source.encode(),
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""
    return done.stdout.decode()


HOSTILE = [
    ".so /etc/passwd",
    "'br",
    r"\X'tty: exec' \fBx\fR \*(xx \n(yr \! \$1",
    "\x1b]52;c;aGk=\x07 \x1b[2J \x9b2J",
    "\u202eabc\u200b\ufeff",
    "a - b -- 'c' `d` ^e ~f \"g\" \\",
    "è 漢字 😀",
]


@pytest.mark.badinput("B37")
@pytest.mark.parametrize("text", HOSTILE)
def test_text_in_a_page_is_shown_as_it_is_and_does_nothing(text: str) -> None:
    out = shown(f"before {text}\n\n{text}\n\n\b\n{text}\nx")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u200b\ufeff]", out), (
        "something that a terminal obeys"
    )
    assert "root:" not in out
    if text.isprintable():
        # once inside a line, once at the beginning of one, once in text that keeps its lines
        assert out.count(text) == 3
    else:
        assert r"\x1b" in out or r"\u202e" in out


@pytest.mark.badinput("B37")
@hypothesis_settings(max_examples=300)
@example("\n.br")
@given(st.text())
def test_no_text_becomes_a_request_an_escape_or_another_line(text: str) -> None:
    made = plain(text)
    assert "\n" not in made and made.isascii() and made.isprintable()
    assert not made.startswith((".", "'"))
    # each backslash begins one of these and nothing else
    assert not re.sub(r"\\(?:e|-|&|\((?:aq|ga|ha|ti|dq)|\[u[0-9A-F]{4,6}\])", "", made).count("\\")


def test_a_page_is_printed_by_name() -> None:
    runner = CliRunner()
    assert "fedbus-hub.1\n" in runner.invoke(man, []).output
    assert runner.invoke(man, ["hub"]).output == pages()["fedbus-hub.1"]
    assert runner.invoke(man, ["fedbus-hub"]).output == pages()["fedbus-hub.1"]
    assert runner.invoke(man, ["fedbus"]).output == pages()["fedbus.1"]
    assert runner.invoke(man, ["nothing"]).exit_code == 2
