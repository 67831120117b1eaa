"""The command `fedbus cursor`, as people and scripts meet it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from fedbus.cli.cursor import cursor
from fedbus.config.settings import Settings
from fedbus.hub.delivery import SINCE
from fedbus.journal.cursors import CursorStore
from fedbus.model.position import Position

EPOCH = "2f1c6f0e-5a39-4d0c-9d0e-0d6a3f1b7c11"


@pytest.fixture
def run(bus_folder):
    def call(*arguments: str) -> Result:
        return CliRunner().invoke(cursor, arguments, obj={"config": str(bus_folder)})

    return call


@pytest.fixture
def places(bus_folder):
    """Two cursors: `nightly` of a reader, and that of the hub's consumer `announce`."""
    path = Settings.load(bus_folder, {}).cursors
    with CursorStore.open(path) as store:
        store.save("nightly", {"koji.build01": Position(EPOCH, 7), "old.host": Position(EPOCH, 1)})
        store.save("hub.announce", {"koji.build01": Position(EPOCH, 5)})
    return path


def test_cursors_are_listed_with_whose_they_are(run, places):
    assert json.loads(run("list", "--json").stdout) == [
        {"name": "hub.announce", "owner": "hub", "endpoints": 1},
        {"name": "nightly", "owner": "reader", "endpoints": 2},
    ]
    lines = [line.split() for line in run("list").stdout.splitlines()]
    assert lines == [["NAME", "ENDPOINTS", "OWNER"], ["hub.announce", "1", "hub"], ["nightly", "2", "reader"]]


def test_a_cursor_is_shown_as_places_that_since_takes(run, places):
    lines = run("show", "nightly").stdout.splitlines()
    assert lines[0] == f"koji.build01/{EPOCH}/7"
    assert lines[1].startswith(f"old.host/{EPOCH}/1 ") and "not in the configuration" in lines[1]
    assert json.loads(run("show", "hub.announce", "--json").stdout) == {
        "name": "hub.announce",
        "owner": "hub",
        "positions": {"koji.build01": {"epoch": EPOCH, "sequence": 5}},
    }


def test_where_a_consumer_begins_with_other_endpoints_is_no_place(run, bus_folder):
    with CursorStore.open(Settings.load(bus_folder, {}).cursors) as store:
        store.save("hub.late", {SINCE: Position("", 1795327893199), "koji.build01": Position(EPOCH, 5)})
    assert json.loads(run("list", "--json").stdout) == [{"name": "hub.late", "owner": "hub", "endpoints": 1}]
    shown = run("show", "hub.late")
    assert shown.stdout == f"koji.build01/{EPOCH}/5\n"
    assert "are read from 2026-11-22T06:11:33Z on" in shown.stderr
    assert list(json.loads(run("show", "hub.late", "--json").stdout)["positions"]) == ["koji.build01"]


@pytest.mark.parametrize(("name", "follows"), [("nightly", "where its --since"), ("hub.announce", "consumer announce")])
def test_deleting_a_cursor_says_what_follows_and_leaves_the_others(run, places, name, follows):
    result = run("delete", name)
    assert (result.exit_code, result.stdout) == (0, f"deleted {name}\n")
    assert follows in result.stderr
    with CursorStore.open(places) as store:
        assert store.load(name) == {}
        assert len(store.list()) == 1
    assert run("delete", name).exit_code == 1


def test_what_is_not_there_is_told_with_the_name_that_was_meant(run, places):
    for command in ("show", "delete"):
        result = run(command, "nightl")
        assert result.exit_code == 1
        assert "did you mean 'nightly'?" in result.stderr


def test_looking_for_cursors_creates_no_file(run, bus_folder):
    path = Settings.load(bus_folder, {}).cursors
    assert run("list", "--json").stdout == "[]\n"
    assert run("show", "nightly").exit_code == 1
    assert not path.exists()
