"""The consumer that runs commands: real processes, and what they get, print, ignore and leave behind."""

from __future__ import annotations

import json
import logging
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fedbus_consumers.trigger import CommandFailed, Ended, Trigger, shown
from hypothesis import example, given
from hypothesis import strategies as st

from fedbus import Drop, Retry
from tests.support import wait_until
from tests.unit.consumers.messages import message

PYTHON = [sys.executable, "-I", "-S", "-c"]
SHELL_TRICKS = "'; touch pwned; echo \" `touch pwned` $(touch pwned) | & > pwned < \\ \n ${IFS} * ? ~ !"


@pytest.fixture
def trigger() -> Iterator[Callable[..., Trigger]]:
    """Make triggers of a piece of Python; all are stopped at the end."""
    made: list[Trigger] = []

    def make(code: str, *arguments: str, **settings: Any) -> Trigger:
        settings = {"command": [*PYTHON, code, *arguments], **settings}
        jsonschema.validate(settings, Trigger.schema)
        one = Trigger(**settings)
        one.start()
        made.append(one)
        return one

    yield make
    for one in made:
        one.stop()


def lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines() if path.exists() else []


# --- what a command gets -------------------------------------------------------------------------------------------


def test_a_command_gets_the_message_as_one_line_of_json_on_its_standard_input(trigger, tmp_path):
    one = trigger("import sys; open(sys.argv[1], 'wb').write(sys.stdin.buffer.read())", str(tmp_path / "got"))
    given_ = message({"package": "bash", "text": "ünïcödé\n"})
    one.consume(given_)
    (line,) = (tmp_path / "got").read_bytes().decode().splitlines()
    assert json.loads(line) == given_.record()


@pytest.mark.badinput("B35")
def test_what_a_shell_would_obey_stays_text(trigger, tmp_path):
    code = "import json, os, sys; json.dump([sys.argv[1:], json.load(sys.stdin)], open('got', 'w'))"
    one = trigger(code, SHELL_TRICKS, "$HOME", directory=str(tmp_path))
    body = {"PATH": "/tmp", "LD_PRELOAD": "/tmp/x.so", "cwd": "/", SHELL_TRICKS.strip(): SHELL_TRICKS}
    one.consume(message(body))
    arguments, record = json.loads((tmp_path / "got").read_text())
    assert arguments == [SHELL_TRICKS, "$HOME"]
    assert record["body"] == body
    assert sorted(path.name for path in tmp_path.iterdir()) == ["got"]


@pytest.mark.badinput("B35")
def test_the_environment_and_the_folder_are_those_of_the_settings_and_no_others(trigger, tmp_path, monkeypatch):
    monkeypatch.setenv("LD_PRELOAD_X", "from the hub")
    monkeypatch.setenv("KEPT", "kept")
    monkeypatch.setenv("FEDBUS_CONFIG", "secret")
    monkeypatch.chdir(tmp_path)
    code = "import json, os, sys; json.dump([os.getcwd(), dict(os.environ)], open(sys.argv[1], 'w'))"
    one = trigger(code, str(tmp_path / "got"), keep_environment=["KEPT", "ABSENT"], environment={"MINE": "a b"})
    one.consume(message({}))
    folder, environment = json.loads((tmp_path / "got").read_text())
    assert folder == "/"
    environment.pop("LC_CTYPE", None)  # Python's own, PEP 538
    assert environment == {"KEPT": "kept", "LANG": "C.UTF-8", "MINE": "a b", "PATH": one.environment["PATH"]}


def test_a_command_that_reads_nothing_of_a_large_message_is_no_failure(trigger):
    trigger("pass").consume(message({"text": "x" * 2_000_000}))


def test_a_large_message_and_a_large_output_do_not_wait_for_each_other(trigger):
    code = "import sys\nsys.stdout.write('y' * 500_000)\nsys.stdout.flush()\nassert len(sys.stdin.read()) > 500_000"
    trigger(code).consume(message({"text": "x" * 500_000}))


# --- what it prints --------------------------------------------------------------------------------------------------


@pytest.mark.badinput("B35")
def test_of_a_huge_output_the_end_is_kept_with_a_mark(trigger, caplog):
    caplog.set_level(logging.INFO)
    one = trigger(
        "import sys\nfor _ in range(300): sys.stdout.write('z' * 100_000)\nprint('the end')", output_bytes=100
    )
    one.consume(message({}))
    (record,) = [record for record in caplog.records if "the end" in record.getMessage()]
    assert "[29999908 bytes cut] zzz" in record.getMessage()
    assert len(record.getMessage()) < 300


