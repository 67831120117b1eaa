"""Starts whole processes for a measurement, collects their reports, and cleans up after them however it ends."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.role import die_with_parent

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".bench"  # environments of peers and all scratch files: the disk of the checkout, not a tmpfs


class BenchError(Exception):
    """A measurement that failed; the text says which, where, and what its process wrote last."""


class Skip(Exception):
    """A peer that cannot run here; the text says why and what to install."""


def free_ports(count: int) -> list[int]:
    """*count* different TCP ports of 127.0.0.1 that nobody holds just now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def stop(process: subprocess.Popen[Any], patience: float = 10.0) -> None:
    """End *process*, which leads its own session, and whatever it started; asks first, then insists."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # the group that this process leads; its members may outlive it
    process.wait()


class Worker:
    """One process of a measurement (see bench.role) and the line to it."""

    def __init__(
        self, module: str, function: str, settings: Mapping[str, Any], *, log: Path, python: Path | None = None
    ) -> None:
        self.label = f"{module}.{function}"
        self._log = log
        self._heard: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [str(python or sys.executable), "-m", "bench.role", module, function],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )
        self._write(settings)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for text in self._process.stdout:
            self._heard.put(json.loads(text))
        self._heard.put(None)

    def _write(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._failed("ended too early") from error

    def _failed(self, what: str) -> BenchError:
        tail = self._log.read_text(errors="replace").strip().splitlines()[-15:]
        return BenchError(f"{self.label} {what}; it wrote last:\n    " + "\n    ".join(tail or ["(nothing)"]))

    def expect(self, event: str, timeout: float = 120.0) -> dict[str, Any]:
        """The next thing the process says, which has to be *event*."""
        try:
            heard = self._heard.get(timeout=timeout)
        except queue.Empty:
            raise self._failed(f"did not say {event!r} within {timeout:g} s") from None
        if heard is None or heard["event"] != event:
            raise self._failed(f"was to say {event!r} and " + ("ended" if heard is None else f"said {heard!r}"))
        return heard

    def tell(self, event: str) -> None:
        """Say *event* to the process."""
        self._write({"event": event})

    def stop(self) -> None:
        """End the process if it has not ended."""
        stop(self._process, patience=2.0)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What both ends of one measurement reported."""

    producer: dict[str, Any]
    consumer: dict[str, Any]

    @property
    def rate(self) -> float:
        """Messages a second: those measured / (last received - first published)."""
        taken = float(self.consumer["last_ns"] - self.producer["first_ns"])
        return float(self.consumer["count"]) * 1e9 / taken

    @property
    def cpu_us(self) -> float:
        """Microseconds of processor for one message, user and system, both clients together (no broker)."""
        both = self.producer["cpu_s"] + self.consumer["cpu_s"]
        return float(both) * 1e6 / float(self.consumer["count"])


@dataclass(slots=True)
class Session:
    """One run of the benchmark: where it works, how long, and what it has measured."""

    quick: bool
    runs: int
    folder: Path
    stack: contextlib.ExitStack
    install: bool = True
    figures: dict[str, tuple[str, dict[int, float]]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    round: int = 0
    _kept: dict[str, Path] = field(default_factory=dict)
    _logs: int = 0

    def say(self, text: str) -> None:
        """Progress, for who watches."""
        print(text, file=sys.stderr, flush=True)

    def record(self, name: str, value: float, unit: str) -> None:
        """Keep one figure of this round."""
        self.figures.setdefault(name, (unit, {}))[1][self.round] = value
        self.say(f"    {name}: {value:,.1f} {unit}")

    def pick(self, full: int, quick: int) -> int:
        """*full*, or *quick* in a quick run."""
        return quick if self.quick else full

    @contextlib.contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """A new empty folder below the session's, removed afterwards."""
        path = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def kept(self, name: str, make: Callable[[Path], None]) -> Path:
        """A folder that *make* fills when it is first asked for, and that stays until the end of the run."""
        if name not in self._kept:
            path = self.stack.enter_context(self.scratch(name))
            make(path)
            self._kept[name] = path
        return self._kept[name]

    def figure(self, name: str) -> float | None:
        """What was recorded under *name* in this round."""
        _, samples = self.figures.get(name, ("", {}))
        return samples.get(self.round)

    @contextlib.contextmanager
    def worker(
        self, module: str, function: str, settings: Mapping[str, Any], *, python: Path | None = None
    ) -> Iterator[Worker]:
        """A started process, stopped at the end of the block."""
        self._logs += 1
        log = self.folder / f"{self._logs:04d}-{module.rpartition('.')[2]}-{function}.log"
        worker = Worker(module, function, settings, log=log, python=python)
        try:
            yield worker
        finally:
            worker.stop()

    def pair(
        self,
        module: str,
        settings: Mapping[str, Any],
        *,
        produce: str = "produce",
        consume: str = "consume",
        python: Path | None = None,
        timeout: float = 180.0,
    ) -> Outcome:
        """Run *module*'s producer and consumer as two processes through greeting, warm-up and measurement."""
        with (
            self.worker(module, produce, settings, python=python) as producer,
            self.worker(module, consume, settings, python=python) as consumer,
        ):
            producer.expect("ready", timeout)  # the producer binds, or makes the queue
            consumer.tell("ready")
            consumer.expect("joined", timeout)
            producer.tell("joined")
            consumer.expect("warm", timeout)
            producer.tell("go")
            received = consumer.expect("report", timeout)
            published = producer.expect("report", timeout)
        return Outcome(published, received)

    @contextlib.contextmanager
    def server(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: Path,
        ready: Callable[[], bool],
        timeout: float = 60.0,
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A server in the foreground, from when *ready* says so until the end of the block."""
        log = folder / "server.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                list(command),
                cwd=folder,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        try:
            deadline = time.monotonic() + timeout
            while not ready():
                if process.poll() is not None or time.monotonic() > deadline:
                    tail = log.read_text(errors="replace").strip()[-1500:]
                    state = "is not ready" if process.returncode is None else f"ended with {process.returncode}"
                    raise BenchError(f"{command[0]} {state} after {timeout:g} s at most; it wrote last: {tail}")
                time.sleep(0.02)
            yield process
        finally:
            stop(process)


def answers(port: int) -> bool:
    """Whether somebody accepts connections at *port* of 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def find_program(names: Sequence[str], package: str, session: Session) -> str:
    """The first of *names* that exists, after installing Debian's *package* if we may.

    Raises:
        Skip: It is not here and cannot be installed.
    """
    path = _which(names)
    # Where systemd runs (a real machine, not a container), a package would start its service: the operator decides.
    may = session.install and os.geteuid() == 0 and not Path("/run/systemd/system").exists()
    if path is None and may and shutil.which("apt-get"):
        session.say(f"{package} is missing: apt-get install {package}")
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}  # 1: start no service
        for arguments in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", package]):
            subprocess.run(
                ["apt-get", *arguments],
                env=environment,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        path = _which(names)
    if path is None:
        raise Skip(f"{names[0]} is not installed; apt-get install --no-install-recommends {package}")
    return path


def _which(names: Sequence[str]) -> str | None:
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    return next((found for name in names if (found := shutil.which(name, path=places))), None)


def context() -> dict[str, str]:
    """What figures depend on: interpreter, libraries, processors, system."""
    import zmq

    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()} ({platform.python_compiler()})",
        "libzmq": zmq.zmq_version(),
        "pyzmq": zmq.__version__,
        "processors": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} ({model})",
        "system": f"{platform.system()} {platform.release()}",
        "load": f"{os.getloadavg()[0]:.2f} before the start",
    }
