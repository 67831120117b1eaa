"""Paths into a message, as templates, --fields and --where have them: ``body.tags.0``, ``package``, ``text.link``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedbus.model.message import Message
    from fedbus.texts.texts import Texts

TEXT_PATHS = frozenset(f"text.{name}" for name in ("title", "summary", "link", "icon", "agent", "packages", "users"))


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


def value_at(message: Message, shown: dict[str, Any], path: str, texts: Texts | None) -> Any:
    """Return what stands at *path* of *message*, whose record is *shown*: as `look_up`, and what it says to people.

    That is ``text.summary`` and the others of `TEXT_PATHS`; members of a body that are called so are reached with
    ``body.`` before them. Lists are lists.
    """
    if path in TEXT_PATHS and texts is not None:
        value = getattr(texts.of(message), path.removeprefix("text."))
        return list(value) if isinstance(value, tuple) else value
    return look_up(shown, path)
