"""Schemas by topic: what fits, what is said where it does not, and what schemas of others may not do."""

from __future__ import annotations

import logging
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbus import SchemaError, Schemas
from fedbus.clock import ManualClock
from fedbus.errors import ConfigError, Reason
from fedbus.model.topic import TopicFilter
from fedbus.schemas.options import SchemaOptions
from fedbus.schemas.schema import PLACE, Schema, compile_schema, deprecated_fields
from fedbus.texts.texts import weight

TOPIC = "org.example.dev.koji.package.build.complete"
BUILD = {
    "type": "object",
    "required": ["package", "build"],
    "additionalProperties": False,
    "properties": {
        "package": {"type": "string", "pattern": "^[a-z0-9+._-]+$", "maxLength": 64},
        "build": {"type": "object", "properties": {"id": {"type": "integer", "minimum": 1}}, "required": ["id"]},
        "builds": {"type": "array", "items": {"$ref": "#/$defs/nvr"}},
        "owner": {"type": "string", "deprecated": True},
        "when": {"format": "date-time"},
        "state": {"enum": ["open", "closed"]},
    },
    "$defs": {"nvr": {"type": "object", "required": ["nvr"]}},
}
GOOD = {"package": "bash", "build": {"id": 7}}


def schema(document: dict[str, Any], *topics: str, name: str = "build", rank: int = 0, **others: Any) -> Schema:
    validator = compile_schema(document, origin=f"{name}.json", base=f"{PLACE}{name}.json", others=others, formats=True)
    return Schema(
        name,
        topics or (TOPIC,),
        document,
        f"{name}.json",
        rank=rank,
        validator=validator,
        deprecated=document.get("deprecated") is True,
        deprecated_fields=tuple(deprecated_fields(document)),
    )


def message(body: Any, topic: str = TOPIC) -> Any:
    return SimpleNamespace(topic=topic, body=body, endpoint="koji.build01", sequence=3)


def schemas(*found: Schema, **options: Any) -> Schemas:
    return Schemas(found, SchemaOptions(**options))


@pytest.mark.parametrize(
    ("body", "field", "rule"),
    [
        ({"build": {"id": 1}}, "body.package", "required"),
        ({"package": 3, "build": {"id": 1}}, "body.package", "type"),
        ({"package": "BASH", "build": {"id": 1}}, "body.package", "pattern"),
        ({"package": "b" * 65, "build": {"id": 1}}, "body.package", "maxLength"),
        ({"package": "bash", "build": {"id": 0}}, "body.build.id", "minimum"),
        ({"package": "bash", "build": {}}, "body.build.id", "required"),
        ({**GOOD, "builds": [{"nvr": "a"}, {}]}, "body.builds[1].nvr", "required"),
        ({**GOOD, "other": 1}, "body.other", "additionalProperties"),
        ({**GOOD, "when": "yesterday"}, "body.when", "format"),
        ({**GOOD, "state": "shut"}, "body.state", "enum"),
    ],
)
def test_a_body_that_does_not_fit_is_refused_naming_the_field_and_the_rule(
    body: dict[str, Any], field: str, rule: str
) -> None:
    check = schemas(schema(BUILD)).publishing(TOPIC)
    assert check is not None
    check(GOOD)
    with pytest.raises(SchemaError) as caught:
        check(body)
    error = caught.value
    assert [(fault.field, fault.rule) for fault in error.faults] == [(field, rule)]
    assert (error.topic, error.schema, error.reason) == (TOPIC, "build", Reason.SCHEMA)
    assert TOPIC in str(error) and "build.json" in str(error) and f"{field}: " in str(error) and rule in str(error)


def test_what_is_said_of_a_value_is_short_and_shows() -> None:
    (fault,) = schemas(schema({"properties": {"a": {"type": "integer"}}})).check(TOPIC, {"a": "\x1b[31m\n" * 100_000})
    assert len(str(fault)) < 300
    assert str(fault).isprintable()


def test_no_more_than_a_few_faults_are_told() -> None:
    found = schemas(schema({"additionalProperties": {"type": "integer"}})).check(
        TOPIC, {str(n): "x" for n in range(99)}
    )
    assert len(found) == 5


