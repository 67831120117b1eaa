"""Failpoints: what may be written, when they act, that each name stands in the code, and what they cost unarmed."""

from __future__ import annotations

import ast
import dis
import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbus import failpoints
from fedbus.errors import ConfigError
from fedbus.failpoints import POINTS, Failpoint, parse
from fedbus.journal.journal import Journal

ROOT = Path(__file__).resolve().parents[2]
POINT = "cursor.commit.before"


def places() -> Iterator[tuple[Path, ast.Call, list[ast.AST]]]:
    """Every call of a failpoint in fedbus and its consumers, with the statements around it from the outside in."""
    for path in [*sorted((ROOT / "fedbus").rglob("*.py")), *sorted((ROOT / "consumers").rglob("*.py"))]:
        if path.name == "failpoints.py":
            continue
        stack: list[tuple[ast.AST, list[ast.AST]]] = [(ast.parse(path.read_bytes()), [])]
        while stack:
            node, around = stack.pop()
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            if called and node.func.id in ("hit", "torn_writev"):
                yield path, node, around
            stack += [(child, [*around, node]) for child in ast.iter_child_nodes(node)]


def test_the_failpoints_in_the_code_are_those_in_the_table() -> None:
    used = set()
    for path, call, _ in places():
        assert isinstance(call.args[0], ast.Constant), f"{path}:{call.lineno}: write the name where it is reached"
        used.add(call.args[0].value)
    assert used == set(POINTS)


def test_the_page_about_testing_has_a_row_for_each_failpoint() -> None:
    text = (ROOT / "doc" / "testing.rst").read_text("utf-8")
    rows = re.findall(r"   \* - ``([a-z.]+)``\n     - (.*(?:\n       .*)*)\n", text)
    assert {name: " ".join(meaning.split()) for name, meaning in rows if name in POINTS} == POINTS


def test_every_failpoint_stands_behind_the_one_test_of_a_constant() -> None:
    for path, call, around in places():
        tests = [one.test for one in around if isinstance(one, ast.If | ast.IfExp)]
        names = {name.id for test in tests for name in ast.walk(test) if isinstance(name, ast.Name)}
        assert "ARMED" in names, f"{path}:{call.lineno}: put it below `if ARMED:`"


def test_a_process_without_failpoints_pays_one_look_at_a_global_for_each() -> None:
    assert failpoints.ARMED is False
    code = [one for one in dis.get_instructions(Journal._write) if one.argval == "ARMED"]
    for one in code:
        assert one.opname == "LOAD_GLOBAL"


@pytest.mark.parametrize(
    ("text", "acts"),
    [
        ("sleep:0", [1, 2, 3, 4, 5, 6]),
        ("sleep:0@3", [3]),
        ("sleep:0@2-4", [2, 3, 4]),
        ("sleep:0@5-", [5, 6]),
    ],
)
def test_a_failpoint_acts_at_the_times_that_were_named(text: str, acts: list[int]) -> None:
    point = Failpoint(POINT, text, 0)
    assert [number for number in range(1, 7) if point.due()] == acts


@given(st.integers(0, 2**32), st.floats(0.05, 0.95))
def test_a_probability_with_a_seed_acts_at_the_same_times_again(seed: int, probability: float) -> None:
    first, second = (Failpoint(POINT, f"kill%{probability:.3f}", seed) for _ in range(2))
    assert [first.due() for _ in range(50)] == [second.due() for _ in range(50)]


def test_a_probability_is_about_how_often_it_acts() -> None:
    point = Failpoint(POINT, "kill%0.25", 7)
    assert 150 < sum(point.due() for _ in range(1000)) < 350


