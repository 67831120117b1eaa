"""`fedbus history`: what it finds, how it says so, and with which exit code it ends."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedbus import Bus, Message, open_history
from fedbus.cli import main
from fedbus.cli.history_plot import by_hour, by_topic
from fedbus.config.init import create

KOJI, BODHI = "koji.build01", "bodhi.web01"
CONSUMER = "consumers: {history: {use: fedbus_consumers.history}}\n"


@dataclass
class Done:
    code: int
    out: str
    err: str

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Done]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bus whose history has five messages; tests do not change it."""
    folder = tmp_path_factory.mktemp("bus") / "bus"
    create(folder, (KOJI, BODHI))
    (folder / "50-history.yaml").write_text(CONSUMER)
    (folder / "50-history.yaml").chmod(0o600)
    with Bus.open(folder) as bus:
        with bus.publisher(KOJI) as koji, bus.publisher(BODHI) as bodhi:
            for number in range(3):
                koji.publish("package.build.complete", {"n": number, "package": "bash", "owner": "ralph"})
            koji.publish("tag.add", {"n": 3, "package": "zsh", "owner": "zoë", "evil": "\x1b[2J\u202e"})
            bodhi.publish("update.create", {"n": 4, "user": "ralph", "title": "fixes the build"})
        messages: list[Message] = []
        with bus.subscribe(since="beginning") as subscriber:
            while len(messages) < 5:
                messages += subscriber.receive(30.0)
        with open_history(str(bus.settings.state / "history"), writable=True) as store:
            store.write(messages)
    return folder


@pytest.fixture
def run(filled: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: str, config: Path = filled) -> Done:
        code = main.run(main.fedbus_command, "fedbus", ["--config", str(config), "history", *arguments])
        return Done(code, *capfd.readouterr())

    return call


def numbers(done: Done) -> list[int]:
    assert done.code == 0, done.err
    return [one["body"]["n"] for one in done.records()]


def test_messages_are_shown_as_tail_shows_them_the_oldest_first(run):
    done = run("search", "--utc")
    assert [line.split(" ", 1)[1] for line in done.out.splitlines()][:2] == [
        "koji package.build.complete  n=0 package=bash owner=ralph",
        "koji package.build.complete  n=1 package=bash owner=ralph",
    ]
    assert "\\x1b[2J\\u202e" in done.out and "\x1b" not in done.out
    assert run("search", "-o", "{endpoint} {body.package}", "koji.tag").out == f"{KOJI} zsh\n"
    assert json.loads(run("search", "--json", "--fields", "n", "koji.tag").out) == {"n": 3}


def test_the_newest_are_chosen_and_their_order_is_as_wanted(run):
    assert numbers(run("search", "--json", "--limit", "2")) == numbers(run("search", "--json"))[-2:]
    assert "--limit 0" in run("search", "--json", "--limit", "2").err
    assert run("search", "--json", "--limit", "5").err == ""
    assert numbers(run("search", "--json", "-r")) == numbers(run("search", "--json", "--limit", "0"))[::-1]


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["koji"], {0, 1, 2, 3}),
        (["*.tag", "bodhi"], {3, 4}),
        (["--text", "FIXES buil*"], {4}),
        (["--text", "zoe"], {3}),
        (["--user", "ralph"], {0, 1, 2, 4}),
        (["--user", "ralph", "--package", "bash", "--field", "n=1"], {1}),
        (["--endpoint", BODHI, "--endpoint", KOJI], {0, 1, 2, 3, 4}),
        (["--service", "bodhi"], {4}),
        (["--since", "1 hour ago", "--until", "tomorrow"], {0, 1, 2, 3, 4}),
        (["--since", "today"], {0, 1, 2, 3, 4}),
        (["--until", "yesterday"], set()),
        (["--since", "now"], set()),
        (["--since", "beginning", "--until", "now"], {0, 1, 2, 3, 4}),
        (["--field", "signer=" + BODHI], {4}),
    ],
)
def test_search_and_count_choose_alike(run, arguments, found):
    if "today" in arguments:
        arguments = ["--since", "25h"]  # it may be midnight
    assert set(numbers(run("search", "--json", *arguments))) == found
    assert run("count", "--json", *arguments).out == f'{{"count": {len(found)}}}\n'
    assert run("count", *arguments).out == f"{len(found)}\n"


