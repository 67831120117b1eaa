"""One JSON Schema: read, compiled, and asked what is wrong with a body.

Schemas may come from packages of others, and bodies from anybody. So patterns run in an engine whose time grows with
the length of the text alone (the `regex` crate, by way of jsonschema-rs; no look-around, no backreferences), their
length is limited, and a ``$ref`` leads to the schemas that are here or nowhere: nothing is ever fetched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from fedbus.errors import ConfigError
from fedbus.texts import words

if TYPE_CHECKING:
    import jsonschema_rs

DIALECT = "https://json-schema.org/draft/2020-12/schema"  # where a schema has no `$schema`
EXTRA = "x-fedbus"  # the keyword under which fedbus keeps what JSON Schema has no place for
PLACE = "schema:///"  # the base of relative references, followed by the name of the file

_PATTERN = 1000  # characters of one pattern
_PATTERN_BYTES = 2**20  # of one that is compiled, and of what it keeps while it runs
_NODES = 50_000  # objects in one schema
_FAULTS = 5  # told of one body
_VALUE = 160  # characters of what is said about one


@dataclass(frozen=True, slots=True)
class Fault:
    """One way in which a body does not fit its schema."""

    field: str  # such as body.build.id or body.builds[0].nvr
    rule: str  # the keyword that it breaks, such as type, required, pattern
    text: str  # in words, with the beginning of the value

    def __str__(self) -> str:
        return f"{self.field}: {self.text} (rule {self.rule})"


@dataclass(frozen=True, slots=True, eq=False)
class Schema:
    """A schema and the topics whose messages obey it."""

    name: str
    topics: tuple[str, ...]  # full filters
    document: Mapping[str, Any]
    origin: str  # the file, with a line where it has one, or the package
    texts: Mapping[str, Any] = field(default_factory=dict)  # of `x-fedbus`: title, summary, …
    rank: int = 0  # of two for the same topics the higher counts
    base: str = PLACE  # the address at which its relative references begin
    validator: Any = None
    deprecated: bool = False
    deprecated_fields: tuple[tuple[str, ...], ...] = ()

    def faults(self, body: Any, most: int = _FAULTS) -> list[Fault]:
        """Return what is wrong with *body*, at most so many faults; nothing where it fits."""
        try:
            if self.validator.is_valid(body):
                return []
            found = [_fault(error) for error in islice(self.validator.iter_errors(body), most)]
        except ValueError as error:
            # something that JSON does not have
            return [Fault("body", "type", words.line(str(error), _VALUE))]
        return found or [Fault("body", "schema", "does not fit")]

    def deprecated_in(self, body: Any) -> list[str]:
        """Return those fields of *body* that the schema calls deprecated."""
        return ["body." + ".".join(path) for path in self.deprecated_fields if _has(body, path)]


def _has(value: Any, path: tuple[str, ...]) -> bool:
    for name in path:
        if not isinstance(value, Mapping) or name not in value:
            return False
        value = value[name]
    return True


def _fault(error: jsonschema_rs.ValidationError) -> Fault:
    path: list[str | int] = list(error.instance_path)
    rule = str(error.schema_path[-1]) if error.schema_path else "schema"
    if rule.isdecimal() or rule in ("properties", "items"):
        rule = error.kind.name
    text = error.message
    missing, unexpected = getattr(error.kind, "property", None), getattr(error.kind, "unexpected", None)
    if missing is not None and rule in ("required", "dependentRequired", "dependencies"):
        path.append(str(missing))
        text = "is missing"
    elif unexpected:
        path.append(str(unexpected[0]))
        others = f", as {len(unexpected) - 1} others are" if len(unexpected) > 1 else ""
        text = f"is not allowed{others}"
    return Fault(_dotted(path), rule, words.line(text, _VALUE))


def _dotted(path: list[str | int]) -> str:
    text = "body"
    for part in path[:20]:
        text += f"[{part}]" if isinstance(part, int) else f".{words.line(part, 80)}"
    return words.line(text, 300)


# --- reading ---------------------------------------------------------------------------------------------------


def compile_schema(
    document: Mapping[str, Any], *, origin: str, base: str, others: Mapping[str, Any], formats: bool
) -> jsonschema_rs.Validator:
    """Return the validator of *document*, whose relative references begin at *base* and find *others*, by address.

    Raises:
        ConfigError: It is no schema, refers to one that is not here, or holds what could be used to keep us busy.
    """
    import jsonschema_rs

    _check_bounds(document, origin)

    def retrieve(address: str) -> Any:
        if address in others:
            return others[address]
        raise LookupError(address)

    try:
        validator: jsonschema_rs.Validator = jsonschema_rs.validator_for(
            dict(document) if "$schema" in document else {"$schema": DIALECT, **document},
            validate_formats=formats,
            base_uri=base,
            retriever=retrieve,
            pattern_options=jsonschema_rs.RegexOptions(size_limit=_PATTERN_BYTES, dfa_size_limit=_PATTERN_BYTES),
        )
    except jsonschema_rs.ValidationError as error:
        raise ConfigError(f"{origin}: {_why(error)}") from error
    except (ValueError, LookupError, RecursionError) as error:
        raise ConfigError(f"{origin}: is no JSON Schema: {words.line(str(error), 200)}") from error
    return validator


def _why(error: jsonschema_rs.ValidationError) -> str:
    text = words.line(error.message, 300)
    where = ".".join(str(part) for part in error.instance_path) or "the schema"
    if "is not present in a registry" in text:
        address = text.split("'")[1] if text.count("'") > 1 else text
        return (
            f"$ref: {address.removeprefix(PLACE)} is none of the schemas here, and nothing is fetched from elsewhere; "
            "put it into the folder, or copy what is needed into $defs"
        )
    if "Unknown meta-schema" in text:
        return f"$schema: {text}; leave it out for {DIALECT}"
    if text.endswith('is not a "regex"'):
        return (
            f"{where}: {text} that is matched in linear time; leave out look-around and backreferences, and bound "
            "repetitions"
        )
    return f"{where}: {text}"


def _check_bounds(document: Mapping[str, Any], origin: str) -> None:
    for count, node in enumerate(nodes(document)):
        if count >= _NODES:
            raise ConfigError(f"{origin}: the schema has more than {_NODES} objects; split it")
        properties = node.get("patternProperties")
        patterns = [node.get("pattern"), *(properties if isinstance(properties, Mapping) else ())]
        for pattern in patterns:
            if isinstance(pattern, str) and len(pattern) > _PATTERN:
                raise ConfigError(
                    f"{origin}: a pattern of {len(pattern)} characters, {_PATTERN} at most; use enum or shorten it"
                )


def nodes(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every object within *value*, itself included."""
    stack = [value]
    while stack:
        one = stack.pop()
        if isinstance(one, Mapping):
            yield one
            stack += one.values()
        elif isinstance(one, list):
            stack += one


def deprecated_fields(document: Mapping[str, Any], depth: int = 6) -> Iterator[tuple[str, ...]]:
    """Yield the paths of properties that are marked ``deprecated: true``."""
    properties = document.get("properties")
    for name, part in properties.items() if isinstance(properties, Mapping) else ():
        if not isinstance(part, Mapping):
            continue
        if part.get("deprecated") is True:
            yield (name,)
        elif depth:
            for rest in deprecated_fields(part, depth - 1):
                yield (name, *rest)
