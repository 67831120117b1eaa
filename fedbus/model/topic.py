"""Topics (``PREFIX.ENV.SERVICE.OBJECT[.SUBOBJECT].EVENT``) and the filters that choose among them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fedbus.errors import MessageError, Reason, TrustError

TOPIC_BYTES = 255
ENVIRONMENTS = ("dev", "stg", "production")

_FIELD = r"[a-z0-9_-]+"
_TOPIC = re.compile(rf"{_FIELD}(?:\.{_FIELD})*\Z")
_FILTER_FIELD = re.compile(rf"(?:{_FIELD}|\*|\#)\Z")


def check_topic(text: str) -> None:
    """Raise unless *text* is a well-formed topic: fields of ``[a-z0-9_-]`` joined by dots, at most 255 bytes.

    Raises:
        MessageError: With ``Reason.TOPIC`` and what is wrong.
    """
    if not isinstance(text, str):
        raise MessageError(Reason.TOPIC, f"a topic is a text, not {type(text).__name__}")
    if len(text) > TOPIC_BYTES:
        raise MessageError(Reason.TOPIC, f"a topic has at most {TOPIC_BYTES} bytes, this one has {len(text)}")
    if not _TOPIC.match(text):
        lower = text.lower()
        hint = f"; did you mean {lower!r}?" if _TOPIC.match(lower) else ""
        raise MessageError(
            Reason.TOPIC,
            f"{text!r} is not a topic: fields of lower-case letters, digits, '_' and '-', joined by single dots{hint}",
        )


@dataclass(frozen=True, slots=True)
class Naming:
    """The prefix (two or more labels, reverse DNS) and the environment that all topics of a bus begin with."""

    prefix: str = "org.example"
    environment: str = "dev"

    @property
    def root(self) -> str:
        """``PREFIX.ENV``."""
        return f"{self.prefix}.{self.environment}"

    def expand(self, service: str, short: str) -> str:
        """Return the full topic for what publishing code says: ``package.build.complete`` of the service ``koji``.

        Raises:
            MessageError: The result is not a well-formed topic.
            TrustError: *short* is a full topic of another environment, and would end up in this one.
        """
        topic = f"{self.root}.{service}.{short}"
        if short.startswith(tuple(f"{self.prefix}.{environment}." for environment in ENVIRONMENTS)):
            check_topic(short)
            raise TrustError(
                Reason.ENVIRONMENT,
                f"{short!r} cannot be published here: this bus carries {self.root}.* only; check topic_prefix and "
                "environment on both sides",
            )
        try:
            check_topic(topic)
        except MessageError:
            check_topic(short)  # a fault in what the caller wrote is told in the caller's words
            raise
        return topic

    def service_of(self, topic: str) -> str | None:
        """Return the SERVICE field of a full *topic*, or None where it does not stand within ``PREFIX.ENV``."""
        root = self.root
        if not topic.startswith(root + "."):
            return None
        return topic[len(root) + 1 :].split(".", 1)[0]


def service_of_endpoint(endpoint: str) -> str:
    """Return the SERVICE of an endpoint's name: what stands before its first dot (``koji`` of ``koji.build01``)."""
    return endpoint.split(".", 1)[0]


class TopicFilter:
    """A topic prefix by whole fields, with ``*`` for exactly one field and ``#`` for any number, none included.

    ``org.x.dev.koji`` matches ``org.x.dev.koji.build.start`` and never ``org.x.dev.kojira.build.start``. ``text`` is
    the full pattern; ``literal`` holds the leading fields without wildcards, which is what a socket can subscribe to.
    """

    __slots__ = ("_pattern", "_prefix", "literal", "text")

    def __init__(self, text: str) -> None:
        """*text* must be a full pattern; use :meth:`parse` for what people write."""
        if len(text) > TOPIC_BYTES:
            raise MessageError(Reason.TOPIC, f"a topic filter has at most {TOPIC_BYTES} bytes")
        fields = text.split(".") if text else []
        for field in fields:
            if not _FILTER_FIELD.match(field):
                raise MessageError(
                    Reason.TOPIC,
                    f"{text!r} is not a topic filter: {field!r} is neither a field, '*' (one) nor '#' (any number)",
                )
        self.text = text
        wild = next((place for place, field in enumerate(fields) if field in "*#"), len(fields))
        self.literal = tuple(fields[:wild])
        if wild == len(fields) or fields[wild:] == ["#"]:
            # the common shape is a plain prefix: two string comparisons
            self._prefix: str | None = ".".join(self.literal)
        else:
            self._prefix = None
        self._pattern = tuple(fields)

    @classmethod
    def parse(cls, text: str, naming: Naming | None = None) -> TopicFilter:
        """Read what a person wrote; what does not begin with the prefix is taken within ``PREFIX.ENV`` of *naming*.

        ``koji.package.#`` becomes ``org.x.dev.koji.package.#``, and ``*.package`` ``org.x.dev.*.package``; ``#`` alone,
        and the empty text, are everything within ``PREFIX.ENV``. With ``naming=None`` the text is the full pattern.

        Raises:
            MessageError: *text* is not a filter.
        """
        if not isinstance(text, str):
            raise MessageError(Reason.TOPIC, f"a filter of topics is a text, not {type(text).__name__}")
        text = text.removesuffix(".")
        if naming is None or text == naming.prefix or text.startswith(naming.prefix + "."):
            return cls(text)
        return cls(f"{naming.root}.{text}" if text else naming.root)

    def matches(self, topic: str) -> bool:
        """Say whether the full *topic* is among those that the filter chooses."""
        prefix = self._prefix
        if prefix is None:
            return _glob(self._pattern, topic.split("."))
        return (
            not prefix or topic == prefix or (topic.startswith(prefix) and topic[len(prefix) : len(prefix) + 1] == ".")
        )

    def __repr__(self) -> str:
        return f"TopicFilter({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TopicFilter) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)


def _glob(pattern: tuple[str, ...], fields: list[str]) -> bool:
    """Match whole *fields* against *pattern*; what follows the pattern's end is free, since a filter is a prefix.

    The classic walk that returns only to the latest ``#``, so at most len(pattern) * len(fields) steps.
    """
    place = at = 0
    run = mark = -1
    while place < len(pattern):
        if pattern[place] == "#":
            run, mark = place, at
            place += 1
        elif at < len(fields) and pattern[place] in ("*", fields[at]):
            place += 1
            at += 1
        elif run >= 0 and mark < len(fields):
            mark += 1
            place, at = run + 1, mark
        else:
            return False
    return True


def common_prefix(filters: list[TopicFilter]) -> tuple[str, ...]:
    """Return the leading fields that all *filters* share; what a subscriber asks its sockets for."""
    if not filters:
        return ()
    literals = [one.literal for one in filters]
    shortest = min(literals, key=len)
    for place, field in enumerate(shortest):
        if any(literal[place] != field for literal in literals):
            return shortest[:place]
    return shortest
