"""The command as a whole: exit codes, lazy subcommands, options before and after, logs."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from importlib.metadata import entry_points

import click
import pytest

import fedbus
from fedbus import errors
from fedbus.cli import logs
from fedbus.cli.main import COMMANDS, fedbus_command, load, run
from tests.support import wait_until


@pytest.mark.parametrize("name", fedbus.__all__)
def test_every_public_name_is_there(name):
    assert getattr(fedbus, name) is not None
    assert name in dir(fedbus)


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError):
        fedbus.nothing  # noqa: B018


@pytest.fixture
def quiet_logs():
    """Logging of this process as it was before."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def imported(*arguments: str) -> set[str]:
    """The modules that a call of the command has loaded."""
    program = (
        "import sys, atexit\n"
        "from fedbus.cli.main import fedbus_command, run\n"
        f"code = run(fedbus_command, 'fedbus', {list(arguments)!r})\n"
        "print('\\nMODULES', *sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=180)
    return set(done.stdout.rpartition("MODULES")[2].split())


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("completion", "bash"), ("publish", "--help")])
def test_what_opens_nothing_imports_neither_sockets_nor_cryptography(arguments):
    loaded = imported(*arguments)
    assert loaded.isdisjoint({"zmq", "cryptography", "jsonschema", "yaml", "asyncio", "rich", "fedbus.bus"})


def test_publish_does_not_import_other_commands():
    assert imported("publish", "a.b", "{}", "--config", "/nonexistent").isdisjoint(
        {
            "fedbus.cli.hub",
            "fedbus.cli.tail",
            "fedbus.cli.keys",
            "fedbus.cli.demo",
            "tornado",
            "rich",
            "fedbus.hub.delivery",
        }
    )


CASES = [
    (errors.FedbusError("x"), 1),
    (errors.JournalWriteError("x"), 1),
    (errors.MessageError(errors.Reason.JSON, "x"), 1),
    (errors.ConfigError(["x", "y"]), 3),
    (errors.KeysError("x"), 3),
    (errors.TrustError(errors.Reason.POLICY, "x"), 4),
    (errors.BindError("x", endpoint="a", address="b"), 5),
    (errors.ConnectError("x"), 5),
    (errors.JournalLocked("x"), 5),
    (errors.DeadlineExceeded("x"), 6),
    (errors.QueueFull("x"), 6),
    (errors.LossError("x"), 7),
    (OSError(28, "No space left on device"), 1),
    (RuntimeError("a fault of ours"), 1),
    (click.UsageError("x"), 2),
    (KeyboardInterrupt(), 130),
    (BrokenPipeError(), 0),
]


@pytest.mark.parametrize(("error", "code"), CASES, ids=lambda value: type(value).__name__ if value != 0 else "")
def test_each_class_of_error_has_its_exit_code_and_no_traceback(error, code, quiet_logs, capfd, monkeypatch):
    if isinstance(error, BrokenPipeError):
        monkeypatch.setattr("fedbus.cli.main.silence_stdout", lambda: None)  # stdout here is that of the tests

    @click.command()
    def failing() -> None:
        raise error

    assert run(failing, "failing", []) == code
    told = capfd.readouterr().err
    assert "Traceback" not in told
    assert bool(told) == (code not in (0, 130))


def test_verbose_shows_where_an_error_comes_from(quiet_logs, capfd):
    assert run(fedbus_command, "fedbus", ["-v", "config", "--config", "/nonexistent"]) == 3
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_of_every_command_has_examples(name, quiet_logs, capfd):
    def inner(command: click.Command, path: list[str]) -> None:
        assert run(fedbus_command, "fedbus", [*path, "--help"]) == 0
        shown = capfd.readouterr().out
        assert "Examples:" in shown, path
        assert "--config DIR" in shown, path
        if isinstance(command, click.Group):
            for one, below in command.commands.items():
                inner(below, [*path, one])

    inner(load(name), [name])


@pytest.mark.parametrize("before", [True, False])
def test_the_folder_may_be_named_before_or_after_the_subcommand(before, bus_folder, quiet_logs, capfd):
    option = ["--config", str(bus_folder)]
    arguments = [*option, "check", "config"] if before else ["check", "config", *option]
    assert run(fedbus_command, "fedbus", arguments) == 0
    assert str(bus_folder) in capfd.readouterr().out


