"""Counters and gauges in the text format of Prometheus, version 0.0.4.

Whatever could make labels without end, topics above all, is no label. Names that programs choose (of cursors) go
through :func:`bounded_label`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OTHER = "other"

Sample = tuple[dict[str, str], float]


class Family(NamedTuple):
    """One metric: its name, ``counter`` or ``gauge``, a line of help, and what it is now."""

    name: str
    kind: str
    help: str
    samples: list[Sample]


def exposition(families: Iterable[Family]) -> str:
    """Return *families* as text; those of one name stand together, as the format wants it."""
    joined: dict[str, Family] = {}
    for family in families:
        known = joined.setdefault(family.name, family._replace(samples=[]))
        known.samples.extend(family.samples)
    lines: list[str] = []
    for name, kind, text, samples in joined.values():
        lines.append(f"# HELP {name} {_escaped(text)}")
        lines.append(f"# TYPE {name} {kind}")
        for labels, value in samples:
            shown = ",".join(f'{key}="{_escaped(label, quote=True)}"' for key, label in labels.items())
            number = repr(float(value)) if isinstance(value, float) else str(value)
            lines.append(f"{name}{{{shown}}} {number}" if shown else f"{name} {number}")
    return "\n".join(lines) + "\n"


def _escaped(text: str, *, quote: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quote else text


def bounded_label(name: str, known: Collection[str], most: int) -> str:
    """Return *name* as a label, or ``other`` where *known* has *most* labels already and this is none of them."""
    return name if name in known or len(known) < most else OTHER


_SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\.)*",?)*)\})? (\S+)(?: \d+)?')
_LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\\n]|\\.)*)"')
_PLAIN = {"\\n": "\n", '\\"': '"', "\\\\": "\\"}


def parse(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield (name, labels, value) of the samples in *text*; what is no sample is left out."""
    for line in text.splitlines():
        match = _SAMPLE.fullmatch(line)
        if match is None:
            continue
        labels = {
            key: re.sub(r"\\.", lambda part: _PLAIN.get(part[0], part[0]), label)
            for key, label in _LABEL.findall(match[2] or "")
        }
        try:
            yield match[1], labels, float(match[3])
        except ValueError:
            continue
