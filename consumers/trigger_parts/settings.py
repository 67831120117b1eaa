"""What the settings of a trigger may be, and what they mean."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import Any

from fedbus import parse_duration

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where the command is looked for, and its PATH unless the settings give another."""

_DURATION: dict[str, Any] = {"type": ["number", "string"]}

SCHEMA: dict[str, Any] = {
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


def seconds(name: str, value: object, least: float = 0.0) -> float:
    """Return the duration *value* in seconds.

    Raises:
        ValueError: It is none, or less than *least*.
    """
    try:
        found = parse_duration(value)
    except ValueError as error:
        raise ValueError(f"settings.{name}: {error}") from error
    if found < least:
        raise ValueError(f"settings.{name}: {value!r} is less than {least:g} s")
    return found


def find_program(program: str, path: str) -> str:
    """Return the absolute path of *program*; never one that depends on a working directory.

    Raises:
        ValueError: There is none, in *path* or where it says.
    """
    if "/" in program and not program.startswith("/"):
        raise ValueError(f"settings.command: {program!r} depends on the working directory; write the whole path")
    folders = os.pathsep.join(folder for folder in path.split(os.pathsep) if folder.startswith("/"))
    found = shutil.which(program, path=folders)
    if found is None:
        where = "" if "/" in program else f" in {folders}"
        raise ValueError(f"settings.command: there is no program {program!r}{where}; install it or correct the name")
    return found


def meanings(wanted: Mapping[str, list[int]]) -> dict[int, str]:
    """Return what each exit code asks for.

    Raises:
        ValueError: One asks for two things.
    """
    codes: dict[int, str] = {}
    for what, numbers in wanted.items():
        for number in numbers:
            if codes.setdefault(number, what) != what:
                raise ValueError(f"settings.exit_codes: {number} is in {codes[number]} and in {what}; choose one")
    return codes
