"""The command `fedbus dead`, as people and scripts meet it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fedbus import Bus
from fedbus.cli.dead import dead
from fedbus.config.settings import Settings
from fedbus.hub.dead import DeadLetters
from fedbus.wire import parcel as parcels


@pytest.fixture
def run(bus_folder):
    def call(*arguments: str) -> Result:
        return CliRunner().invoke(dead, arguments, obj={"config": str(bus_folder)})

    return call


@pytest.fixture
def letters(bus_folder) -> Path:
    """Two dead letters, with real seals: 1 of `irc`, 2 of `web`."""
    settings = Settings.load(bus_folder, {})
    with Bus.open(settings) as bus, bus.publisher("koji.build01") as koji:
        koji.publish("package.build.start", {"i": 1, "text": "\x1b[31mred"})
        koji.publish("tag.add", {"i": 2})
        messages = []
        for message in bus.subscribe("#", since="beginning"):
            messages.append(message)
            if len(messages) == 2:
                break
        for consumer, message in zip(("irc", "web"), messages, strict=True):
            bus.dead.bury(
                consumer,
                message,
                reason=f"RuntimeError: boom {message.sequence} \x1b[31m\nsecond line",
                traceback='Traceback\n  File "x.py", line 3',
                attempts=4,
                at_ms=1_700_000_000_000,
                most=10,
                most_bytes=10**6,
            )
    return settings.dead


def test_letters_are_listed_with_what_failed(run, letters):
    rows = json.loads(run("list", "--json").stdout)
    assert [(row["id"], row["consumer"], row["sequence"], row["attempts"]) for row in rows] == [
        (1, "irc", 1, 4),
        (2, "web", 2, 4),
    ]
    text = run("list", "--consumer", "irc").stdout
    assert text.splitlines()[0].split() == ["ID", "CONSUMER", "DIED", "ATTEMPTS", "TOPIC", "REASON"]
    assert text.splitlines()[1].split()[:5] == ["1", "irc", "2023-11-14T22:13:20Z", "4", "koji.package.build.start"]
    assert len(text.splitlines()) == 2
    assert "\x1b" not in text


def test_a_letter_is_shown_whole_and_its_parcel_is_the_signed_one(run, letters):
    shown = run("show", "1").stdout
    assert "RuntimeError: boom 1" in shown
    assert 'File "x.py", line 3' in shown
    assert '"i": 1' in shown
    assert "\x1b" not in shown
    facts = json.loads(run("show", "1", "--json").stdout)
    assert facts["message"]["data"] == {"i": 1, "text": "\x1b[31mred"}
    assert facts["traceback"].startswith("Traceback")
    raw = CliRunner().invoke(dead, ["show", "1", "--raw"], obj={"config": str(letters.parent.parent)}).stdout_bytes
    assert parcels.decode(raw, parcel_bytes=len(raw)).topic == facts["topic"]
    missing = run("show", "9")
    assert missing.exit_code == 1
    assert "there is no dead letter 9; `fedbus dead list` lists them" in missing.stderr


def test_letters_are_requeued_and_dropped_by_number_or_all(run, letters):
    assert run("requeue", "1").stdout == "requeued 1\n"
    assert "(requeued)" in run("list").stdout.splitlines()[1]
    assert json.loads(run("requeue", "--all", "--consumer", "web", "--json").stdout) == {"requeued": [2]}
    with DeadLetters.open(letters) as store:
        assert [one.requeued for one in store.list()] == [True, True]
    failed = run("drop", "1", "7")
    assert failed.exit_code == 1
    assert "no dead letter 7" in failed.stderr
    assert run("drop", "1").stdout == "dropped 1\n"
    assert run("drop", "--all").stdout == "dropped 2\n"
    assert "there are no dead letters" in run("list").stderr


@pytest.mark.parametrize("arguments", [["requeue"], ["drop"], ["drop", "--all", "1"], ["drop", "1", "--consumer", "a"]])
def test_what_is_meant_must_be_said(run, arguments):
    assert run(*arguments).exit_code == 2


def test_looking_where_no_hub_has_run_creates_nothing(run, bus_folder):
    assert json.loads(run("list", "--json").stdout) == []
    assert run("requeue", "--all").stdout == "requeued none\n"
    assert not Settings.load(bus_folder, {}).dead.exists()
