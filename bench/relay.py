"""The relay beside a publisher that holds its endpoint itself: messages a second, and what one script waits for.

Both journal with the default policy, each batch synced. The rates are from the first enqueue to the last receipt, in
one process and one thread; nobody subscribes. A process is `fedbus publish` with one message, from fork to exit, with
compiled modules, as where fedbus is installed.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.body import TOPIC, event
from bench.fedbus import make_bus
from bench.harness import BenchError, Session
from bench.role import Line

RELAYED, DIRECT = "koji.hook01", "koji.bench"
BODY = '{"package": "bash", "version": "5.2.37"}'


def measure(session: Session) -> None:
    """Record relay/publish, relay/direct-publish (msg/s), relay/process and relay/direct-process (ms)."""
    with session.scratch("relay") as folder:
        config = folder / "fedbus.d"
        make_bus(config, [RELAYED, DIRECT])
        endpoints = config / "20-endpoints.yaml"
        endpoints.write_text(endpoints.read_text().replace(f"  {RELAYED}:\n", f"  {RELAYED}:\n    relay: true\n"))
        environment = {"FEDBUS_CONFIG": str(config), "PYTHONPYCACHEPREFIX": str(folder / "compiled")}
        command = [sys.executable, "-m", "fedbus.cli", "relay"]
        ready = (config / "state" / "relay.sock").exists
        with session.server(command, environment=environment, folder=folder, ready=ready):
            for name, row, count in (
                (RELAYED, "relay/publish", session.pick(15_000, 5_000)),
                (DIRECT, "relay/direct-publish", session.pick(60_000, 20_000)),
            ):
                settings = {"config": str(config), "endpoint": name, "count": count}
                with session.worker("bench.relay", "publish", settings) as worker:
                    report = worker.expect("report")
                session.record(row, count / report["seconds"], "msg/s")
            for name, row in ((RELAYED, "relay/process"), (DIRECT, "relay/direct-process")):
                times = [_process(name, environment) for _ in range(1 + session.pick(7, 5))]
                session.record(row, statistics.median(times[1:]) * 1_000, "ms")


def publish(_line: Line, settings: dict[str, Any]) -> dict[str, Any]:
    """Publish "count" messages as "endpoint" and wait for the last receipt."""
    import fedbus

    with fedbus.Bus.open(Path(settings["config"])) as bus, bus.publisher(settings["endpoint"]) as publisher:
        for number in range(500):
            publisher.enqueue(TOPIC, event(number))
        publisher.flush()
        begin = time.monotonic()
        for number in range(settings["count"]):
            publisher.enqueue(TOPIC, event(number))
        publisher.flush()
        seconds = time.monotonic() - begin
        spooled = getattr(publisher.stats, "spooled", 0)
    if spooled:
        raise RuntimeError(f"{spooled} messages were spooled")
    return {"seconds": seconds}


def _process(endpoint: str, environment: dict[str, str]) -> float:
    """Seconds that one `fedbus publish` takes from its start to its end."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-m", "fedbus.cli", "publish", TOPIC, BODY, "--as", endpoint, "--wait", "0", "--quiet"]
    begin = time.monotonic()
    done = subprocess.run(
        command, env={**inherited, **environment}, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    taken = time.monotonic() - begin
    if done.returncode or done.stderr:
        raise BenchError(f"fedbus publish ended with {done.returncode}: {done.stderr.decode(errors='replace')[-500:]}")
    return taken
