"""The texts of one message, as IRC, desktop, web and tail show them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Text:
    """What people are shown of a message. Every text is one line, without control or invisible characters.

    Words from the network are still words of others: whoever puts them into HTML, markup or IRC escapes what means
    something there.
    """

    title: str  # the kind of event: "koji build complete"
    summary: str  # one line: "ralph's build of bash-5.2-1.fc42 is complete"
    link: str = ""  # http:// or https://, or empty
    icon: str = ""  # the same, of a picture
    agent: str = ""  # who did it
    packages: tuple[str, ...] = ()  # what it is about
    users: tuple[str, ...] = ()  # who it is about, the agent included
