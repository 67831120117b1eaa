"""A bus of real processes that are killed, stopped and starved, with the ledger that watches them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedbus.config.init import create, free_ports
from tests.processes import ledger, workers

ROOT = Path(__file__).resolve().parents[2]
STARTING_SECONDS = 30.0  # by then everybody has opened its files, also on a busy machine
PATIENCE = 240.0  # a world is many processes, which take each other's time
PIPE_BYTES = 2**20


class Ledger:
    """The ledger's process, and the writing end of its pipe."""

    def __init__(self, folder: Path) -> None:
        self.lines = folder / "ledger.log"
        read_end, self.fd = os.pipe()
        fcntl.fcntl(self.fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.processes.ledger", "--log", str(self.lines)],
            stdin=read_end,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        os.close(read_end)
        self._asked = 0
        self._rest = b""

    def ask(self) -> dict[str, Any]:
        """Return its judgement of all that was reported until now."""
        self._asked += 1
        os.write(self.fd, f"ask {self._asked}\n".encode())
        while True:
            answer: dict[str, Any] = json.loads(self._line(PATIENCE))
            if answer["token"] == str(self._asked):
                return answer

    def _line(self, timeout: float) -> bytes:
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._process.stdout.fileno(), 2**20) if ready else b""
            if not data:
                raise AssertionError(f"the ledger does not answer (ended with {self._process.poll()})")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def close(self) -> None:
        os.close(self.fd)
        try:
            self._process.communicate(timeout=PATIENCE)
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait(PATIENCE)


@dataclass(eq=False)
class Worker:
    """A process that lives again and again. ``arguments`` gets the number of the life."""

    name: str
    arguments: Callable[[int], Sequence[str]]
    ledger: Ledger
    errors: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    life: int = 0
    armed: str = ""  # the failpoints of this life
    born_at: float = 0.0
    stopped: bool = False

    def start(self, failpoints: str = "") -> None:
        """Begin the next life, with *failpoints* armed."""
        assert self.process is None or self.process.poll() is not None, f"{self.name} still lives"
        self.life += 1
        self.born_at = time.monotonic()
        self.stopped = False
        self.armed = failpoints
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("FEDBUS", "_FEDBUS"))}
        environment = {
            **kept,
            **self.environment,
            "PYTHONPATH": str(ROOT),
            "LEDGER_FD": str(self.ledger.fd),
            "SOAK_LIFE": str(self.life),
        }
        if failpoints:
            environment["FEDBUS_FAILPOINTS"] = failpoints
        self.process = subprocess.Popen(
            [sys.executable, *self.arguments(self.life)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[self.ledger.fd],
            env=environment,
            cwd=ROOT,
        )
        # not a file of its own: it shall be able to speak when it may not write files
        threading.Thread(target=self._listen, args=(self.process, f"--- life {self.life} {failpoints}\n")).start()

    def _listen(self, process: subprocess.Popen[bytes], title: str) -> None:
        assert process.stdout is not None
        with process.stdout as output, self.errors.open("ab") as errors:
            errors.write(title.encode())
            while data := os.read(output.fileno(), 2**16):
                errors.write(data)
                errors.flush()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def send(self, number: int) -> None:
        """Send a signal; the process must not have ended by itself."""
        assert self.process is not None
        code = self.process.poll()
        if code is not None:
            assert self.excused(code), f"{self.name} ended by itself with {code}:\n{self.tail()}"
            return  # its failpoint was quicker
        self.process.send_signal(number)
        self.stopped = {signal.SIGSTOP: True, signal.SIGCONT: False}.get(number, self.stopped)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.send(signal.SIGKILL)
        self.wait()

    def wait(self, timeout: float = PATIENCE) -> int:
        """Return the exit code, negative for a signal."""
        assert self.process is not None
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end within {timeout} s:\n{self.tail()}") from None

    def end(self) -> None:
        """End it with SIGTERM, which it has to obey with 0 once it has got as far as listening for it."""
        if self.stopped:
            self.send(signal.SIGCONT)
        allowed = {0}
        if not self._catches_sigterm():
            allowed.add(-signal.SIGTERM)
        self.send(signal.SIGTERM)
        code = self.wait()
        assert code in allowed or self.excused(code), f"{self.name} ended with {code} on SIGTERM:\n{self.tail()}"

    def excused(self, code: int) -> bool:
        """Return whether a failpoint explains that it ended with *code*.

        Failpoints kill; and where one fails while the process opens its files, it says so and ends, as the service
        manager of a host expects.
        """
        if not self.armed:
            return False
        if code == -signal.SIGKILL:
            return True
        errors = [os.strerror(getattr(errno, name)) for name in re.findall(r"=error:(E[A-Z]+)", self.armed)]
        said = self.tail().rpartition("--- life ")[2]
        starting = time.monotonic() - self.born_at < STARTING_SECONDS
        return code == 1 and starting and any(error in said for error in errors)

    def _catches_sigterm(self) -> bool:
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return False
        caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
        return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)

    def close(self) -> None:
        """Leave nothing behind, whatever has happened."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE)

    def limit_files(self, full: bool) -> None:
        """Have the kernel refuse it every write to a file from now on, as a disk that is full does; or no longer."""
        with contextlib.suppress(ProcessLookupError):  # its failpoint may have been quicker
            _, hard = resource.prlimit(self.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (0 if full else hard, hard))

    def memory(self) -> tuple[int, int] | None:
        """Resident bytes and open descriptors; None when it has ended."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
            return pages * resource.getpagesize(), len(list(Path(f"/proc/{self.pid}/fd").iterdir()))
        except (OSError, IndexError):
            return None

    def tail(self) -> str:
        """The end of what it wrote to stderr."""
        with self.errors.open("rb") as file:
            file.seek(max(0, self.errors.stat().st_size - 4000))
            return file.read().decode("utf-8", "replace")


