"""Descriptors, threads and memory run out under load: what cannot be done is refused, and all is well again after."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from fedbus import Bus
from fedbus.config.init import create
from fedbus.errors import DeadlineExceeded, QueueFull
from tests.conftest import Running
from tests.processes.world import Worker, World
from tests.support import wait_until

KOJI, HOOK = "koji.build01", "hook.host01"
SETTINGS = """
journal: {segment_bytes: 16KiB}
subscriber: {commit_interval: 50ms, silence: 2s}
hub: {commit_interval: 50ms}
"""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, [KOJI, HOOK], settings=SETTINGS, relayed=[HOOK])
    try:
        world.publisher(KOJI, 500.0).start()
        world.subscriber("reader").start()
        world.hub().start()
        world.wait_for(lambda now: len(now["consumers"]) == 2, "the readers")
        world.wait_until_passed_on(KOJI)
        yield world
    finally:
        world.close()


def limit_descriptors(worker: Worker, spare: int | None) -> None:
    """Let *worker* open *spare* descriptors more than it has; None: as many as before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if spare is not None:
        used = {int(path.name) for path in Path(f"/proc/{worker.pid}/fd").iterdir()}
        free = sorted(set(range(max(used) + spare + 2)) - used)
        # the limit counts numbers, so holes below it are still to be had; all but *spare* of them are not
        soft = free[spare] if spare < len(free) else max(used) + 1
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.fault("F21")
def test_a_publisher_without_descriptors_refuses_what_needs_a_new_file_and_goes_on_when_there_are_some(
    world: World,
) -> None:
    publisher = world.workers[KOJI]

    def refused_without(answer: dict[str, Any]) -> bool:
        limit_descriptors(publisher, 0)  # again: what was open for a moment only has left a number free
        return bool(answer["refused"])

    answer = world.wait_for(refused_without, "a refusal")
    limit_descriptors(publisher, None)
    world.wait_until_passed_on(KOJI)
    assert answer["lost"] == 0
    assert publisher.life == 1


@pytest.mark.fault("F21")
@pytest.mark.parametrize("name", ["reader", "hub"])
@pytest.mark.parametrize("spare", [0, 3])
def test_a_reader_without_descriptors_misses_nothing_once_there_are_some(world: World, name: str, spare: int) -> None:
    limit_descriptors(world.workers[name], spare)
    # now it has to connect anew, and to ask for what it has missed
    world.workers[KOJI].kill()
    world.workers[KOJI].start()
    acked = world.acked(KOJI)
    world.wait_for(lambda now: now["streams"][KOJI]["acked"] > acked + 300, "more messages")
    limit_descriptors(world.workers[name], None)
    world.wait_until_passed_on(KOJI)
    assert world.workers[name].life == 1


@pytest.mark.fault("F21")
def test_a_relay_without_descriptors_turns_nobody_away_for_good(world: World) -> None:
    world.relay().start()
    world.client("first", HOOK, 50.0).start()
    world.wait_until_passed_on(HOOK, more=10)
    limit_descriptors(world.workers["relay"], 0)
    for name in ("second", "third"):
        world.client(name, HOOK, 50.0).start()
    spooled = world.wait_for(lambda now: now["acked"] + now["spooled"] > 1000, "more messages")
    assert spooled["lost"] == 0
    limit_descriptors(world.workers["relay"], None)
    world.wait_until_passed_on(HOOK, more=200)
    world.wait_for(lambda now: "spooled" not in now["missing"], "what was spooled")
    assert world.workers["relay"].life == 1


@pytest.mark.fault("F21")
@pytest.mark.parametrize("name", [KOJI, "reader", "hub"])
@pytest.mark.parametrize("spare", [8 * 2**20])
def test_whoever_has_no_memory_and_no_threads_left_goes_on_or_ends_and_nothing_is_lost(
    world: World, name: str, spare: int
) -> None:
    worker = world.workers[name]
    assert worker.process is not None
    pages = int(Path(f"/proc/{worker.pid}/statm").read_text().split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.prlimit(worker.pid, resource.RLIMIT_AS, (pages * resource.getpagesize() + spare, hard))
    # a burst to be caught up with, and new connections
    other = world.workers["reader" if name == KOJI else KOJI]
    other.kill()
    other.start()
    acked = world.acked(KOJI)

    def moved(now: dict[str, Any]) -> bool:
        return worker.process is None or worker.process.poll() is not None or now["acked"] > acked + 300

    world.wait_for(moved, "more messages", check=False)
    if worker.process.poll() is None:
        resource.prlimit(worker.pid, resource.RLIMIT_AS, (hard, hard))
    else:
        # libzmq ends a process that has no memory left; a supervisor starts it again
        assert worker.process.returncode in (1, -signal.SIGABRT, -signal.SIGSEGV, -signal.SIGKILL), worker.tail()
        worker.start()
    world.wait_until_passed_on(KOJI)


@pytest.mark.fault("F5")
def test_what_a_relay_may_have_published_before_it_died_is_not_called_refused_where_the_spool_is_full(
    tmp_path: Path, spawn: Callable[..., Running]
) -> None:
    folder = tmp_path / "bus"
    create(folder, [HOOK])
    endpoints = folder / "20-endpoints.yaml"
    endpoints.write_text(endpoints.read_text().replace(f"  {HOOK}:\n", f"  {HOOK}:\n    relay: true\n"))
    with TemporaryDirectory(prefix="fedbus-") as short:
        (folder / "60-relay.yaml").write_text(f"relay: {{spool_bytes: 1KiB, socket: {short}/relay}}\n")
        (folder / "60-relay.yaml").chmod(0o600)
        relay = spawn("relay", config=folder, environment={"FEDBUS_FAILPOINTS": "relay.journaled=kill@1"})
        relay.wait_for("ready")
        with Bus.open(folder) as bus, bus.publisher(HOOK) as hook:
            with pytest.raises(DeadlineExceeded, match="may be published all the same"):
                hook.publish("build.start", {"n": 1, "pad": "x" * 2000})
            assert relay.wait() == -signal.SIGKILL
            with pytest.raises(QueueFull):
                hook.publish("build.start", {"n": 2, "pad": "x" * 2000})
        again = spawn("relay", config=folder)
        again.wait_for("ready")
        with Bus.open(folder) as bus, bus.publisher(HOOK) as hook, bus.subscribe(since="beginning") as subscriber:
            hook.publish("build.start", {"n": 3})
            got: list[int] = []
            wait_until(lambda: got.extend(one.body["n"] for one in subscriber.receive(0.05)) or 3 in got, 30.0)
        assert got == [1, 3]
