"""`fedbus check config` finds what would keep a hub from running its consumers, and starts none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fedbus.cli.check import check
from fedbus.config.init import create
from fedbus.errors import ConfigError

CONSUMER = """
from pathlib import Path
from fedbus import Consumer

print("imported")

class Announce(Consumer):
    topics = ("koji.package",)
    schema = {
        "type": "object",
        "additionalProperties": False,
        "properties": {"channel": {"type": "string"}, "lines": {"type": "array", "items": {"type": "integer"}}},
    }
    def __init__(self, channel="#all", lines=()):
        if not channel.startswith("#"):
            raise ValueError("a channel begins with #")
    def start(self):
        Path(__file__).with_name("started").touch()
    def consume(self, message):
        pass
"""


def run(*arguments: str, folder: Path) -> Result:
    return CliRunner().invoke(check, arguments, obj={"config": str(folder)})


@pytest.fixture
def bus(tmp_path: Path) -> Path:
    folder = tmp_path / "bus"
    create(folder, ["koji.build01"])
    (folder / "consumers").mkdir(mode=0o700)
    write(folder / "consumers/announce.py", CONSUMER)
    return folder


def write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o600)


def configure(bus: Path, *entries: str) -> None:
    write(bus / "40-hub.yaml", "\n".join(["hub: {folder: consumers}", "consumers:", *(f"  {one}" for one in entries)]))


def problems(bus: Path, *options: str) -> list[str]:
    error = run("config", *options, folder=bus).exception
    assert isinstance(error, ConfigError)
    return [problem.removeprefix(f"{bus}/") for problem in error.problems]


def test_settings_that_a_consumers_own_schema_refuses_are_told_with_file_line_and_key(bus: Path) -> None:
    configure(
        bus,
        "announce:",
        "  settings:",
        "    channel: 7",
        "    lines:",
        "      - 1",
        "      - two",
        "    colour: red",
    )
    assert problems(bus) == [
        "40-hub.yaml:4: consumers.announce.settings: Additional properties are not allowed ('colour' was unexpected)",
        "40-hub.yaml:5: consumers.announce.settings.channel: 7 is not of type 'string'",
        "40-hub.yaml:8: consumers.announce.settings.lines[1]: 'two' is not of type 'integer'",
    ]
    result = run("config", "--json", folder=bus)
    assert result.exit_code == 3
    assert len(json.loads(result.stdout)["problems"]) == 3


def test_what_a_hub_could_not_load_is_told_of_every_consumer_that_is_enabled(bus: Path) -> None:
    write(bus / "consumers/broken.py", "1/0")
    write(
        bus / "consumers/odd.py",
        "import fedbus\n@fedbus.consumer('koji.Package', since='yesterdayish')\ndef odd(message): ...\n",
    )
    configure(
        bus,
        "announce: {settings: {channel: all}}",
        "broken: {}",
        "missing: {use: no.such.module}",
        "odd: {}",
        "unused: {use: neither.this, enabled: false}",
    )
    found = problems(bus)
    assert [problem.split(":")[1] for problem in found] == ["3", "4", "5", "6", "6"]
    for problem, said in zip(
        found,
        ["a channel begins with #", "ZeroDivisionError", "No module named", "'Package' is neither", "since: "],
        strict=True,
    ):
        assert said in problem


def test_consumers_are_loaded_and_none_is_started(bus: Path) -> None:
    configure(bus, "announce: {}", "apart: {use: announce, isolation: process}")
    result = run("config", "--json", folder=bus)
    assert json.loads(result.stdout)["ok"] is True, result.output  # and what the code prints is not among it
    assert not (bus / "consumers/started").exists()


def test_the_settings_of_a_consumer_with_its_own_process_are_checked_too(bus: Path) -> None:
    configure(bus, "announce: {isolation: process, settings: {channel: 7}}")
    assert problems(bus) == ["40-hub.yaml:3: consumers.announce.settings.channel: 7 is not of type 'string'"]


def test_a_host_without_the_code_of_the_consumers_can_leave_them_out(bus: Path) -> None:
    configure(bus, "missing: {use: no.such.module}")
    assert problems(bus)
    assert run("config", "--no-consumers", folder=bus).exit_code == 0


def test_the_parts_of_the_check_speak_to_nagios_too(bus: Path) -> None:
    for part in ("config", "keys"):
        result = run(part, "--format", "nagios", folder=bus)
        assert (result.exit_code, result.stdout[:12]) == (0, "FEDBUS OK - "), result.output
    configure(bus, "announce: {settings: {channel: 7}}")
    result = run("config", "--nagios", folder=bus)
    assert result.exit_code == 3
    assert result.stdout.startswith("FEDBUS UNKNOWN - ")
    assert "consumers.announce.settings.channel: 7 is not of type 'string'" in result.stdout
    (bus / "keys/koji.build01.key").chmod(0o644)
    assert run("keys", "--format", "nagios", folder=bus).exit_code == 2
    write(bus / "50-more.yaml", "unknown: 1\n")
    assert run("keys", "--format", "nagios", folder=bus).exit_code == 3


def test_formats_that_contradict_each_other_are_an_error_of_usage(bus: Path) -> None:
    for part in ("config", "keys"):
        assert run(part, "--json", "--nagios", folder=bus).exit_code == 2


def test_an_option_before_the_part_that_it_would_not_reach_is_an_error_of_usage(bus: Path) -> None:
    result = run("--format", "nagios", "keys", folder=bus)
    assert result.exit_code == 2
    assert "--format before `keys` is for the whole check" in result.output