class Proxy:
    """The misbehaving proxy, with a port for each address behind it."""

    def __init__(self, targets: Mapping[str, Sequence[int]]) -> None:
        """*targets* maps the name of a link to the ports behind it."""
        ports = free_ports(sum(map(len, targets.values())))
        self.ports = {name: [ports.pop() for _ in behind] for name, behind in targets.items()}
        pairs = [
            f"{port}:{target}" for name in targets for port, target in zip(self.ports[name], targets[name], strict=True)
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.processes.proxy", *pairs],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def set(self, name: str, mode: str) -> None:
        """Make link *name* behave like *mode*."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{mode} {' '.join(map(str, self.ports[name]))}\n".encode())
        self._process.stdin.flush()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=PATIENCE)


class World:
    """A configuration, the ledger and the workers. What begins to live here ends with ``close``."""

    def __init__(
        self,
        folder: Path,
        endpoints: Sequence[str],
        *,
        settings: str = "",
        journals: Mapping[str, str] | None = None,
        far: Sequence[str] = (),
        relayed: Sequence[str] = (),
    ) -> None:
        """*settings* is YAML for all, *journals* for the journal of one endpoint; the endpoints *relayed* have a relay.

        The endpoints *far* are read through the proxy; with any, nothing is read from the publishers' files.
        """
        self.folder = folder
        self.config = folder / "bus"
        addresses = create(self.config, endpoints).endpoints
        # the path of a socket may have a hundred bytes only
        self.sockets = Path(tempfile.mkdtemp(prefix="fedbus-"))
        if relayed:
            _write(self.config / "65-relay.yaml", f"relay: {{socket: {self.sockets}/relay}}\n")
        _write_endpoints(self.config, addresses, journals or {}, relayed)
        if settings:
            _write(self.config / "60-soak.yaml", settings)
        self.ledger = Ledger(folder)
        self.workers: dict[str, Worker] = {}
        self.proxy: Proxy | None = None
        self.readers = self.config
        if far:
            behind = {name: [int(address.rpartition(":")[2]) for address in addresses[name]] for name in far}
            self.proxy = Proxy(behind)
            self.readers = self._readers_config(addresses)

    def _readers_config(self, addresses: Mapping[str, tuple[str, str]]) -> Path:
        """The configuration of a host that reads through the proxy: other addresses, and state of its own."""
        assert self.proxy is not None
        readers = self.folder / "readers"
        for folder in (readers, readers / "state"):
            folder.mkdir(mode=0o700)
        for path in self.config.glob("*.yaml"):
            _write(readers / path.name, path.read_text())
        _write(readers / "10-bus.yaml", (readers / "10-bus.yaml").read_text().replace(" keys", f" {self.config}/keys"))
        through = {
            name: (f"tcp://127.0.0.1:{publish}", f"tcp://127.0.0.1:{replay}")
            for name, (publish, replay) in self.proxy.ports.items()
        }
        _write_endpoints(readers, {**addresses, **through}, {}, ())
        return readers

    def _add(self, name: str, arguments: Callable[[int], Sequence[str]], config: Path) -> Worker:
        errors = self.folder / f"{name}.err"
        worker = Worker(name, arguments, self.ledger, errors, {"FEDBUS_CONFIG": str(config)})
        self.workers[name] = worker
        return worker

    def publisher(self, endpoint: str, rate: float) -> Worker:
        """A publisher of *endpoint*, of *rate* messages a second."""
        config = str(self.config)
        return self._add(
            endpoint,
            lambda life: ["-m", "tests.processes.workers", "publish", config, endpoint, endpoint, str(life), str(rate)],
            self.config,
        )

    def relay(self) -> Worker:
        """`fedbus relay`, for all endpoints that have one."""
        return self._add("relay", lambda life: ["-m", "fedbus.cli", "relay"], self.config)

    def client(self, name: str, endpoint: str, rate: float) -> Worker:
        """A process that hands messages in to the relay."""
        config = str(self.config)
        return self._add(
            name,
            lambda life: [
                *("-m", "tests.processes.workers", "publish", config, endpoint),
                *(f"{ledger.SPOOLER}{name}-{life}", str(life), str(rate)),
            ],
            self.config,
        )

    def scripts(self, name: str, endpoint: str, rate: float) -> Worker:
        """A process that runs `fedbus publish` for each message."""
        config = str(self.config)
        return self._add(
            name,
            lambda life: [
                *("-m", "tests.processes.workers", "scripts", config, endpoint),
                *(f"{ledger.SPOOLER}{name}-{life}", str(life), str(rate)),
            ],
            self.config,
        )

    def subscriber(self, name: str, divisor: int = 1) -> Worker:
        """A subscriber with cursor *name*, of every message or those whose n *divisor* divides."""
        assert divisor in (1, workers.MARKED)
        config = str(self.readers)
        return self._add(
            name,
            lambda life: ["-m", "tests.processes.workers", "subscribe", config, name, str(life), str(divisor)],
            self.readers,
        )

    def hub(self) -> Worker:
        """`fedbus hub` with one consumer, which reports as ``hub``."""
        consumer = self.folder / "consumer.py"
        consumer.write_text(workers.CONSUMER)
        return self._add("hub", lambda life: ["-m", "fedbus.cli", "hub", "--consumer", str(consumer)], self.readers)

    def wait_for(
        self,
        condition: Callable[[dict[str, Any]], bool],
        what: str,
        timeout: float = PATIENCE,
        *,
        check: bool = True,
    ) -> dict[str, Any]:
        """Ask the ledger until *condition* holds for its answer; a fault ends this at once.

        So does, with *check*, a process that has ended by itself.
        """
        deadline = time.monotonic() + timeout
        while True:
            answer = self.ledger.ask()
            assert not answer["fault_count"], self.explain(answer)
            if condition(answer):
                return answer
            if check:
                self.check_processes()
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} did not come true within {timeout} s: {self.explain(answer)}")
            select.select([], [], [], 0.02)

    def check_processes(self) -> None:
        """Raise if one has ended in another way than by being killed or asked to."""
        for worker in self.workers.values():
            if worker.process is not None and worker.process.poll() not in (None, 0, -signal.SIGKILL):
                raise AssertionError(f"{worker.name} ended with {worker.process.poll()}:\n{worker.tail()}")

    def wait_for_death(self, worker: Worker, timeout: float = PATIENCE) -> None:
        """Wait until *worker* has killed itself at a failpoint."""
        deadline = time.monotonic() + timeout
        assert worker.process is not None
        while worker.process.poll() is None:
            self.check_processes()
            if time.monotonic() > deadline:
                raise AssertionError(f"{worker.name} does not come by its failpoint:\n{worker.tail()}")
            select.select([], [], [], 0.01)
        assert worker.process.returncode == -signal.SIGKILL, worker.tail()

    def wait_until_passed_on(self, endpoint: str, more: int = 50) -> None:
        """Wait until *endpoint* has given *more* receipts, and every whole consumer has got all of these messages."""
        head = int(self.ledger.ask()["streams"].get(endpoint, {"head": 0})["head"])

        def passed_on(now: dict[str, Any]) -> bool:
            stream = now["streams"].get(endpoint)
            if stream is None or stream["head"] < head + more:
                return False
            return all(one["through"].get(endpoint, 0) >= head + more for one in now["consumers"].values())

        self.wait_for(passed_on, f"{more} more messages of {endpoint}, and all before")

    def explain(self, answer: dict[str, Any]) -> str:
        """What the ledger says, and what the processes said last."""
        tails = [f"--- {one.name}\n{one.tail()}" for one in self.workers.values() if one.errors.exists()]
        return "\n".join([json.dumps(answer, indent=1), *tails])

    def acked(self, endpoint: str) -> int:
        """How many receipts *endpoint* has given."""
        streams = self.ledger.ask()["streams"]
        return int(streams[endpoint]["acked"]) if endpoint in streams else 0

    def close(self) -> None:
        """End everything."""
        for worker in self.workers.values():
            worker.close()
        if self.proxy is not None:
            self.proxy.close()
        self.ledger.close()
        shutil.rmtree(self.sockets, ignore_errors=True)


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o600)


def _write_endpoints(
    folder: Path, addresses: Mapping[str, tuple[str, str]], journals: Mapping[str, str], relayed: Sequence[str]
) -> None:
    lines = ["endpoints:"]
    for name, (publish, replay) in addresses.items():
        lines += [f"  {name}:", f"    publish: {publish}", f"    replay: {replay}"]
        if name in journals:
            lines.append(f"    journal: {journals[name]}")
        if name in relayed:
            lines.append("    relay: true")
    _write(folder / "20-endpoints.yaml", "\n".join(lines) + "\n")
