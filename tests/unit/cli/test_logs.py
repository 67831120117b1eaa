"""What is logged: one line for each record whatever stands in it, and priorities where the journal reads."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbus.cli import logs

LOG = """
import logging
from fedbus.cli import logs
logs.set_up(level="debug", form={form!r}, stamped=True, tracebacks=True)
log = logging.getLogger("fedbus.x")
log.debug("a"); log.info("b"); log.warning("c\\n<1>d"); log.error("e"); log.critical("f")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("g")
"""


def logged(form: str, tmp_path: Path, *, journal: bool, other: bool = False) -> list[str]:
    """What a process writes to a stderr that is the journal, as far as ``JOURNAL_STREAM`` says."""
    path = tmp_path / "stderr"
    with path.open("wb") as file:
        found = os.fstat(file.fileno())
        stream = f"{found.st_dev}:{found.st_ino + other}"
        environment = {**os.environ, "JOURNAL_STREAM": stream} if journal else dict(os.environ)
        code = LOG.format(form=form)
        subprocess.run([sys.executable, "-c", code], stderr=file, env=environment, check=True, timeout=180)
    return path.read_text().splitlines()


def test_in_the_journal_each_line_has_its_priority_and_text_no_time_of_its_own(tmp_path: Path) -> None:
    lines = logged("text", tmp_path, journal=True)
    assert lines[:5] == [
        "<7>fedbus: debug: a",
        "<6>fedbus: info: b",
        r"<4>fedbus: warning: c\n<1>d",
        "<3>fedbus: error: e",
        "<2>fedbus: critical: f",
    ]
    assert lines[5] == "<3>fedbus: error: g"
    assert len(lines) > 8 and all(line.startswith("<3>  ") for line in lines[6:])  # its traceback
    plain = logged("json", tmp_path, journal=True)
    assert [line[:4] for line in plain] == ["<7>{", "<6>{", "<4>{", "<3>{", "<2>{", "<3>{"]
    assert json.loads(plain[2][3:])["message"] == "c\n<1>d"


def test_elsewhere_there_are_times_and_no_priorities(tmp_path: Path) -> None:
    for options in ({"journal": False}, {"journal": True, "other": True}):
        lines = logged("text", tmp_path, **options)
        assert not any(line.startswith("<") for line in lines)
        assert lines[0].endswith("Z fedbus: debug: a")


VALUES = st.text() | st.integers() | st.none() | st.lists(st.text(), max_size=2)


@pytest.mark.badinput("B42")
@given(st.text(), st.dictionaries(st.text(min_size=1, max_size=8), VALUES, max_size=4), st.text())
def test_no_field_of_a_record_makes_a_line_of_its_own(text: str, extra: dict[str, Any], error: str) -> None:
    record = logging.LogRecord("fedbus", logging.WARNING, "x.py", 1, "%s", (text,), None)
    for name, value in extra.items():
        if not hasattr(record, name) and name not in ("message", "asctime"):
            setattr(record, name, value)
    try:
        raise ValueError(error)
    except ValueError:
        record.exc_info = sys.exc_info()
    for inner in (logs.JsonFormatter(), logs.TextFormatter(stamped=True)):
        for formatter in (inner, logs.JournalFormatter(inner)):
            line = formatter.format(record)
            assert len(line.splitlines()) == 1 and line.isprintable()
    assert json.loads(logs.JsonFormatter().format(record))["message"] == text


@pytest.fixture
def quiet() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.fault("F20")
def test_a_stderr_that_nobody_reads_or_whose_disk_is_full_stops_nothing(
    quiet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as gone, open("/dev/full", "w", buffering=1) as full:  # noqa: PTH123
        for stream in (gone, full):
            monkeypatch.setattr(sys, "stderr", stream)
            logs.set_up(level="info", form="text")
            logging.getLogger("fedbus.x").error("said to nobody")
            monkeypatch.undo()
        for stream in (gone, full):
            try:
                stream.close()
            except OSError:
                pass


NOTICE = """
from fedbus.cli import logs
from fedbus.cli.common import notice
logs.set_up(level="error", form={form!r}, stamped=True)
notice("ready \\x1b[31m consumers=1\\nand more", event="ready", consumers=["irc"], http=None)
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_notices_are_written_as_the_logs_are(form: str) -> None:
    command = [sys.executable, "-c", NOTICE.format(form=form)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=180)
    if form == "text":
        assert done.stderr.splitlines() == [r"ready \x1b[31m consumers=1", "and more"]
        return
    (line,) = done.stderr.splitlines()
    told = json.loads(line)
    assert told.pop("time").endswith("Z")
    assert told == {
        "level": "info",
        "logger": "fedbus",
        "message": "ready \x1b[31m consumers=1\nand more",
        "event": "ready",
        "consumers": ["irc"],
        "http": None,
    }
