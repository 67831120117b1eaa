"""`fedbus demo` and shell completion, run as newcomers run them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import own_ports
from tests.support import need_program, wait_until

PATIENCE = 240.0  # seconds: seven processes start one after the other, and end so


def related(folder: Path) -> dict[int, str]:
    """The processes whose command line names *folder*."""
    found = {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit() and int(place.name) != os.getpid():
            try:
                line = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:
                continue
            if str(folder) in line:
                found[int(place.name)] = line
    return found


@pytest.fixture
def place(tmp_path):
    """Where the demo puts its folder."""
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


@pytest.fixture
def demo(place, spawn, tmp_path):
    def start(*arguments, **options):
        command = own_ports.command(endpoints=4)
        return spawn("demo", *arguments, command=command, environment={"TMPDIR": str(place)}, cwd=tmp_path, **options)

    yield start
    # whatever a failed test has left
    for process in related(place):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def assert_nothing_is_left(place: Path, shown: str) -> None:
    assert list(place.iterdir()) == []
    assert related(place) == {}
    for port in re.findall(r"tcp://127\.0\.0\.1:(\d+)", shown):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(port))) != 0, f"somebody listens on port {port} still"


def test_it_shows_a_bus_at_work_and_leaves_nothing_behind(demo, place):
    running = demo("--color", "always")
    running.wait_for("Below is", PATIENCE)
    (addresses,) = [path.read_text() for path in place.glob("*/bus/20-endpoints.yaml")]
    for service in ("koji", "bodhi", "git"):
        coloured = re.compile(rf"\x1b\[[0-9;]+m{service}\x1b\[0m")
        wait_until(
            lambda coloured=coloured: coloured.search(running.out) or running.code is not None, PATIENCE, service
        )
        assert coloured.search(running.out), running.err
    running.send(signal.SIGINT)
    assert running.wait(PATIENCE) == 0
    assert re.search(r"(\d+) messages published; \1 received by the hub; \1 read again .* lost 0\.", running.out), (
        running.out
    )
    assert running.err == ""
    assert_nothing_is_left(place, addresses)


def test_seconds_are_counted_from_when_all_of_it_is_up_and_everything_is_shown(demo, place):
    running = demo("--seconds", "0.5", "--color", "never")
    assert running.wait(PATIENCE) == 0
    told = re.search(r"s: (\d+) messages published; \1 received by the hub; \1 read again .* lost 0\.", running.out)
    assert told, running.out
    shown = re.findall(r"^\d\d:\d\d:\d\d (?:koji|bodhi|git) ", running.out, re.MULTILINE)
    assert len(shown) == int(told[1]) > 0
    assert running.err == ""
    assert_nothing_is_left(place, "")


def test_the_commands_that_it_prints_work_in_a_second_terminal(demo, place, spawn):
    running = demo()
    running.wait_for("Below is", PATIENCE)
    commands = [line.strip() for line in running.out.splitlines() if " --config " in line]
    tail, publish, check = commands
    running.wait_for("git push.receive", PATIENCE)
    watching = spawn("-c", f"exec {tail}", command=("sh",))
    watching.wait_for("git push.receive", PATIENCE)
    sent = subprocess.run(["sh", "-c", publish], capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert sent.returncode == 0, sent.stderr
    running.wait_for("text=hello", PATIENCE)
    watching.wait_for("text=hello", PATIENCE)
    checked = subprocess.run(
        ["sh", "-c", f"{check} keys"], capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert checked.returncode == 0, checked.stderr
    watching.send(signal.SIGKILL)
    watching.wait()
    running.send(signal.SIGINT)
    assert running.wait(PATIENCE) == 0
    assert "lost 0." in running.out
    assert_nothing_is_left(place, "")


@pytest.mark.fault("F20")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_burst_of_signals_ends_it_in_order(demo, place, number, code):
    running = demo()
    running.wait_for("koji package.build.start", PATIENCE)
    for _ in range(10):
        running.send(number)
    assert running.wait(PATIENCE) == code
    assert "lost 0." in running.out and "Traceback" not in running.err
    assert_nothing_is_left(place, "")


@pytest.mark.parametrize("name", ["git.host01", "fedbus.cli hub", "fedbus.cli tail"])
def test_a_process_that_dies_ends_it_with_nothing_left(demo, place, name):
    running = demo()
    running.wait_for("koji package.build.start", PATIENCE)
    (victim, *_) = wait_until(lambda: [one for one, line in related(place).items() if name in line], PATIENCE, name)
    os.kill(victim, signal.SIGKILL)
    assert running.wait(PATIENCE) == 1
    assert "was killed by signal 9" in running.err and "Traceback" not in running.err
    assert_nothing_is_left(place, "")


@pytest.mark.fault("F20")
def test_a_reader_that_goes_away_ends_it_quietly(demo, place):
    running = demo(stdout=subprocess.PIPE)
    assert running.process.stdout.readline()
    running.process.stdout.close()
    assert running.wait(PATIENCE) == 0
    assert running.err == ""
    assert_nothing_is_left(place, "")


def test_when_it_is_killed_its_processes_end_too(demo, place):
    running = demo()
    running.wait_for("koji package.build.start", PATIENCE)
    running.send(signal.SIGKILL)
    running.wait()
    wait_until(lambda: not related(place), PATIENCE, "the end of all processes")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_accepts_its_completion_script(shell, fedbus):
    done = fedbus("completion", shell)
    assert done.returncode == 0 and done.stdout and done.stderr == ""
    need_program(shell)
    parsed = subprocess.run(
        [shell, "-n"], input=done.stdout, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert (parsed.returncode, parsed.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("fedbus pu", {"publish"}),
        ("fedbus tail --no", {"--no-follow"}),
        ("fedbus tail --endpoint b", {"bodhi.web01"}),
        ("fedbus publish --as ", {"koji.build01", "bodhi.web01", "git.host01"}),
        ("fedbus publish pack", {"package.build.complete"}),
        ("fedbus tail ko", {"koji", "koji.package.build.complete"}),
        ("fedbus completion ", {"bash", "zsh", "fish"}),
        ("fedbus config sh", {"show"}),
        ("fedbus config topic", {"topic_prefix"}),
        ("fedbus config show topic", {"topic_prefix"}),
        ("fedbus config --or", {"--origins"}),
    ],
)
def test_commands_options_endpoints_and_topics_are_completed(words, offered, fedbus):
    assert fedbus("publish", "package.build.complete", "{}", "--as", "koji.build01", "--wait", "0").returncode == 0
    environment = {
        "_FEDBUS_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    done = fedbus(environment=environment)
    assert {line.split(",", 1)[1] for line in done.stdout.splitlines()} == offered
    assert done.stderr == ""


def test_completion_without_a_configuration_is_silent(fedbus, tmp_path):
    environment = {"_FEDBUS_COMPLETE": "bash_complete", "COMP_WORDS": "fedbus publish --as ", "COMP_CWORD": "3"}
    done = fedbus(environment=environment, config=tmp_path / "nothing")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


COMPLETES = {
    "bash": """source <(fedbus completion bash)
        COMP_WORDS=(fedbus pu) COMP_CWORD=1; _fedbus_completion fedbus; printf '%s\\n' "${COMPREPLY[@]}" """,
    "fish": "fedbus completion fish | source; complete -C 'fedbus pu'",
}


@pytest.mark.parametrize("shell", COMPLETES)
def test_a_shell_that_has_read_the_script_completes(shell, tmp_path):
    need_program(shell)
    (tmp_path / "fedbus").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fedbus.cli "$@"\n')
    (tmp_path / "fedbus").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    done = subprocess.run(
        [shell, "-c", COMPLETES[shell]], env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["publish"], done.stderr
