"""Topics of fedmsg and ours: how one becomes the other, and which of them a filter chooses."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from fedbus.errors import MessageError
from fedbus.model.topic import Naming, TopicFilter, check_topic

_SUBSCRIPTIONS = 64  # of one socket; with more of them it takes everything
_OTHER = re.compile(r"[^a-z0-9_.-]")


def filters_for(filters: Iterable[TopicFilter], naming: Naming, root: str) -> list[TopicFilter]:
    """Return what chooses the same topics on the fedmsg side, whose ``PREFIX.ENV`` is *root*.

    A filter within ours is taken within *root*. What was written without a prefix may also begin with one of another
    bus, such as ``io.pagure.prod.#``: it then stands for itself too.
    """
    found: dict[str, TopicFilter] = {}
    inside = naming.root + "."
    for one in filters:
        texts = [one.text]
        if one.text == naming.root:
            texts = [root]
        elif one.text.startswith(inside):
            rest = one.text[len(inside) :]
            texts = [f"{root}.{rest}"]
            if len(TopicFilter(rest).literal) >= 3:
                texts.append(rest)
        for text in texts:
            try:
                found[text] = TopicFilter(text)
            except MessageError:
                continue  # longer than a topic can be, so it chooses none
    return list(found.values())


def subscriptions(filters: Iterable[TopicFilter]) -> list[bytes]:
    """Return what a socket has to ask for so that nothing is missing that *filters* choose; none means everything."""
    literals = {".".join(one.literal) for one in filters}
    if not literals or "" in literals or len(literals) > _SUBSCRIPTIONS:
        return [b""]
    return sorted(text.encode("ascii") for text in literals)


@dataclass(frozen=True, slots=True)
class Mapping:
    """How a bridge names what it carries: ``PREFIX.ENV`` of fedmsg is ours, and everything behind it stays.

    What does not begin so (fedmsg lets anybody say any topic, and several buses share its sockets) goes below
    *service*, which is the bridge's own.
    """

    naming: Naming
    root: str  # PREFIX.ENV of fedmsg
    service: str  # of the endpoint in whose journal it goes

    def inward(self, topic: str) -> str:
        """Return the topic of ours for one of fedmsg; letters that ours do not allow become ``_`` or small ones.

        Raises:
            MessageError: It is too long.
        """
        rest = topic.removeprefix(self.root + ".")
        if rest == topic or "." not in rest:
            rest = f"{self.service}.{topic}"
        found = f"{self.naming.root}.{_OTHER.sub('_', rest.lower())}"
        check_topic(found)
        return found

    def outward(self, topic: str) -> str:
        """Return the topic of fedmsg for one of ours."""
        return f"{self.root}.{topic.removeprefix(self.naming.root + '.')}"
