"""`fedbus schema`: what it prints, and its exit codes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import jsonschema
import pytest

from fedbus.config.schemas import load
from fedbus.config.settings import Settings
from fedbus.schemas.asyncapi import asyncapi

Run = Callable[..., CompletedProcess[str]]
ROOT = Path(__file__).parents[3]
BUILD = {
    "title": "Build",
    "type": "object",
    "required": ["package"],
    "properties": {"package": {"$ref": "_common.json#/$defs/name"}, "old": {"deprecated": True}},
    "x-fedbus": {"summary": "{package}"},
}


@pytest.fixture
def schemas(bus_folder: Path) -> Path:
    folder = bus_folder / "schemas"
    folder.mkdir(mode=0o755)
    (folder / "koji.package.build.json").write_text(json.dumps(BUILD))
    (folder / "_common.json").write_text('{"$defs": {"name": {"type": "string", "minLength": 2}}}')
    (folder / "old.json").write_text('{"deprecated": true, "x-fedbus": {"topics": ["git.#.push", "git.*.tag"]}}')
    return folder


def test_list_shows_names_topics_and_origins(fedbus: Run, schemas: Path) -> None:
    done = fedbus("schema", "list")
    assert done.returncode == 0, done.stderr
    assert re.search(r"koji\.package\.build +koji\.package\.build +/.*koji\.package\.build\.json", done.stdout)
    assert re.search(r"old \(deprecated\) +git\.#\.push, git\.\*\.tag ", done.stdout)
    assert "_common" not in done.stdout
    listed = json.loads(fedbus("schema", "list", "--json").stdout)
    assert [(one["name"], one["deprecated"]) for one in listed] == [("old", True), ("koji.package.build", False)]


def test_list_says_where_to_put_some_when_there_are_none(fedbus: Run) -> None:
    done = fedbus("schema", "list")
    assert (done.returncode, done.stdout) == (0, "")
    assert "there are no schemas" in done.stderr


def test_show_prints_the_schema_of_a_topic_or_of_a_name(fedbus: Run, schemas: Path) -> None:
    assert json.loads(fedbus("schema", "show", "koji.package.build.complete").stdout) == BUILD
    assert json.loads(fedbus("schema", "show", "old", "--json").stdout)["schema"]["deprecated"] is True
    for name in ("bodhi.update", "Not a topic"):
        done = fedbus("schema", "show", name)
        assert done.returncode == 1
        assert f"there is no schema for {name}" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "out"),
    [
        (["koji.package.build.complete", '{"package": "bash"}'], "", 0, "fits koji.package.build"),
        (["koji.package.build.complete", "-"], '{"package": "x"}\n', 1, "body.package: "),
        (["koji.package.build.complete"], "{}", 1, "body.package: is missing (rule required"),
        (["org.example.dev.koji.package.build", "{}"], "", 1, "rule required"),
        (["koji.package.build", "--lines"], '{"package": "ab"}\n\n{"package": 1}\n[]\n', 1, "line 3: body.package: "),
        (["bodhi.update", "{}"], "", 1, "org.example.dev.bodhi.update has no schema"),
        (["koji.package.build", "[1]"], "", 1, "is no JSON object: one JSON object is needed"),
        (["koji.package.build", "null"], "", 1, "is no JSON object: one JSON object is needed"),
        (["koji.package.build", '{"package": '], "", 1, "is no JSON object: not JSON"),
        (
            ["--with-topic"],
            '{"topic": "org.example.dev.koji.package.build", "body": {"package": "ab"}}\n',
            0,
            "line 1: org.example.dev.koji.package.build fits",
        ),
        (["--with-topic", "-"], '{"topic": 1}\n', 1, "is not of the form"),
        (["--with-topic", "-"], '{"topic": "Bad Topic", "body": {}}\n', 1, "line 1: 'Bad Topic' is not a topic: "),
        ([], "", 2, ""),
        (["a", "b", "c"], "", 2, ""),
    ],
)
def test_check_holds_bodies_against_the_schema_and_says_so_by_its_exit_code(
    fedbus: Run, schemas: Path, arguments: list[str], stdin: str, code: int, out: str
) -> None:
    done = fedbus("schema", "check", *arguments, stdin=stdin)
    assert done.returncode == code, done.stdout + done.stderr
    assert out in done.stdout


@pytest.mark.parametrize(
    ("topic", "said"),
    [
        ("Bad Topic", "'Bad Topic' is not a topic: fields of lower-case letters"),
        ("koji.Package.build", "did you mean 'koji.package.build'?"),
        ("org.example.dev.koji..build", "'org.example.dev.koji..build' is not a topic"),
        ("a" * 300, "a topic has at most 255 bytes"),
        ("", "'' is not a topic"),
        ("a\x1b[31m", "is not a topic"),
    ],
)
def test_what_is_no_topic_at_all_is_an_error_of_usage_that_says_why(fedbus: Run, topic: str, said: str) -> None:
    done = fedbus("schema", "check", topic, "{}")
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "\x1b" not in done.stderr


def test_check_reads_files_and_prints_json(fedbus: Run, schemas: Path, tmp_path: Path) -> None:
    path = tmp_path / "bodies.jsonl"
    path.write_text('{"package": "bash", "old": 1}\n{}\n')
    done = fedbus("schema", "check", "koji.package.build", path, "--lines", "--json")
    first, second = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 1
    assert first == {
        "line": 1,
        "topic": "org.example.dev.koji.package.build",
        "schema": "koji.package.build",
        "fits": True,
        "faults": [],
        "warnings": ["body.old is deprecated"],
    }
    assert second["faults"] == [{"field": "body.package", "rule": "required", "text": "is missing"}]


@pytest.mark.badinput("B37")
def test_what_a_body_holds_is_shown_escaped(fedbus: Run, schemas: Path) -> None:
    done = fedbus("schema", "check", "koji.package.build", '{"package": ["\\u001b[31m\\u202e"]}')
    assert done.returncode == 1
    assert all(line.isprintable() for line in done.stdout.splitlines())


def test_a_faulty_schema_is_a_fault_of_the_configuration(fedbus: Run, schemas: Path) -> None:
    (schemas / "bad.json").write_text('{"type": "nothing"}')
    for arguments in (
        ["schema", "list"],
        ["schema", "check", "koji", "{}"],
        ["schema", "asyncapi"],
        ["check", "config"],
    ):
        done = fedbus(*arguments)
        assert done.returncode == 3
        assert "bad.json: type: " in done.stderr


def test_publish_refuses_and_a_dry_run_says_so_before(fedbus: Run, schemas: Path) -> None:
    for arguments in (["--dry-run"], ["--wait", "0"]):
        done = fedbus("publish", "package.build.complete", "{}", "--as", "koji.build01", *arguments)
        assert done.returncode in (1, 2)
        assert "body.package: is missing (rule required)" in done.stderr
    done = fedbus(
        *("publish", "package.build.complete", "--lines", "--as", "koji.build01", "--wait", "0"),
        stdin='{"package": "ab"}\n{}\n{"package": "cd"}\n',
    )
    assert done.returncode == 1
    assert "line 2" in done.stderr and "body.package" in done.stderr
    assert len(done.stdout.splitlines()) == 2


# --- AsyncAPI --------------------------------------------------------------------------------------------------

POINTER = re.compile(r"#(/[^/]+)+")
NAME = re.compile(r"^[\w\d.\-_]+$")


def resolve(document: Any, reference: str) -> Any:
    for part in reference.removeprefix("#/").split("/"):
        document = document[part.replace("~1", "/").replace("~0", "~")]
    return document


def references(value: Any) -> list[str]:
    if isinstance(value, list):
        return [found for one in value for found in references(one)]
    if not isinstance(value, dict):
        return []
    own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
    return own + [found for one in value.values() for found in references(one)]


# What https://www.asyncapi.com/docs/reference/specification/v3.0.0 says of the parts that are written here.
REFERENCE = {"type": "object", "required": ["$ref"], "properties": {"$ref": {"type": "string"}}, "maxProperties": 1}
STRUCTURE = {
    "type": "object",
    "required": ["asyncapi", "info"],
    "additionalProperties": False,
    "properties": {
        "asyncapi": {"const": "3.0.0"},
        "info": {
            "type": "object",
            "required": ["title", "version"],
            "additionalProperties": False,
            "properties": {"title": {"type": "string"}, "version": {"type": "string"}},
        },
        "defaultContentType": {"type": "string"},
        "channels": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "address": {"type": ["string", "null"]},
                    "messages": {"type": "object", "additionalProperties": REFERENCE},
                    "description": {"type": "string"},
                    "parameters": {
                        "type": "object",
                        "propertyNames": {"pattern": "^[A-Za-z0-9_-]+$"},
                        "additionalProperties": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {"description": {"type": "string"}},
                        },
                    },
                },
            },
        },
        "operations": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["action", "channel"],
                "additionalProperties": False,
                "properties": {
                    "action": {"enum": ["send", "receive"]},
                    "channel": REFERENCE,
                    "messages": {"type": "array", "items": REFERENCE},
                },
            },
        },
        "components": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "messages": {
                    "type": "object",
                    "propertyNames": {"pattern": NAME.pattern},
                    "additionalProperties": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "name": {"type": "string"},
                            "title": {"type": "string"},
                            "description": {"type": "string"},
                            "contentType": {"type": "string"},
                            "headers": REFERENCE,
                            "payload": REFERENCE,
                        },
                    },
                },
                "schemas": {
                    "type": "object",
                    "propertyNames": {"pattern": NAME.pattern},
                    "additionalProperties": {
                        "type": "object",
                        "required": ["schemaFormat", "schema"],
                        "additionalProperties": False,
                        "properties": {
                            "schemaFormat": {"pattern": "^application/schema\\+json;version=draft-"},
                            "schema": {"type": "object"},
                        },
                    },
                },
            },
        },
    },
}


def test_the_export_is_an_asyncapi_3_document_whose_references_lead_somewhere(fedbus: Run, schemas: Path) -> None:
    done = fedbus("schema", "export", "--asyncapi")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert json.loads(fedbus("schema", "asyncapi").stdout) == document
    jsonschema.validate(document, STRUCTURE)
    found = references(document)
    assert found
    for reference in found:
        resolve(document, reference)
    addresses = {one["address"] for one in document["channels"].values()}
    assert addresses == {
        "org.example.dev.koji.package.build",
        "org.example.dev.git.{field1}.push",
        "org.example.dev.git.{field1}.tag",
    }
    for channel in document["channels"].values():
        assert set(re.findall(r"\{(\w+)\}", channel["address"])) == set(channel.get("parameters", ()))


def test_a_schema_of_the_export_means_the_same_within_the_document(fedbus: Run, schemas: Path) -> None:
    document = json.loads(fedbus("schema", "asyncapi").stdout)
    part = {**document, "$ref": "#/components/schemas/koji.package.build/schema"}
    validator = jsonschema.Draft202012Validator(part)
    assert validator.is_valid({"package": "bash"})
    assert not validator.is_valid({"package": "x"})
    assert not validator.is_valid({})


@pytest.mark.parametrize(
    ("document", "draft"),
    [
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/a", "description": "x"}}, "$defs": {"a": {}}}, "07"),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, "07"),
        ({"$schema": "https://json-schema.org/draft/2019-09/schema", "enum": [{"minContains": 1}]}, "07"),
        ({"properties": {"a": {"prefixItems": [{}]}}}, "2020-12"),
        ({"anyOf": [{"dependentRequired": {"a": ["b"]}}]}, "2020-12"),
        ({"properties": {"a": {"$ref": "#/$defs/a", "maxLength": 3}}, "$defs": {"a": {}}}, "07"),
        ({"$schema": "https://json-schema.org/draft/2019-09/schema", "unevaluatedProperties": False}, "2019-09"),
        ({"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 1, "exclusiveMinimum": True}, "04"),
    ],
)
def test_the_export_says_draft_07_which_every_tool_knows_where_that_says_the_same(
    fedbus: Run, schemas: Path, document: dict[str, Any], draft: str
) -> None:
    (schemas / "git.tag.add.json").write_text(json.dumps(document))
    done = fedbus("schema", "export")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["components"]["schemas"]
    assert found["git.tag.add"]["schemaFormat"] == f"application/schema+json;version=draft-{draft}"
    assert found["fedbus-envelope"]["schemaFormat"] == "application/schema+json;version=draft-07"


def test_what_stands_beside_a_reference_counts_in_the_export_where_it_did(fedbus: Run, schemas: Path) -> None:
    document = {"$ref": "#/$defs/a", "maxProperties": 1, "$defs": {"a": {"required": ["package"]}}}
    (schemas / "git.tag.add.json").write_text(json.dumps(document))
    (schemas / "git.tag.end.json").write_text(
        json.dumps({**document, "$schema": "http://json-schema.org/draft-07/schema#"})
    )
    exported = json.loads(fedbus("schema", "export").stdout)
    for name, fits in (("git.tag.add", False), ("git.tag.end", True)):
        assert exported["components"]["schemas"][name]["schemaFormat"].endswith("draft-07")
        validator = jsonschema.Draft7Validator({**exported, "$ref": f"#/components/schemas/{name}/schema"})
        assert validator.is_valid({"package": 1})
        assert not validator.is_valid({})
        assert validator.is_valid({"package": 1, "more": 2}) is fits
        done = fedbus("schema", "check", name, '{"package": 1, "more": 2}')
        assert done.returncode == int(not fits), done.stdout


def test_the_examples_that_ship_export_too(tmp_path: Path) -> None:
    folder = tmp_path / "fedbus.d"
    (folder / "schemas").mkdir(parents=True, mode=0o755)
    for path in (*(ROOT / "etc/fedbus.d").glob("*.yaml"), *(ROOT / "etc/fedbus.d/schemas").iterdir()):
        copy = folder / path.relative_to(ROOT / "etc/fedbus.d")
        copy.write_bytes(path.read_bytes())
        copy.chmod(0o644)
    folder.chmod(0o755)
    loaded = load(Settings.load(folder, {}))
    document = asyncapi(loaded.schemas, shared=loaded.shared, title="Example", version="1.0.0")
    jsonschema.validate(document, STRUCTURE)
    for reference in references(document):
        resolve(document, reference)


def test_tail_shows_the_summary_that_is_declared_and_the_members_of_other_bodies(fedbus: Run, schemas: Path) -> None:
    for topic in ("package.build.complete", "package.tag.add"):
        done = fedbus("publish", topic, '{"package": "bash", "n": 1}', "--as", "koji.build01", "--wait", "0")
        assert done.returncode == 0, done.stderr
    lines = fedbus("tail", "--since", "beginning", "--count", "2", "--idle-exit", "20").stdout.splitlines()
    assert lines[0].endswith("koji package.build.complete  bash")
    assert lines[1].endswith("koji package.tag.add  package=bash n=1")
