"""Encrypted buses as their operators meet them: made at once, or out of a plain one while it carries traffic."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedbus.config.init import create, free_ports
from fedbus.config.settings import Settings
from tests.conftest import ENDPOINTS, Running
from tests.processes import own_ports
from tests.support import wait_until

KOJI, BODHI = "koji.build01", "bodhi.web01"
PATIENCE = 120.0  # seconds; readers promise ten

Command = Callable[..., subprocess.CompletedProcess[str]]

# publishes the number that each message gets, and prints what it has a receipt for
SAY = """
import os, signal, sys
import fedbus

# waited for in place of handled: a handler could interrupt the very line that holds the lock of what it sets
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
with fedbus.Bus.open(sys.argv[1]) as bus, bus.publisher("koji.build01") as koji:
    while signal.sigtimedwait({signal.SIGTERM}, 0.005) is None:
        receipt = koji.publish("build.start", {"n": koji.head + 1})
        os.write(1, b"%d\\n" % receipt.sequence)
"""

RECORD = """
import fedbus

class Record(fedbus.Consumer):
    topics = ("#",)
    since = "beginning"
    def start(self):
        self.file = open({path!r}, "a", buffering=1)
    def consume(self, message):
        self.file.write(f"{{message.body['n']}}\\n")
"""


class Host:
    """A configuration folder; its files of endpoints are exchanged as a deployment would do it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "20-endpoints.yaml"

    def deploy(self, entries: dict[str, dict[str, object]]) -> None:
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps({"endpoints": entries}))
        new.chmod(0o600)
        new.replace(self._path)


@pytest.fixture
def here(bus_folder: Path) -> Host:
    """The host that publishes."""
    return Host(bus_folder)


