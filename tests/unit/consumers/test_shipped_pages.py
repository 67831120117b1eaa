"""What the page of the shipped consumers, and the example configuration, show is what the code takes."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from fedbus_consumers.desktop import Desktop
from fedbus_consumers.trigger import Trigger
from fedbus_consumers.webhook import Webhook

from fedbus import Consumer, parse_duration
from fedbus.hub.options import ConsumerSettings
from fedbus.hub.registry import find

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "doc" / "shipped-consumers.rst").read_text("utf-8")
SHIPPED: dict[str, type[Consumer]] = {"trigger": Trigger, "webhook": Webhook, "desktop": Desktop}


def rows(name: str) -> dict[str, str]:
    """The settings in the tables of a section, with what is said to be their default."""
    (section,) = re.findall(rf"\n[^\n]+: {name}\n-+\n(.*?)(?=\n[^\n]+\n-{{10,}}\n|\Z)", PAGE, re.S)
    return dict(re.findall(r"\n   \* - ``([a-z_.]+)``\n     - (.*)\n", section))


@pytest.mark.parametrize("name", SHIPPED)
def test_the_tables_have_every_setting_and_its_default(name):
    schema: Any = SHIPPED[name].schema
    keys = set(schema["properties"])
    keys |= {f"debounce.{key}" for key in schema["properties"].get("debounce", {}).get("properties", ())}
    documented = rows(name)
    assert set(documented) == keys
    parameters = inspect.signature(SHIPPED[name]).parameters
    assert set(parameters) == set(schema["properties"])
    for key, text in documented.items():
        if "." in key or text in ("none", "required", "see below") or not text.startswith("``"):
            continue
        default, shown = parameters[key].default, text.strip("`")
        if isinstance(default, bool):
            assert shown == str(default).lower(), key
        elif isinstance(default, float):
            assert parse_duration(shown) == default, key
        elif default is not None:
            assert shown == str(default), key
    assert {key for key, text in documented.items() if text == "required" and "." not in key} == set(
        schema.get("required", ())
    )


def examples() -> list[tuple[str, dict[str, Any]]]:
    """Every shipped consumer that the page or the example configuration shows, comments taken away."""
    texts = [re.sub(r"(?m)^   ", "", one) for one in re.findall(r"code-block:: yaml\n.*\n\n((?:   .*\n|\n)+)", PAGE)]
    sample = (ROOT / "etc" / "fedbus.d" / "40-hub.yaml").read_text("utf-8")
    texts.append(re.sub(r"(?m)^  #", "  ", sample))
    found = [
        pair for text in texts for pair in yaml.safe_load(text.replace("${HOME}", "/home/me"))["consumers"].items()
    ]
    mine = tuple(f"fedbus_consumers.{name}" for name in SHIPPED)
    return [(name, given) for name, given in found if given["use"] in mine]


def test_each_shipped_consumer_is_shown_on_the_page_and_in_the_example_configuration():
    uses = [given["use"].rpartition(".")[2] for _, given in examples()]
    assert all(uses.count(name) >= 2 for name in SHIPPED)


@pytest.mark.parametrize(("name", "given"), examples(), ids=[name for name, _ in examples()])
def test_what_is_shown_can_be_loaded(name, given, monkeypatch, tmp_path):
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    schema = SHIPPED[given["use"].rpartition(".")[2]].schema
    assert schema is not None
    jsonschema.validate(given["settings"], schema)
    if given["settings"].get("command", ["tee"])[0].startswith("/"):
        given["settings"]["command"][0] = str(program)  # what a site has of its own
    wanted = ConsumerSettings(name=name, origin="here", **{**given, "topics": tuple(given["topics"])})
    found = find({name: wanted})
    assert not found.problems
    assert [one.name for one in found.consumers] == [name]
