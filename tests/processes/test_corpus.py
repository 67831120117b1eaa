"""Messages recorded on a real infrastructure flow through publishers, a hub's consumer and a tail, and stay equal."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fedbus import Bus
from fedbus.config.init import create
from tests.conftest import Running
from tests.support import wait_until

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus" / "fedora-messages.jsonl"
PATIENCE = 120.0
ROOT = "org.example.dev"
HOST = "recorded"

CONSUMER = """
import json, fedbus

class Keep(fedbus.Consumer):
    topics = ("#",)
    since = "beginning"
    def start(self):
        self.file = open({path!r}, "a", buffering=1)
    def consume(self, message):
        shown = {{name: getattr(message, name) for name in
                 ("topic", "endpoint", "epoch", "sequence", "id", "time", "signer", "wire", "body")}}
        self.file.write(json.dumps(shown) + "\\n")
"""


class Recorded(NamedTuple):
    """One recorded message, as it is published here."""

    endpoint: str
    topic: str  # what follows the service
    body: dict[str, Any]


def read_corpus() -> list[Recorded]:
    """Every line; the recorded prefixes and environments are many, and all of them become those of the bus."""
    if not CORPUS.exists():
        pytest.skip(f"the recorded messages are not here: {CORPUS}")
    found = []
    for line in CORPUS.read_text("utf-8").splitlines():
        recorded = json.loads(line)
        # org.fedoraproject.prod.SERVICE.…: two labels of the prefix and the environment come first
        _, _, _, service, *rest = recorded["topic"].split(".")
        found.append(Recorded(f"{service}.{HOST}", ".".join(rest), recorded["msg"]))
    return found


def by_endpoint(rows: list[dict[str, Any]]) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    streams: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for row in rows:
        streams.setdefault(row["endpoint"], []).append((row["topic"], row["body"]))
    return streams


def test_every_recorded_message_reaches_a_consumer_and_a_tail_equal_and_in_order(
    tmp_path: Path, spawn: Callable[..., Running]
) -> None:
    recorded = read_corpus()
    assert len(recorded) > 500
    names = sorted({one.endpoint for one in recorded})
    folder = tmp_path / "bus"
    create(folder, names)
    kept = tmp_path / "kept.jsonl"
    (tmp_path / "keep.py").write_text(CONSUMER.format(path=str(kept)))
    receipts = []
    with Bus.open(folder) as bus:
        publishers = {name: bus.publisher(name) for name in names}
        pending = []
        # one half is there before they come, the other half comes while they read
        for place, one in enumerate(recorded):
            if place == len(recorded) // 2:
                hub = spawn("hub", "--consumer", tmp_path / "keep.py", config=folder)
                tail = spawn("tail", "--json", "--since", "beginning", config=folder)
                hub.wait_for("ready", PATIENCE)
            pending.append(publishers[one.endpoint].enqueue(one.topic, one.body))
        receipts = [one.result() for one in pending]
        wait_until(lambda: kept.exists() and kept.read_bytes().count(b"\n") >= len(recorded), PATIENCE, "the hub")
        wait_until(lambda: tail.out.count("\n") >= len(recorded), PATIENCE, "the tail")
        for running in (hub, tail):
            running.send(signal.SIGTERM)
        assert hub.wait(PATIENCE) == 0
        tail.wait(PATIENCE)
    wanted: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for one in recorded:
        service = one.endpoint.removesuffix(f".{HOST}")
        wanted.setdefault(one.endpoint, []).append((f"{ROOT}.{service}.{one.topic}", one.body))
    by_key = {(one.endpoint, one.epoch, one.sequence): (one.id, one.topic, one.time) for one in receipts}
    assert len(by_key) == len(recorded)
    for rows in ([json.loads(line) for line in kept.read_text("utf-8").splitlines()], tail.records()):
        assert len(rows) == len(recorded)
        assert by_endpoint(rows) == wanted
        for row in rows:
            assert row["signer"] == row["endpoint"]
            assert row["wire"] == "native"
            assert by_key[row["endpoint"], row["epoch"], row["sequence"]] == (row["id"], row["topic"], row["time"])
    assert "refused" not in hub.err + tail.err
