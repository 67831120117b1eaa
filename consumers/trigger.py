"""Runs a command for each message, with the message on its standard input as JSON; never through a shell.

The command is a list of words, the same for all messages; nothing of a message is in its arguments, environment or
working directory, so there is nothing to quote. What it prints is kept up to a limit and logged with escapes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import random
import selectors
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from fedbus import Consumer, Drop, Message, Retry, escape, parse_duration

log = logging.getLogger(__name__)

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where the command is looked for, and its PATH unless the settings give another."""

_SHORTAGES = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC)
_SHORTAGE_PAUSE = 5.0  # seconds until a machine that has no process, memory or descriptor left is tried again
_LONGEST_PAUSE = 60.0
_KEYS = 10_000  # that wait for quiet at the same time
_PIECE = 65536
_LAST_PIECES = 64  # that are read of a pipe after the command has ended
_DURATION: dict[str, Any] = {"type": ["number", "string"]}

# Waits until the hub's end of its standard input is closed, which the kernel does however the hub ends; then ends the
# process groups that are still on its list: SIGTERM, and SIGKILL after a while.
_WARDEN = """
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
grace, groups, rest = float(sys.argv[1]), set(), b""
while data := os.read(0, 4096):
    *lines, rest = (rest + data).split(b"\\n")
    for line in lines:
        (groups.add if line[:1] == b"+" else groups.discard)(int(line[1:]))
def send(number):
    for group in list(groups):
        try:
            os.killpg(group, number)
        except OSError:
            groups.discard(group)
send(signal.SIGTERM)
end = time.monotonic() + grace
while groups and time.monotonic() < end:
    time.sleep(0.02)
    send(0)
send(signal.SIGKILL)
"""


class CommandFailed(Exception):
    """The command could not be run, ended with a code that means failure, or was ended at its time limit."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: its exit code (negative: the signal that ended it), and the end of what it printed."""

    code: int
    timed_out: bool
    output: bytes
    cut: int  # bytes of output before those that were kept