@pytest.mark.badinput("B35")
def test_binary_output_is_logged_as_plain_text(trigger, caplog):
    caplog.set_level(logging.INFO)
    trigger("import os; os.write(1, bytes(range(256)) + '\\u202e\\x1b]0;x\\x07'.encode())").consume(message({}))
    (text,) = [record.getMessage() for record in caplog.records if "it printed" in record.getMessage()]
    assert text.isprintable()
    assert "\\x00\\x01" in text and "\\xff" in text and "\\u202e\\x1b]0;x\\x07" in text


@given(st.binary(min_size=1), st.integers(0, 10**12))
@example(b"\r\n\x9b\xe2\x80\xae", 0)
def test_any_output_is_shown_on_one_printable_line(data, cut):
    text = shown(Ended(0, False, data, cut))
    assert text.isprintable()
    assert (f"[{cut} bytes cut] " in text) == (cut > 0)
    if data.isascii() and data.decode().isprintable():
        assert text.endswith(data.decode())


# --- how it ends -----------------------------------------------------------------------------------------------------


def test_exit_codes_mean_what_the_settings_say(trigger):
    one = trigger(
        "import json, sys; print('because'); sys.exit(json.load(sys.stdin)['body']['code'])",
        exit_codes={"done": [0, 3], "drop": [65]},
        retry_after="7s",
    )
    one.consume(message({"code": 0}))
    one.consume(message({"code": 3}))
    with pytest.raises(Retry, match="exit code 75; it printed: because") as retry:
        one.consume(message({"code": 75}))
    assert retry.value.after == 7.0
    with pytest.raises(Drop, match="exit code 65"):
        one.consume(message({"code": 65}))
    with pytest.raises(CommandFailed, match="ended with exit code 1; it printed: because"):
        one.consume(message({"code": 1}))


def test_a_command_that_a_signal_ends_has_failed(trigger):
    with pytest.raises(CommandFailed, match="was ended by SIGSEGV"):
        trigger("import os; os.kill(os.getpid(), 11)").consume(message({}))


def test_a_command_over_its_time_is_ended_with_all_that_it_has_started(trigger, tmp_path):
    pids = tmp_path / "pids"
    code = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "os.fork()\n"
        "with open(sys.argv[1], 'a') as file: file.write(f'{os.getpid()}\\n')\n"
        "time.sleep(600)"
    )
    for seconds in ("1.5", "10", "60"):  # in which both have to start, on a machine that may be busy
        one = trigger(code, str(pids), timeout=float(seconds), kill_after=0.1)
        with pytest.raises(CommandFailed, match=f"longer than its timeout of {seconds} s"):
            one.consume(message({}))
        if len(lines(pids)) >= 2:
            break
    assert len(lines(pids)) >= 2
    wait_until(lambda: not any(alive(int(pid)) for pid in lines(pids)), what="the end of the whole group")


def test_what_a_command_leaves_behind_is_ended_and_does_not_hold_up_its_end(trigger, tmp_path):
    code = (
        "import os, sys, time\n"
        "if os.fork() == 0:\n"
        "    open(sys.argv[1], 'w').write(f'{os.getpid()}\\n')\n"
        "    time.sleep(600)\n"  # with the output still open
        "while not os.path.exists(sys.argv[1]): time.sleep(0.01)\n"
        "print('started')"
    )
    trigger(code, str(tmp_path / "pid")).consume(message({}))
    wait_until(lambda: not any(alive(int(pid)) for pid in lines(tmp_path / "pid")), what="the end of what was left")


@pytest.mark.badinput("B35")
def test_a_command_that_goes_away_later_is_a_failure_that_names_it(trigger, tmp_path):
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    one = Trigger(command=[str(program)])
    program.unlink()
    with pytest.raises(CommandFailed, match=f"cannot start {program}: .*No such file"):
        one.consume(message({}))
    one.stop()


