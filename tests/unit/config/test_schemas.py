"""Schemas and texts as the configuration, its folder and packages bring them."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedbus.cli import demo_service
from fedbus.config import schemas as found
from fedbus.config.init import create
from fedbus.config.schemas import load, open_schemas
from fedbus.config.settings import ConfigWatcher, Settings
from fedbus.errors import ConfigError

ROOT = Path(__file__).parents[3]
TOPIC = "org.example.dev.koji.package.build.complete"
Write = Callable[[str, Any], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create(tmp_path / "bus", ["koji.build01"])
    (tmp_path / "bus" / "schemas").mkdir(mode=0o755)
    return tmp_path / "bus"


@pytest.fixture
def write(folder: Path) -> Write:
    def put(name: str, value: Any) -> None:
        path = folder / name
        path.write_text(value if isinstance(value, str) else json.dumps(value), "utf-8")
        path.chmod(0o644)

    return put


def problems(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(Settings.load(folder, {}))
    return "\n".join(caught.value.problems)


def message(topic: str, body: dict[str, Any]) -> Any:
    return SimpleNamespace(topic=topic, body=body, endpoint="koji.build01", sequence=1, attributes={})


def test_a_file_is_for_the_topics_that_it_is_named_after_unless_it_says_others(folder: Path, write: Write) -> None:
    write("schemas/koji.package.json", {"type": "object"})
    write("schemas/builds.yaml", "type: object\nx-fedbus: {topics: [koji.package.build, 'git.*.new']}\n")
    write("schemas/_common.json", {"$defs": {"a": {}}})
    write("schemas/README.txt", "not read")
    schemas = {one.name: one.topics for one in load(Settings.load(folder, {})).schemas}
    assert schemas == {
        "koji.package": ("org.example.dev.koji.package",),
        "builds": ("org.example.dev.koji.package.build", "org.example.dev.git.*.new"),
    }


def test_what_the_section_says_counts_before_the_folder_and_that_before_packages(
    folder: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = SimpleNamespace(name="x", value="x", load=lambda: {"koji.a": {"title": "package"}, "koji.b": {}})
    monkeypatch.setattr(found, "_may_have_entry_points", lambda: True)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: [entry])
    write("schemas/koji.a.json", {"title": "folder"})
    write("schemas/koji.c.json", {"title": "folder"})
    write("60-schemas.yaml", "schemas: {topics: {koji.c: {title: section}}}\n")
    schemas, _ = open_schemas(Settings.load(folder, {}))

    def title(topic: str) -> Any:
        schema = schemas.of(f"org.example.dev.{topic}")
        assert schema is not None
        return schema.document.get("title")

    assert [title("koji.a"), title("koji.b"), title("koji.c")] == ["folder", None, "section"]
    write("60-schemas.yaml", "schemas: {installed: false}\n")
    assert len(load(Settings.load(folder, {})).schemas) == 2


def test_all_faults_are_told_together_each_with_its_file(folder: Path, write: Write) -> None:
    write("schemas/a.json", "{")
    write("schemas/b.yaml", "type: no\n")
    write("schemas/c.json", {"type": "strnig"})
    write("schemas/d.json", {"x-fedbus": {"titel": "x"}})
    write("schemas/e.json", {"x-fedbus": {"title": "{"}})
    write("schemas/F.json", {})
    write("schemas/g.json", {"$ref": "https://example.org/x"})
    write("schemas/h.json", {"x-fedbus": {"topics": ["i"]}})
    write("schemas/i.json", {})
    write("60-texts.yaml", "texts:\n  koji:\n    summary: '{'\n")
    text = problems(folder)
    for word in (
        "a.json: is no JSON object",
        "b.yaml:1: ",
        "c.json: type: ",
        "d.json: x-fedbus has the unknown key 'titel'",
        "e.json: x-fedbus.title: character 0",
        "F.json: ",
        "g.json: $ref: https://example.org/x is none of the schemas here",
        "i.json: ",
        "60-texts.yaml:3: texts.koji: summary: character 0",
    ):
        assert word in text, word


@pytest.mark.badinput("B45")
def test_a_file_or_folder_that_others_can_write_is_refused(folder: Path, write: Write) -> None:
    write("schemas/koji.json", {})
    (folder / "schemas" / "koji.json").chmod(0o666)
    assert "koji.json: has mode 0666" in problems(folder)
    (folder / "schemas" / "koji.json").chmod(0o644)
    (folder / "schemas").chmod(0o777)
    assert "schemas: has mode 0777" in problems(folder)


def test_a_package_brings_files_or_a_mapping_and_its_faults_stop_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "koji.tag.json").write_text('{"x-fedbus": {"title": "Tag"}}')
    (tmp_path / "files" / "bad.json").write_text('{"type": 1}')
    package = types.ModuleType("acme_schemas")
    package.__path__ = [str(tmp_path / "files")]

    def fail() -> Any:
        raise RuntimeError("broken")

    entries = [
        SimpleNamespace(name="files", value="acme_schemas", load=lambda: package),
        SimpleNamespace(name="call", value="acme:get", load=lambda: lambda: {"git": {"type": "object"}}),
        SimpleNamespace(name="fails", value="acme:fail", load=fail),
        SimpleNamespace(name="module", value="json", load=lambda: types.ModuleType("plain")),
        SimpleNamespace(name="number", value="acme:N", load=lambda: 3),
    ]
    monkeypatch.setattr(found, "_may_have_entry_points", lambda: True)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: entries)
    loaded = load(Settings.load(folder, {}))
    assert sorted(one.name for one in loaded.schemas) == ["git", "koji.tag"]
    assert [rule.filter.text for rule in loaded.rules] == ["org.example.dev.koji.tag"]
    said = "\n".join(loaded.problems)
    for word in ("bad.json", "'fails'", "broken", "is no package", "neither a package"):
        assert word in said


def test_an_installed_package_with_the_entry_point_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert not found._may_have_entry_points()
    (tmp_path / "acme-1.dist-info").mkdir()
    (tmp_path / "acme-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1\n")
    (tmp_path / "acme-1.dist-info" / "entry_points.txt").write_text("[fedbus.schemas]\nacme = acme_schemas:ALL\n")
    (tmp_path / "acme_schemas.py").write_text("ALL = {'koji.tag': {'type': 'object'}}\n")
    raws = list(found._of_packages([]))
    assert [(raw.topic, raw.document) for raw in raws] == [("koji.tag", {"type": "object"})]


def test_a_changed_file_of_the_folder_is_seen_by_the_watcher(folder: Path, write: Write) -> None:
    watcher = ConfigWatcher(folder, {})
    assert not watcher.changed()
    write("schemas/koji.json", {})
    assert watcher.changed()
    watcher.reload()
    assert not watcher.changed()
    (folder / "elsewhere").mkdir()
    write("60-schemas.yaml", "schemas: {folder: elsewhere}\n")
    assert watcher.changed()
    watcher.reload()
    assert not watcher.changed()
    write("elsewhere/koji.json", {})
    assert watcher.changed()


def test_without_any_schema_the_compiled_validator_is_not_loaded(folder: Path) -> None:
    program = (
        "import sys, fedbus\n"
        "with fedbus.Bus.open(sys.argv[1]) as bus, bus.publisher('koji.build01') as koji:\n"
        "    koji.publish('package.build.start', {})\n"
        "    assert bus.texts and len(bus.schemas) == 0\n"
        "assert not {'jsonschema_rs', 'jsonschema'} & sys.modules.keys(), 'loaded for nothing'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, folder], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr


class _Stop:
    """Ends a service of the demo after so many rounds."""

    signal = 0

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds

    def wait(self, seconds: float) -> bool:
        self._rounds -= 1
        return self._rounds < 0


def test_the_examples_fit_what_the_demo_publishes_and_say_it_well(folder: Path) -> None:
    for path in (ROOT / "etc/fedbus.d/schemas").iterdir():
        (folder / "schemas" / path.name).write_bytes(path.read_bytes())
    (folder / "70-schemas.yaml").write_bytes((ROOT / "etc/fedbus.d/70-schemas.yaml").read_bytes())
    schemas, texts = open_schemas(Settings.load(folder, {}))
    published: list[tuple[str, dict[str, Any]]] = []

    class Publisher:
        def __init__(self, service: str) -> None:
            self.service = service

        def publish(self, topic: str, body: dict[str, Any]) -> None:
            published.append((f"org.example.dev.{self.service}.{topic}", dict(body)))

    chance = random.Random(7)
    demo_service.koji(Publisher("koji"), _Stop(200), chance)  # type: ignore[arg-type]
    for _, push in zip(range(5), demo_service.invented_pushes(chance), strict=False):
        Publisher("git").publish("push.receive", push)
    update = {"update": "FEDORA-2026-0123456789", "builds": ["bash-5.2"], "submitter": "ralph", "type": "bugfix"}
    Publisher("bodhi").publish("update.create", update)
    said = {}
    for topic, body in published:
        assert schemas.check(topic, body) == []
        said[topic.removeprefix("org.example.dev.")] = texts.of(message(topic, body))
    assert said["koji.package.build.complete"].title == "Build complete"
    assert " is built in " in said["koji.package.build.complete"].summary
    assert said["koji.package.build.fail"].summary.endswith("failed: tests failed on s390x")
    assert said["koji.package.build.fail"].link.startswith("https://koji.example.org/koji/buildinfo?buildID=2")
    assert said["git.push.receive"].summary.startswith(f"{said['git.push.receive'].agent} pushed to ")
    assert said["bodhi.update.create"].summary == "ralph: FEDORA-2026-0123456789 with bash-5.2"
    assert schemas.check("org.example.dev.koji.package.build.fail", {"build": 1})
