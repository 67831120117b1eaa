"""What the programs log: lines of text for people, or one JSON object a line for machines; always on stderr.

Where stderr is the journal of systemd each line begins with its priority, ``<4>``, which the journal takes off
(sd-daemon(3)), and text has no time, which the journal has itself.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from fedbus.cli.escaping import escape

# what every LogRecord has; anything else on it was given as extra=
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

# of sd-daemon(3); the numbers are those of syslog(3)
_PRIORITIES = ((logging.CRITICAL, "<2>"), (logging.ERROR, "<3>"), (logging.WARNING, "<4>"), (logging.INFO, "<6>"))


def to_journal() -> bool:
    """Say whether stderr is the journal, as ``JOURNAL_STREAM`` names it (systemd.exec(5)): DEVICE:INODE."""
    named = os.environ.get("JOURNAL_STREAM", "")
    if not named:
        return False
    try:
        found = os.fstat(2)
    except OSError:
        return False
    return named == f"{found.st_dev}:{found.st_ino}"


def with_priority(text: str, level: int) -> str:
    """Return *text* with the priority of *level* before each line."""
    mark = next((mark for least, mark in _PRIORITIES if level >= least), "<7>")
    return "\n".join(f"{mark}{line}" for line in text.split("\n"))


class JournalFormatter(logging.Formatter):
    """What *inner* makes, with priorities."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return with_priority(self._inner.format(record), record.levelno)


class JsonFormatter(logging.Formatter):
    """One object a line: ``time`` (RFC 3339, UTC), ``level``, ``logger``, ``message``, and what was given as extra.

    An exception is in ``exception``, with ``type``, ``text`` and ``traceback``.
    """

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": _stamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for key, value in vars(record).items():
            if key not in _OWN and key not in fields:
                fields[key] = value
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            fields["exception"] = {
                "type": type(error).__name__,
                "text": str(error),
                "traceback": "".join(traceback.format_exception(error)),
            }
        # pure ASCII: whatever is in it, a terminal obeys none of it
        return json.dumps(fields, default=str).replace("\x7f", "\\u007f")


class TextFormatter(logging.Formatter):
    """``fedbus: warning: text``, escaped, on one line; with *stamped* a time before it.

    An exception adds its name and text, and with *tracebacks* where it came from.
    """

    def __init__(self, *, stamped: bool = False, tracebacks: bool = False) -> None:
        super().__init__()
        self._stamped = stamped
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        extra = [f"{key}={value}" for key, value in vars(record).items() if key not in _OWN]
        if extra:
            text = f"{text} ({', '.join(extra)})"
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not self._tracebacks:
            text = f"{text}: {type(error).__name__}: {error}"
        stamp = f"{_stamp(record.created)} " if self._stamped else ""
        line = f"{stamp}fedbus: {record.levelname.lower()}: {escape(text)}"
        if error is not None and self._tracebacks:
            trace = "".join(traceback.format_exception(error)).rstrip("\n")
            line += "".join(f"\n  {escape(row)}" for row in trace.split("\n"))
        return line


class _StderrHandler(logging.StreamHandler[Any]):
    """Writes to whatever stderr is now; a stderr that is gone must not stop a daemon, nor fill it with tracebacks."""

    def __init__(self, *, as_json: bool) -> None:
        logging.Handler.__init__(self)
        self.as_json = as_json

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None:
        pass

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is not None:
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)


def set_up(*, level: str | int, form: str, stamped: bool = False, tracebacks: bool = False) -> None:
    """Send the logs of this process to stderr, from *level* up, as *form*: ``text`` or ``json``."""
    journal = to_journal()
    handler = _StderrHandler(as_json=form == "json")
    formatter = (
        JsonFormatter() if form == "json" else TextFormatter(stamped=stamped and not journal, tracebacks=tracebacks)
    )
    handler.setFormatter(JournalFormatter(formatter) if journal else formatter)
    root = logging.getLogger()
    for old in root.handlers[:]:
        if isinstance(old, _StderrHandler):
            root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper() if isinstance(level, str) else level)


def tell_as_json(text: str, fields: Mapping[str, object]) -> bool:
    """Where the logs of this process are JSON, write *text* as they are, whatever their level; say whether they are."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _StderrHandler) and handler.as_json:
            level = {"levelno": logging.INFO, "levelname": "INFO"}
            handler.handle(logging.makeLogRecord({"name": "fedbus", **level, "msg": text, **fields}))
            return True
    return False


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
