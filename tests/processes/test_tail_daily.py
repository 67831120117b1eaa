"""`fedbus tail` as people use it all day: choosing, counting, where it begins and ends, and its options together."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import unicodedata
from types import SimpleNamespace

import pytest

from fedbus.bus import Bus
from fedbus.cli import main
from fedbus.config.init import create
from tests.support import wait_until

PAST = ("tail", "--since", "beginning", "--no-follow", "-q")


@pytest.fixture
def bus_folder(tmp_path):
    """A configuration of endpoints that all answer: waiting for others takes a second each time."""
    create(tmp_path / "bus", ("koji.build01", "bodhi.web01"))
    return tmp_path / "bus"


@pytest.fixture
def fedbus(bus_folder, monkeypatch, capsys):
    """Run a command in this process, which is as true and takes a tenth of the time: `fedbus("tail", …)`."""
    monkeypatch.setenv("FEDBUS_CONFIG", str(bus_folder))
    monkeypatch.delenv("NO_COLOR", raising=False)

    def run(name: str, *arguments: object) -> SimpleNamespace:
        capsys.readouterr()
        code = main.run(main.load(name), f"fedbus-{name}", [str(one) for one in arguments])
        out, err = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=out, stderr=err)

    return run


@pytest.fixture
def said(bus_folder):
    """A bus on which two services have said twelve things, and are there still."""
    with Bus.open(bus_folder) as bus, bus.publisher("koji.build01") as koji, bus.publisher("bodhi.web01") as bodhi:
        for number in range(1, 11):
            body = {
                "n": number,
                "package": "bash" if number % 2 else "zsh",
                "build": {"status": "failed" if number > 8 else "ok"},
                "tags": [f"f{number}", "all"],
            }
            koji.publish("package.build.complete" if number % 2 else "package.build.start", body)
        bodhi.publish("update.comment", {"n": 11, "text": "a zsh comment", "user": "ralph"})
        bodhi.publish("update.comment", {"n": 12})
        yield koji


def numbers(shown: str) -> list[int]:
    return sorted(json.loads(line)["body"]["n"] for line in shown.splitlines())


def test_fields_people_packages_and_expressions_choose_what_is_shown(said, fedbus):
    for options, chosen in (
        (("--where", "build.status=failed"), [9, 10]),
        (("-w", "build.status!=ok", "-w", "n<12"), [9, 10, 11]),
        (("--where", "n>=3", "--where", "n<5.5"), [3, 4, 5]),
        (("--where", "tags=f7"), [7]),
        (("--where", "package~^b", "--where", "n<4"), [1, 3]),
        (("--where", "!package"), [11, 12]),
        (("--where", "user", "koji", "bodhi"), [11]),
        (("--where", "signer=bodhi.web01"), [11, 12]),
        (("--signer", "bodhi.web01", "--user", "ralph"), [11]),
        (("--package", "zsh", "--where", "n<=4"), [2, 4]),
        (("-g", '"n":1[12]', "-g", '"n":3\\b', "--exclude", "ralph"), [3, 12]),
        (("--where", "time<2020-01-01"), []),
    ):
        done = fedbus(*PAST, "--json", *options)
        assert (done.returncode, numbers(done.stdout)) == (0, chosen), (options, done.stderr)


def test_it_can_begin_with_the_last_messages_of_all_and_of_each_topic(said, fedbus):
    run = ("tail", "--no-follow", "-q", "--json")
    assert numbers(fedbus(*run, "--last", "3").stdout) == [10, 11, 12]
    assert numbers(fedbus(*run, "--last", "2", "koji", "--where", "build.status=ok").stdout) == [7, 8]
    assert numbers(fedbus(*run, "--last", "1000").stdout) == list(range(1, 13))
    assert numbers(fedbus(*run, "--last-per-topic", "1").stdout) == [9, 10, 12]
    assert numbers(fedbus("tail", "--last", "1", "--count", "1", "--json", "koji").stdout) == [10]
    done = fedbus("tail", "--last", "1", "--count", "2", "--timeout", "1", "--json", "koji")
    # a machine may need longer than that to find the last one
    assert (done.returncode, numbers(done.stdout)) in ((6, [10]), (6, []))


def test_the_last_messages_are_the_last_of_the_time_that_was_asked_for(said, fedbus):
    run = ("tail", "--no-follow", "-q", "--json")
    times = {
        json.loads(line)["body"]["n"]: json.loads(line)["time"] for line in fedbus(*PAST, "--json").stdout.splitlines()
    }
    assert numbers(fedbus(*run, "--last", "2", "--until", times[6]).stdout) == [4, 5]
    assert numbers(fedbus(*run, "--last", "2", "--until", times[11], "--where", "n<4").stdout) == [2, 3]
    assert numbers(fedbus(*run, "--last-per-topic", "1", "--until", times[8]).stdout) == [6, 7]
    assert numbers(fedbus(*run, "--last", "3", "--since", "beginning").stdout) == [10, 11, 12]
    assert numbers(fedbus(*run, "--last", "3", "--since", "an hour ago", "--until", times[11]).stdout) == [8, 9, 10]
    place = f"koji.build01/{said.epoch}/8"
    assert numbers(fedbus(*run, "--last", "5", "--since", place, "koji").stdout) == [9, 10]
    assert numbers(fedbus(*run, "--last", "1", "--since", place, "--count", "1", "koji").stdout) == [10]
    assert fedbus(*run, "--last", "3", "--since", "now").stdout == ""


def test_after_the_last_messages_it_goes_on_with_what_comes(said, bus_folder, spawn):
    tail = spawn("tail", "--last", "2", "--count", "3", "--json", "koji", config=bus_folder)
    tail.wait_for('"n":10')
    said.publish("package.build.start", {"n": 13})
    assert tail.wait() == 0
    assert [record["body"]["n"] for record in tail.records()] == [9, 10, 13]


def test_since_and_until_take_times_as_people_write_them(said, fedbus):
    times = [json.loads(line)["time"] for line in fedbus(*PAST, "--json", "koji").stdout.splitlines()]
    run = ("tail", "--json", "-q", "koji")
    # no --no-follow: it ends since nothing from before that time can come any more
    assert numbers(fedbus(*run, "--since", "an hour ago", "--until", times[4]).stdout) == [1, 2, 3, 4]
    # places in a journal are found by the millisecond
    assert numbers(fedbus(*run, "--since", times[8], "--until", "now").stdout)[-2:] == [9, 10]
    assert fedbus(*run, "--since", "2020-01-01 10:00", "--until", "2020-01-02").stdout == ""


def test_a_cursor_file_keeps_the_place_and_can_be_read(said, fedbus, tmp_path):
    place = tmp_path / "place"
    run = ("tail", "--cursor-file", place, "--json", "-q", "--endpoint", "koji.build01")
    assert numbers(fedbus(*run, "--since", "beginning", "--count", "4").stdout) == [1, 2, 3, 4]
    assert place.read_text() == f"koji.build01/{said.epoch}/4\n"
    assert numbers(fedbus(*run, "--no-follow").stdout) == [5, 6, 7, 8, 9, 10]
    said.publish("package.build.start", {"n": 13})
    assert numbers(fedbus(*run, "--no-follow").stdout) == [13]
    nowhere = tmp_path / "nowhere" / "place"
    done = fedbus("tail", "--cursor-file", nowhere, "--since", "beginning", "--count", "1")
    assert (
        done.returncode == 1
        and f"the cursor file cannot be written: No such file or directory: {nowhere}" in done.stderr
    )
    place.write_text("koji.build01/nonsense/4\n")
    done = fedbus(*run, "--no-follow")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{place}:1" in done.stderr


def test_top_counts_by_topic_or_by_any_field(said, fedbus):
    done = fedbus(*PAST, "--top")
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[:2] == [["in", "all"], ["TOPIC", "COUNT", "SHARE", "NOW/S", "AVG/S", "LAST"]]
    assert [row[:3] for row in rows[2:6]] == [
        ["koji.package.build.complete", "5", "41.7%"],
        ["koji.package.build.start", "5", "41.7%"],
        ["bodhi.update.comment", "2", "16.7%"],
        ["all", "12", "100.0%"],
    ]
    for by, counts in (
        ("service", {"koji": 10, "bodhi": 2}),
        ("tags.1", {"all": 10, "(none)": 2}),
        ("build.status", {"ok": 8, "failed": 2, "(none)": 2}),
    ):
        done = fedbus(*PAST, "--top", "--by", by, "--json")
        shown = json.loads(done.stdout)
        assert (shown["final"], shown["count"]) == (True, 12)
        assert {row[by]: row["count"] for row in shown["rows"]} == counts


def test_top_shows_a_table_again_and_again_where_its_output_goes_to_a_program(said, bus_folder, spawn):
    tail = spawn("tail", "--top", "--interval", "0.2", "--json", "--since", "beginning", config=bus_folder)
    wait_until(lambda: tail.records() and tail.records()[-1]["count"] == 12, 60.0, "a table of what was said")
    said.publish("package.build.start", {"n": 13})
    wait_until(lambda: tail.records()[-1]["count"] == 13, 60.0, "a table of what came then")
    tail.send(2)
    assert tail.wait() == 130
    assert [one["final"] for one in tail.records()[-2:]] == [False, True]


@pytest.mark.badinput("B37")
def test_top_writes_over_its_table_on_a_terminal_and_obeys_nothing_of_others(said, bus_folder, spawn):
    said.publish("package.build.start", {"owner": "\x1b]52;c;aGk=\x07\u202e"})
    ours, theirs = pty.openpty()
    try:
        tail = spawn(
            *("tail", "--top", "--by", "owner", "--interval", "0.1", "--since", "beginning", "-q"),
            config=bus_folder,
            stdout=theirs,
            environment={"TERM": "xterm"},
        )
        shown = b""
        # the first tables may be empty
        while shown.count(b"\x1b[J") < 2 or b"all " not in shown or b"u202e" not in shown:
            shown += os.read(ours, 65536)
        tail.send(15)
        assert tail.wait() == 143
    finally:
        os.close(ours)
        os.close(theirs)
    text = re.sub(r"\x1b\[[0-9]+F\x1b\[J", "", shown.decode()).replace("\r\n", "")
    assert r"\x1b]52;c;aGk=\x07\u202e" in text
    assert not {one for one in text if unicodedata.category(one) in ("Cc", "Cf")}


@pytest.mark.fault("F20")
def test_a_reader_of_tables_that_goes_away_ends_it_quietly(said, bus_folder, spawn):
    run = ("tail", "--top", "--interval", "0.1", "--json", "--since", "beginning")
    tail = spawn(*run, config=bus_folder, stdout=subprocess.PIPE)
    assert tail.process.stdout.readline()
    tail.process.stdout.close()
    for number in range(100):
        if tail.code is not None:
            break
        said.publish("package.build.start", {"n": 100 + number})
    assert tail.wait() == 0
    assert tail.err == ""


def test_options_work_together(said, fedbus):
    def lines(*options):
        done = fedbus(*PAST, "koji", *options)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    assert [json.loads(line) for line in lines("--json", "--fields", "n,text.packages", "--where", "n<3")] == [
        {"n": 1, "text.packages": ["bash"]},
        {"n": 2, "text.packages": ["zsh"]},
    ]
    assert lines("--count", "2", "-o", "{n}:{body.build.status}") == ["1:ok", "2:ok"]
    assert lines("--count", "1", "-o", "{delta}|{text.title}", "--delta") == ["|koji package build complete"]
    first, second = (json.loads(line) for line in lines("--count", "2", "-o", "json", "--delta", "--fields", "n,delta"))
    assert first == {"n": 1, "delta": None} and second["delta"] >= 0
    assert re.fullmatch(r"\S+ +[+-]\d+\.\d{3} koji package.build.start  n=2", lines("--delta", "--fields", "n")[1])
    assert re.search(r" [+-]\d+\.\d{3} koji.build01#2 ", lines("--delta", "-o", "wide")[1])
    (shown,) = lines("--color", "always", "-g", "bash", "-H", "f[0-9]", "--count", "1")
    assert "\x1b[1;7mbash\x1b[0m" in shown and "\x1b[1;7mf1\x1b[0m" in shown
    assert json.loads(lines("--color", "always", "-g", "bash", "--json", "--count", "1")[0])["body"]["n"] == 1
    assert lines("--count", "3", "--top", "--json")[-1].startswith('{"by":"topic","final":true,"count":3,')


def test_what_makes_no_sense_together_or_alone_is_told_with_code_2(fedbus):
    for options, named in (
        (("--last", "1", "--cursor", "a"), "--last and --cursor"),
        (("--cursor", "a", "--cursor-file", "b"), "--cursor and --cursor-file"),
        (("--until", "now", "--cursor", "a"), "--until and --cursor"),
        (("--top", "--fields", "n"), "--top and --fields"),
        (("--top", "-o", "wide"), "--top"),
        (("--by", "n"), "--by and --interval"),
        (("--until", "whenever"), "--until: 'whenever' is not a time; write now, "),
        (("--since", "2 moons ago"), "--since: '2 moons ago' is not a place to begin"),
        (("--where", "=5"), "--where: '=5' is not a filter"),
        (("--where", "n~("), "is not a regular expression"),
        (("-g", "(?=a)"), "look-around"),
        (("-H", "("), "--highlight"),
    ):
        done = fedbus("tail", *options)
        assert (done.returncode, done.stdout) == (2, ""), options
        assert named in done.stderr and "Traceback" not in done.stderr


def test_new_options_are_completed(monkeypatch, fedbus):
    def offered(*words):
        monkeypatch.setenv("_FEDBUS_TAIL_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_WORDS", " ".join(("fedbus-tail", *words)))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        return [line.partition(",")[2] for line in fedbus("tail").stdout.splitlines()]

    assert {"--where", "--last", "--until", "--top", "--highlight", "--cursor-file"} <= set(offered("--"))
    assert offered("--by", "se") == ["service", "sequence"]
    assert offered("--fields", "n,text.su") == ["n,text.summary"]
    assert offered("--since", "y") == ["yesterday"]
