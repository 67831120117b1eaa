"""Durations and sizes as people write them: ``30s``, ``7d``, ``64MiB``."""

from __future__ import annotations

import math
import re

_DURATION = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?(ms|s|m|h|d|w)?")
_SECONDS: dict[str | None, float] = {
    None: 1.0,
    "ms": 0.001,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
    "w": 7 * 86400.0,
}
_DURATION_LIMIT = 100 * 365 * 86400.0  # a century; more is a slip of the keyboard

_SIZE = re.compile(r"([0-9]{1,18}) ?(B|kB|KB|MB|GB|TB|KiB|MiB|GiB|TiB)?")
_BYTES: dict[str | None, int] = {
    **{None: 1, "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12},
    **{"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40},
}
_SIZE_LIMIT = 2**62

DURATION_FORM = "a number of seconds, or text such as 50ms, 30s, 5m, 12h, 7d, 2w"
SIZE_FORM = "a number of bytes, or text such as 512KiB, 64MiB, 1GiB"


def parse_duration(value: object) -> float:
    """Return *value*, a number of seconds or text with a unit, as seconds from 0.0 up.

    Raises:
        ValueError: It is neither; the text says what was expected.
    """
    if isinstance(value, str) and (match := _DURATION.fullmatch(value)):
        seconds = float(match[1]) * _SECONDS[match[2]]
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        seconds = float(value)
    else:
        raise ValueError(f"{value!r} is not a duration; write {DURATION_FORM}")
    if not 0.0 <= seconds <= _DURATION_LIMIT:
        raise ValueError(f"{value!r} is not a duration between 0 and 100 years; write {DURATION_FORM}")
    return seconds


def format_duration(seconds: float) -> str:
    """Return *seconds* as people write them, such as ``7d`` or ``50ms``; without a unit where none is exact."""
    for unit in ("d", "h", "m", "s", "ms"):
        count = round(seconds / _SECONDS[unit])
        if count and count * _SECONDS[unit] == seconds:
            return f"{count}{unit}"
    return repr(seconds) if seconds else "0"


def format_size(size: int) -> str:
    """Return *size*, in bytes, as people write it, such as ``64MiB``; :func:`parse_size` gives it back."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % _BYTES[unit] == 0:
            return f"{size // _BYTES[unit]}{unit}"
    return f"{size}B" if size else "0"


def parse_size(value: object) -> int:
    """Return *value*, a number of bytes or text with a unit (kB = 1000, KiB = 1024), as bytes from 0 up.

    Raises:
        ValueError: It is neither; the text says what was expected.
    """
    if isinstance(value, str) and (match := _SIZE.fullmatch(value)):
        size = int(match[1]) * _BYTES[match[2]]
    elif isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        raise ValueError(f"{value!r} is not a size; write {SIZE_FORM}")
    if not 0 <= size <= _SIZE_LIMIT:
        raise ValueError(f"{value!r} is not a size between 0 and 4 EiB; write {SIZE_FORM}")
    return size
