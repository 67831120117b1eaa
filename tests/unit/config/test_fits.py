"""The quick verdict on a configuration is that of jsonschema."""

from __future__ import annotations

import copy
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbus.config.fits import fits
from fedbus.config.settings import schema

GOOD: dict[str, Any] = {
    "topic_prefix": "org.example",
    "environment": "dev",
    "state": "state",
    "keys": {"directory": "keys", "crl": False, "crl_grace": "1h"},
    "endpoints": {
        "koji.build01": {"publish": "tcp://a:1", "replay": "tcp://a:2", "journal": {"sync": "always", "topics": 1}},
        "old.host": {"kafka": {"bootstrap": "k:1", "topic": "t", "security": "scram"}},
    },
    "policy": [{"signer": "koji.*", "topics": ["bodhi.#"]}],
    "publisher": {"signatures_per_second": 0.5, "queue_bytes": "1MiB", "beat_interval": 1.5},
    "limits": {"message_bytes": 1000, "nesting": 64.0},
    "hub": {"http": "127.0.0.1:1"},
    "consumers": {
        "irc": {
            "enabled": True,
            "batch": {"messages": 2, "seconds": "1s"},
            "settings": {"any": [1, None]},
            "ordered_by": "body.a.b",
        }
    },
    "log": {"level": "info"},
}

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 300)
    | st.floats(allow_nan=False)
    | st.sampled_from(["", "dev", "1s", "5MiB", "tcp://a:1", "org.example", "a", "always", "x" * 300]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["publish", "a", "kafka"]), inner),
    max_leaves=5,
)


def verdict(value: object, part: dict[str, Any]) -> bool:
    return bool(jsonschema.Draft202012Validator(part).is_valid(value))


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of everything inside *value*."""
    found = []
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, (dict, list)):
            for key, inner in one.items() if isinstance(one, dict) else enumerate(one):
                found.append((one, key))
                todo.append(inner)
    return found


def test_a_good_configuration_fits() -> None:
    assert verdict(GOOD, schema())
    assert fits(GOOD, schema())


@given(st.data())
def test_whatever_is_changed_the_verdict_is_that_of_jsonschema(data: st.DataObject) -> None:
    changed = copy.deepcopy(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(places(changed)))
        what = data.draw(st.sampled_from(["replace", "remove", "add"]))
        if what == "replace":
            container[key] = data.draw(values)
        elif what == "remove":
            del container[key]
        elif isinstance(container, dict):
            container[data.draw(st.sampled_from(["more", "sync", "Bad Name", "koji.b"]))] = data.draw(values)
        if not places(changed):
            break
    assert fits(changed, schema()) == verdict(changed, schema())


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ({"enum": [1, "a"]}, True),
        ({"enum": [False]}, 0),
        ({"not": {"const": True}}, True),
        ({"not": {"const": True}}, 1),
        ({"type": "integer"}, 3.0),
        ({"type": "integer"}, 3.5),
        ({"type": "number"}, True),
        ({"type": ["integer", "string"], "minimum": 0, "pattern": "^[0-9]+$"}, -1),
        ({"if": {"required": ["a"]}, "then": {"required": ["b"]}, "else": {"required": ["c"]}}, {"a": 1}),
        ({"if": {"required": ["a"]}, "then": {"required": ["b"]}, "else": {"required": ["c"]}}, {"c": 1}),
        ({"properties": {"a": {"type": "string"}}}, {"a": 1, "b": 2}),
        ({"properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "null"}}, {"a": "", "b": None}),
    ],
)
def test_keywords_mean_what_they_mean_for_jsonschema(part: dict[str, Any], value: object) -> None:
    assert fits(value, part) == verdict(value, part)


@pytest.mark.parametrize("part", [{"oneOf": [{}]}, {"not": {"oneOf": []}}, {"if": {"x": 1}}, {"$ref": "#/$defs/no"}])
def test_what_it_does_not_know_it_does_not_call_good(part: dict[str, Any]) -> None:
    assert not fits({}, {**part, "$defs": {}})
