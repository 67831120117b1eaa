"""What `fedbus check` finds out about streams, cursors, journals and the disk of a bus that runs."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from buses import BODHI, GIT, KOJI, PATIENCE, first, quick, take, take_until
from click.testing import CliRunner

from fedbus import Bus, Consumer, Message
from fedbus.cli.check import check
from fedbus.cli.common import http_address
from fedbus.clock import SystemClock
from fedbus.config.init import free_ports
from fedbus.model.position import Position
from fedbus.monitor.text import parse
from tests.support import wait_until

TOPIC = "package.build.complete"


class Report:
    """What one call has said."""

    def __init__(self, folder: Path, *options: str) -> None:
        # an endpoint that runs answers, however long that takes; where nobody listens that is known at once
        patience = () if "--timeout" in options else ("--timeout", f"{PATIENCE / 2}")
        done = CliRunner().invoke(check, ["--json", *patience, *options], obj={"config": str(folder)})
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
            assert koji.wait_for_subscribers(1, PATIENCE)  # or the message comes from the journal, behind a gap
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


@pytest.mark.badinput("B49")
def test_a_port_for_which_no_host_is_given_is_one_of_the_loopback_and_is_asked_there(bus_folder: Path) -> None:
    (port,) = free_ports(1)
    write(bus_folder, "90-http.yaml", f"metrics: {{http: ':{port}'}}\n")
    with Bus(quick(bus_folder)) as bus:
        assert bus.serve_metrics().address == f"127.0.0.1:{port}"
        assert Report(bus_folder).state("metrics ready") == "ok"
    option = click.Option(["--http"])
    assert http_address(click.Context(check), option, f":{port}") == f":{port}"
    with pytest.raises(click.BadParameter):
        http_address(click.Context(check), option, ":")


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


def prometheus(folder: Path, *options: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """The samples of one call, after promtool, where it is installed, has found nothing against them."""
    called = ["--format", "prometheus", "--timeout", f"{PATIENCE / 2}", *options]
    done = CliRunner().invoke(check, called, obj={"config": str(folder)})
    assert isinstance(done.exception, (SystemExit, type(None))), done.exc_info
    promtool = shutil.which("promtool")
    if promtool is not None:
        said = subprocess.run(
            [promtool, "check", "metrics"], input=done.stdout, capture_output=True, text=True, timeout=60, check=False
        )
        assert (said.returncode, said.stderr) == (0, ""), said.stderr
    return {(name, frozenset(labels.items())): value for name, labels, value in parse(done.stdout)}


def test_prometheus_gets_states_and_figures_and_each_but_once(bus_folder: Path) -> None:
    with Bus(quick(bus_folder)) as bus, bus.publisher(KOJI) as koji:
        for number in range(30):
            koji.publish(TOPIC, {"n": number})
        with bus.subscribe(since="beginning", cursor="nightly", endpoints=[KOJI]) as subscriber:
            subscriber.done(first(subscriber, 12)[-1])
        found = prometheus(bus_folder, "--lag-of", "nightly=5,100")

    def value(name: str, /, **labels: str) -> float:
        return found[f"fedbus_check_{name}", frozenset(labels.items())]

    assert value("worst") == 1  # a warning: nobody publishes as the others
    assert value("state", area="endpoints", name=f"{KOJI} publish") == 0
    assert value("state", area="streams", name=f"lag nightly {KOJI}") == 1
    assert value("stream_head", endpoint=KOJI) == 30
    assert value("cursor_lag_messages", endpoint=KOJI, cursor="nightly") == 18
    assert value("cursor_lost_messages", endpoint=KOJI, cursor="nightly") == 0
    assert value("expires_seconds", what=f"certificate {KOJI}") > 86400
    assert value("disk_free_bytes") > 0 and value("timestamp_seconds") > 1_700_000_000
    assert any(name == "fedbus_check_expires_seconds" and "revocation list" in str(labels) for name, labels in found)


@pytest.mark.badinput("B42")
def test_programs_that_choose_ever_new_names_of_cursors_make_no_labels_without_end(bus_folder: Path) -> None:
    with Bus(quick(bus_folder)) as bus, bus.publisher(KOJI) as koji:
        koji.publish(TOPIC, {})
        with bus.cursors as store:
            for number in range(150):
                store.save(f"run{number}", {KOJI: Position(koji.epoch, 0)})
        found = prometheus(bus_folder)
    cursors = {dict(labels).get("cursor") for name, labels in found if name == "fedbus_check_cursor_lag_messages"}
    assert len(cursors) == 101 and "other" in cursors


def test_output_is_written_in_one_step_and_readable_for_a_collector(bus_folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "collector"
    place.mkdir()
    target = place / "fedbus.prom"

    def write(*options: str) -> int:
        return CliRunner().invoke(check, ["--output", str(target), *options], obj={"config": str(bus_folder)}).exit_code

    assert write("--format", "prometheus") == 0
    assert "fedbus_check_worst 1\n" in target.read_text()
    assert target.stat().st_mode & 0o777 == 0o644
    assert [one.name for one in place.iterdir()] == ["fedbus.prom"]
    (bus_folder / "10-bus.yaml").write_text("no: [such\n")
    assert write("--format", "prometheus") == 3
    assert "fedbus_check_worst 3\n" in target.read_text()
    target = place / "missing" / "x"
    assert write("--format", "json") == 1


def test_a_form_is_chosen_once_and_all_forms_agree(bus_folder: Path) -> None:
    def call(*options: str) -> tuple[int, str]:
        done = CliRunner().invoke(check, options, obj={"config": str(bus_folder)})
        return done.exit_code, done.output

    assert call("--json", "--nagios")[0] == 2
    assert call("--json", "--format", "text")[0] == 2
    assert json.loads(call("--format", "json", "--json")[1])["state"] == "warning"
    assert call("--format", "nagios")[1].startswith("FEDBUS WARNING - ")
    assert call("--format", "text")[1].startswith("OK  ")
    code, text = call("--lag-of", "irc")
    assert code == 2 and "NAME=WARNING,CRITICAL" in text


def test_dead_letters_are_told_by_their_number(bus_folder: Path) -> None:
    settings = quick(bus_folder)
    assert Report(bus_folder).values["dead_letters"] == {}
    assert not settings.dead.exists()  # looking has not made it
    with Bus(settings) as bus, bus.publisher(KOJI) as koji:
        failing = Failing()
        with bus.hub([failing], options=replace(settings.hub, retry_pause=0.001)) as hub:
            wait_until(lambda: hub.joined, PATIENCE)
            for _ in range(3):
                koji.publish(TOPIC, {})
            wait_until(lambda: len(bus.dead.list()) == 3, PATIENCE)
    report = Report(bus_folder)
    assert report.values["dead_letters"] == {"failing": 3}
    assert report.state("dead letters failing") == "warning" and report.code == 0
    assert Report(bus_folder, "--dead", "1,3").code == 1


class Failing(Consumer):
    topics = ("koji",)

    def consume(self, message: Message) -> None:
        raise ValueError("no")


def test_a_consumer_that_should_run_and_a_hub_that_is_not_ready_are_told(bus_folder: Path) -> None:
    assert Report(bus_folder, "--consumer", "collect").state("consumer collect") == "unknown"
    (port,) = free_ports(1)
    write(bus_folder, "90-http.yaml", f"hub: {{http: '127.0.0.1:{port}'}}\n")
    settings = quick(bus_folder)
    report = Report(bus_folder, "--consumer", "collect")
    assert report.state("consumer collect") == "critical" and report.code == 1
    with Bus(settings) as bus:
        options = replace(settings.hub, http=f"127.0.0.1:{port}")
        with bus.hub([Collect()], options=options, problems=["a.yaml:7: it is broken"]) as hub:
            wait_until(lambda: hub.joined, PATIENCE)
            report = Report(bus_folder, "--consumer", "collect", "--consumer", "irc")
            assert report.state("consumer collect") == "ok" and report.state("consumer irc") == "critical"
            assert report.state("hub ready") == "warning"
            assert "a.yaml:7: it is broken" in report.results["hub ready"]["text"]


@pytest.mark.badinput("B50")
@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00" * 100_000,
        b"HTTP/1.0 200 OK\r\n\r\nfedbus_endpoint_gaps_total{endpoint=\xff} x\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 99999999999\r\n\r\n{}",
        b"HTTP/1.0 503 No\r\n\r\n",
    ],
)
def test_a_port_that_answers_nonsense_is_a_warning(bus_folder: Path, answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        write(bus_folder, "90-http.yaml", f"hub: {{http: '127.0.0.1:{server.getsockname()[1]}'}}\n")
        ended = threading.Event()

        def serve() -> None:
            server.settimeout(0.05)
            while not ended.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = server.accept()
                    with connection:
                        connection.settimeout(PATIENCE)
                        connection.recv(65536)
                        connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            report = Report(bus_folder, "--timeout", "0.3")
        finally:
            ended.set()
            thread.join(PATIENCE)
        assert report.state("hub.http") == "warning"


@pytest.mark.parametrize("text", ["5", "a,b", "1,", "-1,2", "nan,1", "1,2,3"])
def test_thresholds_are_two_numbers(bus_folder: Path, text: str) -> None:
    done = CliRunner().invoke(check, ["--lag", text], obj={"config": str(bus_folder)})
    assert done.exit_code == 2 and "WARNING,CRITICAL" in done.output
