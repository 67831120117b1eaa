"""Waits until things are quiet, and then runs the command once for each key."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from fedbus import Drop, Retry

from .command import CommandFailed
from .settings import seconds

log = logging.getLogger(__name__)

SHORTAGE_PAUSE = 5.0  # seconds until a machine that has no process, memory or descriptor left is tried again
_LONGEST_PAUSE = 60.0
_KEYS = 10_000  # that wait for quiet at the same time


@dataclass(slots=True)
class _Waiting:
    """A key that is to be run; times by the monotonic clock."""

    first_at: float
    due_at: float
    generation: int = 0  # grows with each message
    tries: int = 0
    running: bool = False


class Debounced:
    """Runs the command once for each key, when no message of that key has come for a while.

    What waits is in an SQLite file before its message is done with, so it outlives the hub: at the next start each key
    waits for quiet anew.
    """

    def __init__(
        self,
        act: Callable[[Mapping[str, Any]], None],
        *,
        quiet: float | str,
        state: str,
        longest: float | str | None = None,
        by: str = "",
        attempts: int = 4,
        concurrency: int = 1,
    ) -> None:
        self._act = act
        self._quiet = seconds("debounce.quiet", quiet)
        self._longest = max(self._quiet, seconds("debounce.longest", 10 * self._quiet if longest is None else longest))
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

    def start(self, folder: Path | None) -> None:
        """Take up what waits in the file, which is below *folder* unless its path is a whole one."""
        if not self._path.is_absolute():
            if folder is None:
                raise ValueError(f"settings.debounce.state: {self._path} is below no folder; write the whole path")
            self._path = folder / self._path
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
        """Have nothing more begin."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def stop(self, patience: float) -> None:
        """Wait so many seconds for what runs, and close the file."""
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
            self._write("INSERT OR REPLACE INTO waiting VALUES (?, ?)", key, to_json(record))
            if waiting is None:
                waiting = self._waiting[key] = _Waiting(now, 0.0)
            waiting.generation += 1
            waiting.tries = 0
            waiting.due_at = min(now + self._quiet, waiting.first_at + self._longest)
            self._changed.notify()

    def _write(self, statement: str, *values: Any) -> None:
        store = self._store
        if store is None:
            raise Retry(SHORTAGE_PAUSE, f"{self._path} is not open")
        try:
            store.execute(statement, values)
        except sqlite3.OperationalError as error:
            raise Retry(SHORTAGE_PAUSE, f"cannot write {self._path}: {error}") from error

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
            self._act(record)
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
    return "" if value is None else to_json(value).decode()[:1000]


def to_json(value: Any) -> bytes:
    """Return *value*, however deep it is, as compact JSON."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        # nested deeper than orjson goes, where the limits were set so high
        return json.dumps(value, separators=(",", ":")).encode()
