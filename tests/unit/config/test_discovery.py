"""What changes in the files is in force while a program runs, or refused as a whole. Real files, and a manual clock."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest

from fedbus.clock import ManualClock
from fedbus.config.discovery import Change, Discovery
from fedbus.config.options import DnsOptions
from fedbus.config.settings import ConfigWatcher, Settings
from fedbus.errors import KeysError
from fedbus.transport.endpoint import Endpoint

GIT = "  git.host01:\n    publish: tcp://127.0.0.1:9\n    replay: tcp://127.0.0.1:10\n"
BAD = "  bad.host01: {publish: 'tcp://127.0.0.1:1', replay: nonsense}\n"
RULE = "policy:\n  - {signer: bodhi.web01, topics: ['git.#']}\n"


class Told:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.refusals: list[str] = []

    def changed(self, change: Change) -> None:
        self.changes.append(change)

    def refused(self, text: str) -> None:
        self.refusals.append(text)


class Bench:
    """A folder with two endpoints, who follows it, and a clock that moves by hand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "20-endpoints.yaml"
        self.whole = self.file.read_text().replace(self.file.read_text().partition("  git.host01")[2], "")
        self.whole = self.whole.replace("  git.host01", "")
        self.file.write_text(self.whole)
        self.clock = ManualClock()
        self.told = Told()
        self.adopted: list[Settings] = []
        self.discovery = Discovery(ConfigWatcher(folder, {}), clock=self.clock, adopt=self.adopted.append)
        self.discovery.listener = self.told

    def write(self, text: str, name: str = "20-endpoints.yaml") -> None:
        """Replace a file as careful editors do."""
        new = self.folder / f".{name}.new"
        new.write_text(text)
        new.chmod(0o600)
        new.replace(self.folder / name)

    def pass_time(self, seconds: float = 5.0, step: float = 0.25) -> None:
        """Let readers look, as they do while they receive."""
        for _ in range(int(seconds / step)):
            self.clock.advance(step)
            self.discovery.look()

    @property
    def names(self) -> set[str]:
        return set(self.discovery.settings.endpoints)


@pytest.fixture
def bench(bus_folder: Path) -> Bench:
    return Bench(bus_folder)


@pytest.mark.fault("F11")
def test_an_endpoint_that_is_added_moved_or_removed_is_in_force_within_seconds(bench):
    bench.write(bench.whole + GIT)
    bench.pass_time()
    assert "git.host01" in bench.names
    bench.write(bench.whole + GIT.replace(":9\n", ":11\n"))
    bench.pass_time()
    assert bench.discovery.settings.endpoints["git.host01"].publish == "tcp://127.0.0.1:11"
    bench.write(bench.whole)
    bench.pass_time()
    assert bench.names == {"koji.build01", "bodhi.web01"}
    assert [change.endpoints() for change in bench.told.changes] == [
        "added git.host01",
        "moved git.host01",
        "removed git.host01",
    ]
    assert bench.discovery.version == 3
    assert bench.adopted[-1] is bench.discovery.settings


@pytest.mark.fault("F11")
def test_a_line_that_is_inserted_above_an_endpoint_moves_nothing(bench):
    bench.write("# a comment\n\n" + bench.whole)
    bench.pass_time()
    (change,) = bench.told.changes
    assert change.endpoints() == "the same"
    assert change.waiting == change.taken == ()


@pytest.mark.fault("F11")
def test_a_bad_file_is_refused_whole_told_once_and_mended_by_the_next_edit(bench, caplog):
    before = bench.discovery.settings
    bench.write(bench.whole + GIT + BAD)
    bench.pass_time(600.0)
    assert bench.discovery.settings is before
    assert bench.discovery.version == 0
    assert "nonsense" in bench.discovery.refused
    assert len(bench.told.refusals) == bench.discovery.refusals == 1
    assert bench.discovery.figures().refused
    bench.write(bench.whole + BAD)
    bench.pass_time(600.0)
    assert len(bench.told.refusals) == 2, "another edit is told again"
    bench.write(bench.whole + GIT)
    bench.pass_time()
    assert bench.discovery.refused == ""
    assert bench.told.changes[-1].mended
    assert "git.host01" in bench.names
    assert not bench.discovery.figures().refused


