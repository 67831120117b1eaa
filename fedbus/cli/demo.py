"""`fedbus demo`: a whole bus on this machine, live, in a folder that is gone afterwards."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from fedbus.cli.common import COLOUR_HELP, examples, notice
from fedbus.cli.render import DIM, RESET
from fedbus.cli.signals import Stop

if TYPE_CHECKING:
    from fedbus.model.position import Cursor

SERVICES = {"koji": "koji.build01", "bodhi": "bodhi.web01", "git": "git.host01"}
SPARE = "git.shell"  # for messages published by hand

_LOOK_SECONDS = 0.2
_START_SECONDS = 120.0  # after which --seconds are counted in any case
# A machine that is very busy needs them; on any other nobody waits for so long.
_END_SECONDS = 30.0  # for one process to end by itself
_CATCH_UP_SECONDS = 60.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_COUNTER, _TAIL = "hub.count-topics", "demo-tail"  # the cursors that say how far hub and tail have come
# Cursors are looked at, here and at the end. All services end together, which is no reason for an alarm in the tail.
_SETTINGS = "hub: {commit_interval: 200ms}\nsubscriber: {commit_interval: 200ms, silence: 1m}\n"

_EXAMPLES = examples(
    "fedbus demo",
    "fedbus demo --seconds 20",
    "cd ~/src/some-repository && fedbus demo     its commits are the pushes",
)


@click.command("demo", epilog=_EXAMPLES)
@click.option(
    "--seconds",
    type=click.FloatRange(0.0),
    metavar="S",
    help="End S seconds after all of it is up; otherwise on Ctrl-C.",
)
@click.option(
    "--color", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True, help=COLOUR_HELP
)
def demo(seconds: float | None, color: str) -> int:
    """Run a whole bus on this machine: three services that publish, a hub with two consumers, and a tail.

    Everything is real, and private: signed with keys made for it, journaled, on free ports of the loopback, in a
    folder that is removed at the end. Watch it and publish to it from a second terminal, with the commands it prints.
    Ctrl-C ends it with 0.
    """
    return _Demo(seconds, color).run()


class _ChildEnded(Exception):
    """A process that should go on has ended."""


@dataclass(slots=True)
class _Child:
    name: str
    process: subprocess.Popen[str]
    log: Path
    lines: list[str] = field(default_factory=list)  # what it printed to a pipe
    reader: threading.Thread | None = None


class _Demo:
    def __init__(self, seconds: float | None, color: str) -> None:
        self._seconds = seconds
        self._color = color
        self._children: list[_Child] = []
        self._folder = Path()
        self._config = Path()
        self._parent = os.getpid()
        self._heads: dict[str, int] = {}
        coloured = color == "always" or (color == "auto" and _is_terminal() and not os.environ.get("NO_COLOR"))
        self._prefix = f"{DIM}  hub, announce-builds:{RESET} " if coloured else "  hub, announce-builds: "

    def run(self) -> int:
        with Stop(also=(signal.SIGHUP,), insist=False) as stop:
            self._folder = Path(tempfile.mkdtemp(prefix="fedbus-demo-"))
            try:
                return self._play(stop)
            finally:
                for child in reversed(self._children):
                    _end(child)
                shutil.rmtree(self._folder, ignore_errors=True)

    def _play(self, stop: Stop) -> int:
        from fedbus.cli.demo_service import find_repository
        from fedbus.config.init import create

        self._config = self._folder / "bus"
        create(self._config, [*SERVICES.values(), SPARE])
        settings = self._config / "60-demo.yaml"
        settings.write_text(_SETTINGS)
        settings.chmod(0o600)
        repository = find_repository(Path.cwd())
        _say(self._introduction(repository))
        began = time.monotonic()
        up = False
        wrong = ""
        try:
            self._start(repository, stop)
            while not stop.wait(_LOOK_SECONDS):
                self._look()
                now = time.monotonic()
                if not up and (self._is_up() or now - began >= _START_SECONDS):
                    up, began = True, now
                if up and self._seconds is not None and now - began >= self._seconds:
                    break
        except _ChildEnded as ended:
            wrong = str(ended)
        if self._nobody_reads():
            return 0
        code = self._finish(time.monotonic() - began)
        if wrong:
            notice(f"fedbus: {wrong}")
            return 1
        return code if stop.signal in (0, signal.SIGINT) else stop.code

    # --- processes ---------------------------------------------------------------------------------------------

    def _start(self, repository: Path | None, stop: Stop) -> None:
        config = ["--config", str(self._config)]
        consumers = Path(__file__).with_name("demo_consumers.py")
        self._spawn(
            "tail",
            [
                *("-m", "fedbus.cli", "tail", *config),
                *("--since", "beginning", "--cursor", _TAIL, "--color", self._color),
            ],
            show=True,
        )
        self._spawn(
            "hub",
            [
                *("-m", "fedbus.cli", "hub", *config),
                *("--consumer", f"{consumers}:CountTopics", "--consumer", f"{consumers}:announce_builds"),
            ],
        )
        for service, endpoint in SERVICES.items():
            extra = ["--repository", str(repository)] if service == "git" and repository is not None else []
            self._spawn(endpoint, ["-m", "fedbus.cli.demo_service", service, *config, "--endpoint", endpoint, *extra])

    def _spawn(self, name: str, arguments: list[str], *, show: bool = False) -> None:
        log = self._folder / f"{name}.log"
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=None if show else subprocess.PIPE,
                stderr=None if show else errors,
                text=True,
                encoding="utf-8",
                errors="replace",
                # Ctrl-C reaches this process alone, which then ends them in order
                start_new_session=True,
                preexec_fn=self._die_with_parent,
            )
        child = _Child(name, process, log)
        self._children.append(child)
        if process.stdout is not None:
            child.reader = threading.Thread(target=self._relay, args=(child, process.stdout), daemon=True)
            child.reader.start()

    def _die_with_parent(self) -> None:
        """In the child: should this process be killed, none of them stays."""
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != self._parent:
            os._exit(1)

    def _relay(self, child: _Child, pipe: IO[str]) -> None:
        """Show what the hub's consumers say; keep what is for the summary."""
        for line in pipe:
            if line.startswith("{"):
                child.lines.append(line)
            elif child.name == "hub":
                with contextlib.suppress(OSError):
                    _say(self._prefix + line.rstrip("\n"))

    def _look(self) -> None:
        for child in self._children:
            code = child.process.poll()
            if code is not None:
                last = child.log.read_text("utf-8", "replace").strip().splitlines()[-5:]
                told = "; it said: " + " / ".join(last) if last else ""
                how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
                raise _ChildEnded(f"{child.name} {how}{told}")

    def _is_up(self) -> bool:
        """Whether all services can publish, and something of them has come to the hub and to the tail."""
        services = [child for child in self._children if child.name in SERVICES.values()]
        return all(child.lines for child in services) and all(self._places(name) for name in (_COUNTER, _TAIL))

    def _places(self, cursor: str) -> Cursor:
        """Return how far *cursor* has come; nothing where that cannot be said, or not yet."""
        from fedbus.errors import FedbusError
        from fedbus.journal.cursors import CursorStore

        path = self._config / "state" / "cursors.db"
        if path.exists():
            with contextlib.suppress(FedbusError, OSError), CursorStore.open(path) as store:
                return store.load(cursor)
        return {}

    def _nobody_reads(self) -> bool:
        """Whether the tail has ended since its output, and so ours, goes nowhere any more."""
        tail = next((child for child in self._children if child.name == "tail"), None)
        return tail is not None and tail.process.poll() == 0

    # --- words -------------------------------------------------------------------------------------------------

    def _introduction(self, repository: Path | None) -> str:
        fedbus = _command()
        config = f"--config {shlex.quote(str(self._config))}"
        pushes = f"the history of {repository}" if repository else "invented: this folder is in no git repository"
        body = shlex.quote('{"text": "hello"}')
        return "\n".join(
            [
                f"A private bus is starting in {self._folder}; it is removed at the end.",
                f"  {SERVICES['koji']:13} publishes builds (invented)",
                f"  {SERVICES['bodhi']:13} reads the bus, and publishes an update of each build that is complete",
                f"  {SERVICES['git']:13} publishes pushes ({pushes})",
                "  the hub       runs two consumers: one counts topics, one announces builds",
                "From a second terminal:",
                f"  {fedbus} tail {config} --since beginning git bodhi",
                f"  {fedbus} publish {config} --as {SPARE} message.send {body}",
                f"  {fedbus} check {config}",
                "Below is `fedbus tail`. Ctrl-C ends."
                if self._seconds is None
                else f"Below is `fedbus tail`. It ends {self._seconds:g} s after all of it is up, or on Ctrl-C.",
                "",
            ]
        )

    # --- the end -----------------------------------------------------------------------------------------------

    def _finish(self, seconds: float) -> int:
        """End all in order, read everything again, and say what came of it; return the exit code."""
        by_name = {child.name: child for child in self._children}
        for name in SERVICES.values():
            if name in by_name:
                by_name[name].process.terminate()
        for name in SERVICES.values():
            if name in by_name:
                _end(by_name[name])
        self._heads = self._find_heads()
        tail, hub = by_name.get("tail"), by_name.get("hub")
        # the tail first: what is said below shall be the last on the screen
        for child, cursor in ((tail, _TAIL), (hub, _COUNTER)):
            if child is not None:
                self._wait_for(child, cursor)
                _end(child)
        published, verified, lost = self._read_again()
        counted = _counted(hub)
        _say(
            f"\n{seconds:.0f} s: {published} messages published; {counted} received by the hub; "
            f"{verified} read again from the journals, every signature verified; lost {lost}."
        )
        return 1 if lost else 0

    def _find_heads(self) -> dict[str, int]:
        """Return how many messages each journal holds."""
        from fedbus.config.settings import Settings
        from fedbus.errors import JournalError
        from fedbus.journal.journal import JournalReader

        settings = Settings.load(self._config)
        heads = {}
        for name in settings.endpoints:
            # one that has published nothing has no journal
            with (
                contextlib.suppress(JournalError),
                JournalReader.open(settings.journal_for(name).directory) as journal,
            ):
                heads[name] = journal.head
        return {name: head for name, head in heads.items() if head}

    def _read_again(self) -> tuple[int, int, int]:
        """Return how many messages the journals hold, how many of them verify, and how many are lost."""
        from fedbus.bus import Bus

        if not self._heads:
            return 0, 0, 0
        losses: list[object] = []
        verified, published = 0, sum(self._heads.values())
        deadline = time.monotonic() + _CATCH_UP_SECONDS
        with (
            Bus.open(self._config) as bus,
            bus.subscribe(since="beginning", endpoints=list(self._heads), on_loss=losses.append) as subscriber,
        ):
            while verified < published and time.monotonic() < deadline:
                messages = subscriber.receive(0.05)
                verified += len(messages)
                if not messages and subscriber.caught_up:
                    break
        return published, verified, len(losses) + max(0, published - verified)

    def _wait_for(self, child: _Child, cursor: str) -> None:
        """Give *child* time to get to the heads of the journals."""
        deadline = time.monotonic() + _CATCH_UP_SECONDS
        while child.process.poll() is None and time.monotonic() < deadline:
            places = self._places(cursor)
            if all(name in places and places[name].sequence >= head for name, head in self._heads.items()):
                return
            time.sleep(0.05)


def _counted(hub: _Child | None) -> int:
    if hub is None:
        return 0
    for line in reversed(hub.lines):
        with contextlib.suppress(ValueError, AttributeError):
            return sum(json.loads(line).get("counts", {}).values())
    return 0


def _end(child: _Child) -> None:
    """End a process, politely at first; return when it is gone and all that it printed was read."""
    process = child.process
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            notice(f"{child.name} did not end within {_END_SECONDS:g} s, and is killed")
            process.kill()
            process.wait()
    if child.reader is not None:
        child.reader.join(_END_SECONDS)
    if process.stdout is not None:
        process.stdout.close()


def _command() -> str:
    """Return how to call fedbus from another terminal."""
    beside = Path(sys.executable).with_name("fedbus")
    found = shutil.which("fedbus")
    if found is not None and Path(found).resolve() == beside.resolve():
        return "fedbus"
    if beside.exists():
        return shlex.quote(str(beside))
    return f"{shlex.quote(sys.executable)} -m fedbus.cli"


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def _say(text: str) -> None:
    if sys.stdout is not None:
        # one write, so that it does not end up in the middle of a line of the tail
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