def test_a_failpoint_with_a_file_acts_while_the_file_is_there(tmp_path: Path) -> None:
    switch = tmp_path / "full?really"
    point = Failpoint(POINT, f"error:ENOSPC?{switch}", 0)
    assert not point.due()
    switch.touch()
    assert point.due()
    with pytest.raises(OSError, match="No space left on device") as caught:
        point.act()
    assert caught.value.errno == errno.ENOSPC
    switch.unlink()
    assert not point.due()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "kill",
        "journal.sink=kill",
        f"{POINT}",
        f"{POINT}=",
        f"{POINT}=die",
        f"{POINT}=error",
        f"{POINT}=error:ENOSUCH",
        f"{POINT}=kill:9",
        f"{POINT}=kill@0",
        f"{POINT}=kill@4-3",
        f"{POINT}=kill%0",
        f"{POINT}=kill%1.5",
        f"{POINT}=sleep:soon",
        f"{POINT}=stall",
        f"{POINT}=short:3",
        f"{POINT}=kill;{POINT}=kill@2",
        f"{POINT}=kill;seed=x",
    ],
)
def test_what_cannot_be_armed_is_refused_and_nothing_at_all_arms_nothing(text: str) -> None:
    if not text:
        assert parse(text) == {}
        return
    with pytest.raises(ConfigError, match="FEDBUS_FAILPOINTS: "):
        parse(text)


@given(st.text(alphabet="abcdeknortyp.=:;@%?-0123456789 ", max_size=40))
def test_any_text_arms_failpoints_or_raises_config_error_and_nothing_else(text: str) -> None:
    try:
        parse(f"{POINT}={text}")
    except ConfigError:
        pass


def test_all_faults_of_the_variable_are_told_together() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f"no.such=kill;{POINT}=die;nor.this=kill")
    assert len(caught.value.problems) == 3


def run(code: str, armed: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "FEDBUS_FAILPOINTS": armed},
        capture_output=True,
        encoding="utf-8",
        timeout=180,
        check=False,
    )


COME_BY = f"from fedbus.failpoints import hit\nfor n in range(5):\n    hit({POINT!r})\n    print(n, flush=True)"


@pytest.mark.parametrize(
    ("action", "code", "lines"),
    [("kill@3", -signal.SIGKILL, 2), ("exit:7@2", 7, 1), ("error:EIO@4", 1, 3), ("sleep:0.01", 0, 5)],
)
def test_an_armed_process_does_what_was_asked_for(action: str, code: int, lines: int) -> None:
    done = run(COME_BY, f"{POINT}={action}")
    assert (done.returncode, len(done.stdout.splitlines())) == (code, lines)
    assert "failpoints are armed" in done.stderr


def test_a_command_with_an_unknown_failpoint_does_not_start(bus_folder: Path) -> None:
    done = run(
        f"import sys; sys.argv[1:] = ['--config', {str(bus_folder)!r}, 'hub', '--seconds', '1']\n"
        "from fedbus.cli.main import main; main()",
        "journal.sink=kill",
    )
    assert done.returncode == 3, done.stderr
    assert "there is no failpoint 'journal.sink'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_stalled_process_says_so_and_goes_on_when_its_file_appears(tmp_path: Path) -> None:
    from tests.support import wait_until

    until = tmp_path / "go"
    child = subprocess.Popen(
        [sys.executable, "-c", COME_BY],
        env={**os.environ, "FEDBUS_FAILPOINTS": f"{POINT}=stall:{until}@2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert child.stdout is not None
        wait_until((tmp_path / "go.reached").exists)
        assert child.stdout.readline() == b"0\n"
        assert child.poll() is None
        until.touch()
        assert child.stdout.read().split() == [b"1", b"2", b"3", b"4"]
        assert child.wait(60) == 0
    finally:
        child.kill()
        child.wait(30)
        assert child.stdout is not None
        child.stdout.close()


@pytest.mark.parametrize(
    ("text", "written"), [("short:3", 3), ("short:0", 0), ("error:ENOSPC", 5), ("error:EIO@2", 11)]
)
def test_a_torn_write_leaves_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, written: int) -> None:
    monkeypatch.setitem(failpoints._armed, "x.torn", Failpoint("x.torn", text, 0))
    with (tmp_path / "file").open("wb") as file:
        try:
            assert failpoints.torn_writev("x.torn", file.fileno(), [b"hello ", b"world"]) == written
        except OSError:
            assert text.startswith("error")
    assert (tmp_path / "file").read_bytes() == b"hello world"[:written]
