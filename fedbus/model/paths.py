"""Paths into a message, as people write them: ``body.tags.0``, ``package``, ``topic``."""

from __future__ import annotations

from typing import Any


def look_up(shown: dict[str, Any], path: str) -> Any:
    """Return the value at the dotted *path*: of the record, where it begins with one of its keys, else of the body.

    Items of lists are counted from 0. What is not there is None.
    """
    parts = path.split(".")
    value: Any = shown if parts[0] in shown else shown["body"]
    for place, part in enumerate(parts):
        if isinstance(value, dict):
            rest = ".".join(parts[place:])
            if rest in value:  # a key that has dots itself
                return value[rest]
            value = value.get(part)
        elif isinstance(value, list) and part.isdecimal() and len(part) < 10:
            value = value[int(part)] if int(part) < len(value) else None
        else:
            return None
    return value