@pytest.mark.parametrize("arguments", [(), ("dead",)])
def test_a_group_without_a_subcommand_shows_its_help_and_nothing_else(quiet_logs, capfd, arguments):
    run(fedbus_command, "fedbus", arguments)
    shown = "".join(capfd.readouterr())
    assert shown.startswith("Usage: ") and shown.count("Usage: ") == 1 and "Error" not in shown


def test_an_unknown_command_is_a_usage_error_with_a_hint(quiet_logs, capfd):
    assert run(fedbus_command, "fedbus", ["publsh"]) == 2
    assert "did you mean 'publish'?" in capfd.readouterr().err


def test_everyday_tools_have_names_of_their_own():
    found = {one.name: one.value for one in entry_points(group="console_scripts") if one.name.startswith("fedbus")}
    assert found == {
        "fedbus": "fedbus.cli.main:main",
        "fedbus-publish": "fedbus.cli.main:publish_main",
        "fedbus-tail": "fedbus.cli.main:tail_main",
        "fedbus-hub": "fedbus.cli.main:hub_main",
    }


def test_logs_as_json_are_one_object_a_line_with_what_was_given_as_extra(quiet_logs, capfd):
    logs.set_up(level="info", form="json")
    log = logging.getLogger("fedbus.test")
    log.info("two\nlines of %s", "\x1b[2J\u202e", extra={"endpoint": "koji.build01", "count": 3})
    try:
        raise ValueError("bad")
    except ValueError:
        log.exception("failed")
    log.debug("not shown")
    lines = capfd.readouterr().err.splitlines()
    first, second = (json.loads(line) for line in lines)
    assert lines[0].isascii() and "\x1b" not in lines[0]
    assert first["message"] == "two\nlines of \x1b[2J\u202e"
    assert (first["level"], first["logger"], first["endpoint"], first["count"]) == (
        "info",
        "fedbus.test",
        "koji.build01",
        3,
    )
    assert first["time"].endswith("Z")
    assert second["exception"]["type"] == "ValueError"
    assert "Traceback" in second["exception"]["traceback"]


@pytest.mark.badinput("B37")
def test_logs_as_text_are_one_escaped_line(quiet_logs, capfd):
    logs.set_up(level="warning", form="text")
    logging.getLogger("fedbus.test").warning("from %s", "\x1b]52;c;aGk=\x07\u202e\n\u200b", extra={"source": "\x9b2J"})
    shown = capfd.readouterr().err
    assert shown == "fedbus: warning: from \\x1b]52;c;aGk=\\x07\\u202e\\n\\u200b (source=\\x9b2J)\n"


def test_a_text_log_has_a_traceback_only_where_it_was_asked_for(quiet_logs, capfd):
    for tracebacks in (False, True):
        logs.set_up(level="warning", form="text", tracebacks=tracebacks)
        try:
            raise ValueError("bad \x1b")
        except ValueError:
            logging.getLogger("fedbus.test").exception("failed")
        shown = capfd.readouterr().err
        assert ("Traceback" in shown) is tracebacks
        assert "ValueError: bad \\x1b" in shown


HANGING = """
import sys
from fedbus.cli.signals import Stop
with Stop() as stop:
    print("ready", flush=True)
    stop.wait(600)
    print("stopping", flush=True)
    while True:  # what does not end by itself
        stop.wait(600) and __import__("select").select([], [], [], 0.05)
"""


@pytest.mark.fault("F20")
def test_a_later_signal_ends_what_does_not_stop_by_itself():
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.stdout.readline() == "stopping\n"

        def insist() -> bool:
            process.terminate()
            return process.poll() is not None

        wait_until(insist, 60.0, "the end of the process")
        assert process.returncode == 143
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()


LATE = """
import os, signal, sys
from fedbus.cli.signals import Stop

class Late:
    # it goes with its module, when the interpreter has put the handlers of signals away
    def __del__(self, kill=os.kill, own=os.getpid(), number=signal.SIGTERM):
        kill(own, number)

late = Late()
with Stop() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
sys.exit(stop.code)
"""


@pytest.mark.fault("F20")
def test_a_signal_of_a_burst_that_meets_the_end_of_the_interpreter_does_not_change_the_exit_code():
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, timeout=180, check=False)
    assert (done.returncode, done.stderr) == (143, "")


def test_closed_standard_streams_are_filled_so_that_no_socket_gets_their_numbers():
    program = (
        "from fedbus.cli.signals import guard_standard_streams as g; g(); import os; os._exit(os.open('/', 0) < 3)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        preexec_fn=lambda: os.closerange(0, 3),
        close_fds=False,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0
