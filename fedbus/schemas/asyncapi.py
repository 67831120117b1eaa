"""The schemas of a bus as an AsyncAPI 3.0 document (https://www.asyncapi.com/docs/reference/specification/v3.0.0)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from fedbus.schemas.schema import DIALECT, EXTRA, PLACE, Schema

VERSION = "3.0.0"

# Keywords of drafts 2019-09 and 2020-12 that say something of a value, and that draft 07 does not know
_LATER = frozenset(
    [
        *("$anchor", "$dynamicAnchor", "$dynamicRef", "$recursiveAnchor", "$recursiveRef", "$vocabulary"),
        *("contentSchema", "dependentRequired", "dependentSchemas", "maxContains", "minContains", "prefixItems"),
        *("unevaluatedItems", "unevaluatedProperties"),
    ]
)
_BESIDE_REF = frozenset(
    [
        *("$ref", "$id", "$schema", "$comment", "$defs", "definitions", "title", "description", "deprecated"),
        *("default", "examples", "readOnly", "writeOnly"),
    ]
)
_PLAIN = frozenset(("const", "enum", "default", "examples"))  # values, no schemas

_HEADERS: Mapping[str, Any] = {
    "type": "object",
    "description": "The attributes of the CloudEvents envelope around the body.",
    "required": ["specversion", "id", "source", "type", "time", "epoch", "sequence", "datacontenttype"],
    "properties": {
        "specversion": {"const": "1.0"},
        "id": {"type": "string", "description": "a UUIDv7"},
        "source": {"type": "string", "description": "fedbus:ENDPOINT"},
        "type": {"type": "string", "description": "the topic"},
        "time": {"type": "string", "format": "date-time"},
        "epoch": {"type": "string", "description": "the identity of the journal"},
        "sequence": {"type": "string", "pattern": "^[0-9]{20}$"},
        "datacontenttype": {"const": "application/json"},
        "dataschema": {"type": "string"},
        "traceparent": {"type": "string"},
    },
}


def asyncapi(
    schemas: Iterable[Schema], *, shared: Mapping[str, Mapping[str, Any]], title: str, version: str
) -> dict[str, Any]:
    """Return the document: a channel for each topic, and for each an operation of those who publish.

    *shared* are schemas without topics that others refer to, by their address.
    """
    found = list(schemas)
    names = _names(found)
    files = {schema.base: names[schema] for schema in found if schema.base != PLACE}
    for address in shared:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", address.removeprefix(PLACE))
        while name in names.values():
            name += "-shared"
        files.setdefault(address, name)
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    messages: dict[str, Any] = {}
    components: dict[str, Any] = {}
    for schema in found:
        name = names[schema]
        components[name] = {
            "schemaFormat": _format(schema.document),
            "schema": _moved(
                schema.document, f"#/components/schemas/{_pointer(name)}/schema", files, _dialect(schema.document)
            ),
        }
        message = {
            "name": schema.name,
            "contentType": "application/json",
            "headers": {"$ref": "#/components/schemas/fedbus-envelope"},
            "payload": {"$ref": f"#/components/schemas/{_pointer(name)}"},
        }
        for key in ("title", "description"):
            if isinstance(said := schema.document.get(key), str):
                message[key] = said
        messages[name] = message
        for place, topic in enumerate(schema.topics):
            channel = name if not place else f"{name}-{place + 1}"
            address, parameters = _address(topic)
            channels[channel] = {
                "address": address,
                "messages": {name: {"$ref": f"#/components/messages/{_pointer(name)}"}},
                **({"parameters": parameters} if parameters else {}),
                **({"description": "Deprecated."} if schema.deprecated else {}),
            }
            operations[f"send-{channel}"] = {
                "action": "send",
                "channel": {"$ref": f"#/channels/{_pointer(channel)}"},
                "messages": [{"$ref": f"#/channels/{_pointer(channel)}/messages/{_pointer(name)}"}],
            }
    for address, document in shared.items():
        home = f"#/components/schemas/{_pointer(files[address])}/schema"
        components[files[address]] = {
            "schemaFormat": _format(document),
            "schema": _moved(document, home, files, _dialect(document)),
        }
    components["fedbus-envelope"] = {"schemaFormat": _format({}), "schema": dict(_HEADERS)}
    return {
        "asyncapi": VERSION,
        "info": {"title": title, "version": version},
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": components},
    }


def _names(schemas: list[Schema]) -> dict[Schema, str]:
    """Return for each schema a name that the components of a document may have, no two alike."""
    names: dict[Schema, str] = {}
    taken = {"fedbus-envelope"}
    for schema in schemas:
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", schema.name.replace("*", "any").replace("#", "all")) or "all"
        name, number = plain, 1
        while name in taken:
            number += 1
            name = f"{plain}-{number}"
        taken.add(name)
        names[schema] = name
    return names


def _format(document: Mapping[str, Any]) -> str:
    """Return the media type of a schema: that of draft 07, which every tool has to know, where it says the same."""
    dialect = _dialect(document)
    if dialect in ("06", "2019-09", "2020-12") and _says_the_same_in_draft_07(document):
        dialect = "07"
    return f"application/schema+json;version=draft-{dialect}"


def _dialect(document: Mapping[str, Any]) -> str:
    found = re.search(r"draft[/-]([0-9]{2,4}(?:-[0-9]{2})?)", str(document.get("$schema", DIALECT)))
    return found[1] if found else "2020-12"


def _says_the_same_in_draft_07(value: Any) -> bool:
    """Whether *value* has no keyword of a later draft; a field of a body that is called like one counts as one too."""
    if isinstance(value, list):
        return all(_says_the_same_in_draft_07(one) for one in value)
    if not isinstance(value, Mapping):
        return True
    if not _LATER.isdisjoint(value):
        return False
    return all(_says_the_same_in_draft_07(inner) for key, inner in value.items() if key not in _PLAIN)


def _address(topic: str) -> tuple[str, dict[str, Any]]:
    """Return a filter as the address of a channel, in which parameters stand for what it leaves open."""
    parameters: dict[str, Any] = {}
    fields = []
    for field in topic.split("."):
        if field in "*#":
            name = f"field{len(parameters) + 1}"
            text = "one field of the topic" if field == "*" else "any number of fields of the topic, also none"
            parameters[name] = {"description": text}
            field = "{" + name + "}"
        fields.append(field)
    return ".".join(fields), parameters


def _pointer(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _moved(value: Any, home: str, files: Mapping[str, str], dialect: str) -> Any:
    """Return a schema as it stands within the document, where references within it begin elsewhere.

    Up to draft 07 what stands beside a reference counts for nothing; in later ones it does, and so does an ``allOf``.
    """
    if isinstance(value, list):
        return [_moved(one, home, files, dialect) for one in value]
    if not isinstance(value, Mapping):
        return value
    beside = [key for key in value if key not in _BESIDE_REF and not key.startswith("x-")]
    if isinstance(reference := value.get("$ref"), str) and beside and dialect in ("2019-09", "2020-12"):
        others = {key: inner for key, inner in value.items() if key != "$ref"}
        value = {**others, "allOf": [{"$ref": reference}, *value.get("allOf", ())]}
    moved = {}
    for key, inner in value.items():
        if key in ("$id", "$schema", EXTRA):
            continue
        if key in ("$ref", "$dynamicRef") and isinstance(inner, str):
            file, _, pointer = inner.partition("#")
            if not file:
                inner = home + pointer
            elif (name := files.get(PLACE + file)) is not None:
                inner = f"#/components/schemas/{_pointer(name)}/schema{pointer}"
        moved[key] = _moved(inner, home, files, dialect)
    return moved
