"""Which schema a topic has, and what becomes of a message that does not fit it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from fedbus.clock import Clock, SystemClock
from fedbus.errors import SchemaError
from fedbus.model.topic import TopicFilter
from fedbus.schemas.options import SchemaOptions
from fedbus.schemas.schema import Fault, Schema
from fedbus.texts.texts import weight

log = logging.getLogger(__name__)

_TOPICS = 10_000  # whose schema is remembered
_EVERY = 10.0  # seconds between two lines about one topic
_SAID = 1000  # topics whose last line is remembered


class Received(Protocol):
    """What is asked of a message."""

    @property
    def topic(self) -> str: ...
    @property
    def body(self) -> dict[str, Any]: ...
    @property
    def endpoint(self) -> str: ...
    @property
    def sequence(self) -> int: ...


@dataclass(slots=True)
class SchemaStats:
    """Counters since the registry was made. Threads that count at the same moment may lose one."""

    published: int = 0  # bodies that were checked before they were published
    received: int = 0
    refused: int = 0  # of those published, not let through
    dropped: int = 0  # of those received
    warned: int = 0  # of both, told of and let through
    unknown: int = 0  # topics, not messages, that had no schema where one was wanted


class Schemas:
    """The schemas of a bus by topic. Safe in any thread; a topic that was asked for once costs a look into a table."""

    def __init__(
        self, schemas: Iterable[Schema] = (), options: SchemaOptions | None = None, *, clock: Clock | None = None
    ) -> None:
        self.stats = SchemaStats()
        self.version = 0  # grows when others are adopted
        self._clock = clock or SystemClock()
        self._said: dict[str, tuple[float, int]] = {}
        self._told: set[tuple[str, str]] = set()
        self.adopt(schemas, options or SchemaOptions())

    def adopt(self, schemas: Iterable[Schema], options: SchemaOptions) -> None:
        """Let *schemas* be in force from now on, in place of those before."""
        self._schemas = tuple(schemas)
        filters = [(TopicFilter(text), schema) for schema in self._schemas for text in schema.topics]
        self._filters = sorted(filters, key=lambda one: (weight(one[0]), one[1].rank), reverse=True)
        self.options = options
        self._known: dict[str, Schema | None] = {}
        self._inspectors: dict[str, Callable[[Received], bool] | None] = {}
        self.version += 1

    def __iter__(self) -> Iterator[Schema]:
        return iter(self._schemas)

    def __len__(self) -> int:
        return len(self._schemas)

    def of(self, topic: str) -> Schema | None:
        """Return the schema of the full *topic*: of those whose filter matches, the one that names it most closely."""
        known = self._known  # what is found out now belongs to what is in force now
        try:
            return known[topic]
        except KeyError:
            pass
        found = next((schema for one, schema in self._filters if one.matches(topic)), None)
        if len(known) >= _TOPICS:
            known.clear()
        known[topic] = found
        return found

    def check(self, topic: str, body: Any) -> list[Fault]:
        """Return what is wrong with *body* as one of *topic*; nothing where it fits, or where there is no schema."""
        schema = self.of(topic)
        return [] if schema is None else schema.faults(body)

    # --- publishing --------------------------------------------------------------------------------------------

    def publishing(self, topic: str) -> Callable[[Any], None] | None:
        """Return what to call with each body that is published under *topic*; None where there is nothing to check.

        What is returned raises SchemaError for a body that is refused.

        Raises:
            SchemaError: There is no schema for the topic, and none may be published without one.
        """
        options = self.options
        schema = self.of(topic)
        if schema is None:
            if options.unknown == "allow":
                return None
            self.stats.unknown += 1
            text = f"{topic}: no schema is known for this topic; add one, or correct the topic"
            if options.unknown == "refuse":
                raise SchemaError(text, topic=topic)
            self._say(topic, "%s", text)
            return None
        if schema.deprecated:
            self._say_once(
                topic, schema.name, "%s: its schema %s is deprecated (%s)", topic, schema.name, schema.origin
            )
        if options.publish == "pass":
            return None
        chosen, stats, refuses = schema, self.stats, options.publish == "refuse"
        is_valid, obsolete = chosen.validator.is_valid, bool(chosen.deprecated_fields)

        def check(body: Any) -> None:
            stats.published += 1
            try:
                fits = is_valid(body)
            except ValueError:
                fits = False
            if not fits:
                error = misfit(topic, chosen, body)
                if refuses:
                    stats.refused += 1
                    raise error
                stats.warned += 1
                self._say(topic, "published all the same: %s", error)
            if obsolete:
                for name in chosen.deprecated_in(body):
                    self._say_once(topic, name, "%s: %s is deprecated by schema %s", topic, name, chosen.name)

        return check

    # --- receiving ---------------------------------------------------------------------------------------------

    def receiving(self, topic: str) -> Callable[[Received], bool] | None:
        """Return what says of each message of *topic* whether it may pass; None where all may."""
        known = self._inspectors
        try:
            return known[topic]
        except KeyError:
            pass
        inspector = self._inspector(topic)
        if len(known) >= _TOPICS:
            known.clear()
        known[topic] = inspector
        return inspector

    def _inspector(self, topic: str) -> Callable[[Received], bool] | None:
        options, stats = self.options, self.stats
        if options.receive == "pass":
            return None
        drops = options.receive == "drop"
        schema = self.of(topic)
        if schema is None:
            if options.unknown == "allow":
                return None
            stats.unknown += 1
            if options.unknown == "warn" or not drops:
                self._say(topic, "%s: received, and no schema is known for this topic", topic)
                return None

            def drop_unknown(message: Received) -> bool:
                stats.dropped += 1
                self._say(topic, "dropped: %s#%d %s: no schema", message.endpoint, message.sequence, topic)
                return False

            return drop_unknown
        chosen = schema
        is_valid = chosen.validator.is_valid

        def inspect(message: Received) -> bool:
            stats.received += 1
            body = message.body
            try:
                if is_valid(body):
                    return True
            except ValueError:
                pass
            error = misfit(topic, chosen, body)
            verdict = "dropped" if drops else "received all the same"
            if drops:
                stats.dropped += 1
            else:
                stats.warned += 1
            self._say(topic, "%s: %s#%d %s", verdict, message.endpoint, message.sequence, error)
            return not drops

        return inspect

    # --- saying so ---------------------------------------------------------------------------------------------

    def _say(self, topic: str, form: str, *values: object) -> None:
        """Log the first of each topic at once, then at most one line in ten seconds, with a count."""
        now = self._clock.monotonic()
        at, held = self._said.get(topic, (float("-inf"), 0))
        if now - at < _EVERY:
            self._said[topic] = (at, held + 1)
            return
        if len(self._said) >= _SAID:
            self._said.clear()
        self._said[topic] = (now, 0)
        log.warning(form + (f" (and {held} more like it)" if held else ""), *values)

    def _say_once(self, topic: str, what: str, form: str, *values: object) -> None:
        if (topic, what) in self._told or len(self._told) >= _SAID:
            return
        self._told.add((topic, what))
        log.warning(form, *values)


def misfit(topic: str, schema: Schema, body: Any) -> SchemaError:
    """Return the error that says why *body* does not fit *schema*."""
    faults = schema.faults(body)
    text = "; ".join(map(str, faults))
    return SchemaError(
        f"{topic}: the body does not fit the schema {schema.name} ({schema.origin}): {text}",
        topic=topic,
        schema=schema.name,
        faults=tuple(faults),
    )