@pytest.mark.parametrize("value", [object(), b"x", {1, 2}])
def test_what_json_does_not_have_does_not_fit(value: Any) -> None:
    assert schemas(schema({"properties": {"a": {"type": "string"}}})).check(TOPIC, {"a": value})


def test_the_schema_that_names_the_topic_most_closely_counts() -> None:
    wide = schema({}, "org.example.dev.koji", name="wide")
    stars = schema({}, "org.example.dev.*.package.build.complete", name="stars")
    exact = schema({}, TOPIC, name="exact")
    found = schemas(wide, stars, exact)
    assert found.of(TOPIC) is exact
    assert found.of("org.example.dev.koji.tag.add") is wide
    assert found.of("org.example.dev.bodhi.package.build.complete.late") is stars
    assert found.of("org.example.dev.kojira.x") is None
    assert schemas(wide, schema({}, "org.example.dev.koji", name="ours", rank=1)).of(TOPIC).name == "ours"  # type: ignore[union-attr]


FILTERS = st.lists(st.sampled_from(["a", "b", "*", "#"]), min_size=1, max_size=4).map(".".join)


@settings(max_examples=80)
@given(st.lists(FILTERS, max_size=6, unique=True), st.lists(st.sampled_from("abc"), min_size=1, max_size=5))
def test_look_up_gives_the_heaviest_filter_that_matches_and_the_same_again(
    filters: list[str], fields: list[str]
) -> None:
    topic = ".".join(fields)
    found = Schemas([Schema(one, (one,), {}, "x") for one in filters])
    matching = [one for one in filters if TopicFilter(one).matches(topic)]
    first = found.of(topic)
    assert (first is None) == (not matching)
    if first is not None:
        assert weight(TopicFilter(first.name)) == max(weight(TopicFilter(one)) for one in matching)
    assert found.of(topic) is first


def test_a_topic_without_a_schema_costs_nothing_where_that_is_allowed() -> None:
    found = schemas(schema(BUILD))
    assert found.publishing("org.example.dev.git.push") is None
    assert found.receiving("org.example.dev.git.push") is None


def test_unknown_topics_are_told_of_or_refused_as_the_policy_says(caplog: pytest.LogCaptureFixture) -> None:
    topic = "org.example.dev.git.push"
    with caplog.at_level(logging.WARNING):
        assert schemas(unknown="warn").publishing(topic) is None
    assert "no schema is known" in caplog.text
    refusing = schemas(unknown="refuse", receive="drop")
    with pytest.raises(SchemaError, match="no schema is known"):
        refusing.publishing(topic)
    inspect = refusing.receiving(topic)
    assert inspect is not None and not inspect(message({}, topic))
    assert refusing.stats.dropped == 1
    assert schemas(unknown="refuse", receive="warn").receiving(topic) is None


@pytest.mark.parametrize(("policy", "passes"), [("drop", False), ("warn", True)])
def test_what_is_received_and_does_not_fit_is_dropped_or_told_of(
    policy: str, passes: bool, caplog: pytest.LogCaptureFixture
) -> None:
    found = schemas(schema(BUILD), receive=policy)
    inspect = found.receiving(TOPIC)
    assert inspect is not None
    with caplog.at_level(logging.WARNING):
        assert inspect(message(GOOD))
        assert inspect(message({"package": 1})) is passes
    assert "koji.build01#3" in caplog.text and "body.package" in caplog.text
    assert (found.stats.received, found.stats.dropped, found.stats.warned) == (2, int(not passes), int(passes))


def test_pass_looks_at_nothing() -> None:
    found = schemas(schema(BUILD), publish="pass", receive="pass")
    assert found.publishing(TOPIC) is None
    assert found.receiving(TOPIC) is None