@pytest.fixture
def there(bus_folder: Path, tmp_path: Path) -> Host:
    """A host that reads: it has the CA and the endpoints file, and nothing else of the other one."""
    folder = tmp_path / "there"
    shutil.copytree(bus_folder, folder)
    shutil.rmtree(folder / "state")
    for path in (folder / "keys").iterdir():
        if path.name not in ("ca.crt", "crl.pem"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return Host(folder)


def say(spawn: Callable[..., Running], host: Host) -> Running:
    return spawn(host.folder, command=(sys.executable, "-c", SAY))


def end(publisher: Running) -> int:
    """Stop *publisher* and return the last number that it has a receipt for."""
    publisher.send(signal.SIGTERM)
    assert publisher.wait() == 0, publisher.err
    return int(publisher.out.split()[-1])


@pytest.mark.fault("F23")
@pytest.mark.parametrize("order", ["readers first", "publisher first", "without a pause"])
def test_a_bus_is_encrypted_in_the_documented_order_and_nothing_is_lost_or_repeated(
    here: Host, there: Host, spawn: Callable[..., Running], fedbus: Command, tmp_path: Path, order: str
) -> None:
    settings = Settings.load(here.folder, {})
    plain: dict[str, dict[str, object]] = {
        name: {"publish": one.publish, "replay": one.replay} for name, one in settings.endpoints.items()
    }
    # every host has a pair, and the publisher knows who may connect
    client = fedbus("keys", "link", "--name", "there", config=there.folder).stdout
    (here.folder / "keys" / "clients").write_text(client)
    (here.folder / "keys" / "clients").chmod(0o600)
    links = here.folder / "40-links.yaml"
    links.write_text("links: {clients: keys/clients}\n")
    links.chmod(0o600)
    key = json.loads(fedbus("keys", "curve", KOJI, "--json", config=here.folder).stdout)[KOJI]["curve"]

    consumer, consumed = tmp_path / "record.py", tmp_path / "record.txt"
    consumer.write_text(RECORD.format(path=str(consumed)))
    consumer.chmod(0o600)
    publisher = say(spawn, here)
    tail = spawn("tail", "-v", "--json", "--since", "beginning", config=there.folder)
    spawn("hub", "--consumer", consumer, config=there.folder)

    def by_tail() -> list[int]:
        return [one["body"]["n"] for one in tail.records()]

    def by_hub() -> list[int]:
        return [int(line) for line in consumed.read_text().split("\n")[:-1]] if consumed.exists() else []

    def arrives(number: int) -> None:
        for seen in (by_tail, by_hub):
            wait_until(lambda: seen()[-1:] >= [number], PATIENCE, f"message {number}")  # noqa: B023

    arrives(20)
    encrypted = {**plain, KOJI: {**plain[KOJI], "curve": key}}
    if order == "readers first":
        there.deploy(encrypted)
        tail.wait_for("does not encrypt yet", PATIENCE)
        last = end(publisher)
        here.deploy(encrypted)
        publisher = say(spawn, here)
        arrives(last + 20)
    elif order == "publisher first":
        last = end(publisher)
        here.deploy(encrypted)
        publisher = say(spawn, here)
        tail.wait_for("has no `curve` key", PATIENCE)
        there.deploy(encrypted)
        arrives(last + 20)
    else:
        ports = [f"tcp://127.0.0.1:{port}" for port in free_ports(2)]
        second = {"publish": ports[0], "replay": ports[1], "curve": key}
        last = end(publisher)
        here.deploy({**plain, KOJI: {**plain[KOJI], "also": second}})
        publisher = say(spawn, here)
        arrives(last + 20)
        for host in (here, there):
            host.deploy({**plain, KOJI: {**second, "also": plain[KOJI]}})
        tail.wait_for(f"moved {KOJI}", PATIENCE)
        arrives(by_tail()[-1] + 20)
        last = end(publisher)
        for host in (here, there):
            host.deploy({**plain, KOJI: second})
        publisher = say(spawn, here)
        arrives(last + 20)
        assert "no connection" not in tail.err

    checked = fedbus("check", "--json", "--timeout", "30", config=there.folder)
    states = {one["name"]: one["state"] for one in json.loads(checked.stdout)["results"]}
    assert states[f"{KOJI} publish"] == states[f"{KOJI} replay"] == "ok"
    last = end(publisher)
    # the last ones may be on their way still, and with the publisher gone nobody can ask again
    publisher = say(spawn, here)
    arrives(last)
    expected = list(range(1, last + 1))
    assert by_tail()[:last] == expected
    assert by_hub()[:last] == expected
    for one in (tail, publisher):
        assert "Traceback" not in one.err


def test_a_bus_that_init_has_encrypted_works_with_every_command(
    tmp_path: Path, spawn: Callable[..., Running], fedbus: Command
) -> None:
    folder = tmp_path / "encrypted"
    arguments = [part for name in ENDPOINTS for part in ("--endpoint", name)]
    made = spawn("init", folder, *arguments, "--curve", command=own_ports.command(len(ENDPOINTS)))
    assert made.wait() == 0, made.err
    consumer, consumed = tmp_path / "record.py", tmp_path / "record.txt"
    consumer.write_text(RECORD.format(path=str(consumed)))
    consumer.chmod(0o600)
    tail = spawn("tail", "-v", "--json", "--count", "3", config=folder)
    tail.wait_for("reading ")
    hub = spawn("hub", "--consumer", consumer, config=folder)
    for number in range(3):
        name = ENDPOINTS[number]
        done = fedbus("publish", "thing.change", json.dumps({"n": number}), "--as", name, config=folder)
        assert done.returncode == 0, done.stderr
    assert tail.wait() == 0, tail.err
    assert sorted(one["body"]["n"] for one in tail.records()) == [0, 1, 2]
    wait_until(lambda: consumed.exists() and len(consumed.read_text().split()) == 3, PATIENCE)
    hub.send(signal.SIGTERM)
    hub.wait()
    assert fedbus("check", "--timeout", "10", config=folder).returncode == 0
    # its keys are its own: a bus that was made beside it is not let in
    other = tmp_path / "other"
    create(other, ENDPOINTS, encrypted=True)
    shutil.copy(folder / "20-endpoints.yaml", other / "20-endpoints.yaml")
    (other / "keys" / f"{KOJI}.key").unlink()  # as on a host that only reads it
    publisher = say(spawn, Host(folder))
    wait_until(lambda: publisher.out, PATIENCE)
    stranger = fedbus("check", "--json", "--timeout", "30", config=other)
    texts = {one["name"]: one["text"] for one in json.loads(stranger.stdout)["results"]}
    assert "refuses this host" in texts[f"{KOJI} publish"]
    publisher.wait_for("its key is not in", PATIENCE)
    end(publisher)
