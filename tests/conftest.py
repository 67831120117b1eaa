"""What holds for all tests, and the fixtures that more than one folder of them needs."""

from __future__ import annotations

import itertools
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from fedbus.config import init
from fedbus.config.init import create
from tests.support import wait_until

# how long an example takes, or to make one, says more about the machine than about the code; pytest-timeout bounds the
# whole test
settings.register_profile("fedbus", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fedbus")


def _own_ports() -> Iterator[int]:
    """Return ports that no other worker of pytest-xdist tries, none a second time while there are others.

    A port that was found free is bound some time later, and once more when what held it is started again: chosen at
    random, one in hundreds would be somebody else's by then.
    """
    worker, workers = os.environ.get("PYTEST_XDIST_WORKER", "gw0"), os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")
    mine = range(init._FIRST_PORT, init._lent_from())[int(worker.removeprefix("gw")) :: int(workers)]
    start = secrets.randbelow(len(mine))  # for those who test here twice at a time
    return itertools.cycle((*mine[start:], *mine[:start]))


_PORTS = _own_ports()
init._candidates = lambda: _PORTS

# the path of a Unix socket may have 107 bytes, of which a test below pytest's own folder needs most
if len(tempfile.gettempdir()) > 20 and os.access("/tmp", os.W_OK):
    os.environ["TMPDIR"] = tempfile.tempdir = "/tmp"

ENDPOINTS = ("koji.build01", "bodhi.web01", "git.host01")
COMMAND = (sys.executable, "-m", "fedbus.cli")
PATIENCE = 60.0  # seconds, for whatever happens soon, on a slow machine too


@dataclass
class Running:
    """A process whose output goes to files."""

    process: subprocess.Popen[bytes]
    out_path: Path
    err_path: Path

    @property
    def out(self) -> str:
        """What it wrote to stdout so far."""
        return self.out_path.read_text("utf-8", "surrogateescape")

    @property
    def err(self) -> str:
        """What it wrote to stderr so far."""
        return self.err_path.read_text("utf-8", "surrogateescape")

    @property
    def code(self) -> int | None:
        """The exit code, negative for a signal that killed it, or None while it runs."""
        return self.process.poll()

    def records(self) -> list[dict[str, Any]]:
        """The whole lines of stdout, as JSON."""
        return [json.loads(line) for line in self.out.split("\n")[:-1]]

    def wait(self, timeout: float = PATIENCE) -> int:
        """Return the exit code; fail when it has not ended within *timeout* seconds."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.process.args} did not end within {timeout} s; stderr:\n{self.err}")

    def wait_for(self, text: str, timeout: float = PATIENCE) -> None:
        """Wait until *text* was written to either."""
        wait_until(
            lambda: text in self.out or text in self.err or self.code is not None,
            timeout,
            f"{text!r} from {self.process.args}",
        )
        assert text in self.out or text in self.err, f"ended with {self.code}; stderr:\n{self.err}"

    def send(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """What a command that ran in this process has set the level of its logs to, as with -q, ends with the test."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


@pytest.fixture
def bus_folder(tmp_path: Path) -> Path:
    """A configuration folder with three endpoints, as `fedbus init` makes it."""
    folder = tmp_path / "bus"
    create(folder, ENDPOINTS)
    return folder


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start processes: `spawn(*arguments, config=None, stdin=None, …)`; whatever still runs at the end is killed.

    Each leads a session of its own, so that what it has started itself can be killed with it.
    """
    started: list[Running] = []

    def start(
        *arguments: str | Path,
        config: Path | None = None,
        command: tuple[str, ...] = COMMAND,
        environment: dict[str, str] | None = None,
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | None = None,
        **options: Any,
    ) -> Running:
        place = tmp_path / "output"
        place.mkdir(exist_ok=True)
        out, err = place / f"{len(started)}.out", place / f"{len(started)}.err"
        with out.open("wb") as out_file, err.open("wb") as err_file:
            process = subprocess.Popen(
                [*command, *map(str, arguments)],
                stdin=stdin,
                stdout=out_file if stdout is None else stdout,
                stderr=err_file,
                env=_environment(config, environment),
                start_new_session=True,
                **options,
            )
        running = Running(process, out, err)
        started.append(running)
        return running

    yield start
    for running in started:
        process = running.process
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass


@pytest.fixture
def fedbus(bus_folder: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command to its end: `fedbus("publish", "a.b", "{}", stdin=…)`, with `bus_folder` as configuration."""

    def run(
        *arguments: str | Path, stdin: str = "", environment: dict[str, str] | None = None, config: Path = bus_folder
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *map(str, arguments)],
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            env=_environment(config, environment),
            timeout=180,
            check=False,
        )

    return run


def _environment(config: Path | None, more: dict[str, str] | None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FEDBUS", "_FEDBUS", "NO_COLOR"))}
    kept.update({"TZ": "UTC", "LC_ALL": "C.UTF-8", "COLUMNS": "200"})
    if config is not None:
        kept["FEDBUS_CONFIG"] = str(config)
    return {**kept, **(more or {})}
