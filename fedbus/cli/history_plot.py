"""Counts as bars of text, as wide as the terminal; without colour, and in ASCII where that is all there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, tzinfo

from fedbus.cli.escaping import escape

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_PARTS = " ▏▎▍▌▋▊▉█"
_STEPS = (1, 2, 3, 6, 12, 24, 48, 7 * 24, 14 * 24, 28 * 24, 13 * 7 * 24, 52 * 7 * 24)  # hours of one column
_NARROWEST = 40  # below, lines are longer than the terminal, rather than cut
_WIDEST = 4  # characters of one column, where there are few


def by_topic(counts: Mapping[str, int], columns: int, *, plain: bool = False, most: int = 20) -> list[str]:
    """Return a line with a bar for each topic, the largest first, and one for what is left beyond *most*."""
    total = sum(counts.values())
    rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = [(escape(topic), count) for topic, count in rows[:most]]
    if len(rows) > most:
        shown.append((f"… and {len(rows) - most} more topics", sum(count for _, count in rows[most:])))
    columns = max(columns, _NARROWEST)
    wide = min(max((len(topic) for topic, _ in shown), default=0), max(10, columns // 2))
    number = max((len(f"{count:,}") for _, count in shown), default=0)
    room = max(0, columns - wide - number - 11)
    highest = max((count for _, count in shown), default=0)
    lines = []
    for topic, count in shown:
        name = topic if len(topic) <= wide else "…" + topic[-(wide - 1) :]
        share = f"{100 * count / total:5.1f} %"
        line = f"{name:<{wide}} {count:>{number},} {share} {_bar(count, highest, room, plain)}"
        lines.append(line.rstrip())
    return lines


def _bar(count: int, highest: int, room: int, plain: bool) -> str:
    if not highest or not room:
        return ""
    if plain:
        return "#" * max(1, round(count / highest * room))
    eighths = max(1, round(count / highest * room * 8))
    return "█" * (eighths // 8) + _PARTS[eighths % 8].strip()


def by_hour(
    counts: Mapping[int, int],
    columns: int,
    *,
    zone: tzinfo | None = UTC,
    plain: bool = False,
    height: int = 8,
) -> list[str]:
    """Return a diagram of *counts* by hour (since 1970): a column for each hour, or for as many as have to share one.

    Below it stand the first and the last hour, in the time zone *zone* (None: that of this place).
    """
    if not counts:
        return []
    first, last = min(counts), max(counts)
    label = len(f"{max(counts.values()):,}")
    for _ in range(2):  # the sums of columns may be longer numbers than those of hours
        room = max(columns, _NARROWEST) - label - 2
        hours = last - first + 1
        step = next((step for step in _STEPS if -(-hours // step) <= room), -(-hours // room))
        sums = [0] * -(-hours // step)
        for hour, count in counts.items():
            sums[(hour - first) // step] += count
        label = len(f"{max(sums):,}")
    highest = max(sums)
    wide = max(1, min(_WIDEST, room // len(sums)))
    lines = []
    for row in reversed(range(height)):
        mark = f"{highest:,}" if row == height - 1 else "0" if row == 0 else ""
        lines.append(
            f"{mark:>{label}} {'|' if plain else '┤' if mark else '│'}{_row(sums, highest, row, height, plain, wide)}"
        )
    lines.append(" " * (label + 1) + _axis(first, last, len(sums) * wide, zone))
    lines.append(" " * (label + 1) + f"each column: {_named(step)}")
    return [line.rstrip() for line in lines]


def _row(sums: Sequence[int], highest: int, row: int, height: int, plain: bool, wide: int) -> str:
    cells = []
    for count in sums:
        # something is never shown as nothing
        level = max(1, round(count / highest * height * 8)) if count else 0
        eighths = min(8, max(0, level - row * 8))
        cell = ("#" if eighths >= 4 or (eighths and not row) else " ") if plain else _EIGHTHS[eighths]
        cells.append(cell * wide)
    return "".join(cells)


def _axis(first: int, last: int, width: int, zone: tzinfo | None) -> str:
    begin, end = (datetime.fromtimestamp(hour * 3600, UTC).astimezone(zone) for hour in (first, last))
    left, right = begin.strftime("%Y-%m-%d %H:%M"), end.strftime("%Y-%m-%d %H:%M")
    if first == last:
        return left
    if width < len(left) + len(right) + 1:
        return f"{left} to {right}"
    return left + " " * (width - len(left) - len(right)) + right


def _named(hours: int) -> str:
    if hours % 24 == 0:
        return "a day" if hours == 24 else f"{hours // 24} days"
    return "an hour" if hours == 1 else f"{hours} hours"
