"""Shipped consumers in the real daemon: commands that are run, addresses that are posted to, and what fails there."""

from __future__ import annotations

import base64
import json
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook as Receiver

from fedbus import Bus, Publisher
from fedbus.config.init import free_ports
from tests.conftest import Running
from tests.support import wait_until
from tests.unit.consumers.server import Server

KOJI = "koji.build01"
SECRET = f"whsec_{base64.b64encode(b's' * 32).decode()}"
# appends the number of the message that it gets, with what the message asks for
COMMAND = """
import json, os, sys, time
message = json.load(sys.stdin)
body = message["body"]
with open(sys.argv[1], "a") as file:
    file.write(f"{message['sequence']} {os.getpid()}\\n")
time.sleep(body.get("sleep", 0))
print("a reason")
sys.exit(body.get("code", 0))
"""


@pytest.fixture
def koji(bus_folder: Path) -> Iterator[Publisher]:
    with Bus.open(bus_folder) as bus, bus.publisher(KOJI) as publisher:
        yield publisher


@pytest.fixture
def hub(bus_folder: Path, spawn: Callable[..., Running]) -> Callable[..., Running]:
    """Run a hub with one consumer: `hub("trigger", settings, **more)`."""

    def run(name: str, settings: dict[str, Any], hub: dict[str, Any] | None = None, **more: Any) -> Running:
        consumers = {name: {"use": f"fedbus_consumers.{name}", "topics": ["koji"], "settings": settings, **more}}
        path = bus_folder / "60-consumers.yaml"
        path.write_text(json.dumps({"hub": {"retry_pause": "50ms", **(hub or {})}, "consumers": consumers}))
        path.chmod(0o600)
        running = spawn("hub", config=bus_folder)
        running.wait_for("ready")
        return running

    return run


def rows(path: Path) -> list[tuple[int, int]]:
    """What the command has written: sequences and process ids."""
    text = path.read_text() if path.exists() else ""
    return [(int(sequence), int(pid)) for sequence, pid in (line.split() for line in text.splitlines())]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def publish(koji: Publisher, *bodies: dict[str, Any]) -> None:
    for body in bodies:
        koji.publish("package.build.complete", body)


def test_the_hub_runs_a_command_for_each_message_and_those_that_fail_become_dead_letters(koji, hub, fedbus, tmp_path):
    got = tmp_path / "got"
    settings = {"command": [sys.executable, "-c", COMMAND, str(got)], "exit_codes": {"drop": [65]}}
    running = hub("trigger", settings, attempts=2)
    publish(koji, {}, {"code": 3}, {"code": 65}, {})
    wait_until(lambda: [sequence for sequence, _ in rows(got)] == [1, 2, 2, 3, 4], 60, "all messages")
    running.send(signal.SIGTERM)
    assert running.wait() == 0, running.err
    (letter,) = json.loads(fedbus("dead", "list", "--json").stdout)
    assert letter["sequence"] == 2
    assert "exit code 3; it printed: a reason" in letter["reason"]
    assert "exit code 65" in running.err


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_hub_that_stops_ends_the_commands_that_still_run_and_their_messages_come_again(
    koji, hub, tmp_path, isolation
):
    got = tmp_path / "got"
    settings = {"command": [sys.executable, "-c", COMMAND, str(got)], "timeout": "10m", "kill_after": "1s"}
    first = hub("trigger", settings, {"drain_timeout": "200ms"}, isolation=isolation, timeout="10m")
    publish(koji, {"sleep": 600})
    ((_, pid),) = wait_until(lambda: rows(got), 60, "the command")
    first.send(signal.SIGTERM)
    first.wait()
    wait_until(lambda: not alive(pid), 60, "the end of the command")
    second = hub("trigger", settings, {"drain_timeout": "200ms"}, isolation=isolation, timeout="10m")
    wait_until(lambda: [sequence for sequence, _ in rows(got)] == [1, 1], 60, "the message once more")
    second.send(signal.SIGKILL)
    second.wait()
    wait_until(lambda: not alive(rows(got)[1][1]), 60, "the end of the command of a hub that was killed")


