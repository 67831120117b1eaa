"""Which messages are shown: field filters as people write them, regular expressions, people and packages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fedbus.cli.paths import value_at
from fedbus.cli.render import compact

if TYPE_CHECKING:
    from fedbus.cli.patterns import Patterns
    from fedbus.model.message import Message
    from fedbus.texts.texts import Texts

WHERE_FORM = (
    "write PATH=VALUE, PATH!=VALUE, PATH<VALUE (also <=, >, >=), PATH~REGEX, PATH!~REGEX, PATH (is there) or !PATH"
)
_WHERE = re.compile(r"(!?)([^=!<>~]{1,500}?) ?(?:(!=|!~|<=|>=|==|=|<|>|~)(.*))?", re.DOTALL)
_NUMBER = re.compile(r"-?[0-9]{1,30}(?:\.[0-9]{1,30})?(?:[eE][+-]?[0-9]{1,3})?")


class Where:
    """One field filter, such as ``build.status=failed``.

    PATH is one of `--fields`: of the record where it begins with one of its keys (``topic``, ``endpoint``, ``signer``,
    …), ``text.agent`` and the like, else of the body. A list fits when one of its items does; ``!=`` and ``!~`` are the
    opposites of ``=`` and ``~``, so they fit where there is nothing. ``=`` compares text as it is and everything else
    as its JSON (``true``, ``7``). ``<`` and the like compare numbers where both sides are, else text with text, as
    which times and dates compare rightly.
    """

    def __init__(self, text: str) -> None:
        """Raises ValueError where *text* is no filter."""
        match = _WHERE.fullmatch(text)
        if match is None or not match[2].strip():
            raise ValueError(f"{text!r} is not a filter; {WHERE_FORM}")
        negated, path, operator, value = match.groups()
        if negated and operator:
            raise ValueError(f"{text!r} is not a filter; {WHERE_FORM}")
        if operator in ("<", "<=", ">", ">=") and not value.strip():
            raise ValueError(f"{text!r} is not a filter; write what it is compared with behind {operator}")
        self.path = path.strip()
        self.negated = bool(negated) or operator in ("!=", "!~")
        self._fits = _test(operator, value)

    def fits(self, value: Any) -> bool:
        """Whether it lets a message pass that has *value* at the path; None where there is nothing."""
        found = any(map(self._fits, value)) if isinstance(value, (list, tuple)) else self._fits(value)
        return found is not self.negated


def _test(operator: str | None, wanted: str | None) -> Callable[[Any], bool]:
    if operator is None or wanted is None:
        return lambda value: value is not None
    if operator in ("~", "!~"):
        from fedbus.cli.patterns import Patterns

        patterns = Patterns([wanted])
        return lambda value: value is not None and patterns.found(_text(value))
    wanted = wanted.strip() if operator in ("<", "<=", ">", ">=") else wanted
    number = _number(wanted)
    if operator in ("=", "==", "!="):
        return lambda value: _equal(value, wanted, number)
    return lambda value: _compared(operator, value, wanted, number)


def _equal(value: Any, wanted: str, number: int | float | None) -> bool:
    if isinstance(value, str):
        return value == wanted
    if number is not None and isinstance(value, (int, float)) and not isinstance(value, bool):
        return value == number
    return (wanted == "null") if value is None else compact(value) == wanted


def _compared(operator: str, value: Any, wanted: str, number: int | float | None) -> bool:
    left: Any
    right: Any
    if number is not None:
        left, right = _number(value) if isinstance(value, str) else value, number
        if not isinstance(left, (int, float)) or isinstance(left, bool):
            return False
    elif isinstance(value, str):
        left, right = value, wanted
    else:
        return False
    if operator == "<":
        return bool(left < right)
    if operator == "<=":
        return bool(left <= right)
    return bool(left > right) if operator == ">" else bool(left >= right)


def _number(text: str) -> int | float | None:
    if not _NUMBER.fullmatch(text):
        return None
    return int(text) if text.lstrip("-").isdigit() else float(text)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else compact(value)


class Chooser:
    """Lets those messages pass that fit all *where*, one of *include* and none of *exclude*.

    Where signers, packages or users are named, it must be of or about one of them, too.

    Expressions are looked for in ``TOPIC BODY``, the body as compact JSON.
    """

    def __init__(
        self,
        *,
        where: Sequence[Where] = (),
        include: Patterns | None = None,
        exclude: Patterns | None = None,
        signers: Iterable[str] = (),
        packages: Iterable[str] = (),
        users: Iterable[str] = (),
        texts: Texts,
    ) -> None:
        self._where = tuple(where)
        self._include = include or None
        self._exclude = exclude or None
        self._signers = frozenset(signers)
        self._packages = frozenset(packages)
        self._users = frozenset(users)
        self._texts = texts
        self.everything = not any((where, self._include, self._exclude, self._signers, self._packages, self._users))

    def __call__(self, message: Message) -> bool:
        """Whether *message* is to be shown."""
        if self._signers and message.signer not in self._signers:
            return False
        if self._where:
            shown = message.record()
            for one in self._where:
                if not one.fits(value_at(message, shown, one.path, self._texts)):
                    return False
        if self._include is not None or self._exclude is not None:
            text = f"{message.topic} {compact(message.body)}"
            if self._include is not None and not self._include.found(text):
                return False
            if self._exclude is not None and self._exclude.found(text):
                return False
        if self._packages or self._users:
            texts = self._texts.of(message)
            if self._packages and self._packages.isdisjoint(texts.packages):
                return False
            if self._users and self._users.isdisjoint(texts.users):
                return False
        return True