def test_commands_of_several_workers_run_at_the_same_time(trigger, tmp_path):
    # each waits for the other, so they end only if they overlap
    code = (
        "import json, os, sys, time\n"
        "me = json.load(sys.stdin)['body']['me']\n"
        "open(f'{sys.argv[1]}/{me}', 'w')\n"
        "while not os.path.exists(f'{sys.argv[1]}/{1 - me}'): time.sleep(0.01)"
    )
    one = trigger(code, str(tmp_path))
    workers = [threading.Thread(target=one.consume, args=[message({"me": number})]) for number in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()


def test_nothing_is_left_open_by_commands_that_have_ended(trigger):
    one = trigger("import sys; sys.exit(1)", timeout=30)
    for _ in range(3):
        with pytest.raises(CommandFailed):
            one.consume(message({}))
        before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with pytest.raises(CommandFailed):
            one.consume(message({}))
    # what another thread of this process opens just now is not ours; one for each command would be twenty
    assert len(list(Path("/proc/self/fd").iterdir())) < before + 10


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


# --- debounce --------------------------------------------------------------------------------------------------------

NOTE = (
    "import json, sys\n"
    "body = json.load(sys.stdin)['body']\n"
    "with open(sys.argv[1], 'a') as file: file.write(f\"{body['n']} {body['package']}\\n\")\n"
    "sys.exit(body.get('code', 0))"
)


def test_a_command_runs_once_for_each_key_with_its_last_message_when_things_are_quiet(trigger, tmp_path):
    for quiet in (1.0, 10.0, 60.0):
        folder = tmp_path / str(quiet)
        folder.mkdir()
        got, began = folder / "got", time.monotonic()
        one = trigger(NOTE, str(got), debounce={"quiet": quiet, "by": "package", "state": str(folder / "state.db")})
        for number in range(20):
            one.consume(message({"n": number, "package": "bash" if number % 2 else "zsh"}))
        if time.monotonic() - began < quiet:
            break
        one.stop()  # a machine so busy that things were quiet in between
    wait_until(lambda: len(lines(got)) >= 2, quiet + 60.0)
    assert sorted(lines(got)) == ["18 zsh", "19 bash"]
    wait_until(lambda: waiting(folder) == 0, what="an empty file of what waits")


def test_messages_that_never_pause_hold_a_command_up_for_the_longest_time_only(trigger, tmp_path):
    got = tmp_path / "got"
    one = trigger(NOTE, str(got), debounce={"quiet": 600, "longest": 600, "state": str(tmp_path / "state.db")})
    assert one._debounced is not None
    one._debounced._longest = 0.2
    one.consume(message({"n": 0, "package": "bash"}))
    wait_until(lambda: lines(got) == ["0 bash"], 60)


def test_what_waits_for_quiet_outlives_the_hub(trigger, tmp_path):
    got = tmp_path / "got"
    settings = {"quiet": 600, "state": str(tmp_path / "state.db")}
    one = trigger(NOTE, str(got), debounce=settings)
    one.consume(message({"n": 1, "package": "bash"}))
    one.stop()
    assert waiting(tmp_path) == 1
    assert (tmp_path / "state.db").stat().st_mode & 0o077 == 0
    trigger(NOTE, str(got), debounce={**settings, "quiet": 0})
    wait_until(lambda: lines(got) == ["1 bash"], 60)


def test_a_relative_file_is_below_the_state_folder_of_the_bus(trigger, tmp_path):
    one = Trigger(command=["true"], debounce={"quiet": 600, "state": "state.db"})
    with pytest.raises(ValueError, match="below no folder; write the whole path"):
        one.start()
    one.stop()
    one.state = tmp_path
    one.start()
    one.stop()
    assert waiting(tmp_path) == 0


def test_a_file_that_is_no_store_is_told_of_each_time_until_it_is_mended(tmp_path):
    state = tmp_path / "state.db"
    state.write_text("no store" * 1000)
    one = Trigger(command=["true"], debounce={"quiet": 600, "state": str(state)})
    for _ in range(2):
        with pytest.raises(sqlite3.DatabaseError, match="file is not a database"):
            one.start()
    state.unlink()
    one.start()
    one.stop()


def test_two_triggers_cannot_share_a_file(trigger, tmp_path):
    settings = {"quiet": 600, "state": str(tmp_path / "state.db")}
    one = trigger("pass", debounce=settings)
    other = Trigger(command=["true"], debounce=settings)
    with pytest.raises(ValueError, match="is in use by another trigger; give each its own"):
        other.start()
    one.stop()
    other.start()
    other.stop()


def test_a_debounced_command_that_fails_is_tried_again_so_many_times_and_then_given_up(trigger, tmp_path, caplog):
    got = tmp_path / "got"
    one = trigger(NOTE, str(got), debounce={"quiet": 0, "attempts": 2, "state": str(tmp_path / "state.db")})
    one.consume(message({"n": 1, "package": "bash", "code": 3}))
    wait_until(lambda: any("gave up after 2 attempts" in record.getMessage() for record in caplog.records), 60)
    wait_until(lambda: waiting(tmp_path) == 0)
    assert lines(got) == ["1 bash", "1 bash"]


def test_a_message_that_comes_while_its_command_runs_makes_it_run_once_more(trigger, tmp_path):
    got, gate = tmp_path / "got", tmp_path / "gate"
    code = f"{NOTE.rpartition(chr(10))[0]}\nimport os, time\nwhile not os.path.exists(sys.argv[2]): time.sleep(0.01)"
    one = trigger(code, str(got), str(gate), debounce={"quiet": 0, "state": str(tmp_path / "state.db")})
    one.consume(message({"n": 1, "package": "bash"}))
    wait_until(lambda: lines(got) == ["1 bash"], 60)
    one.consume(message({"n": 2, "package": "bash"}))
    gate.touch()
    wait_until(lambda: lines(got) == ["1 bash", "2 bash"], 60)
    wait_until(lambda: waiting(tmp_path) == 0)


def waiting(folder: Path) -> int:
    with sqlite3.connect(folder / "state.db") as store:
        count: int = store.execute("SELECT count(*) FROM waiting").fetchone()[0]
        return count


# --- stopping --------------------------------------------------------------------------------------------------------


def test_stopping_ends_commands_that_still_run(trigger, tmp_path):
    got = tmp_path / "got"
    code = "import os, sys, time; open(sys.argv[1], 'w').write(f'{os.getpid()}\\n'); time.sleep(600)"
    settings = {"quiet": 0, "state": str(tmp_path / "state.db")}
    one = trigger(code, str(got), kill_after=0.1, timeout=600, debounce=settings)
    one.consume(message({}))
    (pid,) = wait_until(lambda: lines(got), 60)
    one.stop()
    wait_until(lambda: not alive(int(pid)), what="the end of the command")
    assert waiting(tmp_path) == 1  # it was not done


def test_commands_of_a_hub_that_is_killed_are_ended_too(spawn, tmp_path):
    got = tmp_path / "got"
    code = "import os, sys, time; open(sys.argv[1], 'w').write(f'{os.getpid()}\\n'); time.sleep(600)"
    program = (
        "import sys\n"
        "from fedbus_consumers.trigger import Trigger\n"
        "one = Trigger(command=sys.argv[1:], timeout=600, kill_after=0.1)\n"
        "one.start()\n"
        "one.act({})"
    )
    hub = spawn(program, *PYTHON, code, str(got), command=(sys.executable, "-c"))
    (pid,) = wait_until(lambda: lines(got), 60)
    os.kill(hub.process.pid, signal.SIGKILL)
    hub.wait()
    wait_until(lambda: not alive(int(pid)), 60, "the end of the command")


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"command": ["no-such-program-here"]}, "there is no program 'no-such-program-here' in /usr/local/sbin:"),
        ({"command": ["./program"]}, "depends on the working directory"),
        ({"command": ["/etc/passwd"]}, "there is no program '/etc/passwd'"),
        ({"command": ["true"], "timeout": "soon"}, "settings.timeout: 'soon' is not a duration"),
        ({"command": ["true"], "timeout": 0}, "less than 0.01 s"),
        ({"command": ["true"], "exit_codes": {"drop": [0]}}, "0 is in done and in drop"),
        ({"command": ["true"], "debounce": {"quiet": "x", "state": "/x"}}, "settings.debounce.quiet"),
    ],
)
def test_settings_that_cannot_be_are_told_when_the_consumer_is_made(settings, says):
    jsonschema.validate(settings, Trigger.schema)
    with pytest.raises(ValueError, match=says.replace("(", "\\(")):
        Trigger(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"command": "rm -rf $HOME"},
        {"command": []},
        {"command": ["true", "a\0b"]},
        {"command": ["true"], "directory": "relative"},
        {"command": ["true"], "environment": {"A=B": "c"}},
        {"command": ["true"], "environment": {"A": 1}},
        {"command": ["true"], "shell": True},
        {"command": ["true"], "debounce": {"quiet": 1}},
        {"command": ["true"], "exit_codes": {"done": [256]}},
    ],
)
def test_settings_of_another_shape_are_refused_by_the_schema(settings):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(settings, Trigger.schema)