def test_what_waits_for_quiet_outlives_a_hub_that_is_killed(koji, hub, tmp_path):
    got = tmp_path / "got"
    command = [sys.executable, "-c", COMMAND, str(got)]
    debounce = {"quiet": "10m", "longest": "10m", "state": str(tmp_path / "waiting.db")}
    first = hub("trigger", {"command": command, "debounce": debounce}, {"commit_interval": "50ms"})
    publish(koji, {}, {}, {})

    def kept() -> bool:
        try:
            with closing(sqlite3.connect(f"file:{tmp_path}/waiting.db?mode=ro", uri=True, timeout=60.0)) as store:
                found = store.execute("SELECT record FROM waiting").fetchall()
        except sqlite3.OperationalError:
            return False  # it has not been made yet
        return [json.loads(row[0])["sequence"] for row in found] == [3]

    wait_until(kept, 60, "the last message in the file")
    first.send(signal.SIGKILL)
    first.wait()
    hub("trigger", {"command": command, "debounce": {**debounce, "quiet": 0, "longest": 0}})
    # messages whose cursor was not written yet come again first
    wait_until(lambda: [sequence for sequence, _ in rows(got)][-1:] == [3], 60, "the command")


def test_the_hub_posts_each_message_once_it_can_and_those_not_taken_become_dead_letters(koji, hub, fedbus, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    server = Server()
    statuses = {1: [503, 503, 200], 2: [422, 422], 3: [204]}
    server.answer = lambda request: (
        statuses[int(json.loads(request.body)["sequence"])].pop(0),
        {"Retry-After": "0"},
        b"a reason",
    )
    try:
        settings = {"url": server.url, "allow_http": True, "secrets": [{"file": str(secret)}], "longest_pause": 0.1}
        running = hub("webhook", settings, attempts=2)
        publish(koji, {"n": 1}, {"n": 2}, {"n": 3})
        wait_until(lambda: len(server.requests) == 6, 60, "all requests")
        running.send(signal.SIGTERM)
        assert running.wait() == 0, running.err
    finally:
        server.close()
    for request in server.requests:
        Receiver(SECRET).verify(request.body, request.headers)
    assert [json.loads(request.body)["data"]["n"] for request in server.requests] == [1, 1, 1, 2, 2, 3]
    assert len({request.headers["webhook-id"] for request in server.requests}) == 3
    (letter,) = json.loads(fedbus("dead", "list", "--json").stdout)
    assert letter["sequence"] == 2
    assert "it answered 422: a reason" in letter["reason"]


def test_an_address_where_nobody_is_keeps_messages_until_somebody_is(koji, hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    (port,) = free_ports(1)
    settings = {
        "url": f"http://127.0.0.1:{port}/",
        "allow_http": True,
        "secrets": [{"env": "HOOK_SECRET"}],
        "longest_pause": 0.1,
    }
    running = hub("webhook", settings)
    publish(koji, {}, {})
    server = Server(port=port)
    try:
        wait_until(lambda: len(server.requests) == 2, 60, "both messages")
        running.send(signal.SIGTERM)
        assert running.wait() == 0, running.err
    finally:
        server.close()


def test_settings_that_do_not_fit_leave_the_hub_running_and_name_the_field(hub):
    running = hub("trigger", {"command": "rm -rf /", "shell": True})
    running.wait_for("is not of type 'array'")
    running.wait_for("'shell' was unexpected")


def test_with_workers_several_commands_run_at_a_time(koji, hub, tmp_path):
    # each waits until all three have begun
    code = COMMAND.replace(
        'time.sleep(body.get("sleep", 0))',
        'while sum(1 for _ in open(sys.argv[1])) < 3: time.sleep(0.01)\nopen(f"{sys.argv[1]}.{os.getpid()}", "w")',
    )
    got = tmp_path / "got"
    settings = {"command": [sys.executable, "-c", code, str(got)]}
    running = hub("trigger", settings, workers=3, ordered_by="none")
    publish(koji, {}, {}, {})
    wait_until(lambda: len(list(tmp_path.glob("got.*"))) == 3, 60, "the end of all three")
    running.send(signal.SIGTERM)
    assert running.wait() == 0, running.err
    assert sorted(sequence for sequence, _ in rows(got)) == [1, 2, 3]