class Trigger(Consumer):
    """Run a command for each message, or once things are quiet."""

    schema = {
        "type": "object",
        "properties": {
            "command": {"type": "array", "items": {"type": "string", "pattern": "^[^\\x00]*$"}, "minItems": 1},
            "directory": {"type": "string", "pattern": "^/"},
            "environment": {
                "type": "object",
                "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
                "additionalProperties": {"type": "string", "pattern": "^[^\\x00]*$"},
            },
            "keep_environment": {"type": "array", "items": {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"}},
            "timeout": _DURATION,
            "kill_after": _DURATION,
            "output_bytes": {"type": "integer", "minimum": 0, "maximum": 2**24},
            "exit_codes": {
                "type": "object",
                "properties": {
                    one: {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}}
                    for one in ("done", "retry", "drop")
                },
                "additionalProperties": False,
            },
            "retry_after": _DURATION,
            "debounce": {
                "type": "object",
                "properties": {
                    "quiet": _DURATION,
                    "longest": _DURATION,
                    "by": {"type": "string", "maxLength": 255},
                    "state": {"type": "string", "pattern": "^[^\\x00]+$"},
                    "attempts": {"type": "integer", "minimum": 1, "maximum": 1000},
                    "concurrency": {"type": "integer", "minimum": 1, "maximum": 64},
                },
                "required": ["quiet", "state"],
                "additionalProperties": False,
            },
        },
        "required": ["command"],
        "additionalProperties": False,
    }

    def __init__(
        self,
        command: list[str],
        directory: str = "/",
        environment: Mapping[str, str] | None = None,
        keep_environment: list[str] | None = None,
        timeout: float | str = 50.0,
        kill_after: float | str = 5.0,
        output_bytes: int = 8192,
        exit_codes: Mapping[str, list[int]] | None = None,
        retry_after: float | str = 30.0,
        debounce: Mapping[str, Any] | None = None,
    ) -> None:
        kept = {name: os.environ[name] for name in keep_environment or () if name in os.environ}
        self.environment = {"PATH": PATH, "LANG": "C.UTF-8", **kept, **(environment or {})}
        self.command = [_find(command[0], self.environment["PATH"]), *command[1:]]
        self.directory = directory
        self.timeout = _seconds("timeout", timeout, least=0.01)
        self.kill_after = _seconds("kill_after", kill_after)
        self.output_bytes = output_bytes
        self.retry_after = _seconds("retry_after", retry_after)
        self.codes = _codes({"done": [0], "retry": [75], "drop": [], **(exit_codes or {})})
        self._warden = _Warden(self.kill_after)
        self._debounced = _Debounced(self, **debounce) if debounce else None

    def start(self) -> None:
        """Begin; takes up what was waiting for quiet when the hub ended."""
        self._warden.start()
        if self._debounced is not None:
            self._debounced.start()

    def stop(self) -> None:
        """End what still runs; what waits for quiet stays in its file."""
        if self._debounced is not None:
            self._debounced.ask_to_stop()
        self._warden.stop()
        if self._debounced is not None:
            self._debounced.stop(self.kill_after + 1.0)

    def consume(self, message: Message) -> None:
        """Run the command on *message*, or note that it is to be run. May be called from several threads."""
        record = message.record()
        if self._debounced is not None:
            self._debounced.note(record)
        else:
            self.act(record)

    def act(self, record: Mapping[str, Any]) -> None:
        """Run the command with *record* on its standard input.

        Raises:
            Retry: Its exit code, or a machine without resources, asks for another try.
            Drop: Its exit code asks to give up.
            CommandFailed: Anything else but success.
        """
        try:
            ended = self._run(_json(record) + b"\n")
        except OSError as error:
            if error.errno in _SHORTAGES:
                raise Retry(_SHORTAGE_PAUSE, f"cannot start {self.command[0]}: {error.strerror}") from error
            what = error.filename or self.command[0]
            raise CommandFailed(f"cannot start {self.command[0]}: {what}: {error.strerror}") from error
        output = shown(ended)
        what = "" if ended.timed_out else self.codes.get(ended.code, "")
        if what == "done":
            if output:
                log.info("%s%s", self.command[0], output)
            return
        if ended.timed_out:
            how = f"was ended: it ran longer than its timeout of {self.timeout:g} s"
        elif ended.code < 0:
            how = f"was ended by {_signal_name(-ended.code)}"
        else:
            how = f"ended with exit code {ended.code}"
        text = f"{self.command[0]} {how}{output}"
        if what == "retry":
            raise Retry(self.retry_after, text)
        if what == "drop":
            raise Drop(text)
        raise CommandFailed(text)

    def _run(self, data: bytes) -> Ended:
        process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.directory,
            env=self.environment,
            start_new_session=True,  # so that it ends with all that it has started
        )
        try:
            self._warden.add(process.pid)
            return self._attend(process, data)
        finally:
            # before it is reaped: until then nobody else can have its number
            _kill_group(process.pid, signal.SIGKILL)
            self._warden.remove(process.pid)
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()

    def _attend(self, process: subprocess.Popen[bytes], data: bytes) -> Ended:
        """Feed the command, keep the end of what it prints, and end it when its time is over."""
        assert process.stdin is not None and process.stdout is not None
        left = memoryview(data)
        output = _Tail(self.output_bytes)
        now = time.monotonic()
        deadline, asked = now + self.timeout, 0
        handle = os.pidfd_open(process.pid)  # readable when it has ended, before it is reaped
        with selectors.DefaultSelector() as selector:
            try:
                for pipe, events in ((process.stdin, selectors.EVENT_WRITE), (process.stdout, selectors.EVENT_READ)):
                    os.set_blocking(pipe.fileno(), False)
                    selector.register(pipe, events)
                selector.register(handle, selectors.EVENT_READ)
                while True:
                    ready = [key.fileobj for key, _ in selector.select(max(0.0, deadline - time.monotonic()))]
                    if process.stdin in ready:
                        left = left[_write(process.stdin.fileno(), left) :]
                        if not left:
                            selector.unregister(process.stdin)
                            process.stdin.close()
                    if process.stdout in ready and not output.read(process.stdout.fileno()):
                        selector.unregister(process.stdout)
                    if handle in ready:
                        break
                    if time.monotonic() >= deadline:
                        _kill_group(process.pid, signal.SIGKILL if asked else signal.SIGTERM)
                        asked += 1
                        deadline = time.monotonic() + self.kill_after
                for _ in range(_LAST_PIECES):
                    if not output.read(process.stdout.fileno(), wait=False):
                        break
            finally:
                os.close(handle)
        state = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert state is not None
        code = state.si_status if state.si_code == os.CLD_EXITED else -state.si_status
        return Ended(code, bool(asked), bytes(output.kept), output.cut)


