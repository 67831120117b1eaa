"""What the programs log: lines of text for people, or one JSON object a line for machines; always on stderr."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

from fedbus.cli.escaping import escape

# what every LogRecord has; anything else on it was given as extra=
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


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

    def __init__(self) -> None:
        logging.Handler.__init__(self)

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
    handler = _StderrHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter(stamped=stamped, tracebacks=tracebacks))
    root = logging.getLogger()
    for old in root.handlers[:]:
        if isinstance(old, _StderrHandler):
            root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper() if isinstance(level, str) else level)


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
