"""Paths into a message, as templates, --fields and --where have them: ``body.tags.0``, ``package``, ``text.link``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedbus.model.paths import look_up

if TYPE_CHECKING:
    from fedbus.model.message import Message
    from fedbus.texts.texts import Texts

__all__ = ["TEXT_PATHS", "look_up", "value_at"]

TEXT_PATHS = frozenset(f"text.{name}" for name in ("title", "summary", "link", "icon", "agent", "packages", "users"))


def value_at(message: Message, shown: dict[str, Any], path: str, texts: Texts | None) -> Any:
    """Return what stands at *path* of *message*, whose record is *shown*: as `look_up`, and what it says to people.

    That is ``text.summary`` and the others of `TEXT_PATHS`; members of a body that are called so are reached with
    ``body.`` before them. Lists are lists.
    """
    if path in TEXT_PATHS and texts is not None:
        value = getattr(texts.of(message), path.removeprefix("text."))
        return list(value) if isinstance(value, tuple) else value
    return look_up(shown, path)