def test_the_log_says_once_and_loudly_why_files_are_refused(bench, caplog):
    caplog.set_level(logging.INFO)
    bench.discovery.listener = type(Discovery(bench.discovery.settings, clock=bench.clock).listener)()
    bench.write(bench.whole + BAD)
    bench.pass_time(120.0)
    bench.write(bench.whole)
    bench.pass_time()
    refused = [one for one in caplog.records if "is refused as a whole, the old one stays in force" in one.message]
    assert [one.levelname for one in refused] == ["ERROR"]
    assert "20-endpoints.yaml:" in refused[0].message
    assert "was read again and can be used; endpoints: the same" in caplog.text


@pytest.mark.fault("F11")
def test_a_file_that_is_written_in_parts_is_read_when_it_is_whole(bench):
    text = bench.whole + GIT
    for end in range(0, len(text) + 1, 40):
        bench.file.write_text(text[:end])
        bench.pass_time(0.1, step=0.1)
    bench.file.write_text(text)
    bench.pass_time()
    assert bench.told.refusals == []
    assert [change.endpoints() for change in bench.told.changes] == ["added git.host01"]


def test_a_folder_that_never_comes_to_rest_is_read_all_the_same(bench):
    bench.file.write_text(bench.whole + GIT)
    for number in range(60):
        bench.file.write_text(f"# {number}\n{bench.whole}{GIT}")
        bench.pass_time(0.25)
    assert "git.host01" in bench.names


@pytest.mark.fault("F11")
def test_a_file_that_is_away_for_a_moment_is_not_missed(bench):
    away = bench.folder / "20-endpoints.yaml~"
    bench.pass_time()
    bench.file.rename(away)
    bench.pass_time(0.25)
    away.rename(bench.file)
    bench.pass_time(60.0)
    assert bench.told.refusals == []
    assert {change.endpoints() for change in bench.told.changes} <= {"the same"}


@pytest.mark.fault("F11")
def test_a_folder_that_vanishes_changes_nothing_and_counts_again_when_it_is_back(bench):
    bench.folder.rename(bench.folder.with_name("away"))
    bench.pass_time(120.0)
    assert bench.names == {"koji.build01", "bodhi.web01"}
    assert len(bench.told.refusals) == 1
    bench.folder.with_name("away").rename(bench.folder)
    bench.pass_time()
    assert bench.discovery.refused == ""


def test_files_that_could_not_be_read_are_tried_again_without_an_edit(bench, monkeypatch):
    """What was wrong may have been a full table of open files."""
    load = Settings.load
    monkeypatch.setattr(Settings, "load", lambda *_: (_ for _ in ()).throw(OSError(24, "Too many open files")))
    bench.write(bench.whole + GIT)
    bench.pass_time(100.0)
    assert len(bench.told.refusals) == 1
    monkeypatch.setattr(Settings, "load", load)
    bench.pass_time(31.0)
    assert "git.host01" in bench.names


def test_a_mode_that_is_mended_is_noticed(bench):
    bench.write(bench.whole + GIT)
    os.chmod(bench.file, 0o666)  # noqa: PTH101
    bench.pass_time()
    assert "0666" in bench.discovery.refused
    os.chmod(bench.file, 0o600)  # noqa: PTH101
    bench.pass_time()
    assert "git.host01" in bench.names


@pytest.mark.fault("F11")
def test_rules_and_cas_are_in_force_at_once_and_the_rest_is_named(bench):
    bench.write(RULE, "30-policy.yaml")
    bench.pass_time()
    assert bench.discovery.settings.policy.permits("bodhi.web01", "org.example.dev.git.commit.push")
    assert bench.told.changes[-1].taken == ("policy",)
    assert bench.told.changes[-1].waiting == ()
    bench.write("keys: {crl_grace: 1h}\nlimits: {nesting: 5}\nlog: {level: debug}\n", "40-more.yaml")
    bench.pass_time()
    assert bench.told.changes[-1].taken == ("keys",)
    assert bench.told.changes[-1].waiting == ("limits", "log")
    assert bench.discovery.settings.keyring.crl_grace == 3600.0
    assert bench.discovery.settings.limits.nesting == 64


def test_rules_for_another_environment_wait_for_the_restart_that_it_needs(bench):
    bench.write(RULE, "30-policy.yaml")
    bench.write("environment: stg\n", "40-more.yaml")
    bench.pass_time()
    assert bench.told.changes[-1].waiting == ("naming", "environment", "fedmsg")
    assert bench.discovery.settings.policy.naming.environment == "dev"


