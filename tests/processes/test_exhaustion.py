"""Descriptors, threads and memory run out under load: what cannot be done is refused, and all is well again after."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from fedbus import Bus
from fedbus.config.init import create, free_ports
from fedbus.errors import DeadlineExceeded, QueueFull
from tests.conftest import COMMAND, Running
from tests.processes.test_hub_daemon import ready
from tests.processes.world import Worker, World
from tests.support import need_program, wait_until

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


# notes what it gets, and is killed by each message while the file *crash* is there
CRASHES = """
import os, signal, fedbus

class Note(fedbus.Consumer):
    topics = ("koji",)
    since = "beginning"

    def __init__(self, path, crash=""):
        self.path = path
        self.crash = crash

    def consume(self, message):
        if os.path.exists(self.crash):
            os.kill(os.getpid(), signal.SIGKILL)
        with open(self.path, "a") as file:
            file.write(f"{message.sequence}\\n")
"""


@pytest.mark.fault("F21")
def test_a_hub_that_may_start_no_process_and_no_thread_serves_the_others_and_the_isolated_one_when_it_may(
    bus_folder: Path, tmp_path: Path, spawn: Callable[..., Running]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can run the hub as another user, whom RLIMIT_NPROC binds")
    setpriv, prlimit = need_program("setpriv"), need_program("prlimit")
    consumers = bus_folder / "consumers"
    consumers.mkdir(mode=0o700)
    (consumers / "note.py").write_text(CRASHES)
    (consumers / "note.py").chmod(0o600)
    apart, beside, crash = tmp_path / "apart.txt", tmp_path / "beside.txt", tmp_path / "crash"
    (bus_folder / "50-hub.yaml").write_text(
        "hub: {folder: consumers, retry_pause: 100ms}\nconsumers:\n"
        "  apart: {use: note.py, isolation: process, attempts: 100, "
        f"settings: {{path: '{apart}', crash: '{crash}'}}}}\n"
        f"  beside: {{use: note.py, settings: {{path: '{beside}'}}}}\n"
    )
    (bus_folder / "50-hub.yaml").chmod(0o600)
    port = free_ports(1)[0]
    # nobody else's number, since the limit counts all processes of a user; who has this capability reads any file
    user = (setpriv, f"--reuid={2_000_000_000 + os.getpid()}", "--clear-groups")
    user += ("--inh-caps=+dac_override", "--ambient-caps=+dac_override")
    hub = spawn("hub", "--http", f"127.0.0.1:{port}", command=(*user, *COMMAND), config=bus_folder)
    hub.wait_for("ready")

    def limit_processes(most: str) -> None:
        subprocess.run([*user, prlimit, f"--pid={hub.process.pid}", f"--nproc={most}:"], check=True, timeout=60)

    def numbers(path: Path) -> list[int]:
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    with Bus.open(bus_folder) as bus, bus.publisher(KOJI) as koji:
        koji.publish("build.start", {})
        wait_until(lambda: numbers(apart) == numbers(beside) == [1])
        limit_processes("1")
        crash.touch()
        koji.publish("build.start", {})
        hub.wait_for("cannot start a process: Resource temporarily unavailable")
        crash.unlink()
        for _ in range(3):
            koji.publish("build.start", {})
        wait_until(lambda: numbers(beside) == [1, 2, 3, 4, 5])
        assert numbers(apart) == [1]
        wait_until(lambda: any("consumer apart" in one for one in ready(port)), what="/ready to say why")
        limit_processes("10000")
        wait_until(lambda: numbers(apart) == [1, 2, 3, 4, 5])
        wait_until(lambda: ready(port) == [], what="readiness")
    hub.send(signal.SIGTERM)
    assert hub.wait() == 0
    assert "Traceback" not in hub.err
