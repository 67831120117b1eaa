"""What many endpoints cost one subscriber: time until all are heard of, memory, and processor time while all idle.

The endpoints are real publishers (one journal and two sockets each), spread over a few processes; each has published
one message. The subscriber asks for everything from the beginning, and has heard of an endpoint when it was handed
that message. Idle means: only the endpoints' beats, one a second each.
"""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

from bench.body import TOPIC, event
from bench.fedbus import MEGABYTE, make_bus
from bench.harness import Session
from bench.role import Line, usage

SIZES = (1, 10, 100, 500)
IN_ONE_PROCESS = 125


def measure(session: Session) -> None:
    """Record scale/endpoints-N/connect, /memory and /cpu for each size."""
    for size in SIZES:
        names = [f"koji.n{number:03}" for number in range(size)]

        def make(folder: Path, names: list[str] = names) -> None:
            make_bus(folder / "fedbus.d", names)

        config = str(session.kept(f"scale-{size}", make) / "fedbus.d")
        with contextlib.ExitStack() as stack:
            for begin in range(0, size, IN_ONE_PROCESS):
                share = {"config": config, "names": names[begin : begin + IN_ONE_PROCESS]}
                stack.enter_context(session.worker("bench.scale", "publish", share)).expect("ready")
            idle = session.pick(10, 5) if size == SIZES[-1] else session.pick(5, 1)
            settings = {"config": config, "size": size, "idle_s": idle, "settle_s": session.pick(20, 5) / 10}
            with session.worker("bench.scale", "subscribe", settings) as subscriber:
                report = subscriber.expect("report")
        session.record(f"scale/endpoints-{size}/connect", report["connect_s"] * 1_000, "ms")
        session.record(f"scale/endpoints-{size}/memory", report["rss"] / MEGABYTE, "MB")
        session.record(f"scale/endpoints-{size}/cpu", report["cpu_percent"], "% of a core")


def publish(line: Line, settings: dict[str, Any]) -> dict[str, Any]:
    """Open the publishers "names", let each publish once, and leave them until the harness ends this process."""
    import fedbus

    bus = fedbus.Bus.open(Path(settings["config"]))
    with contextlib.ExitStack() as stack:
        for number, name in enumerate(settings["names"]):
            stack.enter_context(bus.publisher(name)).publish(TOPIC, event(number))
        line.say("ready")
        line.wait("stop", timeout=600.0)
    return usage()


def subscribe(_line: Line, settings: dict[str, Any]) -> dict[str, Any]:
    """Hear of all endpoints, then idle."""
    import fedbus

    size: int = settings["size"]
    heard: set[str] = set()
    complete = threading.Event()
    bus = fedbus.Bus.open(Path(settings["config"]))

    def receive() -> None:
        for message in bus.subscribe("#", since="beginning"):
            heard.add(message.endpoint)
            if len(heard) == size:
                complete.set()

    begin = time.monotonic()
    threading.Thread(target=receive, daemon=True).start()
    if not complete.wait(timeout=90.0):
        raise RuntimeError(f"heard of {len(heard)} of {size} endpoints within 90 s")
    connect = time.monotonic() - begin
    time.sleep(settings["settle_s"])  # what connecting left to do
    before = time.process_time()
    time.sleep(settings["idle_s"])
    share = (time.process_time() - before) / settings["idle_s"]
    return {**usage(), "connect_s": connect, "cpu_percent": share * 100}