# --- waiting for quiet -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Waiting:
    """A key that is to be run; times by the monotonic clock."""

    first_at: float
    due_at: float
    generation: int = 0  # grows with each message
    tries: int = 0
    running: bool = False


class _Debounced:
    """Runs the command once for each key, when no message of that key has come for a while.

    What waits is in an SQLite file before its message is done with, so it outlives the hub: at the next start each key
    waits for quiet anew.
    """

    def __init__(
        self,
        trigger: Trigger,
        *,
        quiet: float | str,
        state: str,
        longest: float | str | None = None,
        by: str = "",
        attempts: int = 4,
        concurrency: int = 1,
    ) -> None:
        self._trigger = trigger
        self._quiet = _seconds("debounce.quiet", quiet)
        self._longest = max(self._quiet, _seconds("debounce.longest", 10 * self._quiet if longest is None else longest))
        self._by = by
        self._path = Path(state)  # a relative one is below the bus's state folder, which is known at the start
        self._attempts = attempts
        self._concurrency = concurrency
        self._changed = threading.Condition()
        self._waiting: dict[str, _Waiting] = {}
        self._threads: list[threading.Thread] = []
        self._stopping = False
        self._store: sqlite3.Connection | None = None
        self._guard = -1

    def start(self) -> None:
        if not self._path.is_absolute():
            if self._trigger.state is None:
                raise ValueError(f"settings.debounce.state: {self._path} is below no folder; write the whole path")
            self._path = self._trigger.state / self._path
        # held as long as the store is open: closing any descriptor of the file drops SQLite's own locks
        self._guard = _guarded(self._path)
        try:
            self._store = store = _open_store(self._path)
        except BaseException:
            os.close(self._guard)
            self._guard = -1
            raise
        now = time.monotonic()
        self._stopping = False
        for (key,) in store.execute("SELECT key FROM waiting"):
            self._waiting[key] = _Waiting(now, now + self._quiet)
        self._threads = [
            threading.Thread(target=self._work, name=f"trigger-{number}", daemon=True)
            for number in range(self._concurrency)
        ]
        for thread in self._threads:
            thread.start()

    def ask_to_stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def stop(self, patience: float) -> None:
        end = time.monotonic() + patience
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        with self._changed:
            if self._store is not None:
                self._store.close()
                self._store = None
            if self._guard >= 0:
                os.close(self._guard)
                self._guard = -1

    def note(self, record: Mapping[str, Any]) -> None:
        """Write down that the command is to run for the key of *record*."""
        key = _key(record, self._by)
        now = time.monotonic()
        with self._changed:
            waiting = self._waiting.get(key)
            if waiting is None and len(self._waiting) >= _KEYS:
                raise Retry(max(1.0, self._quiet), f"{_KEYS} keys are waiting for quiet already")
            self._write("INSERT OR REPLACE INTO waiting VALUES (?, ?)", key, _json(record))
            if waiting is None:
                waiting = self._waiting[key] = _Waiting(now, 0.0)
            waiting.generation += 1
            waiting.tries = 0
            waiting.due_at = min(now + self._quiet, waiting.first_at + self._longest)
            self._changed.notify()

    def _write(self, statement: str, *values: Any) -> None:
        store = self._store
        if store is None:
            raise Retry(_SHORTAGE_PAUSE, f"{self._path} is not open")
        try:
            store.execute(statement, values)
        except sqlite3.OperationalError as error:
            raise Retry(_SHORTAGE_PAUSE, f"cannot write {self._path}: {error}") from error

    def _work(self) -> None:
        while True:
            with self._changed:
                key = self._next()
                if key is None:
                    return
                waiting = self._waiting[key]
                waiting.running = True
                generation = waiting.generation
            pause: float | None = None
            try:
                pause = self._run(key, waiting)
            except Exception:
                log.exception("a command that waited for quiet is put off")
                pause = _LONGEST_PAUSE
            with self._changed:
                waiting.running = False
                now = time.monotonic()
                if waiting.generation != generation:
                    waiting.first_at = now  # something came meanwhile, and has set its own time
                elif pause is not None:
                    waiting.due_at = now + pause
                else:
                    with contextlib.suppress(Retry):  # it runs once more after the next start then
                        self._write("DELETE FROM waiting WHERE key = ?", key)
                    del self._waiting[key]
                self._changed.notify_all()

    def _next(self) -> str | None:
        """Wait for the next key that is due; None: the hub stops."""
        while not self._stopping:
            now = time.monotonic()
            idle = [(one.due_at, key) for key, one in self._waiting.items() if not one.running]
            due_at, key = min(idle, default=(now + 3600.0, ""))
            if due_at <= now:
                return key
            self._changed.wait(due_at - now)
        return None

    def _run(self, key: str, waiting: _Waiting) -> float | None:
        """Run the command for *key*; return after how many seconds to do so again, None: it is done with."""
        with self._changed:
            assert self._store is not None
            row = self._store.execute("SELECT record FROM waiting WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        record = orjson.loads(row[0])
        try:
            self._trigger.act(record)
        except Retry as retry:
            log.info("%s again in %.3g s: %s", key, retry.after, retry.reason)
            return retry.after
        except Drop as drop:
            log.warning("dropped %s: %s", key, drop.reason)
        except CommandFailed as error:
            if self._stopping:
                return _LONGEST_PAUSE  # it was we who ended it
            waiting.tries += 1
            where = f"{record['endpoint']}/{record['epoch']}/{record['sequence']} ({record['topic']})"
            if waiting.tries < self._attempts:
                pause = min(_LONGEST_PAUSE, 2.0 ** (waiting.tries - 1)) * random.uniform(0.75, 1.25)
                log.warning(
                    "%s: %s; attempt %d of %d, again in %.3g s", where, error, waiting.tries, self._attempts, pause
                )
                return pause
            log.error("%s: %s; gave up after %d attempts", where, error, waiting.tries)
        return None


def _guarded(path: Path) -> int:
    """Make the file if need be, for us alone, and return a descriptor that keeps other triggers away from it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)  # bodies are not for everybody
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise ValueError(f"settings.debounce.state: {path} is in use by another trigger; give each its own") from error
    return descriptor


def _open_store(path: Path) -> sqlite3.Connection:
    store = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
    store.execute("PRAGMA journal_mode = WAL")
    store.execute("PRAGMA synchronous = FULL")
    store.execute("CREATE TABLE IF NOT EXISTS waiting (key TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID")
    return store


def _key(record: Mapping[str, Any], path: str) -> str:
    """Return what stands at the dotted *path* of the record, or of its body, as text; empty where nothing does."""
    if not path:
        return ""
    parts = path.split(".")
    value: Any = record if parts[0] in record else record["body"]
    for part in parts:
        value = value.get(part) if isinstance(value, dict) else None
    return "" if value is None else _json(value).decode()[:1000]


# --- processes -------------------------------------------------------------------------------------------------------


class _Warden:
    """A small process that ends the commands of a hub that has ended, however that came about."""

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._groups: set[int] = set()

    def start(self) -> None:
        with self._lock:
            if self._process is None:
                self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _WARDEN, repr(self._grace)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        for group in self._groups:
            self._tell(b"+%d\n" % group)

    def _tell(self, line: bytes) -> None:
        assert self._process is not None and self._process.stdin is not None
        os.write(self._process.stdin.fileno(), line)

    def add(self, group: int) -> None:
        with self._lock:
            self._groups.add(group)
            try:
                if self._process is None:
                    self._start()
                else:
                    self._tell(b"+%d\n" % group)
            except BrokenPipeError:  # somebody has killed it
                self._start()

    def remove(self, group: int) -> None:
        with self._lock:
            self._groups.discard(group)
            with contextlib.suppress(OSError):
                if self._process is not None:
                    self._tell(b"-%d\n" % group)

    def stop(self) -> None:
        """Have all groups that are left ended; returns when that is done, within the grace and a second."""
        with self._lock:
            process, self._process = self._process, None
        if process is None or process.stdin is None:
            return
        process.stdin.close()
        try:
            process.wait(self._grace + 1.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class _Tail:
    """The end of an output of any length."""

    def __init__(self, limit: int) -> None:
        self.kept = bytearray()
        self.cut = 0
        self._limit = limit

    def read(self, descriptor: int, *, wait: bool = True) -> bool:
        """Take what there is; False: there will be no more, or with ``wait=False`` there is none now."""
        try:
            data = os.read(descriptor, _PIECE)
        except BlockingIOError:
            return wait
        except OSError:
            return False
        self.kept += data
        over = len(self.kept) - self._limit
        if over > 0:
            del self.kept[:over]
            self.cut += over
        return bool(data)


def _write(descriptor: int, data: memoryview) -> int:
    """Write what fits; return how much is done with, which is all when nobody reads."""
    try:
        return os.write(descriptor, data[:_PIECE])
    except BlockingIOError:
        return 0
    except OSError:
        return len(data)


def _kill_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


# --- settings and texts ----------------------------------------------------------------------------------------------


def _seconds(name: str, value: object, least: float = 0.0) -> float:
    try:
        seconds = parse_duration(value)
    except ValueError as error:
        raise ValueError(f"settings.{name}: {error}") from error
    if seconds < least:
        raise ValueError(f"settings.{name}: {value!r} is less than {least:g} s")
    return seconds


def _find(program: str, path: str) -> str:
    """Return the absolute path of *program*; never one that depends on a working directory."""
    if "/" in program and not program.startswith("/"):
        raise ValueError(f"settings.command: {program!r} depends on the working directory; write the whole path")
    folders = os.pathsep.join(folder for folder in path.split(os.pathsep) if folder.startswith("/"))
    found = shutil.which(program, path=folders)
    if found is None:
        where = "" if "/" in program else f" in {folders}"
        raise ValueError(f"settings.command: there is no program {program!r}{where}; install it or correct the name")
    return found


def _codes(wanted: Mapping[str, list[int]]) -> dict[int, str]:
    """Return what each exit code asks for."""
    codes: dict[int, str] = {}
    for what, numbers in wanted.items():
        for number in numbers:
            if codes.setdefault(number, what) != what:
                raise ValueError(f"settings.exit_codes: {number} is in {codes[number]} and in {what}; choose one")
    return codes


def _json(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        # nested deeper than orjson goes, where the limits were set so high
        return json.dumps(value, separators=(",", ":")).encode()


def shown(ended: Ended) -> str:
    """Return what a command printed for one line of a log, or nothing where it printed nothing."""
    text = escape(ended.output.rstrip(b"\n").decode("utf-8", "backslashreplace"))
    if not text and not ended.cut:
        return ""
    return f"; it printed: [{ended.cut} bytes cut] {text}" if ended.cut else f"; it printed: {text}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