def test_publishing_can_warn_instead_and_says_so_once_in_ten_seconds(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    found = Schemas([schema(BUILD)], SchemaOptions(publish="warn"), clock=clock)
    check = found.publishing(TOPIC)
    assert check is not None
    with caplog.at_level(logging.WARNING):
        for _ in range(50):
            check({})
        clock.advance(11.0)
        check({})
    assert len(caplog.records) == 2
    assert "49 more" in caplog.records[1].getMessage()
    assert found.stats.warned == 51


def test_deprecated_schemas_and_fields_are_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    found = schemas(schema({**BUILD, "deprecated": True}))
    with caplog.at_level(logging.WARNING):
        check = found.publishing(TOPIC)
        assert check is not None
        for _ in range(3):
            check({**GOOD, "owner": "ralph"})
        found.publishing(TOPIC)
    assert [record.getMessage() for record in caplog.records] == [
        f"{TOPIC}: its schema build is deprecated (build.json)",
        f"{TOPIC}: body.owner is deprecated by schema build",
    ]


def test_schemas_that_are_adopted_count_for_topics_that_were_asked_for_before() -> None:
    found = schemas(schema(BUILD))
    assert found.receiving(TOPIC) is not None
    found.adopt([], SchemaOptions())
    assert found.of(TOPIC) is None
    assert found.receiving(TOPIC) is None


# --- schemas of others -----------------------------------------------------------------------------------------


@pytest.mark.badinput("B16")
@pytest.mark.parametrize("pattern", ["^(a+)+$", "^(a|a)*$", "(.*a){12}$", "^([a-z]+)*!$"])
def test_a_pattern_that_would_backtrack_for_ever_takes_linear_time(pattern: str) -> None:
    one = schema({"properties": {"a": {"type": "string", "pattern": pattern}}})
    done = threading.Event()

    def check() -> None:
        one.faults({"a": "a" * 100_000 + "?"})
        done.set()

    # in a thread: where it did not end, the test would say so instead of hanging
    threading.Thread(target=check, daemon=True).start()
    assert done.wait(300)


@pytest.mark.badinput("B16")
@pytest.mark.parametrize(
    ("pattern", "word"),
    [
        ("(?=a)b", "linear time"),
        (r"(a)\1", "linear time"),
        ("((a{1,1000}){1,1000}){1,1000}", "linear time"),
        ("a" * 1001, "1000 at most"),
        ("[", "linear time"),
    ],
)
def test_a_pattern_that_is_no_bounded_work_is_refused_when_the_schema_is_read(pattern: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        schema({"properties": {"a": {"pattern": pattern}}})
    with pytest.raises(ConfigError):
        schema({"patternProperties": {pattern: {}}})


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:1/x.json", "https://example.org/x.json", "file:///etc/hostname", "other.json"]
)
def test_a_reference_to_what_is_not_here_is_refused_and_nothing_is_fetched(address: str) -> None:
    with pytest.raises(ConfigError, match="nothing is fetched"):
        schema({"$ref": address})


def test_a_reference_leads_to_a_schema_beside_it() -> None:
    beside = {PLACE + "_common.json": {"$defs": {"name": {"type": "string", "minLength": 2}}}}
    one = schema({"properties": {"a": {"$ref": "_common.json#/$defs/name"}}}, **beside)
    assert one.faults({"a": "x"})[0].field == "body.a"
    assert one.faults({"a": "xy"}) == []


@pytest.mark.parametrize(
    "document",
    [
        {"$ref": "#"},
        {"allOf": [{"$ref": "#"}]},
        {"$defs": {"a": {"not": {"$ref": "#/$defs/b"}}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"},
        {"properties": {"a": {"$ref": "#"}}},
    ],
)
def test_a_schema_that_refers_to_itself_comes_to_an_end(document: dict[str, Any]) -> None:
    one = schema(document)
    body: dict[str, Any] = {}
    for _ in range(60):
        body = {"a": body}
    one.faults(body)


@pytest.mark.parametrize(
    ("document", "word"),
    [
        ({"type": "strnig"}, "type"),
        ({"required": "x"}, "required"),
        ({"properties": []}, "properties"),
        ({"$ref": "#/nope"}, "nope"),
        ({"$schema": "https://example.org/mine"}, "leave it out"),
    ],
)
def test_what_is_no_schema_is_refused_saying_where(document: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=f"build.json: .*{word}"):
        schema(document)


def test_the_dialect_is_2020_12_unless_the_schema_names_another() -> None:
    assert schema({"prefixItems": [{"type": "integer"}]}).faults(["x"])
    old = {"$schema": "http://json-schema.org/draft-07/schema#", "prefixItems": [{"type": "integer"}]}
    assert schema(old).faults(["x"]) == []
