"""What a message of an unknown kind seems to say, from its topic and from fields that most services have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedbus.texts import words
from fedbus.texts.text import Text

_AGENTS = ("agent", "owner", "user", "username", "author", "nick", "userid", "submitter")
_PACKAGES = ("package", "pkg", "packages", "nvr", "name")
_LINKS = ("url", "link", "html_url", "build_url", "full_url")
_RESULTS = ("status", "result", "outcome", "state")


def name_of(value: Any, depth: int = 3) -> str:
    """Return the name that *value* is, or has: text, a number, or an object with a name of its own."""
    if isinstance(value, str):
        return words.line(value, 100)
    if isinstance(value, Mapping) and depth:
        for key in ("name", "username", "login", "title"):
            if key in value:
                return name_of(value[key], depth - 1)
    return ""


def guess(topic: str, body: Mapping[str, Any], root: str = "") -> Text:
    """Return the texts of a message; *root* is PREFIX.ENV, which is not said again."""
    title = title_of(topic, root)
    agent = next((name for key in _AGENTS if (name := name_of(body.get(key)))), "")
    package = next((name for key in _PACKAGES if (name := name_of(body.get(key)))), "")
    link = next((url for key in _LINKS if (url := words.url(body.get(key)))), "")
    result = next((name for key in _RESULTS if (name := name_of(body.get(key)))), "")
    parts = [title]
    if package:
        parts.append(package)
    if agent:
        parts.append(f"by {agent}")
    if result:
        parts.append(f"({result})")
    return Text(
        title=title,
        summary=words.line(" ".join(parts)),
        link=link,
        agent=agent,
        packages=(package,) if package else (),
        users=(agent,) if agent else (),
    )


def title_of(topic: str, root: str = "") -> str:
    """Return the kind of event that *topic* names, as words."""
    if root and topic.startswith(root + "."):
        topic = topic[len(root) + 1 :]
    return words.line(topic.replace(".", " "), 120)
