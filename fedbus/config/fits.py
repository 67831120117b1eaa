"""Whether a value obeys our JSON Schema, told in a millisecond.

`jsonschema` says in words what is wrong, and takes 65 ms to import: a quarter of what a script waits for that publishes
one message. So it is asked only about a configuration that this module does not find faultless.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Part = Mapping[str, Any]  # a schema, or one inside it

_SILENT = frozenset({"$schema", "$id", "$defs", "title", "description", "then", "else"})
_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


class _Unknown(Exception):
    """The schema holds a keyword that is not known here."""


def fits(value: object, schema: Part) -> bool:
    """Return True where *value* obeys *schema*; False where it does not, or where a keyword is not known here.

    What the keywords mean is said by JSON Schema 2020-12.
    """
    try:
        return _fits(value, schema, schema)
    except _Unknown:
        return False


def _fits(value: object, part: Part, root: Part) -> bool:
    for word, wanted in part.items():
        if word in _SILENT:
            continue
        check = _CHECKS.get(word)
        if check is None:
            raise _Unknown(word)
        if not check(value, wanted, part, root):
            return False
    return True


def _is(value: object, kind: str) -> bool:
    if kind == "integer":
        return (type(value) is int) or (type(value) is float and value.is_integer())
    return isinstance(value, _KINDS[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _type(value: Any, wanted: Any, part: Part, root: Part) -> bool:
    return any(_is(value, kind) for kind in ([wanted] if isinstance(wanted, str) else wanted))


def _equal(value: Any, wanted: Any) -> bool:
    # for JSON, true is not 1; lists and mappings stand nowhere in an enum of ours
    return bool(type(value) is type(wanted) and value == wanted and not isinstance(value, (dict, list)))


def _reference(value: Any, wanted: Any, part: Part, root: Part) -> bool:
    try:
        return _fits(value, root["$defs"][wanted.removeprefix("#/$defs/")], root)
    except KeyError:
        raise _Unknown(wanted) from None


def _properties(value: Any, wanted: Any, part: Part, root: Part) -> bool:
    return not isinstance(value, dict) or all(
        _fits(value[key], one, root) for key, one in wanted.items() if key in value
    )


def _others(value: Any, wanted: Any, part: Part, root: Part) -> bool:
    if not isinstance(value, dict) or wanted is True:
        return True
    others = [inner for key, inner in value.items() if key not in part.get("properties", ())]
    return not others if wanted is False else all(_fits(inner, wanted, root) for inner in others)


def _choice(value: Any, wanted: Any, part: Part, root: Part) -> bool:
    return _fits(value, part.get("then" if _fits(value, wanted, root) else "else", {}), root)


def _length(kind: type[str | list[Any] | dict[str, Any]], at_least: bool) -> Callable[[Any, Any, Part, Part], bool]:
    def check(value: Any, wanted: Any, part: Part, root: Part) -> bool:
        return not isinstance(value, kind) or (len(value) >= wanted if at_least else len(value) <= wanted)

    return check


def _number(test: Callable[[Any, Any], bool]) -> Callable[[Any, Any, Part, Part], bool]:
    return lambda value, wanted, part, root: not _is(value, "number") or test(value, wanted)


_CHECKS: Mapping[str, Callable[[Any, Any, Part, Part], bool]] = {
    "type": _type,
    "enum": lambda value, wanted, part, root: any(_equal(value, one) for one in wanted),
    "const": lambda value, wanted, part, root: _equal(value, wanted),
    "pattern": lambda value, wanted, part, root: not isinstance(value, str) or re.search(wanted, value) is not None,
    "minLength": _length(str, True),
    "maxLength": _length(str, False),
    "minItems": _length(list, True),
    "maxItems": _length(list, False),
    "minProperties": _length(dict, True),
    "minimum": _number(lambda value, wanted: value >= wanted),
    "maximum": _number(lambda value, wanted: value <= wanted),
    "exclusiveMinimum": _number(lambda value, wanted: value > wanted),
    "required": lambda value, wanted, part, root: not isinstance(value, dict) or all(key in value for key in wanted),
    "items": lambda value, wanted, part, root: (
        not isinstance(value, list) or all(_fits(inner, wanted, root) for inner in value)
    ),
    "propertyNames": lambda value, wanted, part, root: (
        not isinstance(value, dict) or all(_fits(key, wanted, root) for key in value)
    ),
    "properties": _properties,
    "additionalProperties": _others,
    "not": lambda value, wanted, part, root: not _fits(value, wanted, root),
    "if": _choice,
    "$ref": _reference,
}
