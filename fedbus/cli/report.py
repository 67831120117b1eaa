"""What a check has found, as text, as JSON, for Nagios, and for the textfile collector of Prometheus."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedbus.cli.escaping import escape
from fedbus.cli.health import CRITICAL, OK, UNKNOWN, WARNING, Health, Result, Stream, Thresholds
from fedbus.cli.whole_file import whole_file
from fedbus.monitor.text import Family, Sample, bounded_label, exposition
from fedbus.trust.expiry import Expiry

FORMATS = ("text", "json", "nagios", "prometheus")
NAGIOS = {OK: 0, WARNING: 1, CRITICAL: 2, UNKNOWN: 3}
_EXIT = {"config": 3, "keys": 4, "endpoints": 5, "losses": 7}  # all others: 1
_NAGIOS_LETTERS = 2000  # that a plugin says, of the 4096 that old daemons take together with the figures
_MOST_CURSORS = 100  # as labels: programs choose their names
_MOST_RESULTS = 5000


class Found(NamedTuple):
    """All that one check has found."""

    results: Sequence[Result]
    health: Health | None = None  # None where only a part was looked at
    expiries: Sequence[Expiry] = ()
    limits: Thresholds = Thresholds()

    @property
    def worst(self) -> str:
        """The worst state of all results."""
        states = {result.state for result in self.results}
        return next((state for state in (UNKNOWN, CRITICAL, WARNING) if state in states), OK)


def exit_code(found: Found, form: str) -> int:
    """Return the exit code: those of Nagios for it, otherwise those of fedbus."""
    if form == "nagios":
        return NAGIOS[found.worst]
    failed = [result.area for result in found.results if result.state in (CRITICAL, UNKNOWN)]
    return _EXIT.get(failed[0], 1) if failed else 0


def render(found: Found, form: str) -> str:
    """Return *found* in one of `FORMATS`, with a newline at its end."""
    return {"json": _json, "nagios": _nagios, "prometheus": _prometheus}.get(form, _text)(found)


def write(path: Path, text: str) -> None:
    """Put *text* at *path* in one step, readable for all: a collector never sees half of it.

    Raises:
        FedbusError: The folder or the disk refused.
    """
    with whole_file(path, mode=0o644) as file:
        file.write(text.encode())


# --- text and JSON -----------------------------------------------------------------------------------------------


def _json(found: Found) -> str:
    report: dict[str, Any] = {"state": found.worst, "results": [dataclasses.asdict(result) for result in found.results]}
    if found.health is not None:
        report |= found.health.report()
    return json.dumps(report, indent=2) + "\n"


def _text(found: Found) -> str:
    lines = [f"{result.state.upper():<8}  {_line(result.text)}" for result in found.results]
    if found.health is not None and any(one.epoch for one in found.health.streams):
        lines += ["", *_table(found.health.streams)]
    return "".join(f"{line}\n" for line in lines)


def _table(streams: Iterable[Stream]) -> list[str]:
    """Return a table with a line for each endpoint; - for what is not known."""

    def shown(value: float | None, form: str = "d") -> str:
        return "-" if value is None else f"{value:{form}}"

    rows = [("ENDPOINT", "START", "HEAD", "BEAT", "SKEW", "LAG", "GAPS", "LOST", "REFUSED", "JOURNAL")]
    for one in streams:
        known = bool(one.epoch)
        rows.append(
            (
                one.endpoint,
                shown(one.start if known else None),
                shown(one.head if known else None),
                shown(one.beat_age, ".1f"),
                shown(one.skew, "+.1f"),
                shown(one.lag if one.readers else None),
                shown(one.total("gaps")),
                shown(one.total("lost")),
                shown(one.total("refused")),
                shown(100 * one.journal.bytes / one.limit if one.journal is not None and one.limit else None, ".0f")
                + ("%" if one.journal is not None and one.limit else ""),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _line(text: str) -> str:
    """Return *text* on one line, without what Nagios takes for the start of its figures."""
    return escape(" ".join(text.split("\n"))).replace("|", "/")


# --- Nagios ------------------------------------------------------------------------------------------------------


def _nagios(found: Found) -> str:
    """Return one line and figures, as the guidelines of the Monitoring Plugins project describe them."""
    bad = [result for result in found.results if result.state != OK]
    bad.sort(key=lambda result: -NAGIOS[result.state])  # what is worst must not be cut off
    told = "; ".join(_line(result.text) for result in bad) or f"{len(found.results)} checks passed"
    if len(told) > _NAGIOS_LETTERS:
        told = f"{told[: _NAGIOS_LETTERS - 40]}… and more: {len(bad)} in all"
    figures = [f"checks={len(found.results)}", f"bad={len(bad)}"]
    health, limits = found.health, found.limits
    if health is not None:
        lag = max((one.lag for one in health.streams), default=0)
        figures.append(f"lag={lag};{_range(limits.lag)};0")
        if health.free is not None:
            # a range with a colon alarms below it
            warning, critical = limits.disk
            figures.append(f"free={health.free:.1f}%;{warning:g}:;{critical:g}:;0;100")
        if health.spool_bytes is not None:
            figures.append(f"spool={health.spool_bytes}B;{_range(limits.spool)};0")
        figures.append(f"dead={sum(health.dead.values())};;;0")
        ages = [one.beat_age for one in health.streams if one.beat_age is not None]
        if ages:
            figures.append(f"beat={max(ages):.1f}s;{_range(limits.beat)};0")
        lost = sum(one.total("lost") or 0 for one in health.streams)
        figures.append(f"lost={lost}c")
    return f"FEDBUS {found.worst.upper()} - {told} | {' '.join(figures)}\n"


def _range(limits: tuple[float, float]) -> str:
    return ";".join(str(int(one)) if one == int(one) else f"{one:g}" for one in limits)


# --- Prometheus --------------------------------------------------------------------------------------------------


def _prometheus(found: Found) -> str:
    """Return metrics. Labels are names of the configuration and of what was looked at, and those of cursors bounded."""
    families: list[Family] = []

    def add(name: str, text: str, samples: list[Sample]) -> None:
        if samples:
            families.append(Family(f"fedbus_check_{name}", "gauge", text, samples))

    now = time.time()
    add("timestamp_seconds", "When this was found out, in seconds since 1970.", [({}, int(now))])
    add("worst", "The worst state: 0 ok, 1 warning, 2 critical, 3 unknown.", [({}, NAGIOS[found.worst])])
    # one of each area and name, whose state is the worst: a collector refuses a file that says a thing twice
    states: dict[tuple[str, str], int] = {}
    for result in found.results[:_MOST_RESULTS]:
        key = result.area, escape(result.name)
        states[key] = max(states.get(key, 0), NAGIOS[result.state])
    samples: list[Sample] = [({"area": area, "name": name}, state) for (area, name), state in states.items()]
    add("state", "State of one thing that was looked at: 0 ok, 1 warning, 2 critical, 3 unknown.", samples)
    ends: dict[str, float] = {}
    for one in found.expiries:
        ends[one.what] = min(ends.get(one.what, one.expires_at), one.expires_at)
    add(
        "expires_seconds",
        "Until a certificate or a revocation list expires; negative when it has.",
        [({"what": what}, round(end - now, 0)) for what, end in ends.items()],
    )
    if found.health is not None:
        _add_health(found.health, add)
    return exposition(families)


def _add_health(health: Health, add: Any) -> None:
    known = [one for one in health.streams if one.epoch]

    def each(value: Any, streams: Iterable[Stream] = known) -> list[Sample]:
        return [({"endpoint": one.endpoint}, value(one)) for one in streams if value(one) is not None]

    add("stream_start", "First sequence that is kept.", each(lambda one: one.start))
    add("stream_head", "Last sequence.", each(lambda one: one.head))
    add("beat_age_seconds", "Since the last beat.", each(lambda one: one.beat_age))
    add("clock_skew_seconds", "How far the publisher's clock is ahead of ours.", each(lambda one: one.skew))
    add("journal_bytes", "Bytes of the journal.", each(lambda one: one.journal.bytes if one.journal else None))
    add(
        "journal_limit_bytes",
        "journal.retain_bytes; 0: no limit.",
        each(lambda one: one.limit if one.journal else None),
    )
    lags: dict[tuple[str, str], int] = {}
    lost: dict[tuple[str, str], int] = {}
    cursors: set[str] = set()
    for stream in health.streams:
        for reader in stream.readers:
            name = bounded_label(escape(reader.cursor), cursors, _MOST_CURSORS)
            cursors.add(name)
            key = name, stream.endpoint
            lags[key] = max(lags.get(key, 0), reader.lag)
            lost[key] = lost.get(key, 0) + (reader.lost or 0)

    def by_cursor(values: dict[tuple[str, str], int]) -> list[Sample]:
        return [({"cursor": cursor, "endpoint": endpoint}, value) for (cursor, endpoint), value in values.items()]

    add("cursor_lag_messages", "Sequences that a cursor is behind the head.", by_cursor(lags))
    add("cursor_lost_messages", "Messages that retention took from a cursor.", by_cursor(lost))
    add("dead_letters", "Dead letters.", [({"consumer": name}, count) for name, count in health.dead.items()])
    if health.free is not None:
        add("disk_free_percent", "Free space below the folder of state.", [({}, round(health.free, 2))])
        add("disk_free_bytes", "The same in bytes.", [({}, health.free_bytes or 0)])
    if health.spool_bytes is not None:
        add("spool_bytes", "Bytes of messages that wait in the spool.", [({}, health.spool_bytes)])
