"""`fedbus history export`: messages as JSON lines, with or without what proves them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedbus.cli.common import counted, examples, load_settings, notice, verbosity
from fedbus.cli.history_options import build_query, json_option, open_store, wanted
from fedbus.cli.history_rows import Doubts, message_of, seal_check, verify_option
from fedbus.cli.whole_file import whole_file

if TYPE_CHECKING:
    from fedbus.history.stored import StoredMessage
    from fedbus.model.message import Message

_PIECE = 64 * 2**10  # bytes that are written at once


@click.command(
    "export",
    epilog=examples(
        "fedbus history export koji --since 1d > koji.jsonl",
        "fedbus history export --sealed -o all.jsonl",
        "fedbus history verify --lines all.jsonl",
    ),
)
@wanted(0.0)
@click.option(
    "--sealed", is_flag=True, help="Keep the signed bytes and the seal in each line, as a journal's export does."
)
@verify_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Instead of to stdout, which - is too.",
)
@json_option
@click.pass_context
def export(
    context: click.Context,
    /,
    sealed: bool,
    verify: bool,
    output: Path | None,
    as_json: bool,
    store: str | None,
    **wanted: Any,
) -> int:
    """Write the messages that are wanted as JSON lines, by time: the object of `fedbus tail --json`.

    With --sealed each line can be verified without the history, and a year later; a plain one cannot. With --json a
    summary goes to stderr as JSON.
    """
    settings = load_settings(context)
    doubts = Doubts()
    written = 0
    with open_store(settings, store) as opened:
        query = build_query(settings, opened, **wanted)
        check = seal_check(settings) if verify else None
        with _opened(output) as lines:
            for stored in opened.find(query):
                message = message_of(stored, check, doubts)
                line = None if message is None else _line(stored, message, sealed, doubts)
                if line is not None:
                    lines.add(line)
                    written += 1
    if as_json:
        click.echo(json.dumps({"exported": written, "left_out": doubts.total, "faults": doubts.named}), err=True)
    elif verbosity(context) >= 0 and output is not None and str(output) != "-":
        notice(f"{counted(written, 'message')} written to {output}")
    return doubts.finish()


def _line(stored: StoredMessage, message: Message, sealed: bool, doubts: Doubts) -> str | None:
    from fedbus.cli.render import record, to_json
    from fedbus.errors import WireError
    from fedbus.history.verify import line_of

    try:
        return to_json(line_of(stored) if sealed else record(message))
    except WireError as error:
        doubts.note(stored, "unverifiable", str(error))
    except (ValueError, IndexError) as error:
        doubts.note(stored, "unreadable", f"its seal cannot be read: {error}")
    return None


class _Lines:
    """Lines that are written some at a time."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._lines: list[str] = []
        self._size = 0

    def add(self, line: str) -> None:
        """Write a line."""
        self._lines.append(line)
        self._size += len(line)
        if self._size >= _PIECE:
            self.flush()

    def flush(self) -> None:
        """Write those that wait."""
        if not self._lines:
            return
        text = "\n".join(self._lines) + "\n"
        self._lines.clear()
        self._size = 0
        self._write(text)


@contextmanager
def _opened(path: Path | None) -> Iterator[_Lines]:
    """Open a file, which is there whole or not at all, or stdout."""
    from fedbus.cli.tail_loop import write

    if path is None or str(path) == "-":
        lines = _Lines(write)
        yield lines
        lines.flush()
        return
    with whole_file(path) as file:
        lines = _Lines(lambda text: file.write(text.encode("utf-8", "backslashreplace")))
        yield lines
        lines.flush()
