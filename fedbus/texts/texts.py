"""Gives each message its texts: those of the rules that fit its topic, and for the rest what can be guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from fedbus.errors import FedbusError, MessageError
from fedbus.model.topic import Naming, TopicFilter
from fedbus.texts import words
from fedbus.texts.guess import guess, names, title_of
from fedbus.texts.template import Template, TemplateError
from fedbus.texts.text import Text

KEYS = ("title", "summary", "link", "icon", "agent", "packages", "users")
_MANY = ("packages", "users")
_NAMING = frozenset(("agent", "packages", "users"))
_TOPICS = 10_000  # whose rules are remembered


class Shown(Protocol):
    """What is asked of a message: a topic and a body."""

    @property
    def topic(self) -> str: ...
    @property
    def body(self) -> dict[str, Any]: ...


class TextError(FedbusError, ValueError):
    """A rule is none; ``key`` says where in it."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(f"{key}: {text}" if key else text)
        self.key = key


@dataclass(frozen=True, slots=True)
class TextRule:
    """The texts of all messages whose topic fits *filter*. ``rank`` decides between equal filters, the higher one."""

    filter: TopicFilter
    templates: Mapping[str, tuple[Template, ...]] = field(default_factory=dict)
    rank: int = 0
    origin: str = ""

    @classmethod
    def parse(
        cls, topic: str, values: Mapping[str, Any], *, naming: Naming | None = None, rank: int = 0, origin: str = ""
    ) -> TextRule:
        """Read a rule as it is written: for each of `KEYS` a template, or for packages and users a list of them.

        Raises:
            TextError: The filter or a template is none, or there is an unknown key.
        """
        try:
            chosen = TopicFilter.parse(topic, naming)
        except MessageError as error:
            raise TextError("", str(error)) from error
        templates: dict[str, tuple[Template, ...]] = {}
        for key, value in values.items():
            if key not in KEYS:
                raise TextError(key, f"unknown key; known here: {', '.join(KEYS)}")
            several = value if isinstance(value, list) and key in _MANY else [value]
            if not several or not all(isinstance(one, str) and one for one in several) or len(several) > 8:
                raise TextError(key, "must be a template" + (", or a list of up to 8" if key in _MANY else ""))
            try:
                templates[key] = tuple(Template(one) for one in several)
            except TemplateError as error:
                raise TextError(key, str(error)) from error
        return cls(chosen, templates, rank, origin)


def weight(chosen: TopicFilter) -> tuple[int, int, int]:
    """Return how closely a filter names its topics; the greater one counts where several fit a topic.

    First counts how many fields are named, then how few ``#`` and how few ``*`` stand among them.
    """
    fields = chosen.text.split(".") if chosen.text else []
    hashes, stars = fields.count("#"), fields.count("*")
    return len(fields) - hashes - stars, -hashes, -stars


class Texts:
    """The texts of messages. ``Texts()`` knows of no schema and no configuration, and still says what it can.

    Safe in any thread.
    """

    def __init__(self, rules: Iterable[TextRule] = (), *, root: str = "") -> None:
        """*root*: the PREFIX.ENV of this bus, which titles leave out, or empty."""
        self.root = root
        self._rules: tuple[TextRule, ...] = ()
        self._known: dict[str, dict[str, tuple[Template, ...]]] = {}
        self.adopt(rules)

    def adopt(self, rules: Iterable[TextRule]) -> None:
        """Let *rules* be in force from now on, in place of those before."""
        self._rules = tuple(sorted(rules, key=lambda rule: (weight(rule.filter), rule.rank), reverse=True))
        self._known = {}

    @property
    def rules(self) -> tuple[TextRule, ...]:
        """The rules in force, those that count first before others."""
        return self._rules

    def of(self, message: Shown) -> Text:
        """Return the texts of *message*; never raises, and takes no longer for a larger body."""
        try:
            topic, body = message.topic, message.body
            text = guess(topic, body if isinstance(body, Mapping) else {}, self.root)
            if not self._rules:
                return text
            chosen = self._known.get(topic)
            if chosen is None:
                chosen = self._choose(topic)
            return self._told(message, text, chosen) if chosen else text
        except Exception:
            # whatever a message holds, and whoever made it: a line about it is shown
            return _plain(message, self.root)

    def names(self, message: Shown) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the users and the packages that *message* is about, as in :meth:`of`, for less; never raises."""
        try:
            topic, body = message.topic, message.body
            if self._rules:
                chosen = self._known.get(topic)
                if chosen is None:
                    chosen = self._choose(topic)
                if not _NAMING.isdisjoint(chosen):
                    text = self.of(message)
                    return text.users, text.packages
            return names(body) if type(body) is dict or isinstance(body, Mapping) else ((), ())
        except Exception:
            return (), ()

    def declared(self, message: Shown) -> str:
        """Return the summary of *message* where a rule says it, or the empty text; never raises."""
        if not self._rules:
            return ""
        try:
            chosen = self._known.get(message.topic)
            if chosen is None:
                chosen = self._choose(message.topic)
            templates = chosen.get("summary")
            return templates[0].render(message) if templates else ""
        except Exception:
            return ""

    def _choose(self, topic: str) -> dict[str, tuple[Template, ...]]:
        chosen: dict[str, tuple[Template, ...]] = {}
        for rule in self._rules:
            if rule.filter.matches(topic):
                for key, templates in rule.templates.items():
                    chosen.setdefault(key, templates)
        if len(self._known) >= _TOPICS:
            self._known = {}
        self._known[topic] = chosen
        return chosen

    def _told(self, message: Shown, text: Text, chosen: Mapping[str, tuple[Template, ...]]) -> Text:
        said: dict[str, Any] = {}
        for key, templates in chosen.items():
            if key in _MANY:
                values = [value for template in templates for value in template.values(message)]
                said[key] = tuple(dict.fromkeys(values))[:8]
            elif value := _FORMS[key](
                templates[0].render(message, words.LINK if key in ("link", "icon") else words.LINE)
            ):
                said[key] = value
        if "agent" in said and "users" not in said and said["agent"] not in text.users:
            said["users"] = (said["agent"], *text.users)[:8]
        return replace(text, **said)


def _line(text: str) -> str:
    return text


_FORMS: Mapping[str, Callable[[str], str]] = {
    "title": _line,
    "summary": _line,
    "agent": _line,
    "link": words.url,
    "icon": words.url,
}


def _plain(message: Shown, root: str) -> Text:
    try:
        title = title_of(str(message.topic), root)
    except Exception:
        title = "message"
    return Text(title=title, summary=title)
