"""`fedbus history export`: messages as JSON lines, with or without what proves them."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from fedbus.cli.common import counted, examples, load_settings, notice, verbosity
from fedbus.cli.history_options import build_query, json_option, open_store, wanted
from fedbus.cli.history_rows import Doubts, message_of, seal_check, verify_option

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
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Instead of to stdout."
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
        with _Output(output) as file:
            for stored in opened.find(query):
                message = message_of(stored, check, doubts)
                line = None if message is None else _line(stored, message, sealed, doubts)
                if line is not None:
                    file.add(line)
                    written += 1
    if as_json:
        click.echo(json.dumps({"exported": written, "left_out": doubts.total, "faults": doubts.named}), err=True)
    elif verbosity(context) >= 0 and output is not None:
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


class _Output:
    """Lines to a file, which is there whole or not at all, or to stdout."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._lines: list[str] = []
        self._size = 0

    def __enter__(self) -> _Output:
        if self._path is not None:
            self._temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
            descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            self._file = os.fdopen(descriptor, "wb")
        return self

    def add(self, line: str) -> None:
        """Write a line."""
        self._lines.append(line)
        self._size += len(line)
        if self._size >= _PIECE:
            self._flush()

    def _flush(self) -> None:
        from fedbus.cli.tail_loop import write

        if not self._lines:
            return
        text = "\n".join(self._lines) + "\n"
        self._lines.clear()
        self._size = 0
        if self._file is None:
            write(text)
        else:
            self._file.write(text.encode("utf-8", "backslashreplace"))

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._file is None:
            if kind is None:
                self._flush()
            return
        assert self._path is not None
        try:
            with closing(self._file):
                if kind is None:
                    self._flush()
                    self._file.flush()
                    os.fsync(self._file.fileno())
            if kind is None:
                self._temporary.replace(self._path)
        finally:
            self._temporary.unlink(missing_ok=True)
