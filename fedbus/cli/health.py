"""How the streams are, seen from this host: beats, clocks, cursors, counters of running programs, journals, disk."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedbus.bus import Bus
from fedbus.cli.programs import Program, ask
from fedbus.config.settings import Settings
from fedbus.errors import FedbusError, JournalError
from fedbus.hub.dead import DeadLetters
from fedbus.journal.cursors import CursorStore
from fedbus.journal.spool import list_waiting
from fedbus.journal.state import JournalState, locked_inodes, look
from fedbus.model.position import Cursor

OK, WARNING, CRITICAL, UNKNOWN = "ok", "warning", "critical", "unknown"

_NOBODY = "fedbus-check"  # no topic has this field, so listening brings beats and no messages
_COUNTERS = {
    "fedbus_endpoint_gaps_total": "gaps",
    "fedbus_endpoint_lost_total": "lost",
    "fedbus_endpoint_refused_total": "refused",
    "fedbus_endpoint_beat_age_seconds": "beat_age",
}
_SHOWN_DAMAGE = 3  # parts of a journal that are named in one line


@dataclass(frozen=True, slots=True)
class Result:
    """One thing that was looked at."""

    area: str  # config, keys, endpoints, programs, streams, losses, journals, disk
    name: str
    state: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """From where on something is a warning, and critical."""

    lag: tuple[float, float] = (10_000, 100_000)  # sequences
    beat: tuple[float, float] = (5, 30)  # seconds
    skew: tuple[float, float] = (5, 60)  # seconds, either way
    disk: tuple[float, float] = (10, 5)  # percent that are free
    quota: tuple[float, float] = (120, 200)  # percent of retain_bytes
    spool: tuple[float, float] = (10**6, 10**8)  # bytes
    dead: tuple[float, float] = (1, 10)  # dead letters of one consumer
    lag_of: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # by cursor: what counts instead of lag
    consumers: tuple[str, ...] = ()  # that the hub must run

    def lag_for(self, cursor: str) -> tuple[float, float]:
        """Return the limits of *cursor*; those of a consumer of the hub go by its own name too."""
        return self.lag_of.get(cursor) or self.lag_of.get(cursor.removeprefix("hub.")) or self.lag


@dataclass(slots=True)
class Reader:
    """One cursor of this host in one stream."""

    cursor: str
    sequence: int
    lag: int  # sequences behind the head
    lost: int | None  # messages that it has still to come to and that are gone; None: another epoch, nobody knows


@dataclass(slots=True)
class Stream:
    """One endpoint."""

    endpoint: str
    epoch: str = ""
    start: int = 0
    head: int = 0
    beat_age: float | None = None  # seconds; None where no beat was heard
    skew: float | None = None  # seconds that its clock is ahead of ours
    readers: list[Reader] = field(default_factory=list)
    counters: dict[str, dict[str, float]] = field(default_factory=dict)  # by the address of the program that counts
    journal: JournalState | None = None
    limit: int = 0  # its retain_bytes

    @property
    def lag(self) -> int:
        """The greatest lag of all readers."""
        return max((reader.lag for reader in self.readers), default=0)

    def total(self, name: str) -> int | None:
        """The sum of a counter over all programs that were asked; None where none was."""
        found = [values[name] for values in self.counters.values() if name in values]
        return int(sum(found)) if found else None


@dataclass(slots=True)
class Health:
    """What was found."""

    streams: list[Stream] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    free: float | None = None  # percent of the file system below `state`
    free_bytes: int | None = None
    spool_bytes: int | None = None
    dead: dict[str, int] = field(default_factory=dict)  # dead letters by consumer

    def report(self) -> dict[str, Any]:
        """Return it for scripts."""
        return {
            "streams": [
                {
                    "endpoint": one.endpoint,
                    "epoch": one.epoch or None,
                    "start": one.start,
                    "head": one.head,
                    "beat_age_seconds": _rounded(one.beat_age),
                    "clock_skew_seconds": _rounded(one.skew),
                    "lag": one.lag,
                    "gaps": one.total("gaps"),
                    "lost": one.total("lost"),
                    "refused": one.total("refused"),
                    "cursors": [
                        {"name": reader.cursor, "sequence": reader.sequence, "lag": reader.lag, "lost": reader.lost}
                        for reader in one.readers
                    ],
                    "journal": None
                    if one.journal is None
                    else {
                        "bytes": one.journal.bytes,
                        "retain_bytes": one.limit,
                        "segments": one.journal.segments,
                        "writing": one.journal.writing,
                        "damaged": list(one.journal.damaged),
                        "aside": list(one.journal.aside),
                    },
                }
                for one in self.streams
            ],
            "disk": {"free_percent": _rounded(self.free), "free_bytes": self.free_bytes},
            "spool_bytes": self.spool_bytes,
            "dead_letters": self.dead,
        }


def examine(settings: Settings, answering: Iterable[str], *, timeout: float, limits: Thresholds) -> Health:
    """Look at all streams; of the endpoints *answering* a beat is waited for, up to *timeout* seconds."""
    health = Health([Stream(name) for name, one in settings.endpoints.items() if one.wire == "native"])
    streams = {one.endpoint: one for one in health.streams}
    _look_at_journals(settings, streams, health, limits)
    heard = [name for name in answering if name in streams]
    try:
        _listen(settings, heard, streams, timeout)
    except FedbusError as error:
        health.results.append(Result("streams", "beats", WARNING, f"beats cannot be verified: {error}"))
        heard = []
    for program in ask(settings, timeout):
        _judge_program(program, streams, health)
        if program.name == "hub":
            _judge_consumers(limits.consumers, program, health)
            limits = replace(limits, consumers=())
    _judge_consumers(limits.consumers, None, health)
    _look_at_cursors(settings, streams, health)
    _look_at_dead_letters(settings, health, limits)
    for name in heard:
        _judge_beat(streams[name], health, timeout, limits)
    for one in health.streams:
        _judge_readers(one, health, limits)
    _look_at_disk(settings, health, limits)
    return health


# --- looking ------------------------------------------------------------------------------------------------------


def _listen(settings: Settings, names: list[str], streams: dict[str, Stream], timeout: float) -> None:
    """Wait for a verified beat of each of *names*."""
    if not names:
        return
    deadline = time.monotonic() + timeout
    with Bus(settings) as bus:
        subscriber = bus.subscribe(f"{settings.naming.root}.{_NOBODY}", endpoints=names, on_loss=lambda loss: None)
        readers = subscriber.readers()
        while any(reader.beat_at is None for reader in readers) and (left := deadline - time.monotonic()) > 0:
            subscriber.receive(min(left, 0.05))
        for reader in readers:
            stream, beat = streams[reader.endpoint], reader.beat
            if reader.beat_at is not None:
                stream.beat_age = time.monotonic() - reader.beat_at
                stream.skew = reader.stats.skew
            if beat is not None:
                facts = beat.facts
                stream.epoch, stream.start, stream.head = facts.epoch, facts.start, facts.head


def _look_at_journals(settings: Settings, streams: dict[str, Stream], health: Health, limits: Thresholds) -> None:
    locked = locked_inodes()
    for name, stream in streams.items():
        options = settings.journal_for(name)
        if not _may_be_there(options.directory):
            continue
        try:
            state = look(options.directory, locked)
        except (JournalError, OSError) as error:
            if not os.access(options.directory, os.R_OK | os.X_OK):
                text = f"journal {name} in {options.directory} cannot be looked at by this user; it is not checked"
                health.results.append(Result("journals", f"journal {name}", WARNING, text))
            elif (options.directory / "journal.json").exists():
                health.results.append(Result("journals", f"journal {name}", CRITICAL, str(error)))
            continue
        if state.endpoint != name:
            text = f"the journal in {options.directory} belongs to endpoint {state.endpoint}, not {name}; move it away"
            health.results.append(Result("journals", f"journal {name}", CRITICAL, text))
            continue
        stream.journal, stream.limit = state, options.retain_bytes
        stream.epoch, stream.start, stream.head = state.epoch, state.start, state.head
        used = 100 * state.bytes / options.retain_bytes if options.retain_bytes else 0.0
        text = f"journal {name}: {state.bytes} bytes, {used:.0f} % of its limit, {state.start} to {state.head}"
        health.results.append(Result("journals", f"journal {name}", _above(used, limits.quota), text))
        if state.damaged:
            shown = "; ".join(state.damaged[:_SHOWN_DAMAGE])
            more = f" and {len(state.damaged) - _SHOWN_DAMAGE} more" if len(state.damaged) > _SHOWN_DAMAGE else ""
            text = f"journal {name} is damaged: {shown}{more}; fedbus journal verify {name} tells all"
            health.results.append(Result("losses", f"journal {name} damage", CRITICAL, text))


def _judge_program(program: Program, streams: dict[str, Stream], health: Health) -> None:
    """Take up what a program counts, and say whether it is as it should be."""
    where = f"{program.setting} {program.address}"
    if program.fault:
        text = f"{where} does not answer ({program.fault}): gaps and losses that it counts are not known"
        health.results.append(Result("programs", program.setting, WARNING, text))
    else:
        text = f"{where} is ready"
        if program.reasons:
            text = f"{where} is not ready: {'; '.join(program.reasons)}"
        health.results.append(Result("programs", f"{program.name} ready", WARNING if program.reasons else OK, text))
    for name, labels, value in program.samples:
        stream = streams.get(labels.get("endpoint", ""))
        if stream is not None and name in _COUNTERS:
            counters = stream.counters.setdefault(program.address, {})
            known = counters.get(_COUNTERS[name], 0.0)
            counters[_COUNTERS[name]] = max(known, value) if name.endswith("_seconds") else known + value


def _judge_consumers(names: tuple[str, ...], hub: Program | None, health: Health) -> None:
    for name in names:
        if hub is None:
            text = f"consumer {name}: nobody can be asked whether it runs; set hub.http"
            state = UNKNOWN
        elif hub.fault:
            text, state = f"consumer {name}: the hub at {hub.address} does not answer ({hub.fault})", CRITICAL
        elif name in hub.consumers:
            text, state = f"consumer {name} runs", OK
        else:
            text, state = f"consumer {name} is not run by the hub at {hub.address}", CRITICAL
        health.results.append(Result("programs", f"consumer {name}", state, text))


def _look_at_dead_letters(settings: Settings, health: Health, limits: Thresholds) -> None:
    if not _may_be_there(settings.dead):  # looking must not create it
        return
    try:
        with contextlib.closing(DeadLetters.open(settings.dead)) as dead:
            health.dead = dict(sorted(Counter(letter.consumer for letter in dead.list()).items()))
    except JournalError as error:
        health.results.append(Result("streams", "dead letters", WARNING, str(error)))
        return
    for consumer, count in health.dead.items():
        text = (
            f"consumer {consumer} has {count} dead letter{'s' * (count != 1)}: fedbus dead list --consumer {consumer}"
        )
        health.results.append(Result("streams", f"dead letters {consumer}", _above(count, limits.dead), text))


def _look_at_cursors(settings: Settings, streams: dict[str, Stream], health: Health) -> None:
    if not _may_be_there(settings.cursors):  # looking must not create it
        return
    try:
        with CursorStore.open(settings.cursors) as store:
            cursors: dict[str, Cursor] = {name: store.load(name) for name in store.list()}
    except JournalError as error:
        health.results.append(Result("streams", "cursors", WARNING, str(error)))
        return
    for cursor, places in cursors.items():
        for name, place in places.items():
            stream = streams.get(name)
            if stream is None or not stream.epoch:
                continue
            if place.epoch != stream.epoch:
                stream.readers.append(Reader(cursor, 0, stream.head - stream.start + 1, None))
            else:
                lost = max(0, stream.start - 1 - place.sequence)
                stream.readers.append(Reader(cursor, place.sequence, max(0, stream.head - place.sequence), lost))


def _look_at_disk(settings: Settings, health: Health, limits: Thresholds) -> None:
    folder = settings.state
    while not os.path.exists(folder) and folder != folder.parent:  # noqa: PTH110 - False where nobody may look
        folder = folder.parent
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        health.results.append(Result("disk", "disk", UNKNOWN, f"cannot look at {folder}: {error.strerror}"))
    else:
        health.free, health.free_bytes = 100 * usage.free / max(usage.total, 1), usage.free
        warning, critical = limits.disk
        state = CRITICAL if health.free < critical else WARNING if health.free < warning else OK
        text = f"disk of {settings.state}: {health.free:.1f} % free, {usage.free} bytes"
        health.results.append(Result("disk", "disk", state, text))
    spool = settings.state / "spool"
    if os.path.isdir(spool) and os.access(spool, os.R_OK | os.X_OK):  # noqa: PTH112 - False where nobody may look
        health.spool_bytes = _waiting_bytes(spool)
        text = f"{health.spool_bytes} bytes of messages wait in {spool}"
        health.results.append(Result("disk", "spool", _above(health.spool_bytes, limits.spool), text))


def _may_be_there(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:
        return True  # opening it tells


def _waiting_bytes(spool: Path) -> int:
    total = 0
    for folder in spool.iterdir():
        with contextlib.suppress(OSError, JournalError):
            total += sum(waiting.size for waiting in list_waiting(folder))
    return total


# --- judging ------------------------------------------------------------------------------------------------------


def _judge_beat(stream: Stream, health: Health, timeout: float, limits: Thresholds) -> None:
    name = f"beat {stream.endpoint}"
    if stream.beat_age is None or stream.skew is None:
        text = f"{stream.endpoint} takes connections, but no beat that verifies came within {timeout:g} s"
        health.results.append(Result("streams", name, CRITICAL, text))
        return
    # what a program hears that listens all the time says more than our own ear did just now
    age = max([stream.beat_age, *(values.get("beat_age", 0.0) for values in stream.counters.values())])
    text = f"{stream.endpoint}: head {stream.head}, last beat {age:.1f} s ago"
    health.results.append(Result("streams", name, _above(age, limits.beat), text))
    side = "ahead of" if stream.skew > 0 else "behind"
    text = f"{stream.endpoint}: its clock is {abs(stream.skew):.1f} s {side} ours"
    health.results.append(Result("streams", f"clock {stream.endpoint}", _above(abs(stream.skew), limits.skew), text))


def _judge_readers(stream: Stream, health: Health, limits: Thresholds) -> None:
    for reader in stream.readers:
        name = f"{reader.cursor} {stream.endpoint}"
        hint = f"; if nobody reads as {reader.cursor} any more: fedbus cursor delete {reader.cursor}"
        state = _above(reader.lag, limits.lag_for(reader.cursor))
        text = f"cursor {reader.cursor} is {reader.lag} behind {stream.endpoint}"
        health.results.append(Result("streams", f"lag {name}", state, text + (hint if state != OK else "")))
        if reader.lost is None:
            text = f"cursor {reader.cursor} stands in an epoch of {stream.endpoint} that has ended; its rest is lost"
        elif reader.lost:
            text = f"cursor {reader.cursor} will lose {reader.lost} messages of {stream.endpoint}: retention took them"
        else:
            continue
        health.results.append(Result("losses", f"loss {name}", CRITICAL, text + hint))
    lost = stream.total("lost")
    if lost:
        text = f"{lost} losses of {stream.endpoint} were reported to programs of this host since they started"
        health.results.append(Result("losses", f"reported {stream.endpoint}", WARNING, text))


def _above(value: float, limits: tuple[float, float]) -> str:
    warning, critical = limits
    return CRITICAL if value >= critical else WARNING if value >= warning else OK


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 3)
