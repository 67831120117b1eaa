"""What `fedbus check` finds out about streams, cursors, journals and the disk of a bus that runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from buses import BODHI, GIT, KOJI, PATIENCE, first, quick, take, take_until
from click.testing import CliRunner

from fedbus import Bus, Consumer, Message
from fedbus.cli.check import check
from fedbus.clock import SystemClock
from fedbus.config.init import free_ports
from tests.support import wait_until

TOPIC = "package.build.complete"


class Report:
    """What one call has said."""

    def __init__(self, folder: Path, *options: str) -> None:
        done = CliRunner().invoke(check, ["--json", *options], obj={"config": str(folder)})
        assert isinstance(done.exception, (SystemExit, type(None))), done.exc_info
        self.code = done.exit_code
        self.values: dict[str, Any] = json.loads(done.stdout)
        self.results = {one["name"]: one for one in self.values["results"]}
        self.streams = {one["endpoint"]: one for one in self.values["streams"]}

    def state(self, name: str) -> str:
        return str(self.results[name]["state"])


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o600)


def test_streams_are_shown_as_their_beats_say_and_cursors_with_their_lag(bus_folder: Path) -> None:
    with Bus(quick(bus_folder)) as bus, bus.publisher(KOJI) as koji:
        for number in range(30):
            koji.publish(TOPIC, {"n": number})
        with bus.subscribe(since="beginning", cursor="nightly", endpoints=[KOJI]) as subscriber:
            subscriber.done(first(subscriber, 12)[-1])
        report = Report(bus_folder)
        stream = report.streams[KOJI]
        assert (stream["epoch"], stream["start"], stream["head"], stream["lag"]) == (koji.epoch, 1, 30, 18)
        assert stream["cursors"] == [{"name": "nightly", "sequence": 12, "lag": 18, "lost": 0}]
        assert stream["beat_age_seconds"] < PATIENCE and abs(stream["clock_skew_seconds"]) < 60
        assert stream["journal"]["writing"] is True and stream["journal"]["damaged"] == []
        assert stream["gaps"] is None  # nobody who counts was asked
        assert report.streams[GIT]["head"] == 0 and report.streams[GIT]["beat_age_seconds"] is None
        assert report.state(f"lag nightly {KOJI}") == "ok" and report.code == 0
        assert Report(bus_folder, "--lag", "18,100").state(f"lag nightly {KOJI}") == "warning"
        worse = Report(bus_folder, "--lag", "5,18")
        assert worse.state(f"lag nightly {KOJI}") == "critical" and worse.code == 1
        assert "fedbus cursor delete nightly" in worse.results[f"lag nightly {KOJI}"]["text"]
    report = Report(bus_folder)  # it is at rest: its journal says how far it has come
    assert report.streams[KOJI]["head"] == 30 and report.state(f"{KOJI} publish") == "warning"
    assert report.streams[KOJI]["journal"]["writing"] is False and report.code == 0


def test_a_clock_that_is_wrong_is_told(bus_folder: Path) -> None:
    class Ahead(SystemClock):
        def wall(self) -> float:
            return super().wall() + 40

    with Bus(quick(bus_folder), clock=Ahead()) as bus, bus.publisher(KOJI):
        report = Report(bus_folder)
        assert report.state(f"clock {KOJI}") == "warning"
        assert 35 < report.streams[KOJI]["clock_skew_seconds"] < 45
        assert Report(bus_folder, "--skew", "1,10").code == 1


def test_what_retention_took_from_a_cursor_is_a_loss_with_exit_code_7(bus_folder: Path) -> None:
    write(bus_folder, "90-small.yaml", "journal: {segment_bytes: 8KiB, retain_bytes: 30KiB}\n")
    with Bus(quick(bus_folder)) as bus, bus.publisher(KOJI) as koji:
        koji.publish(TOPIC, {})
        with bus.subscribe(since="beginning", cursor="nightly", endpoints=[KOJI]) as subscriber:
            subscriber.done(take(subscriber, 1)[0])
        for number in range(200):
            koji.publish(TOPIC, {"n": number, "padding": "x" * 500})
        report = Report(bus_folder)
        start = report.streams[KOJI]["start"]
        assert start > 2
        assert report.streams[KOJI]["cursors"] == [{"name": "nightly", "sequence": 1, "lag": 200, "lost": start - 2}]
        assert report.state(f"loss nightly {KOJI}") == "critical" and report.code == 7
    (bus_folder / "state/journal" / KOJI).rename(bus_folder / "gone")
    with Bus(quick(bus_folder)) as bus, bus.publisher(KOJI) as koji:
        koji.publish(TOPIC, {})
        report = Report(bus_folder)
        assert "has ended" in report.results[f"loss nightly {KOJI}"]["text"] and report.code == 7


def test_damage_of_a_journal_its_quota_and_the_spool_are_told(bus_folder: Path) -> None:
    with Bus(quick(bus_folder)) as bus, bus.publisher(KOJI) as koji:
        koji.publish(TOPIC, {"padding": "x" * 5000})
        assert Report(bus_folder).values["spool_bytes"] is None
        spool = bus_folder / "state" / "spool" / BODHI
        spool.mkdir(parents=True)
        (spool / "0.messages").write_bytes(b"x" * 1234)
        (spool / "0.lock").write_bytes(b"no message")
        report = Report(bus_folder, "--spool", "1000,5000", "--disk", "101,0")
        assert report.values["spool_bytes"] == 1234 and report.state("spool") == "warning"
        assert report.state("disk") == "warning" and 0 < report.values["disk"]["free_percent"] <= 100
        assert Report(bus_folder, "--disk", "101,101").code == 1
        write(bus_folder, "90-small.yaml", "journal: {retain_bytes: 4KiB}\n")
        report = Report(bus_folder)
        assert report.state(f"journal {KOJI}") == "warning" and report.streams[KOJI]["journal"]["retain_bytes"] == 4096
        segment = next((bus_folder / "state/journal" / KOJI).glob("*.journal"))
        segment.with_suffix(".damaged").write_text("block at byte 1, sequences 1 to 1\n")
        report = Report(bus_folder)
        assert report.state(f"journal {KOJI} damage") == "critical" and report.code == 7


class Collect(Consumer):
    topics = ("koji",)

    def __init__(self) -> None:
        self.seen: list[Message] = []

    def consume(self, message: Message) -> None:
        self.seen.append(message)


def test_what_the_hub_counts_is_asked_and_a_hub_that_does_not_answer_is_told(bus_folder: Path) -> None:
    (port,) = free_ports(1)
    write(bus_folder, "90-http.yaml", f"hub: {{http: '127.0.0.1:{port}'}}\n")
    settings = quick(bus_folder)
    with Bus(settings) as bus, bus.publisher(KOJI) as koji:
        report = Report(bus_folder)
        assert report.state("hub.http") == "warning" and report.code == 0
        collect = Collect()
        with bus.hub([collect], options=replace(settings.hub, commit_interval=0.05)) as hub:
            wait_until(lambda: hub.joined, PATIENCE)
            koji.publish(TOPIC, {})
            wait_until(lambda: collect.seen, PATIENCE)

            def settled() -> Report | None:
                hub.tick()
                found = Report(bus_folder)
                cursors = found.streams[KOJI]["cursors"]
                return found if cursors and not cursors[0]["lag"] else None

            report = wait_until(settled, PATIENCE, "the cursor of the consumer")
            stream = report.streams[KOJI]
            assert (stream["gaps"], stream["lost"], stream["refused"]) == (0, 0, 0)
            assert stream["cursors"][0]["name"] == "hub.collect"
            assert "hub.http" not in report.results


def test_losses_that_a_running_program_has_counted_are_told(bus_folder: Path) -> None:
    (port,) = free_ports(1)
    write(
        bus_folder,
        "90.yaml",
        f"metrics: {{http: '127.0.0.1:{port}'}}\njournal: {{segment_bytes: 8KiB, retain_bytes: 30KiB}}\n",
    )
    with Bus(quick(bus_folder)) as bus, bus.publisher(KOJI) as koji:
        bus.serve_metrics()
        one = koji.publish(TOPIC, {})
        for number in range(200):
            koji.publish(TOPIC, {"n": number, "padding": "x" * 500})
        losses: list[object] = []
        key = f"{KOJI}/{one.epoch}/1"
        with bus.subscribe(since=key, endpoints=[KOJI], on_loss=losses.append) as subscriber:
            take_until(subscriber, lambda: losses)
            report = Report(bus_folder)
            assert report.streams[KOJI]["lost"] == 1
            assert report.state(f"reported {KOJI}") == "warning" and report.code == 0


@pytest.mark.parametrize("text", ["5", "a,b", "1,", "-1,2", "nan,1", "1,2,3"])
def test_thresholds_are_two_numbers(bus_folder: Path, text: str) -> None:
    done = CliRunner().invoke(check, ["--lag", text], obj={"config": str(bus_folder)})
    assert done.exit_code == 2 and "WARNING,CRITICAL" in done.output