def test_a_position_is_a_place_in_time(run):
    third = run("search", "--json").records()[2]
    place = f"{third['endpoint']}/{third['epoch']}/{third['sequence']}"
    every = numbers(run("search", "--json"))
    assert numbers(run("search", "--json", "--since", place)) == every[3:]
    assert numbers(run("search", "--json", "--until", place)) == every[:3]
    done = run("count", "--since", place[:-1] + "999")
    assert done.code == 2 and "does not hold" in done.err


@pytest.mark.badinput("B43")
@pytest.mark.parametrize(
    "arguments",
    [
        ["--since", "whenever"],
        ["--until", "2026-13-45"],
        ["--field", "n"],
        ["--field", "=1"],
        ["--text", "--"],
        ["--text", ""],
        ["--limit", "-1"],
        ["Not.A.Filter"],
        ["--time-limit", "-1"],
        ["-o", "{"],
        ["--fields", "a", "-o", "{topic}"],
        ["--json", "-o", "wide"],
        ["--sort", "body"],
    ],
)
def test_what_means_nothing_is_a_fault_of_usage(run, arguments):
    done = run("search", *arguments)
    assert (done.code, done.out) == (2, ""), done.err
    assert "Traceback" not in done.err


def test_without_a_history_it_says_so(run, tmp_path):
    empty = tmp_path / "bus"
    create(empty, (KOJI,))
    done = run("count", config=empty)
    assert done.code == 3 and "fedbus_consumers.history" in done.err
    (empty / "50-history.yaml").write_text(CONSUMER)
    (empty / "50-history.yaml").chmod(0o600)
    done = run("count", "--json", config=empty)
    assert (done.code, done.out) == (0, '{"count": 0}\n')
    assert "nothing is stored yet" in done.err
    more = CONSUMER[:-2] + ", other: {use: fedbus_consumers.history, settings: {store: /srv/other}}}\n"
    (empty / "50-history.yaml").write_text(more)
    done = run("count", config=empty)
    assert done.code == 3 and "--store" in done.err
    assert run("count", "--store", str(tmp_path / "no"), config=empty).code == 3


def test_statistics_are_drawn_and_told_as_json(run):
    done = run("stats", "--utc")
    lines = done.out.splitlines()
    assert lines[0] == "5 messages of 3 topics"
    assert lines[2].startswith("koji.package.build.complete 3  60.0 % █")
    assert all(len(line) <= 80 for line in lines[:-1])
    found = json.loads(run("stats", "--json", "koji").out)
    assert found["count"] == 4
    assert list(found["topics"].values()) == [3, 1]
    assert sum(hour["count"] for hour in found["hours"]) == sum(one["count"] for one in found["by_topic_and_hour"]) == 4
    assert [one["messages"] for one in found["partitions"]] == [5]


def test_an_export_holds_what_tail_prints_or_more_and_can_be_verified(run, tmp_path):
    plain, sealed = tmp_path / "plain.jsonl", tmp_path / "sealed.jsonl"
    assert run("export", "-o", str(plain)).code == run("export", "--sealed", "-o", str(sealed)).code == 0
    searched = run("search", "--json").out
    assert plain.read_text() == searched == run("export").out
    assert [set(line) - {"envelope", "sealed", "kept"} for line in map(json.loads, sealed.open())] == [
        set(one) for one in map(json.loads, plain.open())
    ]
    assert sealed.stat().st_mode & 0o777 == 0o600
    done = run("verify", "--lines", str(sealed))
    assert (done.code, done.out) == (0, "5 good, 0 refused, 0 not verifiable\n")
    done = run("verify", "--lines", str(plain), "--json")
    assert done.code == 4
    assert {name: json.loads(done.out)[name] for name in ("good", "refused", "not_verifiable")} == {
        "good": 0,
        "refused": 0,
        "not_verifiable": 5,
    }
    assert not list(tmp_path.glob(".*"))


