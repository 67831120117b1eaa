"""Figures of a run -> rows of the table and of results.json; pure functions."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Samples = Mapping[int, float]  # round -> value


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A pair of rows whose ratio is reported, or (without *ratio_to*) a row by itself, with what it has to reach."""

    name: str
    ratio_to: str | None = None
    at_least: float | None = None
    at_most: float | None = None

    def text(self) -> str:
        """The goal as the table shows it."""
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return "" if self.at_most is None else f"<= {self.at_most:g}"

    def met(self, value: float) -> bool:
        """Whether *value* (the ratio where there is one) reaches the goal."""
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The median of one figure over the rounds and, where *ratio_to* names another row, the median of the ratios."""

    name: str
    value: float
    unit: str
    minimum: float
    maximum: float
    runs: int
    ratio_to: str | None = None
    ratio: float | None = None
    ratio_minimum: float | None = None
    ratio_maximum: float | None = None
    goal: Goal | None = None

    def as_json(self) -> dict[str, Any]:
        """The row as results.json holds it."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "ratio_to": self.ratio_to,
            "ratio": self.ratio,
            "min": self.minimum,
            "max": self.maximum,
            "runs": self.runs,
            "ratio_min": self.ratio_minimum,
            "ratio_max": self.ratio_maximum,
        }


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which *share* (0 … 1) of the values lie: nearest rank, so always one of the values.

    Raises:
        ValueError: There are no values, or the share is outside 0 … 1.
    """
    if not values or not 0.0 <= share <= 1.0:
        raise ValueError(f"no percentile {share} of {len(values)} values")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def ratios(numerator: Samples, denominator: Samples) -> list[float]:
    """The ratio inside each round that has both figures."""
    return [numerator[number] / denominator[number] for number in sorted(numerator) if denominator.get(number)]


def make_row(name: str, unit: str, samples: Samples) -> Row:
    """The row of a figure without a ratio; *samples* must not be empty."""
    values = list(samples.values())
    return Row(
        name=name,
        value=statistics.median(values),
        unit=unit,
        minimum=min(values),
        maximum=max(values),
        runs=len(values),
    )


def make_rows(figures: Mapping[str, tuple[str, Samples]], goals: Iterable[Goal]) -> list[Row]:
    """Rows in the order of *figures* (name -> unit, samples): one for each pair in *goals*, else one without a ratio.

    A pair whose other row was not measured gives no row; a figure that has no pair left keeps its own row.
    """
    rows: list[Row] = []
    wanted = list(goals)
    for name, (unit, samples) in figures.items():
        plain = make_row(name, unit, samples)
        own = [goal for goal in wanted if goal.name == name]
        mine: list[Row] = []
        for goal in own:
            if goal.ratio_to is None:
                mine.append(_with(plain, goal=goal))
                continue
            _, other = figures.get(goal.ratio_to, ("", {}))
            shares = ratios(samples, other)
            if shares:
                mine.append(
                    _with(
                        plain,
                        goal=goal,
                        ratio_to=goal.ratio_to,
                        ratio=statistics.median(shares),
                        ratio_minimum=min(shares),
                        ratio_maximum=max(shares),
                    )
                )
        rows.extend(mine or [plain])
    return rows


def _with(row: Row, **changes: Any) -> Row:
    values = {field: getattr(row, field) for field in Row.__slots__}
    return Row(**{**values, **changes})


def number(value: float) -> str:
    """Three or four significant digits, thousands apart."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def table(rows: Sequence[Row], skipped: Mapping[str, str]) -> str:
    """The rows for people, and below them what was *skipped* (name -> reason)."""
    head = ("row", "median", "min - max", "unit", "ratio", "min - max", "to", "goal", "")
    lines: list[tuple[str, ...]] = [head]
    previous = ""
    for row in rows:
        again = row.name == previous
        previous = row.name
        measured = row.value if row.ratio is None else row.ratio
        goal = row.goal.text() if row.goal else ""
        verdict = "" if not goal or row.goal is None else ("met" if row.goal.met(measured) else "SHORT")
        spread = (
            f"{number(row.ratio_minimum)} - {number(row.ratio_maximum)}"
            if row.ratio_minimum is not None and row.ratio_maximum is not None
            else ""
        )
        lines.append(
            (
                "" if again else row.name,
                "" if again else number(row.value),
                "" if again else f"{number(row.minimum)} - {number(row.maximum)}",
                "" if again else row.unit,
                "" if row.ratio is None else number(row.ratio),
                spread,
                row.ratio_to or "",
                goal,
                verdict,
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    right = {1, 2, 4, 5}
    text = [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    text.insert(1, "-" * max(len(line) for line in text))
    text.extend(f"SKIPPED {name}: {reason}" for name, reason in skipped.items())
    return "\n".join(text)
