"""How many messages of what: the table of `fedbus tail --top`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from fedbus.cli.escaping import escape
from fedbus.cli.paths import value_at
from fedbus.cli.render import cut, to_json

if TYPE_CHECKING:
    from fedbus.model.message import Message
    from fedbus.texts.texts import Texts

_MOST = 10_000  # different values that are counted apart; the rest are counted together
_MOST_SHOWN = 1000
OTHER = "(other)"
_NONE = "(none)"


@dataclass(slots=True)
class Row:
    """What was counted under one name."""

    count: int = 0
    before: int = 0  # of these, up to the table before
    last: str = ""  # when the last one was published


class Top:
    """Counts messages by the value at a path, and shows them as a table or as JSON.

    ``NOW/S`` is the rate at which they came since the table before, ``AVG/S`` that at which they were published, from
    the first to the last message of all.
    """

    def __init__(
        self, by: str, *, texts: Texts, root: str = "", rows: int = 20, columns: int = 0, utc: bool = False
    ) -> None:
        self._by = by
        self._texts = texts
        self._root = root + "." if root else ""
        self._most = rows
        self._columns = columns
        self._utc = utc
        self._rows: dict[str, Row] = {}
        self._total = Row()
        self._began: datetime | None = None
        self._ended: datetime | None = None
        self._shown_at: float | None = None

    def add(self, messages: Sequence[Message]) -> None:
        """Count *messages*."""
        rows, total = self._rows, self._total
        for message in messages:
            for name in (message.topic,) if self._by == "topic" else self._names(message):
                row = rows.get(name)
                if row is None:
                    row = rows.setdefault(name if len(rows) < _MOST else OTHER, Row())
                row.count += 1
                row.last = max(row.last, message.time)
            total.count += 1
        for message in (messages[0], messages[-1]) if messages else ():
            self._span(message.time)

    def _names(self, message: Message) -> list[str]:
        if self._by == "service":
            rest = message.topic.removeprefix(self._root)
            return [rest.partition(".")[0]]
        value = value_at(message, message.record(), self._by, self._texts)
        if value is None or value == []:
            return [_NONE]
        # once under each item: a message about two packages is one of both
        return list(dict.fromkeys(_name(one) for one in (value if isinstance(value, list) else [value])))

    def _span(self, stamp: str) -> None:
        try:
            moment = datetime.fromisoformat(stamp)
        except ValueError:
            return
        self._began = moment if self._began is None else min(self._began, moment)
        self._ended = moment if self._ended is None else max(self._ended, moment)

    def table(self, now: float, *, final: bool = False) -> list[str]:
        """Return the lines of the table at *now*, monotonic seconds, and begin to count for the next one."""
        chosen = sorted(self._rows.items(), key=lambda pair: (-pair[1].count, pair[0]))
        names = [(escape(name.removeprefix(self._root) or name), row) for name, row in chosen[: self._most]]
        left = chosen[self._most :]
        others = f"… and {len(left)} more"
        width = max(len(self._by), len(others) if left else 0, *(len(name) for name, _ in names), 3)
        if self._columns:
            width = max(16, min(width, self._columns - 48))
        seconds = None if self._shown_at is None or final else max(now - self._shown_at, 1e-9)
        lines = [f"{self._by.upper():{width}}  {'COUNT':>11} {'SHARE':>6} {'NOW/S':>9} {'AVG/S':>9}  LAST"]
        for name, row in names:
            lines.append(f"{_fit(name, width)}  {self._figures(row, seconds)}  {self._clock(row.last)}")
        if left:
            rest = Row(sum(row.count for _, row in left), sum(row.before for _, row in left))
            lines.append(f"{_fit(others, width)}  {self._figures(rest, seconds)}")
        lines.append(f"{_fit('all', width)}  {self._figures(self._total, seconds)}")
        self._next(now)
        return [cut(line, self._columns) if self._columns else line for line in lines]

    def json(self, now: float, *, final: bool = False) -> str:
        """Return the same as one JSON object: ``by``, ``final``, ``count``, ``rate``, and ``rows`` with the same."""
        seconds = None if self._shown_at is None or final else max(now - self._shown_at, 1e-9)
        chosen = sorted(self._rows.items(), key=lambda pair: (-pair[1].count, pair[0]))
        rows = [
            {
                self._by: name,
                "count": row.count,
                "now_per_second": self._now_rate(row, seconds),
                "rate_per_second": self._rate(row),
                "last": row.last,
            }
            for name, row in chosen[: max(self._most, _MOST_SHOWN)]
        ]
        total = self._total
        shown: dict[str, Any] = {
            "by": self._by,
            "final": final,
            "count": total.count,
            "now_per_second": self._now_rate(total, seconds),
            "rate_per_second": self._rate(total),
            "different": len(chosen),
            "rows": rows,
        }
        self._next(now)
        return to_json(shown)

    def _clock(self, stamp: str) -> str:
        try:
            moment = datetime.fromisoformat(stamp)
        except ValueError:
            return escape(stamp[:30])
        return (moment if self._utc else moment.astimezone()).strftime("%H:%M:%S")

    def _next(self, now: float) -> None:
        self._shown_at = now
        for row in (self._total, *self._rows.values()):
            row.before = row.count

    def _rate(self, row: Row) -> float | None:
        if self._began is None or self._ended is None:
            return None
        seconds = (self._ended - self._began).total_seconds()
        return round(row.count / seconds, 3) if seconds > 0 else None

    @staticmethod
    def _now_rate(row: Row, seconds: float | None) -> float | None:
        return None if seconds is None else round((row.count - row.before) / seconds, 3)

    def _figures(self, row: Row, seconds: float | None) -> str:
        share = 100 * row.count / self._total.count if self._total.count else 0.0
        now, average = self._now_rate(row, seconds), self._rate(row)
        return f"{row.count:>11,} {share:>5.1f}% {_figure(now):>9} {_figure(average):>9}"


def _name(value: Any) -> str:
    text = value if isinstance(value, str) else to_json(value)
    return text[:200]


def _figure(rate: float | None) -> str:
    if rate is None:
        return "-"
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 0.1 or rate == 0 else f"{rate:.3f}"


def _fit(text: str, width: int) -> str:
    return f"{cut(text, width):{width}}"