@pytest.mark.badinput("B22")
def test_a_row_that_was_altered_is_named_and_never_shown_as_verified(run, filled, tmp_path):
    import shutil

    store = tmp_path / "store"
    shutil.copytree(filled / "state" / "history", store)
    (path,) = store.glob("20*.db")
    with sqlite3.connect(path) as connection:
        envelope = connection.execute(
            "SELECT envelope FROM message WHERE id = (SELECT min(id) FROM message)"
        ).fetchone()[0]
        changed = envelope.replace(b'"ralph"', b'"wiggum"')
        connection.execute("UPDATE message SET envelope = ? WHERE envelope = ?", (changed, envelope))
        connection.execute("UPDATE message SET envelope = x'7b' WHERE id = (SELECT max(id) FROM message)")
    connection.close()
    where = ("--store", str(store))
    done = run("verify", *where)
    assert (done.code, done.out) == (4, "3 good, 2 refused, 0 not verifiable\n")
    assert f"{path.name} message " in done.err and "somebody changed" in done.err
    found = json.loads(run("verify", *where, "--json").out)
    assert (found["good"], found["refused"], len(found["faults"])) == (3, 2, 2)
    done = run("search", *where, "--verify", "--json")
    assert (done.code, len(done.records())) == (4, 3)
    assert "wiggum" not in done.out
    done = run("export", *where, "--verify", "--sealed")
    assert (done.code, len(done.records())) == (4, 3)
    done = run("search", *where, "--json")  # not asked for: what can be read is shown
    assert (done.code, len(done.records())) == (1, 4)
    assert "verify" in done.err


def test_a_damaged_store_ends_with_1_and_the_advice_to_rebuild(run, filled, tmp_path):
    import shutil

    store = tmp_path / "store"
    shutil.copytree(filled / "state" / "history", store)
    (path,) = store.glob("20*.db")
    path.write_bytes(b"not a database" * 1000)
    for ending in ("-wal", "-shm"):
        path.with_name(path.name + ending).unlink(missing_ok=True)
    for command in ("verify", "search", "count", "stats"):
        done = run(command, "--store", str(store))
        assert done.code == 1 and "fedbus history rebuild" in done.err, done.err
    assert [fault["where"] for fault in json.loads(run("verify", "--json", "--store", str(store)).out)["store_faults"]]
    done = run("rebuild", "--store", str(store), "--json")
    found = json.loads(done.out)
    assert (done.code, found["set_aside"], found["read"], found["new"]) == (0, [path.name], 5, 5)
    assert run("verify", "--store", str(store)).code == 0
    assert json.loads(run("rebuild", "--store", str(store), "--json").out)["new"] == 0


# --- plots -----------------------------------------------------------------------------------------------------------


def test_bars_are_no_wider_than_the_terminal_and_something_is_never_nothing():
    counts = {f"topic{number}.{'x' * number}": 10**number for number in range(8)}
    for columns in (40, 80, 200):
        for plain in (True, False):
            lines = by_topic(counts, columns, plain=plain, most=5)
            assert len(lines) == 6 and "more topics" in lines[-1]
            assert all(len(line) <= columns for line in lines)
            assert not plain or all(line.replace("…", ".").isascii() for line in lines)
    assert by_topic({}, 80) == []


def test_hours_share_columns_where_there_are_too_many():
    first = 500_000
    for span in (1, 2, 30, 200, 5000, 100_000):
        counts = {first + number: 1 + number % 7 for number in range(0, span, max(1, span // 500))}
        for columns in (40, 80):
            for plain in (True, False):
                lines = by_hour(counts, columns, plain=plain)
                assert all(len(line) <= columns for line in lines[:-2]), lines
                assert lines[-1].strip().startswith("each column: ")
    assert by_hour({}, 80) == []
    lines = by_hour({first: 1000, first + 1: 1}, 80)
    assert "▁" in lines[7]  # one beside a thousand is still seen