def test_a_ca_that_cannot_be_used_refuses_the_whole(bench):
    def adopt(settings: Settings) -> None:
        raise KeysError("cannot read the CA")

    bench.discovery._adopt = adopt
    bench.write(bench.whole + GIT)
    bench.pass_time()
    assert bench.told.refusals == ["cannot read the CA"]
    assert "git.host01" not in bench.names


@pytest.mark.fault("F20")
def test_a_storm_of_wishes_to_read_the_files_is_one_wish(bench):
    for _ in range(500):
        bench.discovery.look(forced=True)
    assert len(bench.told.changes) == 1
    bench.pass_time(1.0)
    assert len(bench.told.changes) == 2, "those that came during the first reading get one more"
    bench.pass_time(60.0)
    assert len(bench.told.changes) == 2


def test_a_look_that_is_not_due_asks_nothing_of_the_files(bench, monkeypatch):
    looks: list[int] = []
    look = ConfigWatcher.look
    monkeypatch.setattr(ConfigWatcher, "look", lambda self: looks.append(1) or look(self))
    for _ in range(1000):
        bench.clock.advance(0.01)
        bench.discovery.look()
    assert len(looks) <= 10.0 / bench.discovery.settings.discovery.look_interval


def test_settings_that_were_given_are_kept(bench):
    kept = Discovery(bench.discovery.settings, clock=bench.clock)
    bench.write(bench.whole + GIT)
    for _ in range(10):
        bench.clock.advance(5.0)
        kept.look(forced=True)
    assert kept.version == 0


def test_a_reader_is_told_of_its_endpoints_alone(bench):
    every, one = bench.discovery.following(), bench.discovery.following(["koji.build01"])
    assert every() is one() is None
    bench.write(bench.whole + GIT)
    bench.pass_time()
    assert [endpoint.name for endpoint in every() or ()] == ["koji.build01", "bodhi.web01", "git.host01"]
    assert [endpoint.name for endpoint in one() or ()] == ["koji.build01"]
    assert every() is one() is None


# --- the DNS beside the files ----------------------------------------------------------------------------------


def listed(name: str, port: int) -> Endpoint:
    return Endpoint(
        name=name, publish=f"tcp://127.0.0.1:{port}", replay=f"tcp://127.0.0.1:{port + 1}", origin=f"DNS: {name}"
    )


@pytest.fixture
def with_dns(bench: Bench) -> Bench:
    """The bench, asking a server at which nobody answers; a test says what it would have said."""
    options = DnsOptions(domain="_fedbus._tcp.example.org", servers=("127.0.0.1:1",), min_interval=60.0)
    settings = bench.discovery.settings
    bench.discovery = Discovery(
        replace(settings, discovery=replace(settings.discovery, dns=options)), clock=bench.clock
    )
    bench.discovery.listener = bench.told
    bench.discovery.begin(wait=False)
    yield bench
    bench.discovery.close()


def say(bench: Bench, *endpoints: Endpoint) -> None:
    dns = bench.discovery.dns
    assert dns is not None
    dns.endpoints = {one.name: one for one in endpoints}
    dns.version += 1
    bench.pass_time(0.25)


def test_what_the_dns_lists_is_read_beside_the_files_and_goes_when_it_goes(with_dns):
    bench = with_dns
    say(bench, listed("git.host01", 9))
    assert bench.names == {"koji.build01", "bodhi.web01", "git.host01"}
    assert bench.discovery.settings.journal_for("git.host01").directory.name == "git.host01"
    assert bench.discovery.figures().endpoints == {"file": 2, "dns": 1}
    say(bench)
    assert bench.names == {"koji.build01", "bodhi.web01"}
    assert [(change.cause, change.endpoints()) for change in bench.told.changes] == [
        ("DNS", "added git.host01"),
        ("DNS", "removed git.host01"),
    ]


def test_the_file_wins_over_the_dns_and_the_log_says_so_once(with_dns, caplog):
    bench = with_dns
    koji = bench.discovery.settings.endpoints["koji.build01"]
    for _ in range(3):
        say(bench, listed("koji.build01", 9), replace(koji, name="other.host01", origin="DNS: other.host01"))
    assert bench.names == {"koji.build01", "bodhi.web01"}
    assert bench.discovery.settings.endpoints["koji.build01"] == koji
    assert caplog.text.count("the file wins") == 2
    assert bench.discovery.dns.refused["conflict"] == 2
    say(bench, replace(koji, origin="DNS: koji.build01"))
    assert bench.discovery.conflicts == [], "they agree"
